"""Every derived group element preserves the function; what is not understood is frozen with a reason."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from weightspace.errors import ShapeError
from weightspace.layers import BilinearMLP, MaxMin
from weightspace.permutation import compose, identity, inverse, permute, permute_tensor, random_permutations
from weightspace.symmetry_spec import Axis, Group, SymmetrySpec, function_change, symmetry
from weightspace.tracing import trace


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x):
        h = F.relu(self.norm(self.stem(x)))
        h = h + self.outer(F.relu(self.inner_norm(self.inner(h))))
        return self.head(F.max_pool2d(h, 2).flatten(1))


class GatedUnit(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(8, 3)

    def forward(self, x):
        a, b = self.up(x).chunk(2, -1)
        return self.down(a * b)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.position = nn.Parameter(torch.randn(5, 8))
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 7)

    def forward(self, tokens):
        h = self.embedding(tokens) + self.position
        return self.head(h + self.down(F.gelu(self.up(self.norm(h)))))


def perceptron():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.PReLU(6), nn.Linear(6, 3))


CASES = {
    "mlp": (perceptron, torch.zeros(2, 5), [8, 6]),
    "resnet": (ResNet, torch.zeros(2, 1, 8, 8), [8, 6]),
    "bilinear": (lambda: BilinearMLP(5, 6, 3, layers=2, hidden=7, residual=True), torch.zeros(2, 5), [6, 7, 7]),
    "embedding": (Embedded, torch.zeros(2, 5, dtype=torch.int64), [8, 12]),
    "maxmin": (lambda: nn.Sequential(nn.Linear(5, 8), MaxMin(), nn.Linear(8, 3)), torch.zeros(2, 5), []),
    "grouped": (lambda: nn.Sequential(nn.Conv1d(2, 8, 1), nn.Conv1d(8, 8, 1, groups=4), nn.Conv1d(8, 2, 1)),
                torch.zeros(2, 2, 4), []),
    "gated": (GatedUnit, torch.zeros(2, 6), []),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_groups_are_as_expected_and_preserve_the_function(name, dtype):
    make, example, sizes = CASES[name]
    torch.manual_seed(0)
    module = make().to(dtype)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data.add_(0.2 * torch.rand_like(tensor))
    network = trace(module, example.to(dtype) if example.is_floating_point() else example)
    spec = symmetry(network)
    assert sorted(group.size for group in spec.groups) == sorted(sizes)
    generator = torch.Generator().manual_seed(1)
    elements = random_permutations(spec, generator)
    moved = permute(network, spec, elements)
    assert function_change(network, moved, generator) < (1e-5 if dtype == torch.float32 else 1e-12)
    for group in spec.groups:
        single = permute(network, spec, {group.name: elements[group.name]})
        changed = [k for k, t in single.parameters.items() if not torch.equal(t, network.parameters[k])]
        assert changed, f"{group} moves nothing"
    assert all(entry.reason and entry.place for entry in spec.frozen)


def test_running_statistics_move_with_their_channel():
    spec = symmetry(trace(ResNet(), torch.zeros(2, 1, 8, 8)))
    assert spec.axes["norm.running_mean"] == spec.axes["norm.weight"] == (Axis("stem"),)
    assert spec.axes["norm.running_var"] == (Axis("stem"),)
    assert spec.axes["head.weight"] == (None, Axis("stem", 16))


@pytest.mark.parametrize(
    ("name", "operation"), [("maxmin", "GroupSort"), ("grouped", "Conv"), ("gated", "Slice")]
)
def test_what_is_not_understood_is_frozen_by_name(name, operation):
    make, example, _ = CASES[name]
    spec = symmetry(trace(make(), example))
    assert any(entry.reason.startswith(f"{operation} at ") for entry in spec.frozen), spec


def test_a_wrong_rule_is_caught_by_running(monkeypatch):
    """A derivation that forgot the output would permute the classes; running the network must freeze the group."""
    from weightspace import symmetry_derivation

    network = trace(perceptron(), torch.zeros(2, 5))
    honest = symmetry_derivation.derive(network)
    wrong = SymmetrySpec(
        (*honest.groups, Group("classes", 3)),
        {**honest.axes, "4.bias": (Axis("classes"),)},
        honest.frozen,
    )
    monkeypatch.setattr(symmetry_derivation, "derive", lambda _: wrong)
    spec = symmetry(network)
    assert {group.name for group in spec.groups} == {"0", "2"}
    assert any(e.place == "classes" and "changes the function" in e.reason for e in spec.frozen)


def test_gather_convention_on_a_three_cycle():
    p = torch.tensor([1, 2, 0])
    assert permute_tensor(torch.tensor([10, 20, 30]), (Axis("g"),), {"g": p}).tolist() == [20, 30, 10]
    blocks = permute_tensor(torch.arange(6), (Axis("g", 2),), {"g": p})
    assert blocks.tolist() == [2, 3, 4, 5, 0, 1]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_action_is_a_group_action(first_seed, second_seed):
    network = trace(perceptron(), torch.zeros(2, 5))
    spec = symmetry(network)
    first = random_permutations(spec, torch.Generator().manual_seed(first_seed))
    second = random_permutations(spec, torch.Generator().manual_seed(second_seed))
    one_by_one = permute(permute(network, spec, first), spec, second)
    assert one_by_one == permute(network, spec, compose(first, second))
    assert permute(permute(network, spec, first), spec, inverse(first)) == network
    assert permute(network, spec, identity(spec)) == network


def test_wrong_elements_are_refused():
    network = trace(perceptron(), torch.zeros(2, 5))
    spec = symmetry(network)
    with pytest.raises(ShapeError, match="no group 'nope'; its groups are 0, 2"):
        permute(network, spec, {"nope": torch.arange(3)})
    with pytest.raises(ShapeError, match="no permutation of its 8 units"):
        permute(network, spec, {"0": torch.zeros(8, dtype=torch.int64)})


def test_spec_prints_every_group_and_every_frozen_axis():
    text = str(symmetry(trace(ResNet(), torch.zeros(2, 1, 8, 8))))
    assert "S_8 stem: stem.weight[0]" in text
    assert "head.weight[1] in blocks of 16" in text
    assert "frozen head (10): network output" in text
