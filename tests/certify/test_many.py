"""`lipschitz_many` gives what `lipschitz` gives, in one call."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import certify
import weightspace
from weightspace.errors import ShapeError, UnsupportedOperationError
from weightspace.layers import MaxMin


def networks(template, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for k in range(count):
        drawn[k] = template.replace_parameters(
            {
                name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
                for name, value in template.parameters.items()
            }
        )
    return list(drawn.values())


def template(widths, activation, dtype=torch.float64):
    layers = [nn.Linear(widths[0], widths[1]), activation, nn.Linear(widths[1], widths[2])]
    return weightspace.trace(nn.Sequential(*layers).to(dtype), (torch.zeros(2, widths[0], dtype=dtype),))


@pytest.mark.parametrize(("norm", "output"), [("l2", None), ("l2", (0, 1)), ("linf", 0)])
def test_equals_one_after_another(norm, output):
    small = networks(template([3, 6, 2], nn.ReLU(), torch.float32), 5)
    groups = networks(template([4, 6, 2], MaxMin()), 4)
    large = networks(template([3, 90, 2], nn.Tanh()), 2)
    mixed = [small[0], groups[0], large[0], *small[1:], *groups[1:], *large[1:]]
    with ThreadPoolExecutor(1) as executor:
        together = certify.lipschitz_many(mixed, norm=norm, output=output, executor=executor)
    assert len(together) == len(mixed)
    for network, certificate in zip(mixed, together, strict=True):
        alone = certify.lipschitz(network, norm=norm, output=output, bounder=certify.LipSDP())
        assert certificate.network_hash == network.hash
        assert certificate.upper_bound == pytest.approx(alone.upper_bound, rel=2e-6)
        assert alone.sampled_lower_bound <= certificate.upper_bound
        assert certificate.optimum_lower_bound <= certificate.upper_bound
        assert certify.check(certificate, network)
    assert sum("together" in certificate.method for certificate in together) == 9


def test_what_cannot_be_solved_together_is_done_alone():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    constant = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(constant[2].weight)
    linear = nn.Sequential(nn.Linear(3, 2))
    found = certify.lipschitz_many([module, constant, linear, module], tolerance=1e-5)
    assert [certificate.upper_bound == 0.0 for certificate in found] == [False, True, False, False]
    assert found[0].upper_bound == found[3].upper_bound
    assert certify.lipschitz_many([]) == []
    with pytest.raises(UnsupportedOperationError, match="Softmax"):
        certify.lipschitz_many([module, nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1))])


@pytest.mark.parametrize(("norm", "output"), [("l2", None), ("linf", 0)])
def test_many_regions_of_one_network(norm, output):
    torch.manual_seed(0)
    network = template([3, 12, 2], nn.Tanh() if norm == "linf" else nn.ReLU())
    centers = torch.randn(6, 3, dtype=torch.float64)
    regions = [certify.Box(center - 0.2, center + 0.2) for center in centers[:4]]
    regions += [None, certify.Ball(centers[4], 0.1), certify.Box(centers[5], centers[5])]
    found = certify.lipschitz_many([network], regions=regions, norm=norm, output=output)
    for region, certificate in zip(regions, found, strict=True):
        alone = certify.lipschitz(network, norm=norm, output=output, region=region, bounder=certify.LipSDP())
        assert certificate.region == region
        assert certify.check(certificate, network)
        assert certificate.upper_bound >= alone.sampled_lower_bound
        assert certificate.upper_bound == pytest.approx(alone.upper_bound, rel=2e-2)
    assert sum("together" in certificate.method for certificate in found) >= 4
    with pytest.raises(ShapeError, match="2 networks and 7 regions"):
        certify.lipschitz_many([network] * 2, regions=regions)
