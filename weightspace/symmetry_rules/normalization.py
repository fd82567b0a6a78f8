"""Rules of normalizations."""

from __future__ import annotations

from weightspace import operations as op
from weightspace.network import Node
from weightspace.symmetry_rules.state import State, rule
from weightspace.unification import Ref


@rule(op.BatchNorm)
def batch_normalization(
    state: State, node: Node, operation: op.BatchNorm, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    source = inputs[0]
    output = state.renewed(source[1], node.name)
    for role, name in operation.parameters.items():
        if role in ("weight", "bias"):
            state.touch(name, output)
        elif not state.linear:  # running statistics follow the permutations of what comes in
            state.touch(name, source[1])
    return (source[0], output, *source[2:])


@rule(op.LayerNorm, op.RMSNorm)
def normalization(
    state: State, node: Node, operation: op.LayerNorm | op.RMSNorm, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    """Over one axis; over several (C, H, W) only the first of them may move."""
    source = inputs[0]
    count = len(operation.normalized_shape)
    if count == 1 and operation.weight is None:
        kinds = ("orthogonal", "centered", "sign") if isinstance(operation, op.RMSNorm) else ("centered",)
        state.tolerate(source[-1:], *kinds)
        state.touch(operation.parameters.get("bias"), source[-1])
        return source
    normalized = tuple(state.renewed(ref, node.name) for ref in source[-count:])
    if count > 1:
        state.tolerate(normalized)
    for name in operation.parameters.values():
        state.touch(name, *normalized)
    return (*source[:-count], *normalized)


@rule(op.GroupNorm)
def group_normalization(
    state: State, node: Node, operation: op.GroupNorm, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    source = inputs[0]
    channels = source[1]
    parts = state.spaces.split(channels, (operation.groups, state.spaces.size(channels) // operation.groups))
    if parts is None:
        return state.unknown(node)
    state.tensors.append((source[0], parts[0]))  # the statistics: one number per group of channels
    output = state.renewed(channels, node.name)
    for name in operation.parameters.values():
        state.touch(name, output)
    return (source[0], output, *source[2:])
