"""`SymmetrySpec`: which axes of which parameters may be moved together without changing the function.

An immutable value, derived from the graph of a network (`weightspace.verification.symmetry`), read from JSON or
written by hand. Alignment, merging, canonical forms, graph encodings and equivariant layers all start from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from weightspace.errors import ArchitectureError, ShapeError

PERMUTATION = "permutation"
SCALINGS = ("positive", "sign")
LINEAR = ("orthogonal", "centered", "invertible")
KINDS = (PERMUTATION, *SCALINGS, *LINEAR)
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Group:
    """A group that acts on `size` units.

    kind: "permutation" (S_n), "positive" or "sign" (one factor per unit), "orthogonal", "centered" (orthogonal and
    fixing the vector of ones, what LayerNorm allows) or "invertible" (one n x n matrix).

    A group `within` others (a wreath product) has an independent element for every combination of their units:
    one permutation of the units inside a head for every head. `copies` are the numbers of those units, so that
    an element has the shape (*copies, size), or (*copies, size, size) for matrices. A name in `within` that is
    no group is an index that does not move: heads that are told apart by a fixed bias, say.
    """

    name: str
    size: int
    kind: str = PERMUTATION
    within: tuple[str, ...] = ()
    copies: tuple[int, ...] = ()
    units: str | None = None  # of a scaling: the permutation group of the units that are scaled

    def __str__(self) -> str:
        symbol = {
            PERMUTATION: "S", "positive": "scale", "sign": "sign", "orthogonal": "O", "centered": "O1",
            "invertible": "GL",
        }[self.kind]  # fmt: skip
        inside = f", one for each of {' x '.join(self.within)}" if self.within else ""
        return f"{symbol}_{self.size} {self.name}{inside}"


@dataclass(frozen=True)
class Factor:
    """One index inside an axis: entry i of the factor stands i * stride further on.

    `name` is that of the group which moves the index, or of no group when it is fixed. A matrix M of a linear
    group acts as M, or as its inverse transpose when `dual`; `scale` names the group that scales the entries,
    by s, or by 1/s when `dual`.
    """

    name: str
    size: int
    stride: int = 1
    dual: bool = False
    scale: str | None = None


@dataclass(frozen=True)
class Segment:
    """A run of an axis that is a product of factors: the entry (i, j, ...) stands at offset + sum of i * stride."""

    factors: tuple[Factor, ...]
    offset: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(factor.size for factor in self.factors)


Axis = tuple[Segment, ...]  # the segments some group moves; all other entries of the axis are fixed


@dataclass(frozen=True)
class Frozen:
    """Units that may not move: where they are made, how many, and why."""

    place: str
    size: int
    reason: str


@dataclass(frozen=True)
class SymmetrySpec:
    """Symmetries of a network's parameters: groups, and how they act on every axis.

    Attributes:
        groups: the groups that act; one that is `within` another stands behind it.
        axes: parameter name -> for each of its axes the segments that move (empty: a fixed axis); only parameters
            that some group moves.
        frozen: the units that are left alone, each with the operation and reason.
        shapes: parameter name -> shape, of all trained parameters and everything that moves, in the order of the
            network: the space that the groups act on. Empty in a spec written by hand for some parameters only.
    Raises:
        ArchitectureError: the description contradicts itself; the message names the entry.
    Source: Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023), section 3, for permutations of whole axes.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> spec = weightspace.symmetry(load("digits_mlp_a"))
        >>> sorted(spec.axes)[:2]
        ['0.bias', '0.weight']
        >>> weightspace.SymmetrySpec.from_json(spec.to_json()) == spec
        True
    """

    groups: tuple[Group, ...]
    axes: Mapping[str, tuple[Axis, ...]]
    frozen: tuple[Frozen, ...] = field(default=())
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_consistent(self)
        if self.shapes:
            self.require_fits(self.shapes)

    # ---- looking at it -----------------------------------------------------------------------------------

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """Group name -> group."""
        return {group.name: group for group in self.groups}

    @cached_property
    def carriers(self) -> dict[str, tuple[tuple[str, int, Segment], ...]]:
        """Group name -> the (parameter, axis, segment) triples it acts on."""
        found: dict[str, list[tuple[str, int, Segment]]] = {group.name: [] for group in self.groups}
        for name, axes in self.axes.items():
            for number, segments in enumerate(axes):
                for segment in segments:
                    for factor in segment.factors:
                        for acting in (factor.name, factor.scale):
                            if acting in found:
                                found[acting].append((name, number, segment))
        return {name: tuple(places) for name, places in found.items()}

    @property
    def permutations(self) -> tuple[Group, ...]:
        """The permutation groups."""
        return tuple(group for group in self.groups if group.kind == PERMUTATION)

    @property
    def continuous(self) -> tuple[Group, ...]:
        """The scalings and linear groups."""
        return tuple(group for group in self.groups if group.kind != PERMUTATION)

    def __str__(self) -> str:
        groups = self.permutations
        lines = [f"{len(groups)} permutation groups" + _listed(len(self.continuous), "continuous group")]
        for group in self.groups:
            touched = []
            for name, number, segment in self.carriers[group.name]:
                text = f"{name}[{number}]"
                entries = math.prod(segment.shape)
                if segment.offset or len(self.axes[name][number]) > 1:
                    text += f" at {segment.offset}"
                if entries != group.size:
                    text += f" as {' x '.join(str(n) for n in segment.shape)}"
                touched.append(text)
            lines.append(f"  {group}: {', '.join(touched)}")
        lines += [f"  frozen {entry.place} ({entry.size}): {entry.reason}" for entry in self.frozen]
        return "\n".join(lines)

    # ---- other forms of it -------------------------------------------------------------------------------

    def without(self, names: Sequence[str], reason: str) -> SymmetrySpec:
        """Return the spec with some groups frozen for a stated reason; what is within them keeps its elements."""
        gone = set(names) | {group.name for group in self.groups if group.units in names}
        kept = tuple(group for group in self.groups if group.name not in gone)
        frozen = (Frozen(g.name, g.size, reason) for g in self.groups if g.name in gone)
        return SymmetrySpec(kept, _pruned(self.axes, kept), (*self.frozen, *frozen), self.shapes)

    def only(self, kinds: Sequence[str]) -> SymmetrySpec:
        """Return the spec with the groups of some kinds; the others are left out, not reported as frozen."""
        kept = tuple(group for group in self.groups if group.kind in kinds)
        return SymmetrySpec(kept, _pruned(self.axes, kept), self.frozen, self.shapes)

    def renamed(self, names: Mapping[str, str]) -> SymmetrySpec:
        """Return the spec for a network whose parameters have other names."""
        axes = {names.get(name, name): axes for name, axes in self.axes.items()}
        shapes = {names.get(name, name): shape for name, shape in self.shapes.items()}
        return SymmetrySpec(self.groups, axes, self.frozen, shapes)

    def require_fits(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise ShapeError naming the first axis of the spec that parameters of these shapes do not have."""
        for name, axes in self.axes.items():
            if name not in shapes:
                raise ShapeError(f"the spec moves parameter {name!r}, which the network does not have")
            shape = tuple(shapes[name])
            if len(axes) != len(shape):
                raise ShapeError(f"the spec describes {len(axes)} axes of {name!r}, which has shape {shape}")
            for number, segments in enumerate(axes):
                for segment in segments:
                    last = segment.offset + sum((f.size - 1) * f.stride for f in segment.factors)
                    if segment.offset < 0 or last >= shape[number]:
                        raise ShapeError(
                            f"the spec reaches entry {last} on axis {number} of {name!r}, which has shape {shape}"
                        )

    def to_json(self) -> str:
        """Return the spec as JSON."""
        return json.dumps(
            {
                "format": "weightspace.symmetry",
                "version": FORMAT_VERSION,
                "groups": [_short(asdict(group)) for group in self.groups],
                "axes": {
                    name: [[_short(asdict(segment)) for segment in segments] for segments in axes]
                    for name, axes in self.axes.items()
                },
                "frozen": [asdict(entry) for entry in self.frozen],
                "shapes": self.shapes,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> SymmetrySpec:
        """Read `to_json()`, or a spec written by hand in the same form.

        Raises:
            ArchitectureError: not such a JSON, or one that contradicts itself.
        """
        try:
            data = json.loads(text)
            if data["format"] != "weightspace.symmetry" or data["version"] != FORMAT_VERSION:
                raise ArchitectureError(
                    f"format {data['format']!r} version {data['version']!r} is not "
                    f"'weightspace.symmetry' version {FORMAT_VERSION}"
                )
            groups = tuple(
                Group(**{**entry, **{k: tuple(entry[k]) for k in ("within", "copies") if k in entry}})
                for entry in data["groups"]
            )
            axes = {
                name: tuple(
                    tuple(
                        Segment(tuple(Factor(**f) for f in segment["factors"]), segment.get("offset", 0))
                        for segment in segments
                    )
                    for segments in entries
                )
                for name, entries in data["axes"].items()
            }
            frozen = tuple(Frozen(**entry) for entry in data.get("frozen", ()))
            shapes = {name: tuple(shape) for name, shape in data.get("shapes", {}).items()}
            return cls(groups, axes, frozen, shapes)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ArchitectureError(
                f"this is not the JSON of a symmetry spec: {type(error).__name__} {error}"
            ) from error


def plain(name: str, size: int, block: int = 1) -> Axis:
    """Return an axis of size x block entries, unit-major, whose units a group permutes: the commonest case."""
    fixed = (Factor("", block),) if block > 1 else ()
    return (Segment((Factor(name, size, block), *fixed)),)


def _listed(count: int, noun: str) -> str:
    return f", {count} {noun}{'s' if count > 1 else ''}" if count else ""


def _short(entry: dict) -> dict:
    """Leave out what has its default value."""
    defaults = {"kind": PERMUTATION, "within": (), "copies": (), "units": None, "offset": 0, "dual": False}
    defaults |= {"stride": 1, "scale": None}
    return {
        key: [_short(item) for item in value] if key == "factors" else value
        for key, value in entry.items()
        if key not in defaults or value != defaults[key]
    }


def _pruned(axes: Mapping[str, tuple[Axis, ...]], groups: Sequence[Group]) -> dict[str, tuple[Axis, ...]]:
    """Drop the segments, scalings and parameters that none of `groups` moves or counts copies by any more."""
    names = {group.name for group in groups} | {parent for group in groups for parent in group.within}

    def segment(old: Segment) -> Segment:
        factors = (replace(f, scale=f.scale if f.scale in names else None) for f in old.factors)
        return Segment(tuple(factors), old.offset)

    pruned = {
        name: tuple(
            tuple(
                segment(old)
                for old in segments
                if any(f.name in names or f.scale in names for f in old.factors)
            )
            for segments in entries
        )
        for name, entries in axes.items()
    }
    return {name: entries for name, entries in pruned.items() if any(entries)}


def _require_consistent(spec: SymmetrySpec) -> None:
    seen: dict[str, Group] = {}
    for group in spec.groups:
        if group.name in seen or not group.name:
            raise ArchitectureError(f"two groups of the spec are named {group.name!r}, or one has no name")
        if group.kind not in KINDS:
            raise ArchitectureError(
                f"group {group.name!r} is of kind {group.kind!r}; kinds are {', '.join(KINDS)}"
            )
        if len(group.within) != len(group.copies) or group.size < 1:
            raise ArchitectureError(f"group {group.name!r}: sizes are missing, or copies do not fit within")
        for parent, copies in zip(group.within, group.copies, strict=True):
            if parent in seen and (seen[parent].size, seen[parent].kind) != (copies, PERMUTATION):
                raise ArchitectureError(
                    f"group {group.name!r} is within {copies} units of {parent!r}, which differs"
                )
            if any(later.name == parent for later in spec.groups) and parent not in seen:
                raise ArchitectureError(
                    f"group {group.name!r} must stand behind {parent!r}, which it is within"
                )
        seen[group.name] = group
    for name, axes in spec.axes.items():
        present = {f.name for segments in axes for segment in segments for f in segment.factors}
        for segments in axes:
            for segment in segments:
                for factor in segment.factors:
                    _require_factor(factor, name, present, seen)


def _require_factor(factor: Factor, parameter: str, present: set[str], groups: Mapping[str, Group]) -> None:
    for acting in (factor.name, factor.scale):
        group = groups.get(acting or "")
        if acting is factor.scale and acting is not None and group is None:
            raise ArchitectureError(f"parameter {parameter!r} is scaled by {acting!r}, which is no group")
        if group is None:
            continue
        if group.size != factor.size:
            raise ArchitectureError(
                f"group {group.name!r} moves {group.size} units; the axis of {parameter!r} has {factor.size}"
            )
        missing = [parent for parent in group.within if parent not in present]
        if missing:
            raise ArchitectureError(
                f"group {group.name!r} is within {missing[0]!r}, which parameter {parameter!r} does not carry"
            )
