"""Linear maps that commute with permutations, counted by set partitions.

An orbit of pairs (entry of x, entry of y) is a set partition of the moving indices of both blocks: indices in one
part are equal. Indices share a part only if one group moves them for the same values of the indices it is within. The
parts with indices of x only are averaged over, those of y only are broadcast, and the others pass. So an orbit is

    a reading of x   (its indices partitioned, some parts averaged, the others kept),
    a writing of y   (its indices partitioned, some parts broadcast, the others filled), and
    a pairing of the kept parts with the filled ones.

Source: Zaheer et al. (2017) and Hartford et al. (2018) for whole axes, Maron et al., Invariant and equivariant graph
networks (2019), for set partitions; Navon et al., Equivariant architectures for learning in deep weight spaces (2023).
The restriction to as many parts as a group has units makes the maps independent for groups of any size.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from weightspace.equivariant.blocks import Block, Index

Form = tuple[tuple[str, int, tuple[int, ...]], ...]
"""Kept parts in order: the group, its size, and which of the earlier parts it is within."""


@dataclass(frozen=True)
class Part:
    """Indices of a block that are equal; `parents` are parts."""

    group: str
    size: int
    members: tuple[int, ...]
    parents: tuple[int, ...]


Partition = tuple[Part, ...]


@dataclass(frozen=True)
class Reading:
    """What is kept of a block: `kept` parts of a partition of its indices, in the order of `form`.

    Read backwards it is a writing: the kept parts are filled, the others broadcast.
    """

    block: int
    partition: Partition
    kept: tuple[int, ...]
    form: Form

    @cached_property
    def others(self) -> Counter[tuple[str, tuple[int, ...]]]:
        """How many parts that are not kept each group has, for equal kept parts that it is within."""
        number = {part: place for place, part in enumerate(self.kept)}
        return Counter(
            (part.group, tuple(number[parent] for parent in part.parents))
            for place, part in enumerate(self.partition)
            if place not in number and all(parent in number for parent in part.parents)
        )


def readings(number: int, block: Block) -> Iterator[Reading]:
    """Every way of averaging a block to what equivariant maps can pass on; each kept set in one order."""
    for partition, kept in _choices(block):
        form, orders = _canonical(partition, kept)
        yield Reading(number, partition, orders[0], form)


def writings(number: int, block: Block) -> Iterator[Reading]:
    """Every way of filling a block; each kept set in every order that has the same form."""
    for partition, kept in _choices(block):
        form, orders = _canonical(partition, kept)
        for order in orders:
            yield Reading(number, partition, order, form)


def pair_exists(reading: Reading, writing: Reading) -> bool:
    """Whether each group has enough units for all parts of the pair to be different."""
    sizes = {(group, parents): size for group, size, parents in reading.form}
    passing = Counter((group, parents) for group, _, parents in reading.form)
    for context in reading.others.keys() & writing.others.keys():
        size = sizes.get(context) or _size(reading, context[0])
        if passing[context] + reading.others[context] + writing.others[context] > size:
            return False
    return True


def _size(reading: Reading, group: str) -> int:
    return next(part.size for part in reading.partition if part.group == group)


def _choices(block: Block) -> Iterator[tuple[Partition, tuple[int, ...]]]:
    for partition in partitions(block.indices):
        for count in range(len(partition), -1, -1):
            for kept in itertools.combinations(range(len(partition)), count):
                if all(parent in kept for part in kept for parent in partition[part].parents):
                    yield partition, kept


def partitions(indices: Sequence[Index]) -> Iterator[Partition]:
    """Every way in which indices can be equal, at most as many different ones as the group has units.

    The partition into single indices comes first. Parts stand in the order of their first indices.
    """
    order = _parents_first(indices)

    def grown(parts: list[Part], left: Sequence[int]) -> Iterator[Partition]:
        if not left:
            yield _in_order(parts)
            return
        index = indices[left[0]]
        part_of = {member: place for place, part in enumerate(parts) for member in part.members}
        parents = tuple(part_of[parent] for parent in index.parents)
        alike = [p for p, part in enumerate(parts) if (part.group, part.parents) == (index.group, parents)]
        if len(alike) < index.size:
            yield from grown([*parts, Part(index.group, index.size, (left[0],), parents)], left[1:])
        for place in alike:
            part = parts[place]
            joined = Part(part.group, part.size, (*part.members, left[0]), part.parents)
            yield from grown([*parts[:place], joined, *parts[place + 1 :]], left[1:])

    yield from grown([], order)


def _in_order(parts: Sequence[Part]) -> Partition:
    order = sorted(range(len(parts)), key=lambda place: min(parts[place].members))
    return tuple(
        Part(
            parts[place].group,
            parts[place].size,
            tuple(sorted(parts[place].members)),
            tuple(order.index(parent) for parent in parts[place].parents),
        )
        for place in order
    )


def _parents_first(indices: Sequence[Index]) -> list[int]:
    order: list[int] = []
    while len(order) < len(indices):
        order += [
            number
            for number, index in enumerate(indices)
            if number not in order and all(parent in order for parent in index.parents)
        ]
    return order


def _canonical(partition: Partition, kept: tuple[int, ...]) -> tuple[Form, list[tuple[int, ...]]]:
    """The form of some parts that does not depend on the order of their indices, and all orders that give it.

    Orders are tried within each group of the sorted names; parents are numbered by where they stand.
    """
    families = [
        [part for part in kept if partition[part].group == group]
        for group in sorted({partition[part].group for part in kept})
    ]
    best: Form | None = None
    orders: list[tuple[int, ...]] = []
    for choice in itertools.product(*(itertools.permutations(family) for family in families)):
        order = tuple(itertools.chain(*choice))
        place = {part: number for number, part in enumerate(order)}
        form = tuple(
            (partition[part].group, partition[part].size, tuple(place[p] for p in partition[part].parents))
            for part in order
        )
        if best is None or form < best:
            best, orders = form, []
        if form == best:
            orders.append(order)
    return best or (), orders
