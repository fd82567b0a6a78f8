"""`place_in_families`: networks brought into the neuron order of their relatives, families kept apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weightspace.canonical_form import canonical_order
from weightspace.distances import sums_between
from weightspace.errors import SymmetryError
from weightspace.gram_matrices import distances_between, gram
from weightspace.kinship import DERIVED, DRAWS, SAME_ORDER, shares_untouched, stranger
from weightspace.network import Network
from weightspace.permutation import compose, inverse, permute, random_permutations
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.unit_resemblance import Resemblances, unit_rows
from weightspace.untouched_weights import trained

if TYPE_CHECKING:
    from weightspace.matching import Matcher

CANDIDATES = 4  # families that a network is aligned to, of those that resemble it most
WAVE = 64  # groups that are placed at once

Element = Mapping[str, Tensor]


@dataclass(frozen=True)
class CanonicalOrder:
    """The order that the weights alone decide, and the hash in it; None where they are too symmetric."""

    hash: str | None
    element: Element | None


@dataclass(frozen=True, eq=False)
class Pair:
    """Two networks of one structure to be put into one order; `names` are for errors."""

    names: tuple[str, str]
    reference: Network
    model: Network

    def __str__(self) -> str:
        return f"{self.names[1]} in the order of {self.names[0]}"

    def key(self, task: str) -> str:
        """Return what tells the task on this pair from others, whatever the files are called."""
        both = f"{self.reference.hash} {self.model.hash}"
        return f"{task} {hashlib.sha256(both.encode()).hexdigest()}"


@dataclass(frozen=True, eq=False)
class Fit:
    """How a model fits a reference.

    Attributes:
        element: what moves the model into the order of the reference.
        gap: that is left then.
        ratio: gap in units of a stranger's; 0 where the two share weights that no gradient reached.
    """

    element: Element
    gap: float
    ratio: float


@dataclass
class _Family:
    """Networks of common origin in one order, and the sums of each one's distances to the others."""

    members: list[int]
    totals: np.ndarray = field(default_factory=lambda: np.zeros(1))

    @property
    def medoid(self) -> int:
        """The member with the smallest sum of distances, which stands for the family; of two, the first."""
        return self.members[int(self.totals.argmin()) if len(self.members) > 2 else 0]


def find_order(network: Network, *, spec: SymmetrySpec) -> CanonicalOrder:
    """Return the canonical order of a network."""
    try:
        element = canonical_order(network, spec)
    except SymmetryError:
        return CanonicalOrder(None, None)
    return CanonicalOrder((permute(network, spec, element) if spec.groups else network).hash, element)


def place_in_families(
    names: Sequence[str],
    networks: Sequence[Network],
    orders: Sequence[CanonicalOrder],
    spec: SymmetrySpec,
    matcher: Matcher | None,
    run: Callable[..., list],
    progress: bool = False,
) -> tuple[list[Network], list[int]]:
    """Return the networks in a common order, and for each the first member of its family.

    Groups of networks that agree in the order they stand in are placed in waves, the largest group first. Every group
    is aligned to the members in the middle of at most four families, those whose units resemble its own most. It joins
    a family where its gap is at most 60 % of a stranger's, the one it resembles most or else the one with the smallest
    share, and is then aligned to its nearest relative there; otherwise it founds one, in the order that brings it
    closest to those there are.

    Args:
        names: for errors.
        networks: of one structure, under the same parameter names.
        orders: of the networks.
        run: `map_over` with executor and journal.
    """
    placing = _Placing(names, list(networks), orders, spec, matcher, run)
    placing.place(progress)
    found = list(range(len(networks)))
    for family in placing.families:
        for member in family.members:
            found[member] = min(family.members)
    return placing.networks, found


class _Placing:
    def __init__(
        self,
        names: Sequence[str],
        networks: list[Network],
        orders: Sequence[CanonicalOrder],
        spec: SymmetrySpec,
        matcher: Matcher | None,
        run: Callable[..., list],
    ):
        self.names, self.networks, self.orders, self.spec, self.run = names, networks, orders, spec, run
        self.fit = partial(fit_pair, spec=spec, matcher=matcher)
        self.move_nearer = partial(order_nearer, spec=spec, matcher=matcher)
        self.moved: dict[
            int, Element
        ] = {}  # by what a network was moved, so that equal ones are known from their orders
        self.families: list[_Family] = []
        self.resemblances = Resemblances()

    def place(self, progress: bool) -> None:
        from tqdm import tqdm

        groups = self._same_order()
        crowded = len(groups) > CANDIDATES
        with tqdm(
            total=len(groups), desc="aligning", unit="group", disable=None if progress else True
        ) as bar:
            start = 0
            while start < len(groups):
                # As many as are there already, so that few networks are placed one by one.
                wave = [_Family(group) for group in groups[start : start + max(1, min(start, WAVE))]]
                for group in wave:
                    group.totals = self._distances(group.members, group.members).sum(1)
                rows = [
                    unit_rows(self.networks[group.medoid], self.spec) if crowded else {} for group in wave
                ]
                self._place_wave(wave, rows)
                start += len(wave)
                bar.update(len(wave))

    def _place_wave(self, wave: list[_Family], rows: list[Any]) -> None:
        before = len(self.families)
        wanted = [self.resemblances.nearest(own, CANDIDATES) for own in rows]
        fits: list[dict[int, Fit]] = [{} for _ in wave]
        # The family that a group resembles most is its own, as a rule; the others are tried where it is not.
        for ranks in (slice(0, 1), slice(1, None)) if any(rows) else (slice(None),):
            asked = [
                (number, place)
                for number, near in enumerate(wanted)
                if not any(fit.ratio <= DERIVED for fit in fits[number].values())
                for place in near[ranks]
            ]
            found = self._fits([(wave[number], place) for number, place in asked])
            for (number, place), fit in zip(asked, found, strict=True):
                fits[number][place] = fit
        joining: dict[int, list[_Family]] = {}
        for group, own, near, tried in zip(wave, rows, wanted, fits, strict=True):
            # Families that this wave has founded are candidates too, if they resemble the group as much.
            fresh = list(range(before, len(self.families)))
            if fresh and not any(fit.ratio <= DERIVED for fit in tried.values()):
                nearest = self.resemblances.nearest(own, CANDIDATES, [*near, *fresh])
                fresh = [place for place in nearest if place >= before]
                tried |= dict(zip(fresh, self._fits([(group, place) for place in fresh]), strict=True))
            related = [place for place, fit in tried.items() if fit.ratio <= DERIVED]
            best = min(
                related or tried, key=lambda p: (tried[p].ratio if related else tried[p].gap, p), default=None
            )
            if best is not None:
                self._move(group, tried[best].element)
            if related and best is not None:
                joining.setdefault(best, []).append(group)
            else:
                self.families.append(group)
                self.resemblances.add(own)
        self._join(joining)

    def _join(self, joining: dict[int, list[_Family]]) -> None:
        """Align groups to their nearest relatives in the families as they are, then let them in."""
        pairs = []
        for place, groups in joining.items():
            members = self.families[place].members
            gaps = self._distances([group.medoid for group in groups], members)
            for group, row in zip(groups, gaps, strict=True):
                nearest = members[int(row.argmin())]
                if nearest != self.families[place].medoid:  # to which it has been aligned
                    pairs.append((group, nearest))
        tasks = [self._pair(nearest, group.medoid) for group, nearest in pairs]
        elements = self.run(
            self.move_nearer,
            tasks,
            key=lambda pair: pair.key("nearer"),
            encode=_encode_element,
            decode=_decode_element,
        )
        for (group, _), element in zip(pairs, elements, strict=True):
            if element is not None:
                self._move(group, element)
        for place, groups in joining.items():
            family = self.families[place]
            new = [member for group in groups for member in group.members]
            across = self._distances(family.members, new)
            inside = self._distances(new, new)
            family.totals = np.concatenate([family.totals + across.sum(1), across.sum(0) + inside.sum(1)])
            family.members = family.members + new

    def _fits(self, wanted: Sequence[tuple[_Family, int]]) -> Iterator[Fit]:
        """Fit groups to families; a network that is known in another order needs no search."""
        pairs = [(self.families[place].medoid, group.medoid) for group, place in wanted]
        known = [self._same_network(*pair) for pair in pairs]
        tasks = [self._pair(*pair) for pair, element in zip(pairs, known, strict=True) if element is None]
        searched = iter(
            self.run(
                self.fit, tasks, key=lambda pair: pair.key("fit"), encode=_encode_fit, decode=_decode_fit
            )
        )
        return iter([next(searched) if element is None else Fit(element, 0.0, 0.0) for element in known])

    def _pair(self, reference: int, model: int) -> Pair:
        names = self.names[reference], self.names[model]
        return Pair(names, self.networks[reference], self.networks[model])

    def _same_network(self, reference: int, model: int) -> Element | None:
        """The element that makes equal networks equal byte for byte; None for different ones."""
        a, b = self.orders[reference], self.orders[model]
        if a.hash is None or a.hash != b.hash or a.element is None or b.element is None:
            return None
        back = [compose(self.spec, inverse(self.spec, self.moved[n]), e) if n in self.moved else e
                for n, e in ((reference, a.element), (model, b.element))]  # fmt: skip
        return compose(self.spec, back[1], inverse(self.spec, back[0]))

    def _move(self, group: _Family, element: Element) -> None:
        for member in group.members:
            self.networks[member] = permute(self.networks[member], self.spec, element)
            before = self.moved.get(member)
            self.moved[member] = element if before is None else compose(self.spec, before, element)

    def _distances(self, rows: Sequence[int], columns: Sequence[int]) -> np.ndarray:
        if len(rows) == len(columns) == 1 and rows[0] == columns[0]:
            return np.zeros((1, 1))
        return distances_between([self.networks[n] for n in rows], [self.networks[n] for n in columns])

    def _same_order(self) -> list[list[int]]:
        """Networks that agree as they stand, the largest such group first."""
        from scipy.sparse.csgraph import connected_components

        count = len(self.networks)
        if not self.spec.groups:
            return [list(range(count))]
        names = {name: name for name in trained(self.networks[0])}
        generator = torch.Generator().manual_seed(0)
        chance = []
        for _ in range(DRAWS):
            i, j = torch.randint(0, count, (2,), generator=generator).tolist()
            other = permute(self.networks[j], self.spec, random_permutations(self.spec, generator))
            chance.append(sums_between(self.networks[i], other, names).cosine or 0.0)
        products = gram(self.networks)
        norms = np.sqrt(np.maximum(products.diagonal(), 1e-300))
        cosines = products / norms[:, None] / norms
        _, labels = connected_components(
            cosines > np.mean(chance) + SAME_ORDER * np.std(chance), directed=False
        )
        members: dict[int, list[int]] = {}
        for network, label in enumerate(labels.tolist()):
            members.setdefault(label, []).append(network)
        return sorted(members.values(), key=lambda group: (-len(group), group))


def fit_pair(pair: Pair, *, spec: SymmetrySpec, matcher: Matcher | None) -> Fit:
    """Align the model of a pair to its reference, and judge the gap by that of a stranger made of the same weights."""
    a, b = pair.reference, pair.model
    names = {name: name for name in trained(a)}
    element = _match(a, b, spec, matcher)
    aligned = permute(b, spec, element)
    gap = sums_between(a, aligned, names).gap
    other = stranger(b, spec, torch.Generator().manual_seed(0))
    apart = sums_between(a, other, names).gap
    if gap > DERIVED * apart and not shares_untouched(a, aligned, other):
        return Fit(element, gap, gap / apart)  # aligned, the stranger would be closer still
    other = permute(other, spec, _match(a, other, spec, matcher))
    expected = sums_between(a, other, names).gap
    related = shares_untouched(a, aligned, other)
    return Fit(element, gap, 0.0 if related or not expected else gap / expected)


def order_nearer(pair: Pair, *, spec: SymmetrySpec, matcher: Matcher | None) -> Element | None:
    """Return what brings the model of a pair closer to its reference than it is, None when nothing is found."""
    names = {name: name for name in trained(pair.reference)}
    element = _match(pair.reference, pair.model, spec, matcher)
    moved = sums_between(pair.reference, permute(pair.model, spec, element), names).distance
    return element if moved < sums_between(pair.reference, pair.model, names).distance else None


def _match(a: Network, b: Network, spec: SymmetrySpec, matcher: Matcher | None) -> Element:
    from weightspace.matching import FrankWolfeMatching
    from weightspace.matching.alignment import Problem

    sides = [
        {
            name: tensor.detach()
            for name, tensor in network.parameters.items()
            if name in spec.axes and tensor.is_floating_point() and name not in a.buffers
        }
        for network in (a, b)
    ]
    names = {name: name for name in a.parameters}
    return (matcher or FrankWolfeMatching()).match(Problem(spec, sides[0], sides[1], (a, b), names))


def encode_order(order: CanonicalOrder) -> list:
    """Return the JSON value of a canonical order."""
    return [order.hash, _encode_element(order.element)]


def decode_order(value: list) -> CanonicalOrder:
    """Return the canonical order of a JSON value."""
    return CanonicalOrder(value[0], _decode_element(value[1]))


def _encode_fit(fit: Fit) -> list:
    return [_encode_element(fit.element), fit.gap, fit.ratio]


def _decode_fit(value: list) -> Fit:
    element = _decode_element(value[0])
    assert element is not None
    return Fit(element, value[1], value[2])


def _encode_element(element: Element | None) -> dict | None:
    return None if element is None else {name: index.tolist() for name, index in element.items()}


def _decode_element(value: dict | None) -> Element | None:
    return None if value is None else {name: torch.tensor(index) for name, index in value.items()}
