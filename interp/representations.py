"""Irreducible representations of finite groups, and the projectors onto their parts of the functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interp.finite_groups import FiniteGroup
from weightspace.errors import ConvergenceError, ShapeError

Field = Literal["real", "complex"]
_KINDS = {(1, 1): "real", (2, 0): "complex", (4, -2): "quaternionic"}


@dataclass(frozen=True, eq=False, repr=False)
class Representation:
    r"""An irreducible representation by orthogonal or unitary matrices.

    Attributes:
        name: the frequency k for addition modulo n, otherwise dimension and letter: "2a".
        matrices: $\rho(g)$, shape (n, d, d), real or complex; $\rho(ab) = \rho(a)\rho(b)$.
        kind: "real", "complex" or "quaternionic": what commutes with a real representation (that of which a
            complex one is part).
        block: dimension of its part of the functions on the group: $d^2 / \langle\chi, \chi\rangle$, which is
            $d^2$ for a complex one; the blocks add up to n.
    """

    name: str
    matrices: Tensor
    kind: str
    block: int

    @property
    def dimension(self) -> int:
        """d."""
        return self.matrices.shape[1]

    @property
    def character(self) -> Tensor:
        r"""$\chi(g) = \mathrm{tr}\,\rho(g)$, shape (n,)."""
        return self.matrices.diagonal(dim1=1, dim2=2).sum(1)

    def __repr__(self) -> str:
        return f"Representation({self.name}, dimension {self.dimension}, {self.kind})"


def irreducible_representations(
    group: FiniteGroup, *, field: Field = "real", dtype: torch.dtype = torch.float64
) -> tuple[Representation, ...]:
    r"""Compute every irreducible representation of a group, the trivial one first, then by dimension.

    Addition modulo n has them in closed form, k = 0 .. n/2 over the reals (rotations by $2\pi k a/n$) and
    k = 0 .. n - 1 over the complex numbers. Any other group: a random symmetric (Hermitian) combination
    of right translations commutes with left translations; its eigenspaces are irreducible with
    probability 1, and each representation is found as often as it occurs. The bases are one choice of many;
    characters, kinds and blocks are not.

    Args:
        field: "real": by real matrices, in which a pair of complex conjugates is one representation of twice
            the dimension; or "complex".
        dtype: of real parts; float32 results are rounded from float64.
    Raises:
        ConvergenceError: eigenvalues too close to be told apart.
        ShapeError: another field.
    Source: Dixon, Computing irreducible representations of groups (1970); Serre, Linear
        Representations of Finite Groups (1977), sections 2.6 and 13.2.

    Examples:
        >>> import interp
        >>> found = interp.irreducible_representations(interp.FiniteGroup.symmetric(3))
        >>> [tuple(representation.matrices.shape) for representation in found]
        [(6, 1, 1), (6, 1, 1), (6, 2, 2)]
    """
    if field not in ("real", "complex"):
        raise ShapeError(f"field is 'real' or 'complex'; got {field!r}")
    matrices = _rotations(group.order, field) if group.is_cyclic_table else _split_regular(group, field)
    found = []
    letters: dict[int, int] = {}
    for frequency, own in enumerate(matrices):
        kind, norm = _kind(group, own)
        size = own.shape[1]
        letters[size] = letters.get(size, -1) + 1
        name = str(frequency) if group.is_cyclic_table else f"{size}{chr(ord('a') + letters[size])}"
        cast = own.to(dtype if field == "real" else torch.promote_types(dtype, torch.complex64))
        found.append(Representation(name, cast, kind, size**2 // norm))
    if sum(representation.block for representation in found) != group.order:
        raise ConvergenceError(f"the representations found do not make up the functions on {group.name}")
    return tuple(found)


def isotypic_projectors(
    group: FiniteGroup, *, field: Field = "real", dtype: torch.dtype = torch.float64
) -> Tensor:
    r"""Return the orthogonal projectors of functions on a group onto its irreducible parts, (k, n, n).

    $$\Pi_\rho = \frac{d_\rho}{|G|} \sum_g \chi_\rho(g)^* R(g)$$
    with R the regular representation; over the reals, conjugates are joined. They are in the order of
    `irreducible_representations`, add up to the identity, and do not depend on any choice.

    Source: Serre, Linear Representations of Finite Groups (1977), section 2.6, theorem 8.
    """
    quotients = group.table[:, group.inverses]  # x y^-1
    projectors = [
        representation.block
        / (representation.dimension * group.order)
        * representation.character.conj()[quotients]
        for representation in irreducible_representations(group, field=field)
    ]
    stacked = torch.stack(projectors)
    return stacked.to(dtype if field == "real" else torch.promote_types(dtype, torch.complex64))


def isotypic_basis(group: FiniteGroup) -> tuple[Tensor, Tensor]:
    r"""Return an orthonormal basis of the functions on a group, every function in one part, and whose part.

    Returns:
        The basis as columns, shape (n, n), and for every column the number of its real representation,
        shape (n,), ascending. Within a part the basis is one choice of many.
    """
    projectors = isotypic_projectors(group)
    numbers = torch.arange(len(projectors), dtype=projectors.dtype)
    values, basis = torch.linalg.eigh((numbers[:, None, None] * projectors).sum(0))
    return basis, values.round().long()


def _rotations(order: int, field: Field) -> list[Tensor]:
    numbers = torch.arange(order)
    found = []
    for frequency in range(order if field == "complex" else order // 2 + 1):
        # Reduced as integers: the angle keeps its digits.
        angle = (frequency * numbers % order).double() * (2 * math.pi / order)
        if field == "complex":
            found.append(torch.polar(torch.ones_like(angle), angle)[:, None, None])
        elif 2 * frequency % order == 0:
            found.append(angle.cos().round()[:, None, None])
        else:
            rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
            found.append(rows.unflatten(1, (2, 2)))
    return found


def _split_regular(group: FiniteGroup, field: Field) -> list[Tensor]:
    """Irreducible parts of the left regular representation, one of each, in canonical order."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float64 if field == "real" else torch.complex128
    draws = torch.randn(group.order, dtype=dtype, generator=generator)
    weights = draws + draws[group.inverses].conj()
    values, vectors = torch.linalg.eigh(weights[group.table[group.inverses]])  # entry (x, y) at x^-1 y
    borders = (values.diff() > 1e-9 * values.abs().max()).nonzero().flatten() + 1
    found: dict[tuple[float, ...], Tensor] = {}
    for basis in vectors.tensor_split(borders, dim=1):
        moved = basis[group.table[group.inverses]]  # (g, x, d): the basis at g^-1 x
        matrices = torch.einsum("xi,gxj->gij", basis.conj(), moved)
        character = torch.view_as_real(matrices.diagonal(dim1=1, dim2=2).sum(1) + 0j)
        rounded = (character * 1e6).round() / 1e6 + 0.0  # -0.0 becomes 0.0
        found.setdefault((basis.shape[1], *(-rounded.flatten()).tolist()), matrices)
    return [found[key] for key in sorted(found)]


def _kind(group: FiniteGroup, matrices: Tensor) -> tuple[str, int]:
    """Name the type by the character's norm and its Frobenius-Schur indicator; the norm over the given field."""
    character = matrices.diagonal(dim1=1, dim2=2).sum(1)
    norm = float(character.abs().square().mean())
    indicator = float(character[group.table.diagonal()].mean().real)
    rounded = (round(norm), round(indicator))
    if matrices.is_complex():
        kinds = {(1, 1): "real", (1, 0): "complex", (1, -1): "quaternionic"}
    else:
        kinds = _KINDS
    if abs(norm - rounded[0]) + abs(indicator - rounded[1]) > 1e-6 or rounded not in kinds:
        raise ConvergenceError(
            f"a part of the functions on {group.name} is not irreducible: norm {norm:.6g}, indicator "
            f"{indicator:.6g} of its character; eigenvalues coincide"
        )
    return kinds[rounded], rounded[0]
