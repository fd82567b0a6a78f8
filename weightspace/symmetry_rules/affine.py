"""Rules of operations with matrices of weights."""

from __future__ import annotations

from weightspace import operations as op
from weightspace.network import Node
from weightspace.symmetry_rules.arithmetic import broadcast
from weightspace.symmetry_rules.pooling import in_space
from weightspace.symmetry_rules.state import State, rule
from weightspace.unification import Ref


@rule(op.Linear)
def linear(state: State, node: Node, operation: op.Linear, inputs: list[tuple[Ref, ...]]) -> tuple[Ref, ...]:
    source = inputs[0]
    output = state.spaces.fresh(node.shape[-1], node.name)
    into = source[-1].transposed
    state.touch(operation.weight, *((into, output) if operation.transposed else (output, into)))
    state.touch(operation.bias, output)
    return (*source[:-1], output)


@rule(op.Bilinear)
def bilinear(
    state: State, node: Node, operation: op.Bilinear, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    left, right = inputs
    output = state.spaces.fresh(node.shape[-1], node.name)
    state.touch(operation.weight, output, left[-1].transposed, right[-1].transposed)
    state.touch(operation.bias, output)
    return (*broadcast(state, node, [left[:-1], right[:-1]]), output)


@rule(op.Embedding)
def embedding(
    state: State, node: Node, operation: op.Embedding, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    width = state.spaces.fresh(node.shape[-1], node.name)
    state.touch(operation.weight, None, width)
    return (*inputs[0], width)


@rule(op.Implicit)
def implicit(
    state: State, node: Node, operation: op.Implicit, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    output = state.spaces.fresh(node.shape[-1], node.name)
    kinds = {"Tanh": ("sign",), "ReLU": ("positive",), "LeakyReLU": ("positive",)}
    state.tolerate([output], *kinds.get(operation.activation, ()))
    state.touch(operation.weight, output, output.transposed)
    state.touch(operation.input_weight, output, inputs[0][-1].transposed)
    state.touch(operation.bias, output)
    return (*inputs[0][:-1], output)


@rule(op.Conv, op.ComputedConv)
def convolution(
    state: State, node: Node, operation: op.Conv | op.ComputedConv, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    source, *computed = inputs
    axes = len(operation.stride)
    at = len(source) - axes - 1
    output = state.spaces.fresh(node.shape[at], node.name)
    rows, columns = output, source[at].transposed
    if operation.groups > 1:
        groups = operation.groups
        sources = state.spaces.split(source[at], (groups, state.spaces.size(source[at]) // groups))
        outputs = state.spaces.split(output, (groups, state.spaces.size(output) // groups))
        if sources is None or outputs is None:
            return state.unknown(node)
        outer = state.spaces.unite(sources[0], outputs[0], f"{operation.kind} at {node.name}")
        state.tolerate([outer, sources[1], outputs[1]])
        rows, columns = output, sources[1]
        if operation.transposed:
            rows, columns = outputs[1], source[at]
    kernel = (columns, rows) if operation.transposed else (rows, columns)
    if isinstance(operation, op.Conv):
        state.touch(operation.weight, *kernel, *[None] * axes)
        state.touch(operation.bias, output)
    else:
        given = (*computed[0][:2], *(bias[0] for bias in computed[1:]))
        for own, other in zip((*kernel, output), given, strict=False):
            state.spaces.unite(own, other, f"ComputedConv at {node.name}")
        state.spaces.freeze(computed[0][2:], "position in space")
    return (*source[:at], output, *in_space(state, node, source[at + 1 :]))
