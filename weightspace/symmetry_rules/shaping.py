"""Rules of operations that move entries without changing them, and of parameters used as values."""

from __future__ import annotations

from weightspace import operations as op
from weightspace.network import Node
from weightspace.symmetry_rules.arithmetic import broadcast
from weightspace.symmetry_rules.state import Stacked, State, Value, rule
from weightspace.unification import Ref


@rule(op.Permute)
def permutation(
    state: State, node: Node, operation: op.Permute, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    return tuple(inputs[0][axis] for axis in operation.axes)


@rule(op.Unsqueeze)
def unsqueeze(
    state: State, node: Node, operation: op.Unsqueeze, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    at = operation.axis % len(node.shape)
    return (*inputs[0][:at], state.spaces.fresh(1, node.name), *inputs[0][at:])


@rule(op.Squeeze)
def squeeze(
    state: State, node: Node, operation: op.Squeeze, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    at = operation.axis % len(inputs[0])
    return (*inputs[0][:at], *inputs[0][at + 1 :])


@rule(op.Select)
def select(state: State, node: Node, operation: op.Select, inputs: list[tuple[Ref, ...]]) -> tuple[Ref, ...]:
    at = operation.axis % len(inputs[0])
    state.spaces.freeze([inputs[0][at]], f"Select at {node.name}: one entry is picked")
    return (*inputs[0][:at], *inputs[0][at + 1 :])


@rule(op.Gather)
def gather(state: State, node: Node, operation: op.Gather, inputs: list[tuple[Ref, ...]]) -> tuple[Ref, ...]:
    source, index = inputs
    at = operation.axis % len(source)
    state.spaces.freeze([source[at]], f"Gather at {node.name}: entries are picked")
    state.spaces.freeze(index, f"Gather at {node.name}: positions")
    return (*source[:at], *index, *source[at + 1 :])


@rule(op.TakeAlong)
def take_along(
    state: State, node: Node, operation: op.TakeAlong, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    source, index = inputs
    at = operation.axis % len(source)
    state.spaces.freeze([source[at], index[at]], f"TakeAlong at {node.name}: entries are picked")
    state.tolerate(source)
    others = broadcast(state, node, [(*refs[:at], *refs[at + 1 :]) for refs in inputs])
    return (*others[:at], index[at], *others[at:])


@rule(op.Expand)
def expand(state: State, node: Node, operation: op.Expand, inputs: list[tuple[Ref, ...]]) -> tuple[Ref, ...]:
    """A repeated axis is the same whatever its order: it is free to follow what it meets."""
    source = inputs[0]
    leading = len(node.shape) - len(source)
    refs = []
    for axis, size in enumerate(node.shape):
        if axis >= leading and state.spaces.size(source[axis - leading]) == size:
            refs.append(source[axis - leading])
        else:
            refs.append(state.spaces.fresh(size, node.name))
            state.tolerate(refs[-1:])
    return tuple(refs)


@rule(op.Slice)
def cut(state: State, node: Node, operation: op.Slice, inputs: list[tuple[Ref, ...]]) -> tuple[Ref, ...]:
    source = inputs[0]
    at = operation.axis % len(source)
    start, stop, step = slice(operation.start, operation.stop, operation.step).indices(
        state.spaces.size(source[at])
    )
    whole = (operation.start, operation.stop, operation.step) == (0, None, 1)
    fits = step == 1 and (whole or node.shape[at] == max(0, stop - start))  # not where the batch is cut
    part = state.spaces.cut(source[at], start, max(start, stop)) if fits else None
    if part is None:
        reason = f"Slice at {node.name}: it cuts across the units"
        state.spaces.freeze([source[at]], reason)
        part = state.spaces.fresh(node.shape[at], node.name, reason)
    return (*source[:at], part, *source[at + 1 :])


@rule(op.Concat)
def concatenation(
    state: State, node: Node, operation: op.Concat, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    rank = len(node.shape)
    at = operation.axis % rank
    joined = state.spaces.sum([refs[at] for refs in inputs], node.name)
    result = []
    for axis in range(rank):
        if axis == at:
            result.append(joined)
            continue
        for other in inputs[1:]:
            state.spaces.unite(inputs[0][axis], other[axis], f"Concat at {node.name}")
        result.append(inputs[0][axis])
    return tuple(result)


@rule(op.Stack)
def stack(state: State, node: Node, operation: op.Stack, inputs: list[tuple[Ref, ...]]) -> Value:
    return Stacked(operation.axis % len(node.shape), tuple(inputs))


@rule(op.Pad)
def pad(state: State, node: Node, operation: op.Pad, inputs: list[tuple[Ref, ...]]) -> tuple[Ref, ...]:
    source = inputs[0]
    result = list(source)
    zero = operation.mode == "constant" and operation.value == 0
    for k in range(len(operation.amounts) // 2):
        if operation.amounts[2 * k] or operation.amounts[2 * k + 1]:
            at = len(source) - 1 - k
            state.spaces.freeze([source[at]], f"Pad at {node.name}")
            result[at] = state.spaces.fresh(node.shape[at], node.name, f"Pad at {node.name}")
    if not zero:
        state.tolerate(source)
    return tuple(result)
