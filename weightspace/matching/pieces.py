"""Parameters cut into pieces on which every family of permutation groups acts along axes of its own.

A *family* is a group and all groups within it (the heads and what is inside them), which are solved together. A
*piece* is the part of a parameter that one segment on each of its axes spans: one gate of an LSTM, the queries of a
packed projection. Its axes are rearranged to *slots*: all indices of a family that belong together become one flat
axis, whose permutation `lifted` writes down. The objective is then a sum over pieces of <A, B permuted along slots>.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from weightspace.deferred import DeferredTensors, templates
from weightspace.permutation import Permutations
from weightspace.symmetry_spec import Axis, Segment, SymmetrySpec

Pattern = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Groups that are within one another, parents first; `still` are indices of that structure that do not move."""

    names: tuple[str, ...]
    sizes: Mapping[str, int]
    within: Mapping[str, tuple[str, ...]]
    still: frozenset[str]

    def shape(self, pattern: Pattern) -> tuple[int, ...]:
        """The sizes of the indices of a pattern."""
        return tuple(self.sizes[name] for name in pattern)

    @cached_property
    def moving(self) -> tuple[str, ...]:
        """The groups of the family."""
        return tuple(name for name in self.names if name not in self.still)

    def parents(self, name: str) -> tuple[str, ...]:
        """What a name is within, as far as it belongs to the family."""
        return self.within.get(name, ())

    @cached_property
    def nested(self) -> bool:
        """Whether the names form a tree: each is within a parent and all that this parent is within."""
        tops = [name for name in self.names if not self.parents(name)]
        return len(tops) == 1 and all(
            any({p, *self.parents(p)} == set(self.parents(name)) for p in self.parents(name))
            for name in self.names
            if self.parents(name)
        )


@dataclass(frozen=True)
class Slot:
    """A flat axis of a piece: the family that permutes it, and the names of the indices it runs over."""

    family: int
    pattern: Pattern


@dataclass(frozen=True, eq=False)
class Piece:
    """Equal parts of both networks, shape (slot, ..., slot, everything that rests).

    Where the networks' parameters are deferred, `a` and `b` are cut out at every use.
    """

    parameter: str
    slots: tuple[Slot, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    deferred: bool
    parts: tuple[Callable[[], Tensor], Callable[[], Tensor]] = field(repr=False)

    @property
    def a(self) -> Tensor:
        """The part of the first network."""
        return self.parts[0]()

    @property
    def b(self) -> Tensor:
        """The part of the second network."""
        return self.parts[1]()

    @property
    def entries(self) -> int:
        """How many numbers each of the two has."""
        return math.prod(self.shape)

    def rows(self, tensor: Tensor, slot: int) -> Tensor:
        """Unfold to (units of the slot, all else)."""
        return tensor.movedim(slot, 0).reshape(tensor.shape[slot], -1)


def inner_product(a: Tensor, b: Tensor) -> float:
    """Return <a, b> in float64, without copies of that size."""
    chunk = 1 << 13 if a.device.type == "cpu" else 1 << 24  # on the CPU: what stays in its cache
    pairs = zip(a.reshape(-1).split(chunk), b.reshape(-1).split(chunk), strict=True)
    return sum(float(x.double() @ y.double()) for x, y in pairs)


def families(spec: SymmetrySpec) -> tuple[Family, ...]:
    """Return the families of permutation groups of a spec, in the order of the spec."""
    groups = {group.name: group for group in spec.permutations}
    continuous = {group.name for group in spec.continuous}
    members: list[list[str]] = []
    sizes: dict[str, int] = {}
    for group in groups.values():
        own = [*(p for p in group.within if p not in groups and p not in continuous), group.name]
        sizes |= dict(zip(group.within, group.copies, strict=True)) | {group.name: group.size}
        joined = [m for m in members if set(m) & ({*own, *group.within} - continuous)]
        members = [m for m in members if m not in joined]
        members.append(list(dict.fromkeys([name for m in joined for name in m] + own)))
    order = {name: place for place, name in enumerate(groups)}
    members.sort(key=lambda m: min(order[name] for name in m if name in order))
    return tuple(
        Family(
            tuple(
                sorted(
                    m, key=lambda name: (name in groups, len(groups[name].within) if name in groups else 0)
                )
            ),
            {name: sizes[name] for name in m},
            {name: tuple(p for p in groups[name].within if p in m) for name in m if name in groups},
            frozenset(m) - groups.keys(),
        )
        for m in members
    )


def lifted(family: Family, pattern: Pattern, elements: Permutations) -> Tensor:
    """Return the gather index of a flat slot: every entry (a, i, ...) of the pattern, and where it comes from."""
    rank = len(pattern)
    units = {}
    index = torch.zeros(family.shape(pattern), dtype=torch.int64)
    stride = math.prod(family.shape(pattern))
    for place, name in enumerate(pattern):
        size = family.sizes[name]
        stride //= size
        grid = torch.arange(size).reshape(-1, *[1] * (rank - place - 1))
        units.setdefault(name, grid)
        if name not in family.still:
            outer = (
                units[p] if p in units else torch.zeros((), dtype=torch.int64) for p in family.parents(name)
            )
            grid = elements[name].cpu()[(*outer, grid)]
        index += stride * grid
    return index.reshape(-1)


def cut(
    spec: SymmetrySpec,
    axes_of: Mapping[str, Sequence[Axis]],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
) -> tuple[Piece, ...]:
    """Cut tensors into pieces; what no group moves is left out."""
    found = families(spec)
    known = {name: (place, number) for place, f in enumerate(found) for number, name in enumerate(f.names)}
    within = {group.name: group.within for group in spec.permutations}
    pieces = []
    outlines = templates(a)
    deferred = isinstance(a, DeferredTensors) or isinstance(b, DeferredTensors)
    dtype = (
        torch.float64
        if any(outlines[name].dtype == torch.float64 for name in axes_of if name in a)
        else torch.float32
    )
    for name, axes in axes_of.items():
        if name not in a:
            continue
        outline = outlines[name].to("meta")
        device = torch.device("cpu") if deferred else a[name].device
        parts = [_parts(axis, size, known) for axis, size in zip(axes, outline.shape, strict=True)]
        for combination in itertools.product(*parts):
            labels = [(number, f.name) for number, part in enumerate(combination) for f in _factors(part)]
            slots = _slots(labels, known, within)
            if not slots:
                continue
            order = [dim for _, _, dims in slots for dim in dims]
            order += [dim for dim in range(len(labels)) if dim not in order]
            sizes = _view(outline, combination).shape
            shape = [math.prod(sizes[dim] for dim in dims) for _, _, dims in slots]
            shape.append(math.prod(sizes) // math.prod(shape))
            part = partial(_part, name=name, combination=combination, order=order, shape=shape, dtype=dtype)
            sides = tuple(partial(part, t) if deferred else partial(_same, part(t)) for t in (a, b))
            own = tuple(Slot(family, names) for family, names, _ in slots)
            pieces.append(Piece(name, own, tuple(shape), dtype, device, deferred, (sides[0], sides[1])))
    return tuple(pieces)


def _part(
    tensors: Mapping[str, Tensor],
    name: str,
    combination: Sequence[Segment | Tensor | None],
    order: Sequence[int],
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return _view(tensors[name], combination).permute(*order).reshape(shape).to(dtype)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _parts(axis: Axis, size: int, known: Mapping[str, tuple[int, int]]) -> list[Segment | Tensor | None]:
    """The segments of an axis that permutations move, and the positions of the rest (None: the whole axis rests)."""
    from weightspace.group_action import segment_positions

    segments = [s for s in axis if any(f.name in known for f in s.factors)]
    if not segments:
        return [None]
    rest = torch.ones(size, dtype=torch.bool)
    for segment in segments:
        rest[segment_positions(segment).reshape(-1)] = False
    return [*segments, rest.nonzero()[:, 0]] if rest.any() else list(segments)


@dataclass(frozen=True)
class _Fixed:
    name: str = ""


def _factors(part: Segment | Tensor | None) -> Sequence:
    return part.factors if isinstance(part, Segment) else (_Fixed(),)


def _view(tensor: Tensor, combination: Sequence[Segment | Tensor | None]) -> Tensor:
    """The entries that a combination of parts spans, one axis for every factor."""
    for number, part in enumerate(combination):
        if isinstance(part, Tensor):
            tensor = tensor.index_select(number, part.to(tensor.device))
    sizes, strides, offset = [], [], tensor.storage_offset()
    for number, part in enumerate(combination):
        step = tensor.stride(number)
        if isinstance(part, Segment):
            offset += part.offset * step
            sizes += [factor.size for factor in part.factors]
            strides += [factor.stride * step for factor in part.factors]
        else:
            sizes.append(tensor.shape[number])
            strides.append(step)
    return tensor.as_strided(sizes, strides, offset)


def _slots(
    labels: Sequence[tuple[int, str]],
    known: Mapping[str, tuple[int, int]],
    within: Mapping[str, Sequence[str]],
) -> list[tuple[int, Pattern, tuple[int, ...]]]:
    """Group the dimensions (axis, name) of a piece: one slot per family, several where its outer group comes twice."""
    slots: list[tuple[int, Pattern, tuple[int, ...]]] = []
    for family in dict.fromkeys(known[name][0] for _, name in labels if name in known):
        dims = [dim for dim, (_, name) in enumerate(labels) if name in known and known[name][0] == family]
        present = {labels[dim][1] for dim in dims}
        tops = [dim for dim in dims if not present & set(within.get(labels[dim][1], ()))]
        anchors = tops if len({labels[dim][1] for dim in tops}) < len(tops) else tops[:1]
        owned: dict[int, list[int]] = {dim: [] for dim in anchors}
        for dim in dims:
            # An inner index belongs to the outer one on its own axis, else to the first.
            same = [anchor for anchor in anchors if labels[anchor][0] == labels[dim][0]]
            owned[dim if dim in owned else (same or anchors)[0]].append(dim)
        for own in owned.values():
            if any(labels[dim][1] in within for dim in own):
                own.sort(key=lambda dim: (known[labels[dim][1]][1], dim))
                slots.append((family, tuple(labels[dim][1] for dim in own), tuple(own)))
    return slots
