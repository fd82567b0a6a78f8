"""Rules of nonlinearities: noted at the layer of nodes, or at new nodes where the units are used otherwise too."""

from __future__ import annotations

import torch

from weightspace import operations as op
from weightspace.graph.layout import is_constant
from weightspace.graph.rules.affine import scaled
from weightspace.graph.rules.state import State, Units, Value, rule
from weightspace.graph.structure import NodeLayer
from weightspace.network import Node


def activated(state: State, node: Node, value: Value, name: str) -> Value:
    """Note a nonlinearity behind units; a parameter keeps its entries, whatever scalar function follows."""
    if not isinstance(value, Units):
        return value
    layers = state.layers_of(value.numbers) if state.is_alone(node.inputs[0]) else None
    if layers is None or any(state.layers[layer].kind == "input" for layer in layers):
        return Units(scaled(state, NodeLayer(node.name, "hidden", 0, name), value.numbers))
    for layer in layers:
        before = state.layers[layer].activation
        state.change_layer(layer, activation=name if before == "linear" else f"{before}, {name}")
    return value


def noted(state: State, node: Node, value: Value, name: str) -> Value:
    """Note what is done to hidden units besides; inputs stay as they are, whatever normalizes the data."""
    if isinstance(value, Units):
        layers = state.layers_of(value.numbers)
        if layers is not None and not any(state.layers[layer].kind == "input" for layer in layers):
            return activated(state, node, value, name)
    return value


@rule(
    op.ReLU, op.LeakyReLU, op.Tanh, op.Sigmoid, op.GELU, op.SiLU, op.ELU, op.Softplus, op.Clip, op.Absolute,
    op.Pointwise, op.Power,
)  # fmt: skip
def activation(state: State, node: Node, operation: op.Operation, inputs: list[Value]) -> Value:
    name = operation.name if isinstance(operation, op.Pointwise) else operation.kind
    return activated(state, node, inputs[0], name)


@rule(op.Scale)
def scale_and_shift(state: State, node: Node, operation: op.Scale, inputs: list[Value]) -> Value:
    """A fixed factor belongs to the architecture; a shift is noted, since it fixes the sign and scale of units."""
    return noted(state, node, inputs[0], "shift") if operation.shift else inputs[0]


@rule(op.PReLU)
def learned_slope(state: State, node: Node, operation: op.PReLU, inputs: list[Value]) -> Value:
    """The slope stands on the edge to a new node."""
    units = state.units(node, inputs[0], node.inputs[0])
    slopes = state.entries(operation.weight)
    slopes = slopes.reshape(-1, *[1] * (units.ndim - 2)) if len(slopes) > 1 else slopes
    return Units(scaled(state, NodeLayer(node.name, "hidden", 0, "PReLU"), units, slopes))


@rule(op.Softmax)
def softmax(state: State, node: Node, operation: op.Softmax, inputs: list[Value]) -> Value:
    """Over time nothing changes hands; over units it is their nonlinearity."""
    if not isinstance(inputs[0], Units) or is_constant(inputs[0].numbers, operation.axis):
        return inputs[0]
    return activated(state, node, inputs[0], "LogSoftmax" if operation.logarithm else "Softmax")


@rule(op.GroupSort)
def group_sort(state: State, node: Node, operation: op.GroupSort, inputs: list[Value]) -> Value:
    """Every unit of a run leads to every place of the sorted run."""
    units = state.units(node, inputs[0], node.inputs[0]).movedim(operation.axis, -1)
    runs = units.unflatten(-1, (-1, operation.group_size))
    layer = NodeLayer(f"{node.name}.runs", "hidden", 0, "GroupSort")
    run = state.pooled(layer, runs, [runs.ndim - 1])
    place = torch.arange(operation.group_size)
    sorted_units = scaled(state, NodeLayer(node.name, "cell", 0), run, position=place)
    return Units(sorted_units.flatten(-2).movedim(-1, operation.axis))
