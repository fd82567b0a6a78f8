"""The line between two networks: its ends, its middle, its barrier."""

import pytest
import torch
from torch import nn

from weightspace.errors import ShapeError
from weightspace.paths import Barrier, barrier
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


def test_refusals():
    with pytest.raises(ShapeError, match="at least 2 points"):
        barrier(module(0), module(1), lambda m: 0.0, points=1)
    with pytest.raises(ShapeError, match="equal structures"):
        barrier(module(0), nn.Linear(3, 2), lambda m: 0.0)
    with pytest.raises(ShapeError, match="two networks or two modules"):
        barrier(module(0), trace(module(0), torch.zeros(2, 3)), lambda m: 0.0)
