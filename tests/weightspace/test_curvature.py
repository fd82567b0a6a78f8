"""The second-order view of a path: exact on a quadratic loss, equal to dense derivatives on a small network."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.weightspace.architectures import ARCHITECTURES, random_parameters
from weightspace.curvature import PathCurvature, hessian_operator, path_curvature
from weightspace.errors import NonFiniteError, ShapeError
from weightspace.tracing import trace


def linear(seed, dtype):
    return random_parameters(nn.Linear(6, 3), seed).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["module", "network"])
def test_parabola_is_exact_where_the_loss_is_quadratic(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, n, generator=generator, dtype=torch.float64).to(dtype) for n in (6, 3))
    a, b = linear(0, dtype), linear(1, dtype)
    if kind == "network":
        a, b = trace(a, x), trace(b, x)
    result = path_curvature(a, b, lambda m: (m(x) - y).square().mean(), points=5, eigenvalues=2)
    rel = 1e-4 if dtype == torch.float32 else 1e-10
    for t, value in zip(result.positions, result.losses):
        assert result.predicted(t) == pytest.approx(value, rel=rel)
        assert result.predicted(t, -1) == pytest.approx(value, rel=rel)
    assert result.curvatures == pytest.approx([result.curvatures[0]] * 5, rel=rel)
    assert result.barrier == pytest.approx(0, abs=1e-5)
    assert result.verdict.startswith("one basin, nearly quadratic")
    design = torch.cat([x, torch.ones(20, 1, dtype=dtype)], 1).double()
    top = 2 * torch.linalg.eigvalsh(design.mT @ design)[-1] / (20 * 3)  # three copies, one per output
    assert result.eigenvalues[0] == pytest.approx([float(top)] * 2, rel=1e-3)


def network(seed, *, norm=True):
    middle = [nn.BatchNorm1d(4)] if norm else []
    return random_parameters(nn.Sequential(nn.Linear(3, 4), *middle, nn.Tanh(), nn.Linear(4, 2)), seed)


def data():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(30, 3, generator=generator, dtype=torch.float64), torch.randint(
        2, (30,), generator=generator
    )


def dense_hessian(module, loss):
    parameters = dict(module.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    class Holder(nn.Module):
        def __init__(self, tensors):
            super().__init__()
            self.tensors = tensors

        def forward(self, x):
            return torch.func.functional_call(module, self.tensors, (x,))

    def of_vector(vector):
        parts = zip(parameters.items(), vector.split(sizes))
        return loss(Holder({name: part.view_as(p) for (name, p), part in parts}))

    start = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    return torch.autograd.functional.hessian(of_vector, start)


def test_eigenvalues_and_curvature_are_those_of_the_dense_hessian():
    x, y = data()
    a, b = network(0, norm=False), network(1, norm=False)

    def loss(m):
        return F.cross_entropy(m(x), y)

    result = path_curvature(a, b, loss, points=3, eigenvalues=3, accuracy=1e-8)
    for end, module in ((0, a), (-1, b)):
        hessian = dense_hessian(module, loss)
        expected = torch.linalg.eigvalsh(hessian).flip(0)[:3].tolist()
        assert result.eigenvalues[end] == pytest.approx(expected, rel=1e-6)
        step = torch.cat([(q - p).detach().reshape(-1) for p, q in zip(a.parameters(), b.parameters())])
        assert result.curvatures[end] == pytest.approx(float(step @ hessian @ step), rel=1e-8)
        assert result.length == pytest.approx(float(step.norm()))
        apply, n, _ = hessian_operator(module, loss)
        torch.testing.assert_close(apply(torch.eye(n, dtype=torch.float64)), hessian)


@pytest.mark.parametrize("kind", ["batch norm", "attention", "recurrent", "convolutional"])
def test_slope_and_curvature_are_the_derivatives_along_the_line(kind):
    """Central differences of what `interpolate` gives, running statistics included."""
    from weightspace.paths import interpolate

    if kind == "batch norm":
        (x, y), ends = data(), [network(seed) for seed in range(2)]
    else:
        name = {"attention": "gpt", "recurrent": "lstm", "convolutional": "u-net"}[kind]
        architecture = ARCHITECTURES[name]
        (x,), ends, y = architecture.inputs(), [architecture.module(seed) for seed in range(2)], None

    def loss(m):
        output = m(x)
        return output.square().mean() if y is None else F.cross_entropy(output, y)

    result = path_curvature(*ends, loss, points=3, eigenvalues=0)
    step = 1e-4
    with torch.no_grad():
        below, at, above = (float(loss(interpolate(*ends, 0.5 + h))) for h in (-step, 0, step))
    assert result.losses[1] == pytest.approx(at, rel=1e-10)
    assert result.slopes[1] == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-6)
    if kind != "convolutional":  # a kink of ReLU may lie within the step
        assert result.curvatures[1] == pytest.approx((above - 2 * at + below) / step**2, rel=1e-4, abs=1e-4)


def test_two_basins_are_told_apart():
    """A network and its mirror image (two units of opposite sign swapped): equal functions, a barrier between."""
    a = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    b = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        for module, order in ((a, [0, 1]), (b, [1, 0])):
            module[0].weight.copy_(torch.tensor([[3.0], [1.0]])[order])
            module[0].bias.copy_(torch.tensor([2.0, -2.0])[order])
            module[2].weight.copy_(torch.tensor([[2.0, -2.0]])[:, order])
            module[2].bias.zero_()
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    y = a(x).detach()
    result = path_curvature(a, b, lambda m: (m(x) - y).square().mean())
    assert not result.shares_basin
    assert result.verdict.startswith("two basins")
    assert "bends down" in result.verdict
    assert path_curvature(a, b, lambda m: (m(x) - y).square().mean(), tolerance=1e3).shares_basin
    assert "two basins" in result._repr_html_()
    assert len(str(result).splitlines()) == 11


def test_modules_given_are_untouched():
    a, b = network(0), network(1)
    before = [{k: t.clone() for k, t in m.state_dict().items()} for m in (a, b)]
    path_curvature(a, b, lambda m: m(data()[0]).square().mean(), points=3)
    for module, state in zip((a, b), before):
        assert all(torch.equal(t, state[k]) for k, t in module.state_dict().items())
        assert not any(t.requires_grad for t in module.buffers())


def test_a_loss_without_curvature():
    a, b = linear(0, torch.float64), linear(1, torch.float64)
    result = path_curvature(a, b, lambda m: m(torch.ones(2, 6, dtype=torch.float64)).sum(), points=3)
    assert result.curvatures == pytest.approx([0.0] * 3)
    assert [v for (v,) in result.eigenvalues] == pytest.approx([0.0] * 3)


def test_refusals():
    a, b = linear(0, torch.float64), linear(1, torch.float64)
    x = torch.ones(2, 6, dtype=torch.float64)
    with pytest.raises(ShapeError, match="odd number of points"):
        path_curvature(a, b, lambda m: m(x).sum(), points=4)
    with pytest.raises(ShapeError, match="are equal"):
        path_curvature(a, a, lambda m: m(x).sum())
    with pytest.raises(ShapeError, match="as a tensor with gradients"):
        path_curvature(a, b, lambda m: float(m(x).detach().sum()))
    with pytest.raises(ShapeError, match="has 21 eigenvalues; 22 were"):
        path_curvature(a, b, lambda m: m(x).square().sum(), eigenvalues=22)
    with pytest.raises(NonFiniteError, match="at t = 0 "):
        path_curvature(a, b, lambda m: m(x).sum() * math.nan)


def test_figure_is_drawn():
    pytest.importorskip("matplotlib")
    losses, slopes, curvatures = (1.0, 2.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0)
    result = PathCurvature((0.0, 0.5, 1.0), losses, slopes, curvatures, ((3.0,),) * 3, 2.0, 0.05)
    assert len(result.figure().axes) == 2
    assert result.predicted(0.5) == 1.625
