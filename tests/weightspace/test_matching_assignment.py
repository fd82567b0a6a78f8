"""Assignments: the short cut and the hierarchical ones give what brute force gives."""

import itertools
import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import linear_sum_assignment

from weightspace.errors import NonFiniteError
from weightspace.matching.assignment import ENUMERATED, assign, reached, solvable, solve
from weightspace.matching.pieces import Family, families, lifted
from weightspace.symmetry_spec import Group, SymmetrySpec


def family(*groups: Group) -> Family:
    """The one family of these groups."""
    (found,) = families(SymmetrySpec(groups, {}))
    return found


def wreath(heads: int, *inner: int) -> Family:
    groups = [Group(f"i{k}", n, within=("o",), copies=(heads,)) for k, n in enumerate(inner)]
    return family(Group("o", heads), *groups)


def gains(family: Family, patterns, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    sizes = {pattern: torch.tensor(family.shape(pattern)).prod().item() for pattern in patterns}
    return {p: torch.randn(n, n, generator=generator, dtype=dtype) for p, n in sizes.items()}


def value(family: Family, terms, elements) -> float:
    return sum(float(reached(matrix, lifted(family, pattern, elements))) for pattern, matrix in terms.items())


@cache
def elements(names: str) -> dict:
    """Pattern -> the lifted indices of every element of a family's group, one row each."""
    own, patterns = PATTERNS[names]
    choices = []
    for name in own.moving:
        copies = [own.sizes[parent] for parent in own.parents(name)]
        orders = list(itertools.permutations(range(own.sizes[name])))
        products = itertools.product(orders, repeat=math.prod(copies))
        choices.append([torch.tensor(chosen).reshape(*copies, own.sizes[name]) for chosen in products])
    everything = [dict(zip(own.moving, chosen, strict=True)) for chosen in itertools.product(*choices)]
    return {pattern: torch.stack([lifted(own, pattern, e) for e in everything]) for pattern in patterns}


def best(names: str, terms) -> float:
    """The maximum by brute force."""
    totals = [terms[p][torch.arange(index.shape[1]), index].sum(1) for p, index in elements(names).items()]
    return float(sum(totals).max())


@given(
    st.integers(1, 40), st.booleans(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 2**31)
)
def test_the_short_cut_equals_the_solver(n, planted, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, generator=generator, dtype=dtype)
    if planted:
        order = torch.randperm(n, generator=generator)
        matrix[torch.arange(n), order] += 10
        assert torch.equal(assign(matrix), order)
    rows, columns = linear_sum_assignment(matrix.numpy(), maximize=True)
    largest = float(matrix[rows, columns].double().sum())
    assert float(reached(matrix, assign(matrix))) == pytest.approx(largest, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, ENUMERATED, ENUMERATED + 1, 7])
def test_batches_are_solved_one_by_one(n):
    matrices = torch.randn(3, 5, n, n, generator=torch.Generator().manual_seed(n))
    together = assign(matrices)
    assert together.shape == (3, 5, n)
    for row, column in itertools.product(range(3), range(5)):
        alone = assign(matrices[row, column])
        assert float(reached(matrices[row, column], alone)) == pytest.approx(
            float(reached(matrices[row, column], together[row, column])), rel=1e-6
        )


PATTERNS = {
    "heads": (wreath(3, 3), [("o",), ("o", "i0")]),
    "two inner groups": (wreath(2, 3, 3), [("o", "i0"), ("o", "i1")]),
    "inner groups inside heads that stay": (
        family(Group("x", 3, within=("h",), copies=(2,)), Group("y", 2, within=("h",), copies=(2,))),
        [("h", "x"), ("h", "y")],
    ),
    "three levels": (
        family(
            Group("o", 2), Group("m", 2, within=("o",), copies=(2,)),
            Group("i", 2, within=("o", "m"), copies=(2, 2)),
        ),
        [("o",), ("o", "m"), ("o", "m", "i")],
    ),
    "parents in the other order": (
        family(
            Group("o", 2), Group("m", 3, within=("o",), copies=(2,)),
            Group("i", 2, within=("m", "o"), copies=(3, 2)),
        ),
        [("o",), ("o", "m", "i")],
    ),
    "grouped queries": (wreath(2, 2, 3), [("o", "i0", "i1"), ("o", "i1")]),
    "queries, keys, values": (wreath(2, 2, 2, 2), [("o", "i0", "i1"), ("o", "i1"), ("o", "i0", "i2"), ("o", "i2")]),
    "grouped convolution": (wreath(2, 3, 3), [("o", "i0", "i1"), ("o", "i0"), ("o", "i1"), ("o",)]),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PATTERNS)
def test_hierarchical_assignment_is_exact(name, seed):
    own, patterns = PATTERNS[name]
    assert solvable(own, patterns)
    terms = gains(own, patterns, seed)
    assert value(own, terms, solve(own, terms)) == pytest.approx(best(name, terms), abs=1e-9)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**31))
def test_grouped_queries_are_exact(seed):
    own, patterns = PATTERNS["queries, keys, values"]
    terms = gains(own, patterns, seed)
    assert value(own, terms, solve(own, terms)) == pytest.approx(
        best("queries, keys, values", terms), abs=1e-9
    )


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_many_grouped_queries_are_recovered(noise):
    own = wreath(4, 8, 16)
    planted = {
        "o": torch.randperm(4, generator=torch.Generator().manual_seed(0)),
        "i0": torch.rand(4, 8, generator=torch.Generator().manual_seed(1)).argsort(-1),
        "i1": torch.rand(4, 16, generator=torch.Generator().manual_seed(2)).argsort(-1),
    }
    a = torch.randn(512, 40, generator=torch.Generator().manual_seed(3))
    b = torch.empty_like(a)
    b[lifted(own, ("o", "i0", "i1"), planted)] = a
    b += noise * torch.randn(b.shape, generator=torch.Generator().manual_seed(4))
    found = solve(own, {("o", "i0", "i1"): a @ b.mT})
    assert all(torch.equal(found[name], index) for name, index in planted.items())


def test_what_has_no_solution_is_said():
    own = family(
        Group("o", 2), Group("p", 2, within=("o",), copies=(2,)), Group("q", 2, within=("o",), copies=(2,)),
        Group("i", 2, within=("o", "p"), copies=(2, 2)),
    )  # fmt: skip
    assert solvable(own, [("o", "p", "i"), ("o", "q")])
    assert not solvable(own, [("o", "p", "q", "i")])
    two = family(Group("x", 2), Group("y", 2), Group("i", 2, within=("x", "y"), copies=(2, 2)))
    assert not solvable(two, [("x", "y", "i")])


def test_products_that_overflow_are_named():
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 1e21
    with pytest.raises(
        NonFiniteError, match="float32; scale the weights down, or store both networks as float64"
    ):
        assign(rows @ rows.T)
    assert assign(rows.double() @ rows.double().T).tolist()
