"""Laws of gated layers: the bilinear part is fitted on data and never passed off as exact."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import interp
import weightspace
from interp.recognition import recognize

GATES = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "sigmoid": torch.sigmoid}
# Unexplained variance of a gate whose argument is N(0, 1), computed by quadrature.
UNEXPLAINED = {"silu": 0.20, "gelu": 0.28, "relu": 0.27, "sigmoid": 0.016}


class Gated(nn.Module):
    def __init__(self, gate, width=6, hidden=5, outputs=4, bias=True):
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden, bias), nn.Linear(width, hidden, bias)
        self.down = nn.Linear(hidden, outputs, bias)
        self.gate = gate

    def forward(self, x):
        return self.down(self.gate(self.first(x)) * self.second(x))


def samples(count=3000, width=6, seed=0):
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", GATES)
def test_residual_is_the_share_of_variance_that_the_form_leaves_out(name):
    torch.manual_seed(0)
    layer, x = Gated(GATES[name]).double(), samples()
    decomposition = interp.decompose(layer, data=x)
    expected = layer(x).detach()
    got = decomposition.explain(x).sum(-1)
    missed = (expected - got).square().mean(0).sum() / (expected - expected.mean(0)).square().mean(0).sum()
    assert 1e-6 < decomposition.residual < 1
    torch.testing.assert_close(torch.tensor(decomposition.residual), missed.float(), rtol=1e-5, atol=1e-9)
    assert "leaves out" in repr(decomposition)


@pytest.mark.parametrize("name", GATES)
def test_affine_fit_is_the_least_squares_solution(name):
    torch.manual_seed(1)
    layer, x = Gated(GATES[name], hidden=1, outputs=1, bias=False).double(), samples()
    z, v = layer.first(x).detach(), layer.second(x).detach()
    features = torch.cat([z * v, v], 1)
    solution = torch.linalg.lstsq(features, GATES[name](z) * v).solution
    form = recognize(layer, data=x)
    fitted = form(x)
    torch.testing.assert_close(
        fitted, features @ solution * layer.down.weight.detach(), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", GATES)
def test_unexplained_variance_of_gates_with_independent_partners(name):
    """The share that an affine function leaves of a gate on N(0, 1), with a partner independent of it."""
    layer = Gated(GATES[name], width=2, hidden=1, outputs=1, bias=False).double()
    with torch.no_grad():
        layer.first.weight.copy_(torch.tensor([[1.0, 0.0]]))
        layer.second.weight.copy_(torch.tensor([[0.0, 1.0]]))
        layer.down.weight.fill_(1.0)
    x = samples(200_000, 2)
    z = x[:, 0]
    gate = GATES[name](z)
    slope = (z * gate).mean() / z.square().mean()
    of_gate = (gate - gate.mean() - slope * z).square().mean() / gate.var()
    assert abs(float(of_gate) - UNEXPLAINED[name]) < 0.01
    # E[g^2 v^2] = E[g^2]: the product has the second moment of the gate, not its variance.
    expected = of_gate * gate.var() / gate.square().mean()
    assert abs(interp.decompose(layer, data=x).residual - float(expected)) < 0.01


def test_an_identity_gate_leaves_nothing_out():
    torch.manual_seed(0)
    x = samples()

    class Identity(nn.Module):
        def forward(self, z):
            return F.hardtanh(z, -100.0, 100.0)

    fitted = interp.decompose(Gated(Identity()).double(), data=x)
    torch.manual_seed(0)
    exact = interp.decompose(Gated(nn.Identity()).double())
    assert fitted.residual < 1e-20
    torch.testing.assert_close(fitted.values, exact.values, rtol=1e-10, atol=1e-12)
    assert exact.residual == 0.0


class WrittenOut(nn.Module):
    """GELU in its tanh form as several operations, chunks of one matrix, the gate second."""

    def __init__(self):
        super().__init__()
        self.both, self.down = nn.Linear(6, 10), nn.Linear(5, 3)

    def forward(self, x):
        v, z = self.both(x).chunk(2, -1)
        gate = 0.5 * z * (1 + torch.tanh(0.7978845608 * (z + 0.044715 * z**3)))
        return self.down(v * gate)


def test_a_gate_written_out_is_one_gate():
    torch.manual_seed(0)
    layer, x = WrittenOut().double(), samples()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.down = layer.both, layer.down

        def forward(self, x):
            v, z = self.both(x).chunk(2, -1)
            return self.down(v * F.gelu(z, approximate="tanh"))

    written, named = interp.decompose(layer, data=x), interp.decompose(Named(), data=x)
    torch.testing.assert_close(written.values, named.values, rtol=1e-6, atol=1e-9)
    assert 0 < written.residual < 1


class Switch(nn.Module):
    def forward(self, z):
        return 2.0 * F.relu(z) - 1.0


def test_functions_of_a_gate_remain_a_gate():
    torch.manual_seed(0)
    layer, x = Gated(Switch()).double(), samples()
    decomposition = interp.decompose(layer, data=x)
    got = decomposition.explain(x).sum(-1)
    assert float((got - layer(x).detach()).square().mean()) < 0.3 * float(layer(x).detach().var())


def test_dead_units_and_constant_factors():
    torch.manual_seed(0)
    layer, x = Gated(F.relu).double(), samples()
    with torch.no_grad():
        layer.first.weight[0] = 0.0
        layer.second.weight[1] = 0.0
        layer.second.bias[1] = 0.0
    decomposition = interp.decompose(layer, data=x)
    assert bool(decomposition.vectors.isfinite().all())
    assert 0 < decomposition.residual < 1


REFUSED = {
    "no product": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU()), "ReLU at '1' is not a gate"),
    "linear in between": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4)),
        "ReLU at '1' before they are multiplied",
    ),
    "softmax": (lambda: Gated(nn.Softmax(-1)), "Softmax at 'gate'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_gate_is_refused_with_data_too(name):
    make, text = REFUSED[name]
    with pytest.raises(weightspace.UnsupportedOperationError, match=text):
        interp.decompose(make().double(), data=samples())


def test_without_data_the_error_says_that_data_would_help():
    with pytest.raises(weightspace.UnsupportedOperationError, match=r"SiLU at 'gate'.*pass data"):
        interp.decompose(Gated(nn.SiLU()))
    with pytest.raises(weightspace.ShapeError, match=r"\(n, 6\)"):
        interp.decompose(Gated(nn.SiLU()), data=torch.zeros(4, 5))
