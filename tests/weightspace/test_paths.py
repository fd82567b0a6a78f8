"""The line between two networks: its ends, its middle, its barrier."""

import math

import pytest
import torch
from torch import nn

from weightspace.errors import NonFiniteError, ShapeError
from weightspace.paths import Barrier, barrier, between, interpolate
from weightspace.tracing import trace


def module(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()


def test_barrier_is_the_height_above_the_chord():
    result = Barrier((0.0, 0.5, 1.0), (1.0, 4.0, 2.0))
    assert result.barrier == 2.5
    assert Barrier((0.0, 0.5, 1.0), (1.0, 0.0, 2.0)).barrier == 0.0


@pytest.mark.parametrize("kind", ["module", "network"])
def test_line_visits_the_interpolated_parameters(kind):
    a, b = module(0), module(1)
    x = torch.randn(5, 3)

    def loss(m):
        return float(m(x).detach().square().sum())

    middle = module(2)
    middle.load_state_dict(
        {k: (t + b.state_dict()[k]) / 2 if t.is_floating_point() else t for k, t in a.state_dict().items()}
    )
    ends = (a, b) if kind == "module" else (trace(a, x), trace(b, x))
    result = barrier(*ends, loss, points=3)
    assert result.positions == (0.0, 0.5, 1.0)
    assert result.losses == pytest.approx((loss(a), loss(middle), loss(b)), rel=1e-5)


def test_no_barrier_between_a_network_and_itself():
    a = module(0)
    assert barrier(a, a, lambda m: float(m(torch.ones(1, 3)).sum())).barrier == pytest.approx(0, abs=1e-6)


def test_modules_given_are_untouched():
    a, b = module(0), module(1)
    before = [t.clone() for t in a.state_dict().values()]
    barrier(a, b, lambda m: 0.0, points=4)
    assert all(torch.equal(x, y) for x, y in zip(before, a.state_dict().values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_ends_are_exact_and_the_kind_is_kept(path, dtype):
    a, b = module(0).to(dtype), module(1).to(dtype)
    for ends in (
        (a, b),
        (trace(a, torch.zeros(2, 3, dtype=dtype)), trace(b, torch.zeros(2, 3, dtype=dtype))),
    ):
        for t, end in ((0.0, ends[0]), (1.0, ends[1])):
            found = interpolate(*ends, t, path=path)
            assert type(found) is type(end)
            assert all(torch.equal(x, found.state_dict()[k]) for k, x in end.state_dict().items())


def test_spherical_path_has_constant_angular_speed():
    a, b = (
        torch.randn(4, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(2)
    )
    b = b * a.norm() / b.norm()

    def angle(x, y):
        return torch.acos((x * y).sum() / x.norm() / y.norm())

    for t in (0.25, 0.5, 0.9):
        point = between(a, b, t, "spherical")
        torch.testing.assert_close(point.norm(), a.norm())
        torch.testing.assert_close(angle(a, point), t * angle(a, b))
    torch.testing.assert_close(between(a, 3 * a, 0.5, "spherical"), 2 * a)  # no angle: linear
    torch.testing.assert_close(between(a, -a, 0.25, "spherical"), a / 2)


def test_running_statistics_are_interpolated_linearly():
    a, b = module(0), module(1)
    b[1].running_var.fill_(3.0)
    assert torch.equal(interpolate(a, b, 0.5, path="spherical")[1].running_var, torch.full((6,), 2.0))


def test_constants_with_infinite_entries_stay():
    a = torch.tensor([0.0, -torch.inf])
    assert torch.equal(between(a, a.clone(), 0.5), a)


def test_accuracy_curve_table_and_figure():
    a, b = module(0), module(1)
    result = barrier(a, b, lambda m: m[0].weight.sum(), points=3, accuracy=lambda m: m[0].bias.square().sum())
    assert result.accuracies is not None
    assert result.accuracy_barrier == pytest.approx(
        max(0, (result.accuracies[0] + result.accuracies[2]) / 2 - result.accuracies[1]), abs=1e-6
    )
    assert Barrier((0.0, 0.5, 1.0), (1.0, 4.0, 2.0)).accuracy_barrier is None
    assert Barrier((0.0, 0.5, 1.0), (1.0, 4.0, 2.0)).worst == 0.5
    assert result.to_table().splitlines()[0].split() == ["t", "loss", "accuracy"]
    assert len(str(result).splitlines()) == 5
    assert result._repr_html_().count("<tr>") == 4
    pytest.importorskip("matplotlib")
    assert len(result.figure().axes) == 2


def test_refusals():
    with pytest.raises(ShapeError, match="at least 2 points"):
        barrier(module(0), module(1), lambda m: 0.0, points=1)
    with pytest.raises(ShapeError, match="equal structures"):
        barrier(module(0), nn.Linear(3, 2), lambda m: 0.0)
    with pytest.raises(ShapeError, match="two networks or two modules"):
        barrier(module(0), trace(module(0), torch.zeros(2, 3)), lambda m: 0.0)
    with pytest.raises(ShapeError, match="path 'bent' is unknown"):
        barrier(module(0), module(1), lambda m: 0.0, path="bent")
    with pytest.raises(NonFiniteError, match="loss of the first network is nan"):
        barrier(module(0), module(1), lambda m: float("nan"))


def test_a_loss_that_is_nan_on_the_way_makes_the_barrier_nan():
    result = Barrier((0.0, 0.5, 1.0), (1.0, math.nan, 2.0), (0.9, 0.8, 0.9))
    assert math.isnan(result.barrier)
    assert result.worst == 0.5
    assert result.accuracy_barrier == pytest.approx(0.1)
