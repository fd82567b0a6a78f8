"""`lipschitz_many` gives what `lipschitz` gives, in one call."""

import json
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

import certify
import weightspace
from certify.bounders import many
from weightspace.errors import CheckpointError, ShapeError, UnsupportedOperationError
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


class Elsewhere(Executor):
    """Runs at once in this process what is submitted, which is pickled as for another one."""

    def __init__(self):
        self.submitted = 0

    def submit(self, fn, /, *args, **kwargs):
        self.submitted += 1
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def numbers(certificates):
    """All of the certificates but the time they took."""
    return [replace(certificate, seconds=0.0) for certificate in certificates]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_executor_and_journal_give_the_same_bits(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(many, "TOGETHER", 3)
    network = template([3, 6, 2], nn.ReLU(), dtype)
    large = template([3, 90, 2], nn.Tanh(), dtype)
    asked = [*networks(network, 4), large, network]
    center = torch.zeros(3)
    regions = [None, certify.Box(center - 0.1, center + 0.1), None, certify.Ball(center, 0.2), None, None]
    expected = certify.lipschitz_many(asked, regions=regions)
    journal, executor = tmp_path / "journal", Elsewhere()
    found = certify.lipschitz_many(asked, regions=regions, executor=executor, journal=journal)
    assert numbers(found) == numbers(expected)
    assert executor.submitted >= 4  # two blocks of small programs, one of a large one, and that one alone
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # killed in the middle of the second line
    again, before = Elsewhere(), executor.submitted
    resumed = certify.lipschitz_many(asked, regions=regions, executor=again, journal=journal)
    assert numbers(resumed) == numbers(expected)
    assert again.submitted == before - 1
    assert all(certify.check(certificate, one) for certificate, one in zip(resumed, asked, strict=True))
    with pytest.raises(CheckpointError, match="belongs to another call"):
        certify.lipschitz_many(asked, regions=regions, journal=journal, tolerance=1e-3)


def test_a_journal_that_was_edited_is_refused(tmp_path):
    network, journal = template([3, 6, 2], nn.ReLU()), tmp_path / "journal"
    box = certify.Box(torch.zeros(3), torch.ones(3))
    asked, regions = [*networks(network, 2), network, network], [None, None, None, box]
    expected = certify.lipschitz_many(asked, regions=regions, output=(0, 1), journal=journal)
    again = certify.lipschitz_many(asked, regions=regions, output=(0, 1), journal=journal)
    assert again == expected
    header, together, alone = journal.read_text().splitlines()
    key, (first, second, third, _) = json.loads(together)
    last, (local,) = json.loads(alone)
    for entry in (
        [key, [second, first, third, None]], [key, [first, second, local, None]], [key, [first]],
        [key, [1, second, third, None]], [key, [first[:-9], second, third, None]], [last, [third]],
    ):  # fmt: skip
        journal.write_text(f"{header}\n{json.dumps(entry)}\n")
        with pytest.raises(CheckpointError, match=r"journal: .*remove it, or name another"):
            certify.lipschitz_many(asked, regions=regions, output=(0, 1), journal=journal)


def test_arguments_that_a_journal_cannot_keep(tmp_path):
    with pytest.raises(ShapeError, match=r"output is tensor\(1\)"):
        certify.lipschitz_many(
            [template([3, 6, 2], nn.ReLU())], output=torch.tensor(1), journal=tmp_path / "journal"
        )
