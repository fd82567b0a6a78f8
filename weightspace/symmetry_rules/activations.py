"""Rules of scalar functions and of activations on groups of channels."""

from __future__ import annotations

from weightspace import operations as op
from weightspace.network import Node
from weightspace.symmetry_rules.state import State, rule
from weightspace.unification import Ref

ODD = {"atan", "erf", "sign", "sin", "softsign", "tan"}


def tolerated(operation: op.Operation) -> tuple[str, ...]:
    """The linear maps a scalar function commutes with."""
    match operation:
        case op.ReLU() | op.LeakyReLU() | op.Absolute():
            return ("positive",)
        case op.Clip() if (operation.lower, operation.upper) in ((0, None), (None, 0)):
            return ("positive",)
        case op.Tanh():
            return ("sign",)
        case op.Pointwise() if operation.name in ODD:
            return ("sign",)
        case op.Power() if operation.exponent in (1, 3, 5):
            return ("sign",)
    return ()


@rule(
    op.Absolute, op.Clip, op.ELU, op.GELU, op.LeakyReLU, op.Pointwise, op.Power, op.ReLU, op.Sigmoid, op.SiLU,
    op.Softmax, op.Softplus, op.Tanh,
)  # fmt: skip
def activation(
    state: State, node: Node, operation: op.Operation, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    state.tolerate(inputs[0], *tolerated(operation))
    return inputs[0]


@rule(op.Scale, op.Cast)
def scale(
    state: State, node: Node, operation: op.Scale | op.Cast, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    if isinstance(operation, op.Scale) and operation.shift != 0:
        state.tolerate(inputs[0])
    return inputs[0]


@rule(op.PReLU)
def learned_slope(
    state: State, node: Node, operation: op.PReLU, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    state.tolerate(inputs[0], "positive")
    if state.network.parameters[operation.weight].numel() == 1:
        state.touch(operation.weight, None)
    elif not state.linear:
        state.touch(operation.weight, inputs[0][1])
    return inputs[0]


@rule(op.GroupSort, op.Householder)
def grouped(
    state: State, node: Node, operation: op.GroupSort | op.Householder, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    """Groups of channels may change places; their inside may not, except before a sort."""
    source = inputs[0]
    at = operation.axis % len(source)
    channels = state.spaces.size(source[at])
    if isinstance(operation, op.GroupSort):
        count = channels // operation.group_size
    else:
        count = state.network.parameters[operation.weight].shape[0]
    parts = state.spaces.split(source[at], (count, channels // count))
    if parts is None:
        return state.unknown(node)
    reason = f"{operation.kind} at {node.name}: the order inside a group"
    state.tolerate(parts)
    if isinstance(operation, op.Householder):
        state.spaces.freeze(parts[1:], reason)
        state.touch(operation.weight, parts[0], parts[1])
        return source
    inner = state.spaces.fresh(operation.group_size, node.name, reason)
    return (*source[:at], state.spaces.product([parts[0], inner], node.name), *source[at + 1 :])
