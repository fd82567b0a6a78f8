"""Laws of `find_sites`: every site computes what the network computes there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import interp
import weightspace
from weightspace.layers import Bilinear


class Block(nn.Module):
    """Pre-norm residual block around a layer."""

    def __init__(self, layer, norm):
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x):
        return x + self.layer(self.norm(x))


class Gated(nn.Module):
    def __init__(self, width, hidden, gate):
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width)
        self.gate = gate

    def forward(self, x):
        return self.down(self.gate(self.first(x)) * self.second(x))


class Chunked(nn.Module):
    def __init__(self, width, hidden, gate):
        super().__init__()
        self.both, self.down, self.gate = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width), gate

    def forward(self, x):
        value, gate = self.both(x).chunk(2, -1)
        return self.down(value * self.gate(gate))


class Squared(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(self.up(x) ** 2)


LAYERS = {
    "bilinear": (lambda: Bilinear(8, 5, 8, bias=True), ()),
    "swiglu": (lambda: Gated(8, 6, F.silu), ("SiLU",)),
    "geglu": (lambda: Chunked(8, 6, F.gelu), ("GELU",)),
    "reglu": (lambda: Gated(8, 6, F.relu), ("ReLU",)),
    "glu": (lambda: Chunked(8, 6, torch.sigmoid), ("Sigmoid",)),
    "square": (lambda: Squared(8, 6), ()),
}
NORMS = {"layer": lambda: nn.LayerNorm(8), "rms": lambda: nn.RMSNorm(8), "none": nn.Identity}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_sites_compute_what_the_network_computes_there(name, norm):
    torch.manual_seed(0)
    make, gates = LAYERS[name]
    model = nn.Sequential(*(Block(make(), NORMS[norm]()) for _ in range(2)), nn.Linear(8, 3)).double()
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    network = weightspace.trace(model, x)
    sites = interp.find_sites(network)
    assert len(sites) == 2
    values = network.to_module().values(x)
    for site in sites:
        assert site.gates == gates
        inputs = site.activations(network, x)
        assert inputs.shape == (21, 8)
        got = site.network.to_module()(inputs)
        torch.testing.assert_close(got, values[site.target].flatten(0, -2), rtol=1e-12, atol=1e-12)
        decomposition = interp.decompose(site.network, data=inputs if gates else None)
        assert (decomposition.residual > 0) == bool(gates)
        if not gates:
            terms = decomposition.explain(inputs).sum(-1)
            torch.testing.assert_close(terms, got.detach(), rtol=1e-11, atol=1e-11)


def test_scalar_nonlinearities_are_not_layers():
    class WrittenOut(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

        def forward(self, x):
            z = self.up(x)
            return self.down(z * torch.sigmoid(z)) + self.down(0.5 * z * (1 + torch.tanh(z + z**3)))

    assert interp.find_sites(WrittenOut(), torch.zeros(2, 6)) == ()


def test_norms_attention_and_positions_are_not_layers():
    torch.manual_seed(0)

    class Norm(nn.Module):
        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    model = nn.Sequential(nn.Linear(6, 6), Norm(), nn.Linear(6, 4))
    assert interp.find_sites(model, torch.zeros(2, 5, 6)) == ()


def test_maps_in_front_are_part_of_the_layer():
    model = weightspace.layers.BilinearMLP(6, 5, 3, bias=True).double()
    (site,) = interp.find_sites(model)
    assert site.source == weightspace.trace(model, torch.zeros(2, 6, dtype=torch.float64)).inputs[0].name
    x = torch.randn(10, 6, dtype=torch.float64)
    torch.testing.assert_close(site.network.to_module()(x), model(x))


@pytest.mark.parametrize(
    ("name", "gate"),
    [("llama", "SiLU"), ("gemma2", "GELU"), ("phi3", "SiLU"), ("modernbert", "GELU"), ("phi", None)],
)
def test_transformers_architectures(name, gate):
    pytest.importorskip("transformers")
    from tests.weightspace.transformers_architectures import TRANSFORMERS

    architecture = TRANSFORMERS[name]
    inputs = architecture.inputs()
    network = weightspace.trace(architecture.module(), inputs)
    sites = interp.find_sites(network)
    assert len(sites) == (2 if gate else 0)
    values = network.to_module().values(*inputs)
    for site in sites:
        assert site.gates == (gate,)
        x = site.activations(network, *inputs)
        torch.testing.assert_close(site.network.to_module()(x), values[site.target].flatten(0, -2))
        assert 0 < interp.decompose(site.network, data=x).residual < 1


def test_bilinear_layers_of_torch_are_found():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up = nn.LayerNorm(6), nn.Linear(6, 4)
            self.bilinear = nn.Bilinear(4, 4, 6)

        def forward(self, x):
            h = self.up(self.norm(x))
            return x + self.bilinear(h, h)

    torch.manual_seed(0)
    model, x = Block().double(), torch.randn(9, 6, dtype=torch.float64)
    network = weightspace.trace(model, x)
    (site,) = interp.find_sites(network)
    assert (site.gates, site.source) == ((), "norm")
    inputs = site.activations(network, x)
    torch.testing.assert_close(site.network.to_module()(inputs) + x, model(x))
    decomposition = interp.decompose(site.network)
    expected = site.network.to_module()(inputs).detach()
    torch.testing.assert_close(decomposition.explain(inputs).sum(-1), expected, rtol=1e-11, atol=1e-11)
