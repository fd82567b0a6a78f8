"""From the united spaces of a derivation to a `SymmetrySpec`: groups, what they are within, segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from weightspace.deferred import templates
from weightspace.symmetry_spec import (
    LINEAR,
    PERMUTATION,
    SCALINGS,
    Axis,
    Factor,
    Frozen,
    Group,
    Segment,
    SymmetrySpec,
)
from weightspace.unification import Ref, Run

if TYPE_CHECKING:
    from weightspace.symmetry_rules import State

HIDDEN = ("fixed axis", "position in space")  # reasons nobody asks for


def described(state: State, kinds: Mapping[int, str] | None = None) -> SymmetrySpec:
    """Return the spec of a finished derivation.

    Args:
        kinds: atom -> kind of group, for those atoms that act; default: every atom that is not frozen permutes.
    """
    spaces = state.spaces
    runs = {name: [spaces.runs(ref) for ref in refs] for name, refs in state.parameters.items()}
    used: dict[int, None] = {}
    for axes in runs.values():
        for axis in axes:
            for run in axis:
                used.update(dict.fromkeys(factor.atom.space for factor in run.factors))
    acting: dict[int, str] = {}
    frozen: list[Frozen] = []
    for atom in sorted(used):
        space = spaces.atom(Ref(atom))
        if space.size < 2:
            continue
        if space.frozen is None:
            kind = PERMUTATION if kinds is None else kinds.get(atom)
            if kind is not None:
                acting[atom] = kind
        elif space.frozen not in HIDDEN:
            frozen.append(Frozen(spaces.name(Ref(atom)), space.size, space.frozen))
    within = _within(state, acting)
    names = _names(state, [*acting, *(parent for parents in within.values() for parent in parents)])
    ordered = sorted(acting, key=lambda atom: (len(within[atom]), atom))
    groups = tuple(
        Group(
            names[atom],
            spaces.size(Ref(atom)),
            acting[atom],
            tuple(names[parent] for parent in within[atom]),
            tuple(spaces.size(Ref(parent)) for parent in within[atom]),
        )
        for atom in ordered
    )
    axes = {
        name: tuple(_segments(axis, acting, names) for axis in per_axis) for name, per_axis in runs.items()
    }
    carried = {f.name for entries in axes.values() for axis in entries for s in axis for f in s.factors}
    groups = tuple(group for group in groups if group.name in carried)
    moved = {name: entries for name, entries in axes.items() if any(entries)}
    network = state.network
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in templates(network.parameters).items()
        if name in moved or (name not in network.buffers and tensor.is_floating_point())
    }
    return SymmetrySpec(groups, moved, tuple(dict.fromkeys(frozen)), shapes)


def linear_kinds(state: State) -> dict[int, str]:
    """For every atom the largest kind of linear group that all operations on it tolerate; none: left out."""
    kinds = {}
    for refs in state.parameters.values():
        for atom in (atom for ref in refs for atom in state.spaces.atoms(ref)):
            space = state.spaces.atom(atom)
            found = [
                kind
                for kind in ("invertible", "orthogonal", "centered", "positive", "sign")
                if kind in space.kinds
            ]
            if found and space.frozen is None:
                kinds[atom.space] = found[0]
    return kinds


def joined(permutations: SymmetrySpec, linear: SymmetrySpec) -> SymmetrySpec:
    """Join the permutations of units with the linear maps of the same units.

    A linear group replaces the permutation group that stands at exactly the same entries, and everything that was
    within it; a scaling acts beside the permutations of its units. What has no such counterpart is left out.
    """
    places = {group.name: _places(permutations, group.name) for group in permutations.groups}
    parents = {parent for group in permutations.groups for parent in group.within}
    counterpart: dict[str, str] = {}
    for group in linear.groups:
        own = _places(linear, group.name)
        for name, theirs in places.items():
            scaling = group.kind in ("positive", "sign")
            fits = own <= theirs if scaling else own == theirs and name not in parents
            if fits and len(permutations.by_name[name].within) == len(group.within):
                counterpart[group.name] = name
    replaced = {
        name: linear.by_name[own] for own, name in counterpart.items() if linear.by_name[own].kind in LINEAR
    }
    scaled = {own: name for own, name in counterpart.items() if linear.by_name[own].kind in SCALINGS}
    groups = [replace(group, kind=replaced[group.name].kind) if group.name in replaced else group
              for group in permutations.groups]  # fmt: skip
    for own, name in scaled.items():
        units = permutations.by_name[name]
        groups.append(
            replace(
                units, name=f"{name}.{linear.by_name[own].kind}", kind=linear.by_name[own].kind, units=name
            )
        )
    duals: dict[tuple[str, int, int, str], tuple[bool, str | None]] = {}
    for own, name in counterpart.items():
        kind = linear.by_name[own].kind
        for parameter, number, segment in linear.carriers[own]:
            factor = next(f for f in segment.factors if f.name == own)
            scale = f"{name}.{kind}" if kind in SCALINGS else None
            duals[parameter, number, segment.offset, name] = (factor.dual, scale)
    axes = {
        parameter: tuple(
            tuple(
                Segment(
                    tuple(
                        replace(f, dual=entry[0], scale=entry[1])
                        if (entry := duals.get((parameter, number, segment.offset, f.name)))
                        else f
                        for f in segment.factors
                    ),
                    segment.offset,
                )
                for segment in segments
            )
            for number, segments in enumerate(entries)
        )
        for parameter, entries in permutations.axes.items()
    }
    return SymmetrySpec(tuple(groups), axes, permutations.frozen, permutations.shapes)


def _places(spec: SymmetrySpec, name: str) -> set[tuple[str, int, int, int, int]]:
    """The entries a group acts on: parameter, axis, offset, size and stride."""
    return {
        (parameter, number, segment.offset, factor.size, factor.stride)
        for parameter, number, segment in spec.carriers[name]
        for factor in segment.factors
        if factor.name == name
    }


def _segments(axis: list[Run], acting: Mapping[int, str], names: Mapping[int, str]) -> Axis:
    segments = []
    for run in axis:
        if any(f.atom.space in names for f in run.factors):
            factors: list[Factor] = []
            for f in run.factors:
                last = factors[-1] if factors else None
                if f.atom.space in names:
                    dual = f.atom.dual and acting.get(f.atom.space, PERMUTATION) != PERMUTATION
                    factors.append(Factor(names[f.atom.space], f.size, f.stride, dual))
                elif last is not None and not last.name and last.stride == f.size * f.stride:
                    factors[-1] = Factor("", last.size * f.size, f.stride)
                else:
                    factors.append(Factor("", f.size, f.stride))
            segments.append(Segment(tuple(factors), run.offset))
    return tuple(segments)


def _within(state: State, acting: Mapping[int, str]) -> dict[int, tuple[int, ...]]:
    """For every acting atom the atoms whose index it may depend on: those that stand beside it in every tensor.

    Of two atoms that always stand together the outer factor of their product is the parent, otherwise the older one.
    """
    spaces = state.spaces
    beside: dict[int, set[int]] = {}
    outer: set[tuple[int, int]] = set()  # (a, b): a is an outer factor of a product that holds b
    for refs in state.tensors:
        axes = [spaces.runs(ref) for ref in refs]
        everywhere = [_common(runs) for runs in axes]
        for number, runs in enumerate(axes):
            others = set().union(*(e for n, e in enumerate(everywhere) if n != number))
            for run in runs:
                atoms = [factor.atom.space for factor in run.factors]
                outer.update(combinations(atoms, 2))
                for atom in atoms:
                    found = others | {other for other in atoms if other != atom}
                    beside[atom] = beside[atom] & found if atom in beside else found
    static = {
        atom for atom in beside if spaces.size(Ref(atom)) > 1 and spaces.atom(Ref(atom)).frozen != "batch"
    }
    result = {}
    for atom in acting:
        parents = []
        for other in sorted(beside[atom] & static):
            if other == atom:
                continue
            mutual = atom in beside.get(other, set())
            above, below = (other, atom) in outer, (atom, other) in outer
            if not mutual or (above if above != below else other < atom):
                parents.append(other)
        result[atom] = tuple(parents)
    return result


def _common(runs: list[Run]) -> set[int]:
    sets = [{factor.atom.space for factor in run.factors} for run in runs]
    return set.intersection(*sets) if sets else set()


def _names(state: State, atoms: list[int]) -> dict[int, str]:
    """Readable and distinct names."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for atom in sorted(set(atoms)):
        base = name = state.spaces.name(Ref(atom))
        count = 2
        while name in taken:
            name, count = f"{base}#{count}", count + 1
        taken.add(name)
        names[atom] = name
    return names
