"""Laws of finite groups, of their irreducible representations and of the projectors onto their parts."""

import pytest
import torch

import weightspace
from interp.finite_groups import FiniteGroup
from interp.representations import irreducible_representations, isotypic_basis, isotypic_projectors

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
fields = pytest.mark.parametrize("field", ["real", "complex"])
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


def from_elements(name, elements, product):
    index = {element: number for number, element in enumerate(elements)}
    table = torch.tensor([[index[product(a, b)] for b in elements] for a in elements])
    return FiniteGroup(name, table, tuple(map(str, elements)))


def quaternions():
    """The units 1, i, j, k with both signs, as pairs (sign, axis)."""
    axes = {(1, 2): (0, 3), (2, 3): (0, 1), (3, 1): (0, 2), (2, 1): (1, 3), (3, 2): (1, 1), (1, 3): (1, 2)}

    def product(a, b):
        if 0 in (a[1], b[1]):
            sign, axis = 0, a[1] + b[1]
        else:
            sign, axis = (1, 0) if a[1] == b[1] else axes[a[1], b[1]]
        return (a[0] + b[0] + sign) % 2, axis

    return from_elements("Q8", [(sign, axis) for sign in (0, 1) for axis in range(4)], product)


def affine_maps():
    """x -> s x + t modulo 7 with s in {1, 2, 4}: not abelian, with complex representations."""
    elements = [(s, t) for s in (1, 2, 4) for t in range(7)]
    return from_elements("F21", elements, lambda a, b: (a[0] * b[0] % 7, (a[0] * b[1] + a[1]) % 7))


def relabeled(group, seed=0):
    order = torch.randperm(group.order, generator=torch.Generator().manual_seed(seed))
    table = torch.empty_like(group.table)
    table[order[:, None], order] = order[group.table]
    return FiniteGroup(f"{group.name} relabeled", table, group.labels), order


GROUPS = {
    "Z1": lambda: FiniteGroup.cyclic(1),
    "Z7": lambda: FiniteGroup.cyclic(7),
    "Z12": lambda: FiniteGroup.cyclic(12),
    "Z9, other order": lambda: relabeled(FiniteGroup.cyclic(9))[0],
    "S3": lambda: FiniteGroup.symmetric(3),
    "S4": lambda: FiniteGroup.symmetric(4),
    "D5": lambda: FiniteGroup.dihedral(5),
    "D6": lambda: FiniteGroup.dihedral(6),
    "Q8": quaternions,
    "F21": affine_maps,
}
groups = pytest.mark.parametrize("name", GROUPS)


@groups
def test_group_axioms_and_classes(name):
    group = GROUPS[name]()
    table, own = group.table, torch.arange(group.order)
    assert torch.equal(table[table[:, :, None], own], table[own[:, None, None], table])
    assert torch.equal(table[group.identity], own)
    assert bool((table[own, group.inverses] == group.identity).all())
    assert sorted(element for members in group.conjugacy_classes for element in members) == own.tolist()
    assert (len(group.conjugacy_classes) == group.order) == group.is_abelian
    # c^-1 a b is the identity where c is the product.
    assert bool((group.differences.gather(0, table[None]) == group.identity).all())


def test_known_groups():
    assert [len(FiniteGroup.symmetric(n).conjugacy_classes) for n in (1, 2, 3, 4, 5)] == [1, 2, 3, 5, 7]
    symmetric = FiniteGroup.symmetric(3)
    swap, cycle = symmetric.labels.index("102"), symmetric.labels.index("120")
    assert symmetric.labels[int(symmetric.table[swap, cycle])] == "021"  # i -> swap(cycle(i))
    assert FiniteGroup.cyclic(5).is_cyclic_table
    assert not relabeled(FiniteGroup.cyclic(5))[0].is_cyclic_table
    assert repr(symmetric) == "FiniteGroup(S3, 6 elements, 3 conjugacy classes)"
    dihedral = FiniteGroup.dihedral(5)
    turn, flip = dihedral.labels.index("r1"), dihedral.labels.index("r0s")
    conjugate = dihedral.table[dihedral.table[flip, turn], flip]
    assert int(conjugate) == int(dihedral.inverses[turn])


def test_tables_that_are_no_groups_are_refused():
    own = torch.arange(5)
    good = (own[:, None] + own) % 5
    labels = tuple("abcde")
    loop = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]])
    cases = [
        (good[:3], labels, r"square.*\(3, 5\)"),
        (good.double(), labels, "float64"),
        (good, labels[:4], "5 elements but 4 labels"),
        (good + 1, labels, "0 to 4"),
        ((own[:, None] - own) % 5, labels, "no identity"),
        (torch.minimum(own[:, None], own).flip(0, 1).sub(4).neg(), labels, "no inverse"),
        (loop, labels, r"not associative.*a, b, c = 1, 1, 2"),
    ]
    for table, names, text in cases:
        with pytest.raises(weightspace.ShapeError, match=text):
            FiniteGroup("broken", table, names)
    with pytest.raises(weightspace.ShapeError, match="degree is 6"):
        FiniteGroup.symmetric(6)
    for make in (FiniteGroup.cyclic, FiniteGroup.symmetric, FiniteGroup.dihedral):
        with pytest.raises(weightspace.ShapeError, match="at least 1; got 0"):
            make(0)


@dtypes
@fields
@groups
def test_representations_are_unitary_homomorphisms(name, field, dtype):
    group = GROUPS[name]()
    for representation in irreducible_representations(group, field=field, dtype=dtype):
        matrices = representation.matrices
        assert matrices.real.dtype == dtype
        assert matrices.is_complex() == (field == "complex")
        products = matrices[:, None] @ matrices
        assert torch.allclose(products, matrices[group.table], atol=TOLERANCE[dtype])
        unit = torch.eye(representation.dimension).to(matrices)
        assert torch.allclose(matrices.mH @ matrices, unit.expand_as(matrices), atol=TOLERANCE[dtype])


@groups
def test_characters_are_orthogonal_and_complete(name):
    group = GROUPS[name]()
    found = irreducible_representations(group, field="complex")
    characters = torch.stack([representation.character for representation in found])
    gram = characters.conj() @ characters.mT / group.order
    assert torch.allclose(gram, torch.eye(len(found)).to(gram), atol=1e-12)
    assert len(found) == len(group.conjugacy_classes)
    assert sum(representation.dimension**2 for representation in found) == group.order
    assert torch.allclose(found[0].character, torch.ones(group.order).to(characters))
    for members in group.conjugacy_classes:
        assert torch.allclose(characters[:, list(members)], characters[:, list(members[:1])], atol=1e-12)


@groups
def test_real_representations_join_what_complex_conjugation_joins(name):
    group = GROUPS[name]()
    real, complexes = (irreducible_representations(group, field=field) for field in ("real", "complex"))
    own = {kind: sum(r.kind == kind for r in complexes) for kind in ("real", "complex", "quaternionic")}
    assert [sum(r.kind == kind for r in real) for kind in own] == [
        own["real"],
        own["complex"] // 2,
        own["quaternionic"],
    ]
    assert sum(representation.block for representation in real) == group.order
    joined = [r.character.mul(1 if r.kind == "real" else 2).real for r in complexes]
    for representation in real:
        assert min(float((representation.character - one).abs().max()) for one in joined) < 1e-9


def test_kinds_of_known_representations():
    kinds = {name: [r.kind for r in irreducible_representations(GROUPS[name]())] for name in GROUPS}
    assert kinds["Q8"] == ["real"] * 4 + ["quaternionic"]
    assert kinds["F21"] == ["real", "complex", "complex"]
    assert set(kinds["S4"]) == set(kinds["D6"]) == {"real"}
    assert kinds["Z12"] == ["real", *["complex"] * 5, "real"]
    assert [r.dimension for r in irreducible_representations(GROUPS["Q8"]())] == [1, 1, 1, 1, 4]
    assert [r.name for r in irreducible_representations(GROUPS["S3"]())] == ["1a", "1b", "2a"]
    with pytest.raises(weightspace.ShapeError, match="'rational'"):
        irreducible_representations(GROUPS["S3"](), field="rational")


@dtypes
@fields
@groups
def test_projectors_split_the_functions(name, field, dtype):
    group = GROUPS[name]()
    projectors = isotypic_projectors(group, field=field, dtype=dtype)
    tolerance = TOLERANCE[dtype]
    assert projectors.real.dtype == dtype
    products = projectors[:, None] @ projectors
    expected = torch.zeros_like(products)
    expected[range(len(projectors)), range(len(projectors))] = projectors
    assert torch.allclose(products, expected, atol=tolerance)  # idempotent and orthogonal to each other
    assert torch.allclose(projectors, projectors.mH, atol=tolerance)
    assert torch.allclose(projectors.sum(0), torch.eye(group.order).to(projectors), atol=tolerance)
    traces = projectors.diagonal(dim1=1, dim2=2).sum(1).real
    blocks = [float(r.block) for r in irreducible_representations(group, field=field)]
    assert torch.allclose(traces, torch.tensor(blocks, dtype=dtype), atol=1e-4)
    for element in range(group.order):  # translations from either side commute with them
        for translation in (group.table[element], group.table[:, element]):
            moved = projectors[:, translation][:, :, translation]
            assert torch.allclose(moved, projectors, atol=tolerance)


@pytest.mark.parametrize("name", ["Z7", "S4", "Q8", "F21"])
def test_projectors_do_not_depend_on_the_order_of_elements(name):
    group = GROUPS[name]()
    other, order = relabeled(group, seed=3)
    moved = isotypic_projectors(other)[:, order][:, :, order]
    expected = isotypic_projectors(group)
    distances = (moved[:, None] - expected).abs().amax((2, 3))
    assert sorted(distances.argmin(1).tolist()) == list(range(len(expected)))
    assert float(distances.amin(1).max()) < 1e-12


@groups
def test_basis_is_orthonormal_and_sorted_by_part(name):
    group = GROUPS[name]()
    basis, part = isotypic_basis(group)
    assert torch.allclose(basis.mT @ basis, torch.eye(group.order).double(), atol=1e-12)
    assert bool((part.diff() >= 0).all())
    for number, projector in enumerate(isotypic_projectors(group)):
        own = basis[:, part == number]
        assert torch.allclose(own @ own.mT, projector, atol=1e-10)
