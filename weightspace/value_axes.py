"""Which axes of a network's intermediate values the groups of a spec move."""

from __future__ import annotations

from weightspace.network import Network
from weightspace.symmetry_derivation import walked
from weightspace.symmetry_rules import Stacked
from weightspace.symmetry_spec import Axis, Factor, Segment, SymmetrySpec
from weightspace.unification import BATCH, Run


def value_axes(network: Network, spec: SymmetrySpec) -> dict[str, tuple[Axis, ...]]:
    """Return node name -> for each axis of its value the segments that move when an element acts on the parameters.

    The spaces of all values are derived again, and known by the parameters that carry the groups. Values that no
    group moves, packed values before they are unpacked, and axes that mix units with the batch are left out.
    """
    state = walked(network)
    names: dict[int, str] = {}
    for parameter, refs in state.parameters.items():
        for ref, axis in zip(refs, spec.axes.get(parameter, ()), strict=False):
            segments = {segment.offset: segment for segment in axis}
            for run in state.spaces.runs(ref):
                if run.offset in segments:
                    placed = {(f.stride, f.size): f.name for f in segments[run.offset].factors}
                    for found in run.factors:
                        if name := placed.get((found.stride, found.size)):
                            names[found.atom.space] = name
    result = {}
    for node, value in state.values.items():
        if not isinstance(value, Stacked) and not any(
            _mixed(run) for ref in value for run in state.spaces.runs(ref)
        ):
            axes = tuple(_segments(state.spaces.runs(ref), names) for ref in value)
            if any(axes):
                result[node] = axes
    return result


def _mixed(run: Run) -> bool:
    """Whether an axis is a product of the batch, whose size is open, and something else."""
    return len(run.factors) > 1 and any(factor.size % BATCH == 0 for factor in run.factors)


def _segments(runs: list[Run], names: dict[int, str]) -> Axis:
    return tuple(
        Segment(tuple(Factor(names.get(f.atom.space, ""), f.size, f.stride) for f in run.factors), run.offset)
        for run in runs
        if any(f.atom.space in names for f in run.factors)
    )
