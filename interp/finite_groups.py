"""Finite groups by their multiplication tables."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import ShapeError


@dataclass(frozen=True, eq=False, repr=False)
class FiniteGroup:
    """A finite group; its elements are the numbers 0 .. n - 1.

    Attributes:
        name: such as "S3".
        table: the products, `table[a, b]` is ab, shape (n, n), int64.
        labels: of the elements, one text each.

    Raises:
        ShapeError: the table is not square, holds other numbers, or breaks an axiom; the message names the
            axiom and the elements.

    Examples:
        >>> import interp
        >>> group = interp.FiniteGroup.symmetric(3)
        >>> group, group.order, group.is_abelian
        (FiniteGroup(S3, 6 elements, 3 conjugacy classes), 6, False)
    """

    name: str
    table: Tensor
    labels: tuple[str, ...]

    def __post_init__(self):
        table, count = self.table, len(self.table)
        if table.ndim != 2 or table.shape[1] != count or not count or table.dtype != torch.int64:
            raise ShapeError(
                f"the table of {self.name} must be square, not empty and int64; it has shape "
                f"{tuple(table.shape)} and dtype {table.dtype}"
            )
        if len(self.labels) != count:
            raise ShapeError(f"{self.name} has {count} elements but {len(self.labels)} labels")
        if bool(((table < 0) | (table >= count)).any()):
            raise ShapeError(
                f"products in {self.name} must be elements 0 to {count - 1}; the table has others"
            )
        own = torch.arange(count)
        neutral = (table == own).all(1) & (table == own[:, None]).all(0)
        if not bool(neutral.any()):
            raise ShapeError(f"{self.name} has no identity: no element e with ea = ae = a for every a")
        gives_identity = table == int(neutral.nonzero()[0, 0])
        invertible = (gives_identity & gives_identity.mT).any(1)
        if not bool(invertible.all()):
            raise ShapeError(f"element {int((~invertible).nonzero()[0, 0])} of {self.name} has no inverse")
        for a in range(count):
            wrong = table[table[a]] != table[a][table]
            if bool(wrong.any()):
                b, c = wrong.nonzero()[0].tolist()
                raise ShapeError(
                    f"{self.name} is not associative: (ab)c is not a(bc) for a, b, c = {a}, {b}, {c}"
                )

    @classmethod
    def cyclic(cls, order: int) -> FiniteGroup:
        """Return addition modulo `order`; element k is the number k."""
        return _generated(f"Z{order}", range(_positive(order)), lambda a, b: (a + b) % order)

    @classmethod
    def symmetric(cls, degree: int) -> FiniteGroup:
        """Return the permutations of 0 .. degree - 1, degree <= 5, in lexicographic order; (ab)(i) = a(b(i)).

        Labels list the images, "102" exchanges 0 and 1.
        """
        if degree > 5:
            raise ShapeError(f"symmetric goes up to degree 5 (120 elements); degree is {degree}")
        elements = permutations(range(_positive(degree)))
        return _generated(
            f"S{degree}",
            elements,
            lambda a, b: tuple(a[i] for i in b),
            lambda element: "".join(map(str, element)),
        )

    @classmethod
    def dihedral(cls, corners: int) -> FiniteGroup:
        """Return the 2 `corners` symmetries of a regular polygon: r^i, then r^i s, with s r s = r^-1."""
        elements = [(turn, flip) for flip in (0, 1) for turn in range(_positive(corners))]
        return _generated(
            f"D{corners}",
            elements,
            lambda a, b: ((a[0] + (-b[0] if a[1] else b[0])) % corners, a[1] ^ b[1]),
            lambda element: f"r{element[0]}" + "s" * element[1],
        )

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.table)

    @cached_property
    def identity(self) -> int:
        """The element e with ea = ae = a."""
        return int((self.table[:, 0] == 0).nonzero()[0, 0])

    @cached_property
    def inverses(self) -> Tensor:
        """The inverse of every element, shape (n,)."""
        return (self.table == self.identity).int().argmax(1)

    @cached_property
    def is_abelian(self) -> bool:
        """Whether ab = ba for all elements."""
        return torch.equal(self.table, self.table.mT)

    @cached_property
    def is_cyclic_table(self) -> bool:
        """Whether element k is the number k under addition modulo n, as `cyclic` makes it."""
        own = torch.arange(self.order)
        return torch.equal(self.table, (own[:, None] + own) % self.order)

    @cached_property
    def conjugacy_classes(self) -> tuple[tuple[int, ...], ...]:
        """The sets {g a g^-1 over all g}, by their smallest element."""
        conjugates = self.table[self.table, self.inverses[:, None]]  # (g, a): g a g^-1
        return tuple(sorted({tuple(sorted(set(column))) for column in conjugates.mT.tolist()}))

    @cached_property
    def differences(self) -> Tensor:
        """The elements c^-1 a b, shape (n, n, n) over c, a, b: the error of the answer c."""
        return self.table[self.inverses[:, None, None], self.table]

    def __repr__(self) -> str:
        return f"FiniteGroup({self.name}, {self.order} elements, {len(self.conjugacy_classes)} conjugacy classes)"


def _generated(
    name: str,
    elements: Iterable[Any],
    product: Callable[[Any, Any], Hashable],
    label: Callable[[Any], str] = str,
) -> FiniteGroup:
    listed = list(elements)
    index = {element: number for number, element in enumerate(listed)}
    table = torch.tensor([[index[product(a, b)] for b in listed] for a in listed])
    return FiniteGroup(name, table, tuple(map(label, listed)))


def _positive(number: int) -> int:
    if number < 1:
        raise ShapeError(f"a group needs a number of at least 1; got {number}")
    return number
