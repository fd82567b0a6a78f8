"""Between parameters and channels: averages of blocks on the way in, broadcast sums on the way out.

Everything that does not depend on numbers is decided when these modules are made; what runs are reshapes, index
selections, means and additions.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.equivariant.blocks import Block
from weightspace.equivariant.matrices import WholeMatrix
from weightspace.equivariant.mixing import mix_and_sum
from weightspace.equivariant.partitions import Partition, Reading
from weightspace.equivariant.plan import Plan
from weightspace.equivariant.pooling import LinearPooling, Pooling, new_query
from weightspace.errors import ShapeError


class BlockReader(nn.Module):
    """From parameters (batch, channels, *shape) to the averages that the channels of a plan ask for.

    Raises, when called, ShapeError: features are missing or have another shape; the message names the parameter.
    """

    def __init__(self, plan: Plan, shapes: Mapping[str, tuple[int, ...]], pooling: Pooling, channels: int):
        super().__init__()
        self.shapes, self.pooling, self.channels = dict(shapes), pooling, channels
        self.blocks = tuple((block.parameter, block.sizes, block.fixed) for block in plan.blocks)
        self.selections = nn.ModuleList(
            Selection(block.places.reshape(-1), shapes[block.parameter]) for block in plan.blocks
        )
        steps = _Steps(len(plan.blocks), nested=pooling.nested)
        self.reads = tuple(
            tuple(steps.reading(reading) for reading in channel.readings) for channel in plan.channels
        )
        self.steps = tuple(steps.steps)
        self.owned = {
            read[0]: place
            for place, (read, *others) in enumerate(self.reads)
            if isinstance(pooling, LinearPooling)
            and not others
            and read[0] < len(self.blocks)
            and _in_order(read[1])
        }
        self.queries = nn.ParameterList()
        if not pooling.nested:
            for step in self.steps:
                width = plan.blocks[step.block].fixed * channels
                self.queries.append(new_query(width if step.pooled else 0))

    def forward(self, features: Mapping[str, Tensor], matrices: Sequence[nn.Module]) -> list[Tensor]:
        """Return the product of each channel with its matrix, (batch, rows, kept sizes...).

        A channel (..., columns, kept sizes...) has for columns the channels x fixed entries of all its readings.
        """
        flat = {name: self._flat(features, name) for name in self.shapes}
        values = []
        for number, (parameter, sizes, fixed) in enumerate(self.blocks):
            x = self.selections[number](flat[parameter])
            values.append(x.reshape(-1, self.channels * fixed, *sizes))
        products: dict[int, Tensor] = {}
        sums: dict[int, Tensor] = {}
        for block, place in self.owned.items():
            matrix = matrices[place]
            if isinstance(matrix, WholeMatrix):
                own = [n for n, step in enumerate(self.steps) if step.source == block and step.pooled]
                axes = tuple(tuple(axis + 2 for axis in self.steps[n].axes) for n in own)
                products[place], *summed = mix_and_sum(matrix.weight, values[block], axes)
                sums |= dict(zip(own, summed, strict=True))
        for number, step in enumerate(self.steps):
            x = values[step.source]
            if number in sums and isinstance(self.pooling, LinearPooling):
                values.append(self.pooling.of_sum(sums[number], x.numel() // sums[number].numel()))
            elif step.pooled:
                axes = tuple(axis + 2 for axis in step.axes)
                query = None if self.pooling.nested else self.queries[number]
                values.append(self.pooling.pool(x, axes, query))
            else:
                values.append(_diagonal(x, *step.axes))
        for place, reads in enumerate(self.reads):
            if place not in products:
                ordered = [values[value].permute(0, 1, *order) for value, order in reads]
                products[place] = matrices[place](ordered[0] if len(ordered) == 1 else torch.cat(ordered, 1))
        return [products[place] for place in range(len(self.reads))]

    def _flat(self, features: Mapping[str, Tensor], name: str) -> Tensor:
        shape = self.shapes[name]
        if name not in features:
            raise ShapeError(f"the layer reads parameter {name!r}, which is not among those given")
        x = features[name]
        if x.ndim != len(shape) + 2 or tuple(x.shape[2:]) != shape or x.shape[1] != self.channels:
            raise ShapeError(
                f"features of {name!r} must have shape (batch, {', '.join(map(str, (self.channels, *shape)))}); "
                f"they have {tuple(x.shape)}"
            )
        return x.flatten(2) if shape else x.unsqueeze(2)


class BlockWriter(nn.Module):
    """From one tensor per channel, (batch, channels x fixed entries of writings, filled sizes...), to parameters."""

    def __init__(self, plan: Plan, shapes: Mapping[str, tuple[int, ...]], channels: int):
        super().__init__()
        self.channels = channels
        self.shapes = dict(shapes)
        self.blocks = tuple(
            _BlockWriting(number, block, plan, channels) for number, block in enumerate(plan.blocks)
        )
        self.of_parameter = {
            name: [n for n, block in enumerate(plan.blocks) if block.parameter == name] for name in shapes
        }
        self.selections = nn.ModuleList(
            Selection(
                torch.cat([plan.blocks[n].places.reshape(-1) for n in numbers]), shapes[name], back=True
            )
            for name, numbers in self.of_parameter.items()
        )

    def forward(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        written = {}
        for (name, numbers), selection in zip(self.of_parameter.items(), self.selections, strict=True):
            parts = [self.blocks[n].assemble(values) for n in numbers]
            parts = [part.reshape(part.shape[0], self.channels, -1) for part in parts]
            x = selection(parts[0] if len(parts) == 1 else torch.cat(parts, 2))
            written[name] = x.reshape(-1, self.channels, *self.shapes[name])
        return written


@dataclass(frozen=True)
class _Step:
    """Make one value from another: pool axes away, or take the diagonal of two axes."""

    block: int
    source: int
    axes: tuple[int, ...]
    pooled: bool


class _Steps:
    """The shortest chain of averages that makes all readings; values 0, 1, ... are the blocks themselves."""

    def __init__(self, blocks: int, *, nested: bool):
        self.steps: list[_Step] = []
        self.blocks, self.nested = blocks, nested
        self.made: dict[tuple[int, Partition], dict[frozenset[int], int]] = defaultdict(dict)

    def reading(self, reading: Reading) -> tuple[int, tuple[int, ...]]:
        """Return the value that holds a reading, and the order of its axes that the channel asks for."""
        value = self._pooled(reading, frozenset(reading.kept))
        standing = sorted(reading.kept)
        return value, tuple(standing.index(part) + 2 for part in reading.kept)

    def _pooled(self, reading: Reading, kept: frozenset[int]) -> int:
        made = self.made[reading.block, reading.partition]
        everything = frozenset(range(len(reading.partition)))
        if everything not in made:
            made[everything] = self._equal(reading.block, reading.partition)
        if kept not in made:
            larger = [parts for parts in made if parts > kept] if self.nested else [everything]
            source = min(
                larger, key=lambda parts: (len(parts), sum(reading.partition[p].size for p in parts))
            )
            standing = sorted(source)
            axes = tuple(axis for axis, part in enumerate(standing) if part not in kept)
            made[kept] = self._add(_Step(reading.block, made[source], axes, pooled=True))
        return made[kept]

    def _equal(self, block: int, partition: Partition) -> int:
        """The block where indices of one part are equal, its axes in the order of the parts."""
        value = block
        for first, second in equalities(partition):
            value = self._add(_Step(block, value, (first, second), pooled=False))
        return value

    def _add(self, step: _Step) -> int:
        self.steps.append(step)
        return self.blocks + len(self.steps) - 1


def equalities(partition: Partition) -> list[tuple[int, int]]:
    """Pairs of axes to take diagonals of, one after the other; what is left are the parts.

    The diagonal of axes (i, j), i < j, stands where i stood.
    """
    axes = list(range(sum(len(part.members) for part in partition)))
    pairs = []
    for part in partition:
        first, *others = sorted(part.members)
        for other in others:
            pairs.append((axes.index(first), axes.index(other)))
            axes.remove(other)
    return pairs


def _in_order(axes: Sequence[int]) -> bool:
    return list(axes) == sorted(axes)


def _diagonal(x: Tensor, first: int, second: int) -> Tensor:
    """Entries with two equal indices, counted without batch and channels; the diagonal stands at `first`."""
    return x.diagonal(0, first + 2, second + 2).movedim(-1, first + 2)


class _BlockWriting:
    """The sum of all contributions to one block."""

    def __init__(self, number: int, block: Block, plan: Plan, channels: int):
        self.sizes, self.width = block.sizes, block.fixed * channels
        found: dict[Partition, dict[frozenset[int], list[_Slot]]] = {}
        for place, channel in enumerate(plan.channels):
            start = 0
            for writing, fixed in zip(channel.writings, channel.written_fixed, strict=True):
                if writing.block == number:
                    order = tuple(writing.kept.index(part) + 2 for part in sorted(writing.kept))
                    sums = found.setdefault(writing.partition, {})
                    sums.setdefault(frozenset(writing.kept), []).append(_Slot(place, start * channels, order))
                start += fixed
        self.sums = [
            (equalities(partition), _additions(len(partition), sums))
            for partition, sums in sorted(found.items(), key=lambda entry: -len(entry[0]))
        ]

    def assemble(self, values: Sequence[Tensor]) -> Tensor:
        """Return the block, shape (batch, channels x fixed, moving sizes...)."""
        (_, additions), diagonals = self.sums[0], self.sums[1:]
        total = self._summed(values, additions)
        total = total.expand(total.shape[0], self.width, *self.sizes)
        if diagonals:
            total = total.clone()
        for pairs, additions in diagonals:
            view = total
            for first, second in pairs:
                view = _diagonal(view, first, second)
            view.add_(self._summed(values, additions))
        return total

    def _summed(self, values: Sequence[Tensor], additions: Sequence[_Addition]) -> Tensor:
        sums: list[Tensor] = []
        for addition in additions:
            terms = [
                values[slot.channel].narrow(1, slot.start, self.width).permute(0, 1, *slot.order)
                for slot in addition.slots
            ]
            for smaller, axes in addition.smaller:
                term = sums[smaller]
                for axis in axes:
                    term = term.unsqueeze(axis + 2)
                terms.append(term)
            sums.append(_sum(terms, in_place=bool(addition.slots)))
        return sums[-1]


@dataclass(frozen=True)
class _Slot:
    """Where a contribution stands: the channel, the first of its columns, and the order of its axes."""

    channel: int
    start: int
    order: tuple[int, ...]


@dataclass(frozen=True)
class _Addition:
    """The sum over slots that fill the same parts and over smaller sums, with the axes those are broadcast along."""

    slots: tuple[_Slot, ...]
    smaller: tuple[tuple[int, tuple[int, ...]], ...]


def _sum(terms: Sequence[Tensor], *, in_place: bool) -> Tensor:
    """Add tensors that broadcast; in place from the second on where the first has the shape of the sum."""
    total = terms[0]
    for number, term in enumerate(terms[1:]):
        total = total.add_(term) if in_place and number else total + term
    return total


def _additions(parts: int, slots: Mapping[frozenset[int], list[_Slot]]) -> list[_Addition]:
    """Add small sums into larger ones before anything large is touched; the last sum is over all parts."""
    everything = frozenset(range(parts))
    kept = sorted(slots.keys() | {everything}, key=lambda chosen: (len(chosen), sorted(chosen)))
    smaller: dict[frozenset[int], list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    additions = []
    for number, filled in enumerate(kept):
        additions.append(_Addition(tuple(slots.get(filled, ())), tuple(smaller[filled])))
        if filled != everything:
            into = next(larger for larger in kept[number + 1 :] if larger > filled)
            smaller[into].append(
                (number, tuple(a for a, part in enumerate(sorted(into)) if part not in filled))
            )
    return additions


class Selection(nn.Module):
    """The entries of a flattened parameter, (batch, channels, entries), in the order that a block has, or back."""

    places: Tensor | None

    def __init__(self, places: Tensor, shape: Sequence[int], *, back: bool = False):
        """`places`: where the entries of the block stand in the parameter, whose shape is `shape`."""
        super().__init__()
        self.shape, self.axes = tuple(shape), _transposition(places, shape)
        if back and self.axes is not None:
            self.shape = tuple(shape[axis] for axis in self.axes)
            self.axes = tuple(sorted(range(len(shape)), key=self.axes.__getitem__))
        index = places.argsort() if back else places
        self.register_buffer("places", None if self.axes is not None else index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.axes is None:
            assert self.places is not None
            return x.index_select(2, self.places)
        if self.axes == tuple(range(len(self.axes))):
            return x
        return x.unflatten(2, self.shape).permute(0, 1, *(axis + 2 for axis in self.axes)).flatten(2)


def _transposition(places: Tensor, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The order of the parameter's axes that puts its entries at `places`; None if there is none.

    Where there is one, it is much faster than an index, whose gradient is scattered.
    """
    entries = torch.arange(math.prod(shape)).reshape(tuple(shape))
    if len(places) == entries.numel() and len(shape) <= 4:
        for axes in itertools.permutations(range(len(shape))):
            if torch.equal(entries.permute(axes).reshape(-1), places):
                return axes
    return None
