"""Axes of tensors as trees of factors, united where two axes must move alike.

A *space* is the set of entries of an axis. It is an atom, or a product of spaces (a reshaped axis: heads times
width, first factor slowest) or a sum of spaces (a concatenated or sliced axis: one behind the other). Uniting
two spaces refines both to a common structure and makes their atoms one. Atoms are what groups act on in the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

BATCH = 7919  # stands for the open batch size where element counts are compared: a prime that no layer has

# What linear maps of the units an operation tolerates beside permutations; see `Unification.limit`.
LINEAR_KINDS = frozenset({"invertible", "orthogonal", "centered", "positive", "sign"})


@dataclass(frozen=True)
class Ref:
    """A reference to a space. `dual`: it carries the inverse transpose of the map that acts on the space."""

    space: int
    dual: bool = False

    @property
    def transposed(self) -> Ref:
        """The reference with inverse transposed maps."""
        return Ref(self.space, not self.dual)


@dataclass
class _Space:
    size: int
    name: str
    frozen: str | None = None
    start: int | None = None  # where on the axis called `name` a part of a sum begins
    forward: Ref | None = None  # united with another space
    form: str | None = None  # None (atom), "product" or "sum"
    parts: list[Ref] = field(default_factory=list)
    kinds: frozenset[str] = LINEAR_KINDS


@dataclass(frozen=True)
class Strided:
    """An atom inside an axis: the entry with index i of the atom stands i * stride further on."""

    atom: Ref
    size: int
    stride: int


@dataclass(frozen=True)
class Run:
    """A product of atoms inside an axis, starting at `offset`."""

    offset: int
    factors: tuple[Strided, ...]


class Unification:
    """Union-find over spaces that may be refined into products and sums."""

    def __init__(self) -> None:
        self._spaces: list[_Space] = []

    # ---- making and looking ------------------------------------------------------------------------------

    def fresh(self, size: int | None, name: str, frozen: str | None = None) -> Ref:
        """Make an atom; a size of None (it follows the batch) is always frozen."""
        self._spaces.append(
            _Space(size if size is not None else BATCH, name, frozen or ("batch" if size is None else None))
        )
        return Ref(len(self._spaces) - 1)

    def product(self, parts: Sequence[Ref], name: str) -> Ref:
        """Make the space of a merged axis, first part slowest."""
        parts = [part for part in parts if self.size(part) != 1] or list(parts[:1])
        if len(parts) == 1:
            return parts[0]
        ref = self.fresh(math.prod(self.size(part) for part in parts), name)
        self._shape(ref, "product", parts)
        return ref

    def sum(self, parts: Sequence[Ref], name: str) -> Ref:
        """Make the space of concatenated axes."""
        parts = [part for part in parts if self.size(part) != 0] or list(parts[:1])
        if len(parts) == 1:
            return parts[0]
        ref = self.fresh(sum(self.size(part) for part in parts), name)
        self._shape(ref, "sum", parts)
        return ref

    def find(self, ref: Ref) -> Ref:
        """Return the reference to the space that stands for all that were united with it."""
        dual = ref.dual
        while (forward := self._spaces[ref.space].forward) is not None:
            dual ^= forward.dual
            ref = forward
        return Ref(ref.space, dual)

    def name(self, ref: Ref) -> str:
        """What the space is called: the node that made it, and which part of its axis it is."""
        space = self._at(ref)
        return (
            space.name if space.start is None else f"{space.name}[{space.start}:{space.start + space.size}]"
        )

    def _at(self, ref: Ref) -> _Space:
        return self._spaces[self.find(ref).space]

    def size(self, ref: Ref) -> int:
        """Number of entries; a multiple of `BATCH` where it follows the batch."""
        return self._at(ref).size

    def atom(self, ref: Ref) -> _Space:
        """The atom itself: its size, name, frozen reason and kinds."""
        return self._at(ref)

    def _parts(self, ref: Ref) -> list[Ref]:
        """The parts of a space; a product in a product and a sum in a sum are opened."""
        found = self.find(ref)
        space = self._spaces[found.space]
        parts = []
        for part in space.parts:
            part = Ref(part.space, part.dual ^ found.dual)
            parts += self._parts(part) if self._at(part).form == space.form else [part]
        return parts

    def atoms(self, ref: Ref) -> list[Ref]:
        """The atoms below a space."""
        if self._at(ref).form is None:
            return [self.find(ref)]
        return [atom for part in self._parts(ref) for atom in self.atoms(part)]

    def runs(self, ref: Ref, stride: int = 1) -> list[Run]:
        """Write a space as a list of products of atoms with their positions on the axis."""
        space = self._at(ref)
        if space.form is None:
            return [Run(0, (Strided(self.find(ref), space.size, stride),))]
        parts = self._parts(ref)
        if space.form == "sum":
            found, offset = [], 0
            for part in parts:
                found += [Run(offset * stride + run.offset, run.factors) for run in self.runs(part, stride)]
                offset += self.size(part)
            return found
        products = [Run(0, ())]
        for part in reversed(parts):
            products = [
                Run(left.offset + right.offset, left.factors + right.factors)
                for left in self.runs(part, stride)
                for right in products
            ]
            stride *= self.size(part)
        return products

    # ---- constraining ------------------------------------------------------------------------------------

    def freeze(self, refs: Sequence[Ref], reason: str) -> None:
        """Allow nothing but the identity on these spaces, for a reason that is reported."""
        for ref in refs:
            for atom in self.atoms(ref):
                space = self._at(atom)
                space.frozen = space.frozen or reason

    def limit(self, refs: Sequence[Ref], kinds: Sequence[str]) -> None:
        """Tolerate no linear maps on these spaces but those of the kinds named."""
        for ref in refs:
            for atom in self.atoms(ref):
                self._at(atom).kinds &= frozenset(kinds)

    def unite(self, a: Ref, b: Ref, reason: str) -> Ref:
        """Require two spaces to move alike; what has no common structure is frozen."""
        a, b = self.find(a), self.find(b)
        if a.space == b.space:
            if a.dual != b.dual:  # the map equals its own inverse transpose
                self.limit([a], ("orthogonal", "centered", "sign"))
            return a
        first, second = self._at(a), self._at(b)
        if first.size != second.size:
            self.freeze([a, b], f"{reason}: {first.size} and {second.size} units meet")
            return a
        if first.form is None and (second.form is not None or b.space < a.space):
            a, b, first, second = b, a, second, first
        if second.form is None:  # an atom takes on the other's structure
            second.forward = Ref(a.space, a.dual ^ b.dual)
            if second.frozen:
                self.freeze([a], second.frozen)
            self.limit([a], tuple(second.kinds))
            return a
        refine = {"product": self._refine_products, "sum": self._refine_sums}[first.form or ""]
        if first.form != second.form or not refine(a, b):
            self.freeze([a, b], f"{reason}: axes of different structure meet")
            return a
        for left, right in zip(self._parts(a), self._parts(b), strict=True):
            self.unite(left, right, reason)
        return a

    def split(self, ref: Ref, sizes: Sequence[int]) -> list[Ref] | None:
        """Factor a space into a product with these sizes; None when its structure forbids that."""
        if math.prod(sizes) != self.size(ref):
            return None
        if len(sizes) == 1:
            return [ref]
        return self._regroup([ref], sizes, self._at(ref).name)

    def regroup(self, refs: Sequence[Ref], sizes: Sequence[int], name: str) -> list[Ref] | None:
        """Write the product of some spaces as a product with other sizes; None when that is impossible."""
        return self._regroup(list(refs), sizes, name)

    def cut(self, ref: Ref, start: int, stop: int) -> Ref | None:
        """Return the space of the entries start .. stop - 1; None when the structure has no such part."""
        size = self.size(ref)
        if (start, stop) == (0, size):
            return ref
        if not self._split_sum(ref, [n for n in (start, stop) if 0 < n < size]):
            return None
        parts, offset = [], 0
        for part in self._parts(ref):
            if start <= offset < stop:
                parts.append(part)
            offset += self.size(part)
        return self.sum(parts, self._at(ref).name)

    # ---- refining ----------------------------------------------------------------------------------------

    def _shape(self, ref: Ref, form: str, parts: Sequence[Ref]) -> None:
        """Give an atom a structure; what held for the atom holds for its parts."""
        found = self.find(ref)
        space = self._spaces[found.space]
        space.form = form
        space.parts = [Ref(part.space, part.dual ^ found.dual) for part in parts]
        if space.frozen:
            self.freeze(space.parts, space.frozen)
        self.limit(space.parts, tuple(space.kinds))

    def _factor(self, ref: Ref, left: int) -> bool:
        """Make an atom the product of `left` and the rest."""
        space = self._at(ref)
        if space.form is not None or space.size % left:
            return False
        outer = self.fresh(left, f"{self.name(ref)}.outer")
        inner = self.fresh(space.size // left, f"{self.name(ref)}.inner")
        self._shape(ref, "product", [outer, inner])
        return True

    def _regroup(self, refs: list[Ref], sizes: Sequence[int], name: str) -> list[Ref] | None:
        waiting = [ref for ref in refs if self.size(ref) != 1]
        result = []
        for size in sizes:
            taken: list[Ref] = []
            need = size
            while need > 1:
                if not waiting:
                    return None
                part = waiting.pop(0)
                n = self.size(part)
                if need % n == 0:
                    taken.append(part)
                    need //= n
                elif self._at(part).form == "product" or self._factor(part, need):
                    waiting = self._parts(part) + waiting
                else:
                    return None
            result.append(self.product(taken, name) if taken else self.fresh(1, name))
        return result if not waiting else None

    def _refine_products(self, a: Ref, b: Ref) -> bool:
        """Split the factors of two products until their sizes agree."""
        left, right = self._parts(a), self._parts(b)
        mine: list[Ref] = []
        theirs: list[Ref] = []
        while left and right:
            first, second = left.pop(0), right.pop(0)
            n, m = self.size(first), self.size(second)
            if n == m:
                mine.append(first)
                theirs.append(second)
            elif n > m and (self._at(first).form == "product" or self._factor(first, m)):
                left, right = self._parts(first) + left, [second, *right]
            elif m > n and (self._at(second).form == "product" or self._factor(second, n)):
                left, right = [first, *left], self._parts(second) + right
            else:
                return False
        self._rewrite(a, mine)
        self._rewrite(b, theirs)
        return True

    def _refine_sums(self, a: Ref, b: Ref) -> bool:
        """Cut the parts of two sums until their sizes agree."""
        cuts = set()
        for ref in (a, b):
            offset = 0
            for part in self._parts(ref):
                offset += self.size(part)
                cuts.add(offset)
        total = self.size(a)
        inside = sorted(cuts - {total})
        return self._split_sum(a, inside) and self._split_sum(b, inside)

    def _split_sum(self, ref: Ref, cuts: Sequence[int]) -> bool:
        """Make a space a sum with parts ending at `cuts`."""
        space = self._at(ref)
        if not cuts:
            return True
        if space.form == "product":
            return False
        if space.form is None:
            edges = [0, *sorted(set(cuts)), space.size]
            parts = []
            for low, high in pairwise(edges):
                parts.append(self.fresh(high - low, space.name))
                self._at(parts[-1]).start = (space.start or 0) + low
            self._shape(ref, "sum", parts)
            return True
        offset = 0
        for part in self._parts(ref):
            size = self.size(part)
            inner = [cut - offset for cut in cuts if offset < cut < offset + size]
            if not self._split_sum(part, inner):
                return False
            offset += size
        return True

    def _rewrite(self, ref: Ref, parts: Sequence[Ref]) -> None:
        """Replace the parts of a space by an equal, finer list."""
        found = self.find(ref)
        self._spaces[found.space].parts = [Ref(part.space, part.dual ^ found.dual) for part in parts]
