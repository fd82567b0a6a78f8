"""Laws of LipSDP beyond chains: residual, group, implicit, mixed; l2 and l-infinity; agreement with Clarabel."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import certify
import weightspace
from certify.published_constraints import published_bound
from weightspace.builder import NetworkBuilder
from weightspace.errors import UnsupportedOperationError
from weightspace.layers import GroupSort, Householder, Implicit, MaxMin
from weightspace.operations import Implicit as ImplicitOperation, Linear


class Residual(nn.Module):
    """x + V phi(W x), repeated, with two layers inside when `deep`."""

    def __init__(self, width, hidden, blocks, activation, *, deep=False):
        super().__init__()
        self.enter = nn.ModuleList(nn.Linear(width, hidden) for _ in range(blocks))
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks)) if deep else None
        self.leave = nn.ModuleList(nn.Linear(hidden, width) for _ in range(blocks))
        self.activation, self.head = activation, nn.Linear(width, 2)

    def forward(self, x):
        for k, (enter, leave) in enumerate(zip(self.enter, self.leave, strict=True)):
            h = self.activation(enter(x))
            if self.inner is not None:
                h = self.activation(self.inner[k](h))
            x = x + leave(h)
        return self.head(x)


class PerLayer(nn.Module):
    """x + phi(W x), the per-layer residual of the literature."""

    def __init__(self, width, layers, activation):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.activation, self.head = activation, nn.Linear(width, 2)

    def forward(self, x):
        for layer in self.layers:
            x = x + self.activation(layer(x))
        return self.head(x)


class Branches(nn.Module):
    """A concatenation, a slice and a difference."""

    def __init__(self, width, activation):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.activation, self.head = activation, nn.Linear(width + 2, 2)

    def forward(self, x):
        h = self.activation(self.a(x))
        k = self.activation(self.b(h - x))
        return self.head(torch.cat([k, h[:, 1:3]], 1))


def chain(widths, activation):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation]
    return nn.Sequential(*layers[:-1])


ACTIVATIONS = {
    "ReLU": nn.ReLU(), "LeakyReLU": nn.LeakyReLU(0.3), "Tanh": nn.Tanh(), "Sigmoid": nn.Sigmoid(), "SiLU": nn.SiLU(),
    "MaxMin": MaxMin(), "GroupSort": GroupSort(3), "Householder": Householder(6, 3),
}  # fmt: skip
STRUCTURES = {
    "chain": lambda act: chain([4, 6, 6, 2], act),
    "residual": lambda act: Residual(4, 6, 2, act),
    "deep residual": lambda act: Residual(3, 6, 1, act, deep=True),
    "per layer": lambda act: PerLayer(6, 2, act),
    "branches": lambda act: Branches(6, act),
}


def draw(structure, activation, seed, scale=1.0, dtype=torch.float64):
    """Return a traced network with normal weights of variance `scale`^2 / fan-in."""
    torch.manual_seed(seed)
    module = STRUCTURES[structure](ACTIVATIONS[activation]).to(dtype)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.normal_().mul_(scale * layer.in_features**-0.5)
                layer.bias.normal_()
            if isinstance(layer, Householder):
                layer.weight.normal_()
    width = next(layer for layer in module.modules() if isinstance(layer, nn.Linear)).in_features
    return weightspace.trace(module, (torch.randn(2, width, dtype=dtype),))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_agrees_with_clarabel_and_is_sound(structure, activation, norm):
    seed = sum(map(ord, structure + activation + norm))
    network = draw(structure, activation, seed)
    output = (0, 1) if norm == "linf" else None
    ours = certify.lipschitz(network, norm=norm, output=output, bounder=certify.LipSDP(tolerance=1e-7))
    theirs = certify.lipschitz(network, norm=norm, output=output, bounder=certify.LipSDP("CLARABEL"))
    assert "structured" in ours.method
    assert "CLARABEL" in theirs.method
    assert ours.upper_bound == pytest.approx(theirs.upper_bound, rel=1e-5)
    assert 0 < ours.sampled_lower_bound <= ours.upper_bound
    assert ours.optimum_lower_bound <= ours.upper_bound <= ours.optimum_lower_bound * (1 + 1e-6)
    assert certify.check(ours, network)
    again = certify.Certificate.from_json(ours.to_json())
    assert again == ours


@settings(max_examples=30, deadline=None)
@given(
    structure=st.sampled_from(sorted(STRUCTURES)),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    norm=st.sampled_from(["l2", "linf"]),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_no_bound_is_below_what_search_finds(structure, activation, norm, seed, scale, dtype):
    network = draw(structure, activation, seed, scale, dtype)
    certificate = certify.lipschitz(network, norm=norm, bounder=certify.LipSDP(tolerance=1e-3))
    assert certificate.upper_bound is not None
    assert certificate.sampled_lower_bound <= certificate.upper_bound


@pytest.mark.parametrize("structure", ["chain", "residual", "branches"])
def test_exact_arithmetic_agrees(structure):
    for activation in ("ReLU", "MaxMin", "LeakyReLU", "Householder"):
        network = draw(structure, activation, 5)
        for norm, output in (("l2", None), ("linf", 0)):
            certificate = certify.lipschitz(network, norm=norm, output=output)
            assert certify.check(certificate, network, exact=True)


def test_linf_of_all_outputs_is_the_largest_of_each():
    network = draw("residual", "ReLU", 3)
    whole = certify.lipschitz(network, norm="linf", bounder=certify.LipSDP())
    each = [certify.lipschitz(network, norm="linf", output=j, bounder=certify.LipSDP()) for j in range(2)]
    assert whole.upper_bound == pytest.approx(max(one.upper_bound for one in each), rel=1e-6)
    assert len(whole.proofs) == 2
    product = certify.lipschitz(network, norm="linf", bounder=certify.NormProduct()).upper_bound
    assert certify.lipschitz(network, norm="linf").upper_bound <= min(product, whole.upper_bound) * (1 + 1e-9)


class MaxMinAsResidual(nn.Module):
    """(a, b) -> (a - relu(a - b), b + relu(a - b))."""

    def __init__(self, pairs):
        super().__init__()
        self.enter = nn.Linear(2 * pairs, pairs, bias=False)
        self.leave = nn.Linear(pairs, 2 * pairs, bias=False)
        with torch.no_grad():
            self.enter.weight.copy_(torch.kron(torch.eye(pairs), torch.tensor([[1.0, -1.0]])))
            self.leave.weight.copy_(-self.enter.weight.T)

    def forward(self, x):
        return x + self.leave(torch.relu(self.enter(x)))


def maxmin_as_layers(pairs):
    """The same without a skip connection: relu of both signs of a + b and a - b."""
    enter, leave = nn.Linear(2 * pairs, 4 * pairs, bias=False), nn.Linear(4 * pairs, 2 * pairs, bias=False)
    signs = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    with torch.no_grad():
        enter.weight.copy_(torch.kron(torch.eye(pairs), signs))
        back = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, -1.0, 1.0, 1.0]]) / 2
        leave.weight.copy_(torch.kron(torch.eye(pairs), back))
    return nn.Sequential(enter, nn.ReLU(), leave)


def test_maxmin_with_orthogonal_weights():
    torch.manual_seed(0)
    linears = [nn.init.orthogonal_(nn.Linear(8, 8).weight) for _ in range(4)]
    x = torch.randn(5, 8, dtype=torch.float64)

    def network(middle):
        layers = []
        for weight in linears:
            linear = nn.Linear(8, 8, bias=False)
            linear.weight = nn.Parameter(weight.detach().clone())
            layers += [linear, middle()]
        module = nn.Sequential(*layers[:-1]).double()
        return module, weightspace.trace(module, (x,))

    reference, plain = network(MaxMin)
    bound = certify.lipschitz(plain).upper_bound
    assert 1.0 - 1e-6 <= bound <= 1.0001
    for middle, expected in ((lambda: MaxMinAsResidual(4), bound), (lambda: maxmin_as_layers(4), None)):
        module, rewritten = network(middle)
        torch.testing.assert_close(module(x), reference(x))
        found = certify.lipschitz(rewritten)
        assert certify.check(found, rewritten)
        if expected is None:  # both signs of a sum as independent neurons: a looser relaxation
            assert found.upper_bound > 1.01 * bound
        else:  # r (r - d) <= 0 is |d - 2r| <= |d|: the residual form is the eliminated one
            assert found.upper_bound == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("activation", ["MaxMin", "GroupSort", "Householder"])
def test_the_eliminated_form_equals_the_published_one(activation):
    gains = []
    for seed in range(3):
        torch.manual_seed(seed)
        if activation == "MaxMin":
            module = chain([6, 8, 8, 4], MaxMin()).double()
            network = weightspace.trace(module, (torch.zeros(2, 6, dtype=torch.float64),))
        else:
            network = draw("chain", activation, seed)
        bound = certify.lipschitz(network, bounder=certify.LipSDP(tolerance=1e-7))
        full, decoupled = published_bound(network), published_bound(network, decoupled=True)
        assert full == pytest.approx(
            bound.upper_bound, rel=1e-4 if activation == "MaxMin" else 5e-4
        )  # not attained
        assert full >= bound.optimum_lower_bound * (1 - 1e-6)
        assert decoupled >= bound.upper_bound * (1 - 1e-6)
        gains.append(decoupled / bound.upper_bound)
    assert max(gains) > 1.01


def implicit(weight, input_weight, output, activation="ReLU"):
    layer = Implicit(input_weight.shape[1], len(weight), activation).double()
    head = nn.Linear(len(weight), len(output)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight))
        layer.input_weight.copy_(torch.as_tensor(input_weight))
        head.weight.copy_(torch.as_tensor(output))
    inputs = torch.zeros(2, input_weight.shape[1], dtype=torch.float64)
    return weightspace.trace(nn.Sequential(layer, head), (inputs,))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU", "Tanh", "Sigmoid"])
@pytest.mark.parametrize("kind", ["contractive", "monotone"])
def test_implicit_models(kind, activation, norm):
    rng = np.random.default_rng(7)
    weight = rng.normal(size=(6, 6))
    if kind == "contractive":
        weight *= 0.9 / np.linalg.norm(weight, 2)
    else:  # I - W is monotone, |W| > 1
        weight = 0.8 * np.eye(6) - 0.3 * weight @ weight.T / 6 + (weight - weight.T) / 2
        assert np.linalg.norm(weight, 2) > 1
    network = implicit(weight, rng.normal(size=(6, 3)), rng.normal(size=(2, 6)), activation)
    output = 0 if norm == "linf" else None
    ours = certify.lipschitz(network, norm=norm, output=output, bounder=certify.LipSDP(tolerance=1e-6))
    theirs = certify.lipschitz(network, norm=norm, output=output, bounder=certify.LipSDP("CLARABEL"))
    assert ours.upper_bound == pytest.approx(theirs.upper_bound, rel=1e-5)
    assert 0 < ours.sampled_lower_bound <= ours.upper_bound
    assert certify.check(ours, network, exact=True)
    if activation == "LeakyReLU":
        return
    with pytest.raises(UnsupportedOperationError, match="Implicit"):
        certify.lipschitz(network, bounder=certify.NormProduct())


def test_a_model_that_is_not_well_posed_gets_no_bound():
    rng = np.random.default_rng(1)
    weight = 0.1 * rng.normal(size=(4, 4))
    weight[1, 1] = 2.0  # without lambda >= 0 the inequality would have a solution
    builder = NetworkBuilder()
    for name, value in (("w", weight), ("u", rng.normal(size=(4, 2))), ("c", rng.normal(size=(1, 4)))):
        builder.parameter(name, torch.as_tensor(value))
    node = builder.add(
        ImplicitOperation(weight="w", input_weight="u"), builder.input("x", (None, 2), torch.float64)
    )
    network = builder.build([builder.add(Linear(weight="c"), node)])
    for bounder in (None, certify.LipSDP(), certify.LipSDP("CLARABEL")):
        certificate = certify.lipschitz(network, bounder=bounder)
        assert certificate.upper_bound is None
        assert "well-posed" in certificate.method


def test_normalization_is_folded():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5)
    ).double()
    module(torch.randn(50, 4, dtype=torch.float64))
    for layer in module:
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.weight)
    module.eval()
    network = weightspace.trace(module, (torch.zeros(2, 4, dtype=torch.float64),))
    certificate = certify.lipschitz(network)
    folded = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)).double()
    with torch.no_grad():
        for linear, norm, target in ((module[0], module[1], folded[0]), (module[3], module[4], folded[2])):
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            target.weight.copy_(factor[:, None] * linear.weight)
    reference = certify.lipschitz(folded, example_inputs=(torch.zeros(2, 4, dtype=torch.float64),))
    assert certificate.upper_bound == pytest.approx(reference.upper_bound, rel=1e-6)
    assert certificate.sampled_lower_bound <= certificate.upper_bound
    assert certify.check(certificate, network)


def test_single_precision_inference_is_covered():
    torch.manual_seed(0)
    module = chain([5, 20, 20, 3], nn.ReLU())
    box = certify.Box([-2.0] * 5, [2.0] * 5)
    certificate = certify.lipschitz(module, region=box, arithmetic="float32")
    network = weightspace.trace(module, (torch.zeros(2, 5),))
    assert certify.check(certificate, network)
    assert certificate.delta > 0
    x = (4 * torch.rand(4000, 5) - 2).float()
    y = torch.nextafter(x, torch.full_like(x, math.inf)).clamp(max=2.0)
    with torch.no_grad():
        moved = (module(x).double() - module(y).double()).norm(dim=1)
    allowed = certificate.upper_bound * (x.double() - y.double()).norm(dim=1) + 2 * certificate.delta
    assert (moved <= allowed).all()
    # rounding alone moves outputs by more than L |x - y|: the claim in real arithmetic would be false here
    assert (moved > certificate.upper_bound * (x.double() - y.double()).norm(dim=1)).any()
    with pytest.raises(UnsupportedOperationError, match="Tanh"):
        certify.lipschitz(chain([5, 4, 3], nn.Tanh()), region=box, arithmetic="float32")
