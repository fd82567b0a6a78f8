"""Laws of polynomial networks: the written-out polynomial is the network; what is none is refused by name."""

import pytest
import torch
from torch import nn

import interp
import weightspace
from weightspace.layers import Bilinear, BilinearMLP

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


class MuLayer(nn.Module):
    """C(o1 + alpha o1 * o2) with o1 = N1(S U1 x), o2 = N2(U3 S U2 x); S a shift with repeated borders."""

    def __init__(self, width=4, hidden=6, rank=3, norm=nn.Identity, shift=True):
        super().__init__()
        self.first, self.low, self.high = (
            nn.Linear(width, hidden),
            nn.Linear(width, rank),
            nn.Linear(rank, hidden),
        )
        self.norms = nn.ModuleList([norm(hidden), norm(hidden)])
        self.alpha = nn.Parameter(torch.tensor(0.7))
        self.last = nn.Linear(hidden, width)
        self.shift = shift

    def shifted(self, x):
        return torch.cat([x[:, :1], x[:, :-1]], 1) if self.shift else x

    def forward(self, x):
        first = self.norms[0](self.shifted(self.first(x)))
        second = self.norms[1](self.high(self.shifted(self.low(x))))
        return self.last(first + self.alpha * first * second)


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


class Neurons(nn.Module):
    """Quadratic neurons: x' A x + b.x + c with a low-rank A and a power term."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x):
        return self.a(x) * self.b(x) + self.c(x**2)


def batch_norm(width):
    norm = nn.BatchNorm1d(width)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm


MODELS = {
    "bilinear": (lambda: Bilinear(4, 5, 3, bias=True), 2),
    "mu-layer": (MuLayer, 2),
    "mu-layer, batch norm": (lambda: MuLayer(norm=batch_norm), 2),
    "two mu-layers": (lambda: Residual(MuLayer(), MuLayer(shift=False)), 4),
    "quadratic neurons": (Neurons, 2),
    "three layers": (lambda: BilinearMLP(3, 3, 2, layers=3, residual=True, bias=True), 8),
}


@dtypes
@pytest.mark.parametrize("name", MODELS)
def test_the_polynomial_is_the_network(name, dtype):
    torch.manual_seed(0)
    make, degree = MODELS[name]
    model = make().to(dtype).eval()
    polynomial = interp.expand(model, example_inputs=torch.zeros(2, 3 if degree == 8 else 4, dtype=dtype))
    assert polynomial.degree == degree
    assert "degree" in repr(polynomial)
    x = torch.randn(50, polynomial.exponents.shape[1], dtype=dtype)
    expected = model(x).detach().double()
    tolerance = 2e-5 if dtype == torch.float32 else 1e-11
    error = (polynomial(x) - expected).abs().max() / expected.abs().max()
    assert float(error) < tolerance


def test_a_polynomial_that_is_known():
    layer = Bilinear(2, 1, 1, bias=True)
    with torch.no_grad():
        for linear, weight, bias in ((layer.left, [[1.0, 2.0]], 1.0), (layer.right, [[3.0, 0.0]], -1.0)):
            linear.weight.copy_(torch.tensor(weight))
            linear.bias.fill_(bias)
        layer.output.weight.fill_(2.0)
        layer.output.bias.fill_(0.5)
    # 2 (x0 + 2 x1 + 1)(3 x0 - 1) + 0.5
    terms = {monomial: value for value, monomial in interp.expand(layer).terms(0)}
    assert terms == pytest.approx({"x0^2": 6.0, "x0 x1": 12.0, "x1": -4.0, "x0": 4.0, "1": -1.5}, rel=1e-12)


def test_layer_norm_is_refused_until_it_is_frozen():
    torch.manual_seed(0)
    model, x = MuLayer(norm=nn.LayerNorm).double(), torch.randn(200, 4, dtype=torch.float64)
    with pytest.raises(weightspace.UnsupportedOperationError, match=r"LayerNorm at 'norms\.0'"):
        interp.expand(model, example_inputs=x)
    frozen = interp.freeze_norms(model, x)
    assert set(frozen.scales) == {"norms.0", "norms.1"}
    assert 0 < frozen.residual < 1
    polynomial = interp.expand(frozen.network)
    got = frozen.network.to_module()(x).detach()
    torch.testing.assert_close(polynomial(x), got, rtol=1e-10, atol=1e-10)
    missed = (model(x).detach() - got).square().sum() / (model(x) - model(x).mean(0)).detach().square().sum()
    assert frozen.residual == pytest.approx(float(missed), rel=1e-9)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_whose_scale_is_constant_is_frozen_without_loss(norm):
    torch.manual_seed(0)
    x = torch.randn(100, 6, dtype=torch.float64)
    x = x - x.mean(1, keepdim=True)
    x = x / x.norm(dim=1, keepdim=True)
    model = nn.Sequential(norm(6), nn.Linear(6, 2)).double()
    nn.init.normal_(model[0].weight)
    frozen = interp.freeze_norms(model, x)
    assert frozen.residual < 1e-20
    assert frozen.spread["0"] < 1e-9


def test_refusals():
    with pytest.raises(weightspace.ShapeError, match="monomials, more than 100,000"):
        interp.expand(Bilinear(784, 4, 3))
    with pytest.raises(weightspace.UnsupportedOperationError, match="no LayerNorm"):
        interp.freeze_norms(nn.Linear(4, 2), torch.zeros(3, 4))
    with pytest.raises(weightspace.UnsupportedOperationError, match="over 2 axes"):
        interp.freeze_norms(nn.LayerNorm((3, 4)), torch.randn(5, 3, 4))
    with pytest.raises(weightspace.UnsupportedOperationError, match="ReLU at '1'"):
        interp.expand(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
