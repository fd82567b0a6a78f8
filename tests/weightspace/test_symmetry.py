"""Every derived group element preserves the function; what is not understood is frozen with a reason."""

import json
import re
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from tests.weightspace.architectures import ARCHITECTURES, random_parameters
from weightspace.errors import ArchitectureError, ShapeError
from weightspace.group_action import act, random_elements
from weightspace.layers import BilinearMLP, Householder, MaxMin
from weightspace.permutation import compose, identity, inverse, permute, permute_tensor, random_permutations
from weightspace.symmetry_spec import Factor, Group, Segment, SymmetrySpec, plain
from weightspace.tracing import trace
from weightspace.verification import function_change, symmetry, verified


def expected_groups(texts):
    """(size, copies) of every group that the short texts of `architectures` stand for."""
    groups = []
    for text in texts:
        outer, *inner = re.split(r"[(;,)]", text.removeprefix("P").removeprefix("Wr(").removeprefix("B("))
        heads = int(outer.removeprefix("fixed ").split("×")[0])
        if not outer.startswith("fixed"):
            groups.append((heads, ()))
        for entry in filter(None, inner):
            shared = entry.endswith(" shared")
            groups.append((int(entry.removesuffix(" shared")), () if shared else (heads,)))
    return sorted(groups)


@cache
def traced(name):
    return trace(ARCHITECTURES[name].module(), ARCHITECTURES[name].inputs())


@cache
def everything(name):
    return symmetry(traced(name), continuous=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_are_as_expected(name):
    spec = symmetry(traced(name))
    assert sorted((group.size, group.copies) for group in spec.groups) == expected_groups(
        ARCHITECTURES[name].expected
    ), spec
    assert all(entry.reason and entry.place for entry in spec.frozen)
    assert not any("changes the function" in entry.reason for entry in spec.frozen), spec


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_group_moves_something_and_preserves_the_function(name, dtype):
    network, spec = traced(name).astype(dtype), everything(name)
    assert not any("changes the function" in entry.reason for entry in spec.frozen), spec
    generator = torch.Generator().manual_seed(1)
    for group in spec.groups:
        permutes = group.kind == "permutation"
        drawn = (
            identity(spec)[group.name].roll(1, -1)
            if permutes
            else random_elements(spec, generator)[group.name]
        )
        element = {group.name: drawn}
        moved = act(network, spec, element)
        assert any(not torch.equal(t, network.parameters[k]) for k, t in moved.parameters.items()), group
        assert function_change(network, moved, generator) < (2e-4 if dtype == torch.float32 else 1e-9), group
    moved = act(network, spec, random_elements(spec, generator))
    assert function_change(network, moved, generator) < (2e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_spec_round_trips_through_json(name):
    spec = everything(name)
    assert SymmetrySpec.from_json(spec.to_json()) == spec
    text = str(spec)
    assert all(group.name in text for group in spec.groups)
    assert all(entry.reason in text for entry in spec.frozen)


NESTED = ["grouped convolutions", "llama", "einsum attention", "lstm", "interleaved attention", "head norms"]


@pytest.mark.parametrize("name", NESTED)
def test_permutations_act_as_a_group(name):
    network = traced(name)
    spec = symmetry(network)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        first, second = random_permutations(spec, generator), random_permutations(spec, generator)
        one_by_one = permute(permute(network, spec, first), spec, second)
        assert one_by_one == permute(network, spec, compose(spec, first, second))
        assert permute(permute(network, spec, first), spec, inverse(spec, first)) == network
    assert permute(network, spec, identity(spec)) == network


class Gaussian(nn.Module):
    """The symmetry of sums: r' (W x) with W and r permuted together, but r is read in order."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.down(torch.cumsum(self.up(x), -1))


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


class Rolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(7, 3)

    def forward(self, x):
        h = self.up(x)
        return self.down(h[..., 2:9] + h[..., 5:12])


def perceptron():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.PReLU(6), nn.Linear(6, 3))


def chain(activation):
    return nn.Sequential(nn.Linear(5, 8), activation, nn.Linear(8, 3))


SMALL = {
    "bilinear": (lambda: BilinearMLP(5, 6, 3, layers=2, hidden=7, residual=True), (2, 5), [(6, ()), (7, ()), (7, ())]),
    "embedding": (Embedded, (2, 5), [(8, ()), (12, ())]),
    "maxmin": (lambda: chain(MaxMin()), (2, 5), [(2, (4,)), (4, ())]),
    "householder": (lambda: chain(Householder(8)), (2, 5), [(4, ())]),
    "cumulative": (Gaussian, (2, 5), []),
    "overlapping slices": (Rolled, (2, 6), [(2, ()), (4, ())]),  # the rows that nothing reads are free
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_small_modules(name):
    make, shape, groups = SMALL[name]
    integers = name == "embedding"
    example = torch.zeros(shape, dtype=torch.int64 if integers else torch.float64)
    network = trace(random_parameters(make()), example)
    spec = symmetry(network)
    assert sorted((group.size, group.copies) for group in spec.groups) == groups, spec
    generator = torch.Generator().manual_seed(1)
    assert (
        function_change(network, permute(network, spec, random_permutations(spec, generator)), generator)
        < 1e-12
    )


@pytest.mark.parametrize(
    ("name", "operation"),
    [("cumulative", "aten.cumsum|Cumulative"), ("overlapping slices", "Slice|Add"), ("maxmin", "GroupSort")],
)
def test_what_is_not_understood_is_frozen_by_name(name, operation):
    make, shape, _ = SMALL[name]
    spec = symmetry(trace(make(), torch.zeros(shape)))
    assert any(re.match(operation, entry.reason) for entry in spec.frozen) or name == "maxmin", spec


def test_running_statistics_move_with_their_channel():
    spec = symmetry(traced("resnet"))
    norms = {name.rsplit(".", 1)[0] for name in spec.axes if name.endswith("running_mean")}
    assert norms
    for norm in norms:
        entries = [spec.axes[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")]
        assert entries[0]
        assert all(entry == entries[0] for entry in entries)


def test_a_wrong_rule_is_caught_by_running(monkeypatch):
    """A derivation that forgot the output would permute the classes; running the network must freeze the group."""
    from weightspace import symmetry_derivation

    network = trace(perceptron(), torch.zeros(2, 5))
    honest = symmetry_derivation.derive(network)
    wrong = SymmetrySpec(
        (*honest.groups, Group("classes", 3)),
        {**honest.axes, "4.bias": (plain("classes", 3),)},
        honest.frozen,
    )
    monkeypatch.setattr(symmetry_derivation, "derive", lambda _: wrong)
    spec = symmetry(network)
    assert {group.name for group in spec.groups} == {"0", "2"}
    assert any(e.place == "classes" and "changes the function" in e.reason for e in spec.frozen)


def test_running_statistics_left_behind_would_be_caught():
    network = traced("resnet")
    spec = symmetry(network)
    forgotten = SymmetrySpec(
        spec.groups, {k: v for k, v in spec.axes.items() if not k.endswith("running_var")}, spec.frozen
    )
    assert any("changes the function" in entry.reason for entry in verified(forgotten, network).frozen)


class SharedGain(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.gain, self.down = nn.Linear(5, 6), nn.Parameter(torch.randn(2)), nn.Linear(6, 3)

    def forward(self, x):
        return self.down((self.up(x).unflatten(-1, (3, 2)) * self.gain).flatten(1))


def test_copies_that_must_move_alike_are_not_let_go():
    """Only one permutation for all three copies is a symmetry; S_2 has one swap, so equal draws would hide that."""
    network = trace(SharedGain().double(), torch.zeros(2, 5, dtype=torch.float64))
    honest = symmetry(network)
    inner, outer = honest.groups
    assert (inner.size, inner.within, outer.size, outer.within) == (2, (), 3, (inner.name,))
    outer = Group(outer.name, 3)
    axes = {k: v for k, v in honest.axes.items() if k != "gain"}
    local = SymmetrySpec((outer, Group(inner.name, 2, within=(outer.name,), copies=(3,))), axes)
    assert [group.name for group in verified(local, network).groups] == [outer.name]


def test_gather_convention_on_a_three_cycle():
    p, groups = torch.tensor([1, 2, 0]), {"g": Group("g", 3)}
    assert permute_tensor(torch.tensor([10, 20, 30]), (plain("g", 3),), {"g": p}, groups).tolist() == [
        20,
        30,
        10,
    ]
    blocks = permute_tensor(torch.arange(6), (plain("g", 3, 2),), {"g": p}, groups)
    assert blocks.tolist() == [2, 3, 4, 5, 0, 1]


def test_wreath_keeps_inner_permutations_under_the_new_head():
    """new[(a, i)] = old[(outer[a], inner[a][i])], the formula of the convention written out by hand."""
    groups = {"o": Group("o", 2), "i": Group("i", 3, within=("o",), copies=(2,))}
    axis = (Segment((Factor("o", 2, 3), Factor("i", 3))),)
    outer, inner = torch.tensor([1, 0]), torch.tensor([[1, 2, 0], [0, 2, 1]])
    moved = permute_tensor(torch.arange(6), (axis,), {"o": outer, "i": inner}, groups)
    by_hand = [3 * int(outer[a]) + int(inner[a, i]) for a in range(2) for i in range(3)]
    assert moved.tolist() == by_hand


def test_inner_permutations_of_a_grouped_convolution_follow_the_row():
    """new[(q, u), v] = old[(O[q], sigma_q[u]), tau_q[v]]."""
    groups = {
        "O": Group("O", 2),
        "s": Group("s", 2, within=("O",), copies=(2,)),
        "t": Group("t", 3, within=("O",), copies=(2,)),
    }
    axes = ((Segment((Factor("O", 2, 2), Factor("s", 2))),), (Segment((Factor("t", 3),)),))
    element = random_permutations(
        SymmetrySpec(tuple(groups.values()), {"w": axes}), torch.Generator().manual_seed(3)
    )
    old = torch.arange(12.0).reshape(4, 3)
    moved = permute_tensor(old, axes, element, groups)
    for q in range(2):
        for u in range(2):
            for v in range(3):
                row = 2 * int(element["O"][q]) + int(element["s"][q, u])
                assert moved[2 * q + u, v] == old[row, element["t"][q, v]]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_action_is_a_group_action(first_seed, second_seed):
    network = trace(perceptron(), torch.zeros(2, 5))
    spec = symmetry(network)
    first = random_permutations(spec, torch.Generator().manual_seed(first_seed))
    second = random_permutations(spec, torch.Generator().manual_seed(second_seed))
    one_by_one = permute(permute(network, spec, first), spec, second)
    assert one_by_one == permute(network, spec, compose(spec, first, second))


def test_wrong_elements_are_refused():
    network = trace(perceptron(), torch.zeros(2, 5))
    spec = symmetry(network)
    with pytest.raises(ShapeError, match="no group 'nope'; its groups are 0, 2"):
        permute(network, spec, {"nope": torch.arange(3)})
    with pytest.raises(ShapeError, match="no permutation of its 8 units"):
        permute(network, spec, {"0": torch.zeros(8, dtype=torch.int64)})
    with pytest.raises(ShapeError, match=r"has shape \(3,\)"):
        permute(network, spec, {"0": torch.arange(3)})
    scaled = symmetry(network, continuous=True)
    with pytest.raises(ShapeError, match="is not positive"):
        act(network, scaled, {"0.positive": -torch.ones(8)})


def test_a_spec_written_by_hand_is_checked():
    network = trace(perceptron(), torch.zeros(2, 5))
    by_hand = SymmetrySpec(
        (Group("first", 8),),
        {
            "0.weight": (plain("first", 8), ()),
            "0.bias": (plain("first", 8),),
            "2.weight": ((), plain("first", 8)),
        },
    )
    assert verified(by_hand, network) == by_hand
    with pytest.raises(
        ShapeError, match=r"reaches entry 7 on axis 1 of '0.weight', which has shape \(8, 5\)"
    ):
        verified(SymmetrySpec((Group("g", 8),), {"0.weight": ((), plain("g", 8))}), network)
    with pytest.raises(ShapeError, match=r"'9.weight', which the network does not have"):
        verified(SymmetrySpec((Group("g", 8),), {"9.weight": ((), plain("g", 8))}), network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "format 'other'"),
        (lambda d: d.pop("groups"), "not the JSON of a symmetry spec"),
        (lambda d: d["groups"].append(d["groups"][0]), "two groups"),
        (lambda d: d["groups"][0].update(kind="cyclic"), "of kind 'cyclic'"),
        (lambda d: d["groups"][0].update(size=3), "moves 3 units"),
        (lambda d: d["groups"][1].update(within=["nobody"], copies=[2]), "within 'nobody'"),
        (lambda d: d["groups"][0].update(within=["2"], copies=[6]), "must stand behind"),
    ],
)
def test_contradictory_json_is_refused(change, message):
    data = json.loads(symmetry(trace(perceptron(), torch.zeros(2, 5))).to_json())
    change(data)
    with pytest.raises(ArchitectureError, match=message):
        SymmetrySpec.from_json(json.dumps(data))


def test_spec_prints_every_group_and_every_frozen_axis():
    text = str(symmetry(traced("flattened convolutions")))
    assert "S_12" in text
    assert "12 x 16" in text
    assert "network output" in text
