"""The plan of an equivariant map: which averages of which blocks go where, and through which matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.equivariant.blocks import Block, cut_into_blocks
from weightspace.equivariant.partitions import Form, Reading, pair_exists, readings, writings
from weightspace.symmetry_spec import SymmetrySpec


@dataclass(frozen=True, eq=False)
class Channel:
    """All maps through one kind of kept parts: one matrix from every reading to every writing.

    form: the kept parts.
    readings, writings: with the numbers of fixed channels they carry.
    exists: (writings, readings) bool, False where a group is too small for the pair; None if all exist.
    """

    form: Form
    readings: tuple[Reading, ...]
    writings: tuple[Reading, ...]
    read_fixed: tuple[int, ...]
    written_fixed: tuple[int, ...]
    exists: Tensor | None

    @property
    def read_width(self) -> int:
        return sum(self.read_fixed)

    @property
    def written_width(self) -> int:
        return sum(self.written_fixed)

    @property
    def dimension(self) -> int:
        if self.exists is None:
            return self.read_width * self.written_width
        pairs = torch.tensor(self.written_fixed)[:, None] * torch.tensor(self.read_fixed)
        return int(pairs[self.exists].sum())


@dataclass(frozen=True, eq=False)
class Plan:
    """Blocks of a spec and the channels of its equivariant (or invariant) linear maps, the one without parts first."""

    blocks: tuple[Block, ...]
    channels: tuple[Channel, ...]

    @property
    def dimension(self) -> int:
        """Number of independent linear maps."""
        return sum(channel.dimension for channel in self.channels)


@dataclass(frozen=True)
class Dimension:
    """Dimensions of the space of equivariant maps: of its linear part and of its constants."""

    linear: int
    constant: int


def count_maps(spec: SymmetrySpec) -> Dimension:
    r"""Count the linear maps and constants that commute with all permutations of a spec.

    $\sum_F r_F w_F$ over the forms F of kept parts, with as many readings as writings up to their order; for a
    perceptron $\sum_{x,y} 2^{|H(x, y)|} f_x f_y$ with the hidden layers H that the blocks x and y share and their
    fixed entries f.

    Source: orbit counting as in Maron et al. (2019), section 3; every orbit of pairs of entries gives one map.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> from weightspace.equivariant import count_maps
        >>> count_maps(weightspace.symmetry(load("digits_mlp_a")))
        Dimension(linear=12070, constant=87)
    """
    plan = plan_maps(cut_into_blocks(spec))
    return Dimension(plan.dimension, plan.channels[0].written_width)


def plan_maps(blocks: Sequence[Block], *, invariant: bool = False) -> Plan:
    """Return all channels from the blocks to themselves, or to one number that nothing moves."""
    targets = [Block("", (), 1, torch.zeros(1, dtype=torch.int64))] if invariant else blocks
    read: dict[Form, list[Reading]] = defaultdict(list)
    written: dict[Form, list[Reading]] = defaultdict(list)
    for number, block in enumerate(blocks):
        for reading in readings(number, block):
            read[reading.form].append(reading)
    for number, block in enumerate(targets):
        for writing in writings(number, block):
            written[writing.form].append(writing)
    forms = sorted(read.keys() & written.keys(), key=lambda form: (len(form), form))
    return Plan(
        tuple(blocks), tuple(_channel(form, read[form], written[form], blocks, targets) for form in forms)
    )


def plan_constants(blocks: Sequence[Block]) -> Plan:
    """Return the plan of what the group leaves fixed: one channel that reads nothing."""
    written = [w for number, block in enumerate(blocks) for w in writings(number, block) if not w.form]
    return Plan(
        tuple(blocks),
        (Channel((), (), tuple(written), (), tuple(blocks[w.block].fixed for w in written), None),),
    )


def _channel(
    form: Form,
    read: list[Reading],
    written: list[Reading],
    blocks: Sequence[Block],
    targets: Sequence[Block],
) -> Channel:
    exists = torch.tensor([[pair_exists(r, w) for r in read] for w in written])
    # The largest block is read and written as it stands; the others follow its order of axes.
    largest = max(read, key=lambda reading: (len(reading.kept), blocks[reading.block].places.numel()))
    order = sorted(range(len(form)), key=lambda place: largest.kept[place])
    return Channel(
        _reordered_form(form, order),
        tuple(_reordered(reading, order) for reading in read),
        tuple(_reordered(writing, order) for writing in written),
        tuple(blocks[r.block].fixed for r in read),
        tuple(targets[w.block].fixed for w in written),
        None if bool(exists.all()) else exists,
    )


def _reordered(reading: Reading, order: Sequence[int]) -> Reading:
    kept = tuple(reading.kept[place] for place in order)
    return Reading(reading.block, reading.partition, kept, _reordered_form(reading.form, order))


def _reordered_form(form: Form, order: Sequence[int]) -> Form:
    moved = [(*form[place][:2], tuple(order.index(parent) for parent in form[place][2])) for place in order]
    return tuple(moved)  # type: ignore[return-value]
