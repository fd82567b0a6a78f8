"""Rules of Reshape and Flatten: axes are split into factors, merged, or packed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightspace import operations as op
from weightspace.network import Node
from weightspace.symmetry_rules.state import Stacked, State, Value, rule
from weightspace.unification import Ref


@rule(op.Flatten, op.Reshape)
def reshape(
    state: State, node: Node, operation: op.Flatten | op.Reshape, inputs: list[tuple[Ref, ...]]
) -> Value:
    source = inputs[0]
    before = [state.spaces.size(ref) for ref in source]
    after = _sizes(math.prod(before), node.shape)
    runs = _matching_runs(before, after) if after is not None else None
    if after is None or runs is None:  # the batch hides how the leading axes are mixed
        same = 0
        while same < min(len(before), len(node.shape)) and before[-1 - same] == node.shape[-1 - same]:
            same += 1
        reason = f"{node.operation.kind} at {node.name}: mixed with the batch"
        state.spaces.freeze(source[: len(source) - same], reason)
        mixed = (state.spaces.fresh(n, node.name, reason) for n in node.shape[: len(node.shape) - same])
        return (*mixed, *source[len(source) - same :])
    results: list[tuple[Ref, ...]] = [()]  # one list of spaces, or one for every entry of a packed axis
    packed_axis = None
    for (first, last), (begin, end) in runs:
        refs, sizes = source[first:last], after[begin:end]
        slices: list[tuple[Ref, ...]]
        inside = [axis for axis in state.selected.get(node.name, ()) if begin <= axis < end]
        if len(refs) == len(sizes) == 1:
            slices = [refs]
        elif (
            inside and packed_axis is None and (found := _packed(state, node, refs, sizes, inside[0] - begin))
        ):
            packed_axis, slices = inside[0], found
        else:
            slices = [_regrouped(state, node, refs, sizes)]
        results = [(*done, *part) for done in results for part in slices]
    return results[0] if packed_axis is None else Stacked(packed_axis, tuple(results))


def _regrouped(state: State, node: Node, refs: Sequence[Ref], sizes: Sequence[int]) -> tuple[Ref, ...]:
    parts = state.spaces.regroup(refs, sizes, node.name)
    if parts is None:
        reason = f"{node.operation.kind} at {node.name}: it cuts across the units"
        state.spaces.freeze(refs, reason)
        parts = [state.spaces.fresh(n, node.name, reason) for n in sizes]
    return tuple(parts)


def _packed(
    state: State, node: Node, refs: Sequence[Ref], sizes: Sequence[int], position: int
) -> list[tuple[Ref, ...]] | None:
    """Cut the axis that is selected from later into its entries, each with spaces of its own."""
    behind = sizes[position + 1 :]
    width = math.prod(behind)
    leading = state.spaces.regroup(refs, [*sizes[:position], sizes[position] * width], node.name)
    if leading is None:
        return None
    slices = []
    for index in range(sizes[position]):
        piece = state.spaces.cut(leading[-1], index * width, (index + 1) * width)
        parts = state.spaces.regroup([piece], behind, node.name) if piece is not None else None
        if parts is None:
            return None
        slices.append((*leading[:-1], *parts))
    return slices


def _sizes(total: int, shape: Sequence[int | None]) -> list[int] | None:
    """Fill in the size of the open axis of a shape; None when it has several or none fits."""
    known = math.prod(n for n in shape if n is not None)
    hidden = sum(n is None for n in shape)
    if hidden > 1 or known == 0 or total % known or (not hidden and known != total):
        return None
    return [n if n is not None else total // known for n in shape]


def _matching_runs(
    left: Sequence[int], right: Sequence[int]
) -> list[tuple[tuple[int, int], tuple[int, int]]] | None:
    """Pair runs of axes with equal products, as short as possible."""
    runs, i, j = [], 0, 0
    while i < len(left) or j < len(right):
        start, begin = i, j
        first = second = 1
        if i < len(left):
            first, i = left[i], i + 1
        if j < len(right):
            second, j = right[j], j + 1
        while first != second:
            if first < second and i < len(left):
                first, i = first * left[i], i + 1
            elif j < len(right):
                second, j = second * right[j], j + 1
            else:
                return None
        runs.append(((start, i), (begin, j)))
    return runs
