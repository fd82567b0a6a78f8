"""Color refinement of a network's units: tell units apart by the exact bytes of their weights, whatever their order.

Every unit of every permutation group is a vertex, every entry of a parameter an edge between the units that its
axes carry. A unit's color is refined by the multiset of (bytes of the entry, fixed indices, colors of the other
units) over its entries until the partition is stable (one-dimensional Weisfeiler-Leman). Multisets are summed up
as integers modulo 2**64, so no order and no rounding enters; equal sums of different multisets (one in 2**64) cost
resolution, never invariance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from weightspace.group_action import segment_positions
from weightspace.network import Network, canonical_json
from weightspace.permutation import outer_places, units_along
from weightspace.symmetry_spec import Axis, Group, SymmetrySpec

BLOCK_ENTRIES = 1 << 20


def _salt(*numbers: int) -> np.uint64:
    """Return an odd number for a role that entries and colors are told apart by."""
    total = 0
    for number in numbers:
        total = (total * 0xD1342543DE82EF95 + (2 * number + 1) * 0x9E3779B97F4A7C15) % 2**64
    return np.uint64(total | 1)


SAME_UNIT, CHILD, PARENT, LABEL = (_salt(number) for number in range(4))


def mixed(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers one to one, in place.

    Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators (2014), the finalizer of SplitMix64.
    """
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def exact_bits(tensor: Tensor) -> np.ndarray:
    """Return the bit pattern of every entry as uint64: 0.0 and -0.0 differ, equal NaN patterns agree."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    size = tensor.dtype.itemsize
    if size == 16:  # complex128
        halves = torch.view_as_real(tensor).numpy().view(np.uint64)
        return mixed(halves[..., 0].copy()) + halves[..., 1]
    flat = tensor.as_strided((tensor.numel(),), (1,))  # of a single entry `reshape` keeps any stride
    flat = flat.view(torch.uint8).numpy().view(f"u{size}")
    return flat.reshape(tensor.shape).astype(np.uint64)


@dataclass(frozen=True)
class _Slot:
    """Where the units of one group stand on one axis of a tensor.

    `units` is the number of the unit at every place, -1 where there is none, in a shape that broadcasts over the
    tensor: along its axis, and along the axis of the unit it is within where that is another one.
    """

    group: str
    axis: int
    units: np.ndarray
    summed: tuple[int, ...]  # the axes over which the unit's entries run
    salt: np.uint64


@dataclass(frozen=True)
class _Incidence:
    """One parameter: which units its entries join. `labels`: what stays fixed at every place of every axis."""

    tensor: Tensor
    salt: np.uint64
    labels: tuple[np.ndarray, ...]
    slots: tuple[_Slot, ...]

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(slot.group for slot in self.slots)

    def add_sums(self, colors: np.ndarray, sums: np.ndarray) -> None:
        """Add to every unit's sum the digests of the entries that it takes part in."""
        keys = []
        for number, key in enumerate(self.labels):
            for slot in self.slots:
                if slot.axis == number:
                    key = key + mixed(colors[slot.units] + slot.salt) * (slot.units >= 0)
            keys.append(mixed(key + _salt(4, number)))
        twice = [
            (a.units, b.units)
            for a, b in combinations(self.slots, 2)
            if a.group == b.group and a.axis != b.axis
        ]
        rows = max(1, BLOCK_ENTRIES // max(1, self.tensor[:1].numel()))
        for start in range(0, len(self.tensor), rows):
            block = slice(start, start + rows)
            entries = exact_bits(self.tensor[block])
            entries += self.salt
            for key in keys:
                entries += _rows(key, block)
            for first, second in twice:
                first, second = _rows(first, block), _rows(second, block)
                entries += ((first == second) & (first >= 0)) * SAME_UNIT
            mixed(entries)
            for slot in self.slots:
                units = _rows(slot.units, block).reshape(-1)
                total = entries.sum(axis=slot.summed, dtype=np.uint64).reshape(-1)
                present = units >= 0
                np.add.at(sums, units[present], (total * slot.salt)[present])


def _rows(array: np.ndarray, block: slice) -> np.ndarray:
    return array if array.shape[0] == 1 else array[block]


@dataclass(frozen=True)
class Units:
    """All units of a spec's permutation groups, numbered through, and the tensors that join them.

    Attributes:
        spans: group -> the numbers of its units, (*copies, size).
        incidences: one for every parameter that a permutation moves.
        kinships: pairs of (units, units they are within), arrays of equal shape.
    """

    spec: SymmetrySpec
    spans: Mapping[str, np.ndarray]
    incidences: Mapping[str, _Incidence]
    kinships: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def of(cls, network: Network, spec: SymmetrySpec) -> Units:
        """Number the units of `spec` (permutations only) in `network`."""
        spans: dict[str, np.ndarray] = {}
        count = 0
        for group in spec.groups:
            shape = (*group.copies, group.size)
            total = int(np.prod(shape))
            spans[group.name] = np.arange(count, count + total).reshape(shape)
            count += total
        salts = parameter_digests(network)
        incidences = {
            name: _incidence(network.parameters[name], axes, salts.get(name, 0), spec, spans)
            for name, axes in spec.axes.items()
            if network.parameters[name].numel()
        }
        kinships = []
        for group in spec.groups:
            for place, parent in enumerate(group.within):
                if parent not in spans:
                    continue
                grids = np.indices(spans[group.name].shape)
                outer = [grids[group.within.index(name)] for name in spec.by_name[parent].within]
                kinships.append((spans[group.name], spans[parent][(*outer, grids[place])]))
        return cls(spec, spans, incidences, tuple(kinships))

    def initial_colors(self) -> np.ndarray:
        """Color by nothing but the fixed indices that a unit is within."""
        colors = np.zeros(sum(span.size for span in self.spans.values()), dtype=np.uint64)
        for group in self.spec.groups:
            grids = np.indices(self.spans[group.name].shape)
            for place, parent in enumerate(group.within):
                if parent not in self.spans:
                    colors[self.spans[group.name]] += mixed(grids[place].astype(np.uint64) + _salt(5, place))
        return colors

    def tied(self, colors: np.ndarray) -> dict[str, np.ndarray]:
        """Return group -> its colors sorted within each copy, for the groups with equal ones in a copy."""
        found = {}
        for name, span in self.spans.items():
            ordered = np.sort(colors[span], axis=-1)
            if (ordered[..., 1:] == ordered[..., :-1]).any():
                found[name] = ordered
        return found

    def refine(self, colors: np.ndarray) -> np.ndarray:
        """Return the stable refinement; groups whose units are all told apart keep their colors."""
        classes = 0
        while tied := self.tied(colors):
            found = sum(len(np.unique(colors[self.spans[name]])) for name in tied)
            found += sum(span.size for name, span in self.spans.items() if name not in tied)
            if found <= classes:
                return colors
            classes = found
            sums = np.zeros_like(colors)
            for incidence in self.incidences.values():
                if not incidence.groups.isdisjoint(tied):
                    incidence.add_sums(colors, sums)
            for units, parents in self.kinships:
                sums[units] += mixed(colors[parents] + CHILD)
                np.add.at(sums, parents.reshape(-1), mixed(colors[units] + PARENT).reshape(-1))
            for name in tied:
                span = self.spans[name]
                colors = colors.copy()
                colors[span] = mixed(colors[span] + mixed(sums[span]))
        return colors

    def order(self, colors: np.ndarray) -> dict[str, Tensor]:
        """Return the element that sorts every group by color, equal ones as they stand."""
        order: dict[str, Tensor] = {}
        for group in self.spec.groups:
            index = torch.from_numpy(np.argsort(colors[self.spans[group.name]], axis=-1, kind="stable"))
            if group.within:
                index = index[outer_places(self.spec, group, order)]
            order[group.name] = index
        return order

    def placed(self, group: Group, colors: np.ndarray) -> np.ndarray:
        """Return the numbers of a group's units in the places that `order` puts them, (*copies, size)."""
        order = self.order(colors)
        outer = (places.numpy()[..., None] for places in outer_places(self.spec, group, order))
        return self.spans[group.name][(*outer, order[group.name].numpy())]


def _incidence(
    tensor: Tensor, axes: tuple[Axis, ...], salt: int, spec: SymmetrySpec, spans: Mapping[str, np.ndarray]
) -> _Incidence:
    labels, slots = [], []
    for number, segments in enumerate(axes):
        length = tensor.shape[number]
        label = mixed(np.arange(length, dtype=np.uint64) + LABEL)
        for which, segment in enumerate(segments):
            positions = segment_positions(segment).numpy()
            grids = dict(zip((f.name for f in segment.factors), np.indices(segment.shape), strict=True))
            fixed = np.full(segment.shape, _salt(6, which))
            for place, (factor, grid) in enumerate(
                zip(segment.factors, np.indices(segment.shape), strict=True)
            ):
                if factor.name not in spans:
                    fixed += mixed(grid.astype(np.uint64) + _salt(5, place))
            label[positions] = fixed
            for place, factor in enumerate(segment.factors):
                if factor.name not in spans:
                    continue
                outside = (parent for parent in spec.by_name[factor.name].within if parent not in grids)
                row = next((n for parent in outside for n in _carrying(axes, parent, number)), None)
                units = np.full((1 if row is None else tensor.shape[row], length), -1)
                outer = [
                    grids[parent][None]
                    if parent in grids or row is None
                    else units_along(axes[row], parent, len(units)).numpy().reshape(-1, *[1] * positions.ndim)
                    for parent in spec.by_name[factor.name].within
                ]
                units[:, positions] = spans[factor.name][(*outer, grids[factor.name][None])]
                shape = [1] * tensor.ndim
                shape[number] = length
                if row is not None:
                    shape[row] = len(units)
                    units = units if row < number else units.T
                summed = tuple(n for n in range(tensor.ndim) if n not in (number, row))
                slots.append(
                    _Slot(factor.name, number, units.reshape(shape), summed, _salt(7, number, which, place))
                )
        shape = [1] * tensor.ndim
        shape[number] = length
        labels.append(label.reshape(shape))
    return _Incidence(tensor, np.uint64(salt), tuple(labels), tuple(slots))


def _carrying(axes: tuple[Axis, ...], name: str, number: int) -> list[int]:
    """The other axes that carry a name."""
    return [
        n
        for n, segments in enumerate(axes)
        if n != number and any(factor.name == name for segment in segments for factor in segment.factors)
    ]


def parameter_digests(network: Network) -> dict[str, int]:
    """Return a number for every parameter that depends on its place in the architecture, not on names or values.

    Parameters in interchangeable places (two equal branches) share one.
    """
    forward: dict[str, str] = {}
    for node in network.nodes:
        attributes = node.operation.to_json()["attributes"]
        made_of = [forward[name] for name in node.inputs]
        forward[node.name] = _digest([node.operation.kind, attributes, list(node.shape), node.dtype, made_of])
    uses: dict[str, list[str]] = {node.name: [] for node in network.nodes}
    for position, name in enumerate(network.outputs):
        uses[name].append(f"output {position}")
    places: dict[str, list[str]] = {}
    for node in reversed(network.nodes):
        own = _digest([forward[node.name], sorted(uses[node.name])])
        for position, name in enumerate(node.inputs):
            uses[name].append(f"{own} {position}")
        for role, name in node.operation.parameters.items():
            places.setdefault(name, []).append(f"{own} {role}")
    return {name: int(_digest(sorted(found))[:16], 16) for name, found in places.items()}


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
