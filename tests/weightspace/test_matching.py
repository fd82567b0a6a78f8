"""Alignment: planted permutations are recovered, the objective only rises, the function stays."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from weightspace.errors import ArchitectureError, NonFiniteError, ShapeError
from weightspace.matching import WeightMatching, align
from weightspace.matching.alignment import Matcher, Problem
from weightspace.matching.assignment import assign
from weightspace.network import Network
from weightspace.permutation import permute, random_permutations
from weightspace.state_dicts import perceptron
from weightspace.tracing import trace
from weightspace.verification import symmetry


def network(*sizes, seed=0, dtype=torch.float32) -> Network:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        tensors[f"{k}.weight"] = torch.randn(b, a, generator=generator, dtype=dtype)
        tensors[f"{k}.bias"] = torch.randn(b, generator=generator, dtype=dtype)
    return perceptron(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("sizes", [(6, 40, 3), (6, 12, 30, 9, 3), (2, 2, 2)])
def test_planted_permutation_is_recovered(sizes, noise, dtype):
    reference = network(*sizes, dtype=dtype)
    spec = symmetry(reference)
    planted = random_permutations(spec, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    noisy = reference.replace_parameters(
        {
            k: t + noise * torch.randn(t.shape, generator=generator, dtype=dtype)
            for k, t in reference.parameters.items()
        }
    )
    alignment = align(reference, permute(noisy, spec, planted))
    for name, index in planted.items():
        assert torch.equal(alignment.permutations[name], index.argsort())
        assert torch.equal(index[alignment.permutations[name]], torch.arange(len(index)))
    assert isinstance(alignment.model, Network)
    assert alignment.model.hash == noisy.hash
    assert alignment.same_network == (noise == 0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([(4, 9, 3), (3, 5, 7, 2), (2, 2, 1)]))
def test_alignment_lowers_the_distance_and_keeps_the_function(seed, sizes):
    a, b = network(*sizes, seed=seed), network(*sizes, seed=seed + 1)
    alignment = align(a, b)
    assert alignment.objective >= alignment.objective_before - 1e-9
    assert alignment.distance <= alignment.distance_before + 1e-9
    assert alignment.function_change <= 1e-9
    x = torch.randn(5, sizes[0])
    torch.testing.assert_close(alignment.model.to_module()(x), b.to_module()(x), rtol=1e-4, atol=1e-4)


def test_objective_is_the_inner_product_and_matches_brute_force():
    a, b = network(3, 4, 2, seed=1), network(3, 4, 2, seed=2)
    alignment = align(a, b)
    spec = symmetry(a)
    best = max(
        sum(float((a.parameters[k].double() * moved.parameters[k].double()).sum()) for k in spec.axes)
        for order in itertools.permutations(range(4))
        for moved in [permute(b, spec, {"0": torch.tensor(order)})]
    )
    assert alignment.objective == pytest.approx(best, abs=1e-9)


@given(st.integers(1, 6), st.integers(0, 2**31))
def test_assignment_is_optimal(size, seed):
    gains = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value = float(gains[torch.arange(size), assign(gains)].sum())
    best = max(float(gains[torch.arange(size), list(p)].sum()) for p in itertools.permutations(range(size)))
    assert value == pytest.approx(best, abs=1e-12)


def test_running_statistics_follow_but_do_not_vote():
    def make(seed):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        module[1].running_mean.normal_()
        module[1].running_var.uniform_(0.5, 2)
        return module.eval()

    reference = make(0)
    net = trace(reference, torch.zeros(2, 3))
    spec = symmetry(net)
    model = permute(net, spec, random_permutations(spec, torch.Generator().manual_seed(1)))
    loud = model.replace_parameters({"1.running_mean": model.parameters["1.running_mean"] * 1e6})
    assert align(net, model).model == net
    matched = align(net, loud)
    assert torch.equal(matched.permutations["0"], align(net, model).permutations["0"])


def test_modules_give_a_module_back():
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double() for _ in range(2))
    before = {k: t.clone() for k, t in b.state_dict().items()}
    alignment = align(a, b)
    assert isinstance(alignment.model, nn.Sequential)
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(alignment.model(x), b(x))
    assert all(torch.equal(t, before[k]) for k, t in b.state_dict().items()), "the given module is untouched"
    assert json.loads(alignment.to_json())["permutations"].keys() == {"0"}


def test_names_may_differ():
    a = network(3, 5, 2)
    p = a.parameters
    b = perceptron(
        {"1_in.W": p["0.weight"], "1_in.b": p["0.bias"], "2_out.W": p["1.weight"], "2_out.b": p["1.bias"]}
    )
    assert align(a, b).same_network


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: network(3, 6, 2), r"'0.weight' has shape \(5, 3\) in the reference"),
        (lambda: network(3, 5, 5, 2), "the networks differ|equal widths"),
        (lambda: perceptron(network(3, 5, 2).parameters, activation="tanh"), "ReLU at .* against Tanh"),
    ],
)
def test_different_structures_are_refused_by_name(other, text):
    with pytest.raises(ShapeError, match=text):
        align(network(3, 5, 2), other())


def test_nan_weights_are_refused():
    a = network(3, 5, 2)
    with pytest.raises(NonFiniteError, match=r"'0.bias' has 5 NaN"):
        align(a, a.replace_parameters({"0.bias": torch.full((5,), torch.nan)}))


def test_nothing_to_permute_is_said():
    net = trace(nn.Linear(3, 4), torch.zeros(2, 3))
    with pytest.raises(ArchitectureError, match=r"nothing can be permuted .*network output"):
        align(net, net)


def test_a_matcher_of_ones_own_plugs_in():
    class Reverse(Matcher):
        def match(self, problem: Problem):
            return {group.name: torch.arange(group.size).flip(0) for group in problem.spec.groups}

    net = network(3, 5, 2)
    assert align(net, net, matcher=Reverse()).permutations["0"].tolist() == [4, 3, 2, 1, 0]


def test_same_seed_same_result():
    a, b = network(6, 30, 20, 4, seed=1), network(6, 30, 20, 4, seed=2)
    first, second = (align(a, b, matcher=WeightMatching(seed=5)) for _ in range(2))
    assert all(torch.equal(first.permutations[k], second.permutations[k]) for k in first.permutations)


def test_tensors_no_group_moves_count_too():
    a = network(3, 5, 2)
    shifted = a.replace_parameters({"1.bias": a.parameters["1.bias"] + 5})
    alignment = align(a, shifted)
    assert not alignment.same_network
    assert alignment.distance == pytest.approx(50**0.5)


def test_wiring_and_roles_are_compared():
    a = network(3, 5, 2)
    bare = perceptron({name: t for name, t in a.parameters.items() if name != "0.bias"})
    for first, second in ((a, bare), (bare, a)):
        with pytest.raises(ShapeError, match="has a bias in the"):
            align(first, second)

    class Residual(nn.Module):
        def __init__(self, early):
            super().__init__()
            self.early, self.a, self.b, self.c = early, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x)
            g = torch.relu(h)
            return self.c((h if self.early else g) + self.b(g))

    ends = [trace(Residual(early), torch.zeros(2, 4)) for early in (True, False)]
    with pytest.raises(ShapeError, match="in what Add at"):
        align(*ends)
