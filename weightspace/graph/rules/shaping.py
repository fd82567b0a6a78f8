"""Rules of operations that move elements: they move the numbers of the units in the same way."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.graph.layout import is_constant
from weightspace.graph.rules.activations import noted
from weightspace.graph.rules.affine import scaled
from weightspace.graph.rules.state import Constant, Entries, Other, State, Units, Value, rule
from weightspace.graph.structure import NodeLayer
from weightspace.network import Node


def moved(operation: op.Operation, value: Value, *others: Tensor) -> Value:
    """Run an operation that only moves elements on numbers of units, places of entries or constants."""
    match value:
        case Units():
            return Units(operation.evaluate((value.numbers, *others), {}))
        case Entries():
            return Entries(operation.evaluate((value.places, *others), {}))
        case Constant():
            return Constant(operation.evaluate((value.tensor, *others), {}))
    return value


@rule(
    op.Reshape, op.Flatten, op.Permute, op.Unsqueeze, op.Squeeze, op.Expand, op.Slice, op.Select, op.Roll, op.Flip
)  # fmt: skip
def movement(state: State, node: Node, operation: op.Operation, inputs: list[Value]) -> Value:
    return moved(operation, inputs[0], *(torch.empty(1) for _ in inputs[1:]))


@rule(op.PixelShuffle, op.PixelUnshuffle)
def pixel_shuffle(
    state: State, node: Node, operation: op.PixelShuffle | op.PixelUnshuffle, inputs: list[Value]
) -> Value:
    """The units that become one channel, or that one becomes, are told apart by their place in the square."""
    units = state.units(node, inputs[0], node.inputs[0])
    square = operation.factor**2
    if isinstance(operation, op.PixelShuffle):
        channel = torch.arange(units.shape[-3]) % square
        units = scaled(
            state, NodeLayer(f"{node.name}.cells", "cell", 0), units, position=channel[:, None, None]
        )
        return moved(operation, Units(units))
    numbers = operation.evaluate((units,), {})
    channel = torch.arange(numbers.shape[-3]) % square
    return Units(
        scaled(state, NodeLayer(f"{node.name}.cells", "cell", 0), numbers, position=channel[:, None, None])
    )


@rule(op.Concat, op.Stack)
def concatenation(state: State, node: Node, operation: op.Concat | op.Stack, inputs: list[Value]) -> Value:
    """Along units they stand side by side; along time or space (a class token) they share a node."""
    if all(isinstance(value, Entries) for value in inputs):
        return Entries(operation.evaluate(tuple(v.places for v in inputs if isinstance(v, Entries)), {}))
    parts = [state.units(node, value, name) for value, name in zip(inputs, node.inputs, strict=True)]
    if isinstance(operation, op.Concat):
        axis = operation.axis % parts[0].ndim
        parts = [part for part in parts if part.shape[axis]] or parts[:1]
        along = any(not is_constant(part, axis) for part in parts)
        across = any(
            not is_constant(part, other) for part in parts for other in range(part.ndim) if other != axis
        )
        if across and not along:
            heads = [part.narrow(axis, 0, 1) for part in parts]
            if any(not torch.equal(head, heads[0]) for head in heads[1:]):
                kinds = ("identity",) * len(heads)
                heads = [state.joined(NodeLayer(node.name, "residual", 0), heads, kinds)]
            size = sum(part.shape[axis] for part in parts)
            return Units(heads[0].expand([size if a == axis else n for a, n in enumerate(heads[0].shape)]))
    return Units(operation.evaluate(tuple(parts), {}))


@rule(op.Gather, op.TakeAlong)
def gather(state: State, node: Node, operation: op.Gather | op.TakeAlong, inputs: list[Value]) -> Value:
    """By a constant index elements move; by data they may be picked along time and space, not among units."""
    source, index = inputs
    if isinstance(index, Constant):
        return moved(operation, source, index.tensor)
    units = state.units(node, source, node.inputs[0])
    axis = operation.axis % units.ndim
    if not isinstance(index, Other) or not is_constant(units, axis):
        raise state.refused(node, "which units it picks depends on the data")
    picked = tuple(1 if n is None else n for n in state.network.node(node.inputs[1]).shape)
    return moved(operation, Units(units), torch.zeros(picked, dtype=torch.int64))


@rule(op.Pad)
def pad(state: State, node: Node, operation: op.Pad, inputs: list[Value]) -> Value:
    """Space and time are padded freely; padded channels are units that nothing leads to."""
    units = state.units(node, inputs[0], node.inputs[0])
    amounts = operation.amounts
    for axis in range(units.ndim - len(amounts) // 2, units.ndim):
        before, after = amounts[2 * (units.ndim - 1 - axis)], amounts[2 * (units.ndim - 1 - axis) + 1]
        if before == after == 0:
            continue
        if is_constant(units, axis):
            size = units.shape[axis] + before + after
            units = units.narrow(axis, 0, 1).expand(
                [size if a == axis else n for a, n in enumerate(units.shape)]
            )
        elif min(before, after) < 0 or operation.mode != "constant":
            raise state.refused(
                node, f"it pads the units along axis {axis} by {operation.mode} values or cuts them"
            )
        else:
            fresh = state.add(
                NodeLayer(f"{node.name}.padding", "constant", before + after),
                position=torch.arange(before + after),
            )
            shape = [before + after if a == axis else n for a, n in enumerate(units.shape)]
            padding = fresh.reshape([-1 if a == axis else 1 for a in range(units.ndim)]).expand(shape)
            units = torch.cat(
                [padding.narrow(axis, 0, before), units, padding.narrow(axis, before, after)], axis
            )
    return Units(units)


@rule(op.MaxPool, op.AveragePool, op.AdaptiveAveragePool, op.Interpolate)
def resized(state: State, node: Node, operation: op.Operation, inputs: list[Value]) -> Value:
    """Channels stay; space is resized."""
    units = state.units(node, inputs[0], node.inputs[0])
    match operation:
        case op.MaxPool() | op.AveragePool():
            axes = len(operation.kernel)
        case op.AdaptiveAveragePool():
            axes = len(operation.size)
        case _:
            axes = units.ndim - 2
    space = list(range(units.ndim - axes, units.ndim))
    pooled = state.pooled(NodeLayer(f"{node.name}.channels", "hidden", 0), units, space)
    size = [n if n is not None else 1 for n in node.shape[-axes:]]
    value = Units(pooled.expand([*pooled.shape[:-axes], *size]))
    return noted(state, node, value, "MaxPool") if isinstance(operation, op.MaxPool) else value
