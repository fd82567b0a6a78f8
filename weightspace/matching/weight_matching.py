"""Weight matching: coordinate ascent over families of groups, each step a linear assignment."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.matching.alignment import Matcher, Problem
from weightspace.matching.assignment import assign, reached, solvable, solve
from weightspace.matching.pieces import Family, Pattern, Piece, families, inner_product, lifted
from weightspace.permutation import Permutations, compose, identity, random_permutations
from weightspace.symmetry_spec import SymmetrySpec

LARGEST = 8192  # entries of a flat slot up to which its Gram matrix is formed
KEPT = (
    2  # as many entries as that many of the largest piece have: products kept where parameters are deferred
)
CHANCE = 8  # units from which on row maxima hardly ever form a permutation by chance: n! / n^n = 0.002


@dataclass(frozen=True)
class WeightMatching(Matcher):
    r"""Solve one family of groups at a time as an assignment problem, all others held, until none improves.

    For family p, with B permuted by all others: maximize <G, lifted p>,
    $G = \sum_k \mathrm{unfold}(A_k)\, \mathrm{unfold}(B_k)^\top$ over all tensors that carry p, biases and gains
    included; groups within others are solved together with them (`weightspace.matching.assignment`). A step is
    taken only if the objective rises, so the objective is monotone even where a tensor carries p on two axes and
    the step is a linearization.

    The first run starts *anchored*: one family after another is matched by those tensors alone whose other axes
    are fixed (inputs, outputs) or matched already, the one with most such evidence first. Sums of products are
    kept until a family that they depend on moves.

    Args:
        restarts: number of runs; those after the first start from random permutations in random orders. The best
            is kept.
        seed: of those starts and orders.
    Source: Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023), algorithm 1.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> found = weightspace.align(a, b, matcher=weightspace.WeightMatching(restarts=3))
        >>> found.objective > found.objective_before
        True
    """

    restarts: int = 1
    seed: int = 0

    def match(self, problem: Problem) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        state = Ascent(problem.spec, problem.pieces, generator)
        best, found = state.start(), state.elements
        for _ in range(self.restarts - 1):
            state.move(random_permutations(problem.spec, generator))
            state.climb(torch.randperm(len(state.families), generator=generator).tolist())
            if (value := state.objective()) > best:
                best, found = value, state.elements
        return found


class Products:
    """Sums of products, kept for later; where room is limited, the oldest make place for the new.

    Args:
        room: largest number of entries that are kept.
    """

    def __init__(self, room: float):
        self._room = room
        self._found: dict[Hashable, tuple[Hashable, Tensor]] = {}

    def keep(self, key: Hashable, version: Hashable, product: Tensor) -> None:
        """Keep a product under a key, in the place of another version of it."""
        self._found.pop(key, None)
        if product.numel() > self._room:
            return
        self._found[key] = (version, product)
        while sum(kept.numel() for _, kept in self._found.values()) > self._room:
            del self._found[next(iter(self._found))]

    def find(self, key: Hashable, version: Hashable) -> Tensor | None:
        """Return the product, None if it is not kept or of another version."""
        kept = self._found.get(key)
        return kept[1] if kept is not None and kept[0] == version else None


class Ascent:
    """Elements of all groups, and steps that raise the objective f = sum over pieces of <A, permuted B>."""

    def __init__(
        self,
        spec: SymmetrySpec,
        pieces: Sequence[Piece],
        generator: torch.Generator | None = None,
        start: Permutations | None = None,
    ):
        self.spec, self.pieces, self.generator = spec, pieces, generator
        self.families = families(spec)
        self.elements = {**identity(spec), **(start or {})}
        self.versions = [0] * len(self.families)
        self._flat: dict[tuple[int, Pattern], tuple[int, Tensor]] = {}
        self._resting = [not start] * len(self.families)  # families that surely hold the identity
        largest = max((piece.entries for piece in pieces), default=0)
        room = KEPT * largest if any(piece.deferred for piece in pieces) else math.inf
        self._products = Products(room)
        self._lengths: dict[tuple[int, int, str], Tensor] = {}
        self._places: list[list[tuple[int, int]]] = [
            [] for _ in self.families
        ]  # (piece, slot) of every family
        for number, piece in enumerate(pieces):
            for place, slot in enumerate(piece.slots):
                self._places[slot.family].append((number, place))
        # A family is solved as a whole from the slots that are small enough; the others are left to single groups.
        self._joint = [[(n, s) for n, s in places if self._rows(n, s) <= LARGEST] for places in self._places]
        for number, family in enumerate(self.families):
            patterns = {pieces[n].slots[s].pattern for n, s in self._joint[number]}
            if not solvable(family, list(patterns)):
                self._joint[number] = []

    def _rows(self, piece: int, slot: int) -> int:
        return self.pieces[piece].shape[slot]

    def is_joint(self, piece: int) -> bool:
        """Whether all slots of a piece take part in solving their families as a whole."""
        return all(
            (piece, place) in self._joint[slot.family] for place, slot in enumerate(self.pieces[piece].slots)
        )

    # ---- looking at it -----------------------------------------------------------------------------------

    def index(self, family: int, pattern: Pattern) -> Tensor:
        """The gather index of a slot under the elements so far, on the device of the pieces."""
        version, index = self._flat.get((family, pattern), (-1, None))
        if index is None or version != self.versions[family]:
            index = lifted(self.families[family], pattern, self.elements).to(self.pieces[0].device)
            self._flat[family, pattern] = (self.versions[family], index)
        return index

    def moved(self, number: int, without: int | None = None) -> Tensor:
        """The permuted B of a piece; one slot may be left at rest."""
        piece = self.pieces[number]
        tensor = piece.b
        for place, slot in enumerate(piece.slots):
            if place != without and not self._resting[slot.family]:
                tensor = tensor.index_select(place, self.index(slot.family, slot.pattern))
        return tensor

    def objective(self, pieces: Collection[int] | None = None) -> float:
        """f, or the part of it that some pieces contribute."""
        numbers = range(len(self.pieces)) if pieces is None else pieces
        return sum(inner_product(self.pieces[n].a, self.moved(n)) for n in numbers)

    def move(self, elements: Permutations) -> None:
        """Take other elements."""
        changed = {name for name, e in elements.items() if not torch.equal(e, self.elements[name])}
        self.elements = {**self.elements, **elements}
        for number, family in enumerate(self.families):
            if changed & set(family.names):
                self.versions[number] += 1
                self._resting[number] = False

    # ---- one family as a whole ---------------------------------------------------------------------------

    def gram(self, family: int, trusted: Collection[int] | None = None) -> dict[Pattern, Tensor]:
        """Return pattern -> G, from all pieces or from those whose other slots belong to `trusted` families."""
        terms = self.constants(family)
        for number, place in self._joint[family]:
            piece = self.pieces[number]
            others = [slot.family for at, slot in enumerate(piece.slots) if at != place]
            if not others or (trusted is not None and not set(others) <= set(trusted)):
                continue
            product = self._kept(number, place)
            if product is None:
                product = piece.rows(piece.a, place) @ piece.rows(self.moved(number, place), place).mT
                if product.numel() <= 2 * piece.entries:
                    self._products.keep((number, place), self._others(number, place), product)
            pattern = piece.slots[place].pattern
            terms[pattern] = terms[pattern] + product if pattern in terms else product
        return terms

    def constants(self, family: int) -> dict[Pattern, Tensor]:
        """The part of G from pieces that no other slot moves."""
        found: dict[Pattern, list[tuple[int, int]]] = {}
        for number, place in self._joint[family]:
            if len(self.pieces[number].slots) == 1:
                found.setdefault(self.pieces[number].slots[place].pattern, []).append((number, place))
        terms: dict[Pattern, Tensor] = {}
        for pattern, places in found.items():
            product = self._products.find((family, pattern), ())
            if product is None:
                a = torch.cat([self.pieces[n].rows(self.pieces[n].a, s) for n, s in places], 1)
                b = torch.cat([self.pieces[n].rows(self.pieces[n].b, s) for n, s in places], 1)
                product = a @ b.mT
                self._products.keep((family, pattern), (), product)
            terms[pattern] = product
        return terms

    def improve(self, family: int) -> bool:
        """Take the best element of a family with all others held, if it raises the objective."""
        rose = False
        if self.is_certain(family):
            return False
        terms = self.gram(family)
        if terms:
            found = solve(self.families[family], terms, self.generator)
            rose = self._accept(family, found, terms)
        complete = len(self._joint[family]) == len(self._places[family])
        if not complete or (self._quadratic(family) and not rose and len(self.families[family].names) > 1):
            while sum(self._improve_alone(family, name) for name in self.families[family].moving):
                rose = True
        return rose

    def is_certain(self, family: int) -> bool:
        """Whether bounds alone show that every unit of a plain group has its best partner.

        With G known from some pieces and |<a_i, b_j>| <= |a_i| |b_j| for the others, row i is settled when G[i, p(i)],
        exact, exceeds all that the other entries of the row could be. Saves most products for copies.
        """
        if len(self.families[family].names) > 1 or self._quadratic(family):
            return False
        known = list(self.constants(family).values())
        open_: list[tuple[int, int]] = []
        for number, place in self._joint[family]:
            if len(self.pieces[number].slots) > 1:
                product = self._kept(number, place)
                if product is None:
                    open_.append((number, place))
                else:
                    known.append(product)
        if not known or not open_ or len(self._joint[family]) < len(self._places[family]):
            return False
        order = self.index(family, self.families[family].names)[:, None]
        gains = known[0].clone() if len(known) == 1 else known[0] + known[1]
        for product in known[2:]:
            gains += product
        own = gains.gather(1, order)[:, 0]
        rival = gains.scatter_(1, order, -torch.inf).amax(1)
        for number, place in open_:
            piece = self.pieces[number]
            a, b = piece.rows(piece.a, place), piece.rows(self.moved(number), place)
            own += (a * b).sum(1)
            rival += self._norms(number, place, "a") * self._norms(number, place, "b").max()
        return bool((own > rival + 1e-4 * rival.abs()).all())

    def _norms(self, number: int, place: int, side: str) -> Tensor:
        """The norms of the rows of a piece, which other slots do not change."""
        if (number, place, side) not in self._lengths:
            piece = self.pieces[number]
            squares = piece.rows(getattr(piece, side).square(), place).sum(1)
            self._lengths[number, place, side] = squares.sqrt()
        return self._lengths[number, place, side]

    def _kept(self, number: int, place: int) -> Tensor | None:
        """The product of a piece with itself along a slot, if nothing it depends on has moved since."""
        return self._products.find((number, place), self._others(number, place))

    def _others(self, number: int, place: int) -> tuple[int, ...]:
        """The versions of the families on the other slots of a piece."""
        slots = self.pieces[number].slots
        return tuple(self.versions[slot.family] for at, slot in enumerate(slots) if at != place)

    def _quadratic(self, family: int) -> list[int]:
        """The pieces that carry a family in two slots."""
        return [
            number
            for number in dict.fromkeys(number for number, _ in self._places[family])
            if sum(slot.family == family for slot in self.pieces[number].slots) > 1
        ]

    def _accept(self, family: int, found: dict[str, Tensor], terms: dict[Pattern, Tensor]) -> bool:
        """Move if the objective rises by more than rounding: by the sums in G, and exactly where G is no bound."""
        before, size = self.elements, 0.0
        if all(torch.equal(found[name], before[name]) for name in found):
            return False
        twice = set(self._quadratic(family))
        large = {number for number, _ in self._places[family]} - {number for number, _ in self._joint[family]}
        if twice or large:
            numbers = dict.fromkeys(number for number, _ in self._places[family])
            old = self.objective(numbers)
            self.move(found)
            gain, size = self.objective(numbers) - old, abs(old)
        else:
            old = {pattern: self.index(family, pattern) for pattern in terms}
            self.move(found)
            gain = 0.0
            for pattern, matrix in terms.items():
                value = float(reached(matrix, old[pattern]))
                gain += float(reached(matrix, self.index(family, pattern))) - value
                size += abs(value)
        if gain > self._rounding * size:
            return True
        self.move(before)
        return False

    @property
    def _rounding(self) -> float:
        return 1e-12 if self.pieces[0].dtype == torch.float64 else 1e-6

    # ---- one group alone ---------------------------------------------------------------------------------

    def _improve_alone(self, family: int, name: str) -> bool:
        """Move the units of one group with everything else, what is within them too, carried along."""
        own = self.families[family]
        group = self.spec.by_name[name]
        gains = torch.zeros(math.prod(group.copies), group.size, group.size, dtype=torch.float64)
        for number, place in self._places[family]:
            pattern = self.pieces[number].slots[place].pattern
            if name in pattern:
                a, b = (
                    _unfolded(own, pattern, name, place, t)
                    for t in (self.pieces[number].a, self.moved(number))
                )
                gains += (a @ b.mT).double().cpu()
        step = {name: assign(gains).reshape(*group.copies, group.size)}
        before = self.elements
        numbers = dict.fromkeys(number for number, _ in self._places[family])
        value = self.objective(numbers)
        combined = compose(self.spec, before, step)
        self.move({inner: combined[inner] for inner in own.moving if inner in combined})
        if self.objective(numbers) > value + self._rounding * abs(value):
            return True
        self.move(before)
        return False

    # ---- all families ------------------------------------------------------------------------------------

    def start(self) -> float:
        """Climb from the anchored start, or from where the elements are if that ends higher; returns f."""
        rest, floor = self.elements, self.objective()
        self.climb(self.anchor())
        value = self.objective()
        if value < floor:
            self.move(rest)
            self.climb()
            value = self.objective()
        return value

    def is_plain(self) -> bool:
        """Whether every unit's best partner is the one it has; by chance this happens with few units only."""
        for number, family in enumerate(self.families):
            if len(self._joint[number]) < len(self._places[number]) or max(family.sizes.values()) < CHANCE:
                return False
            if self.is_certain(number):
                continue
            for pattern, matrix in self.gram(number).items():
                if not torch.equal(matrix.argmax(1), self.index(number, pattern)):
                    return False
        return True

    def anchor(self) -> list[int]:
        """Match every family by what is fixed or matched already; returns the order in which that was done."""
        order: list[int] = []
        while len(order) < len(self.families):
            waiting = [number for number in range(len(self.families)) if number not in order]
            number = max(waiting, key=lambda number: self._evidence(number, order))
            order.append(number)
            if self._evidence(number, order[:-1]) and (terms := self.gram(number, order[:-1])):
                self.move(solve(self.families[number], terms, self.generator))
        return order

    def _evidence(self, family: int, trusted: Collection[int]) -> int:
        """How many numbers per unit are anchored."""
        total = 0
        for number, place in self._joint[family]:
            piece = self.pieces[number]
            if all(slot.family in trusted for at, slot in enumerate(piece.slots) if at != place):
                total += piece.entries // piece.shape[place]
        return total

    def climb(self, order: Sequence[int] | None = None) -> None:
        """Improve one family after another until none rises."""
        order = list(range(len(self.families))) if order is None else list(order)
        solved: dict[int, tuple[int, ...]] = {}
        while True:
            waiting = [number for number in order if solved.get(number) != self._state(number)]
            if not waiting:
                return
            for number in waiting:
                if solved.get(number) == self._state(number):
                    continue
                state = self._state(number)
                rose = self.improve(number)
                # Another step from the same neighbors may raise it again where the step was a linearization.
                solved[number] = () if rose and self._repeats(number) else state

    def _repeats(self, family: int) -> bool:
        return bool(self._quadratic(family)) or len(self._joint[family]) < len(self._places[family])

    def _state(self, family: int) -> tuple[int, ...]:
        """The versions of all that the gains of a family depend on."""
        met = {slot.family for number, _ in self._places[family] for slot in self.pieces[number].slots}
        return tuple(self.versions[other] for other in sorted(met - {family}))


def _unfolded(family: Family, pattern: Pattern, name: str, slot: int, tensor: Tensor) -> Tensor:
    """Unfold a piece to (copies of a group, its units, all else)."""
    shape = family.shape(pattern)
    tensor = tensor.movedim(slot, 0)
    tensor = tensor.reshape(*shape, -1)
    parents = [pattern.index(parent) for parent in family.parents(name)]
    place = pattern.index(name)
    tensor = tensor.movedim((*parents, place), tuple(range(len(parents) + 1)))
    return tensor.reshape(math.prod(shape[p] for p in parents), shape[place], -1)
