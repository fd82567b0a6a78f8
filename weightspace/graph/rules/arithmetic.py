"""Rules of sums, products and reductions."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.graph.layout import collapsed, is_constant, unique_rows
from weightspace.graph.rules.activations import activated, noted
from weightspace.graph.rules.affine import scaled
from weightspace.graph.rules.state import Constant, Entries, Other, State, Units, Value, rule
from weightspace.graph.structure import MINUS_ONE, ONE, NodeLayer
from weightspace.network import Node

COMPUTED = (
    "a weight is computed from other weights; store the computed weight instead "
    "(torch.nn.utils.parametrize.remove_parametrizations does)"
)


@rule(op.Add, op.Subtract)
def addition(state: State, node: Node, operation: op.Operation, inputs: list[Value]) -> Value:
    """A residual connection joins units by edges of weight 1, and -1 for what is subtracted."""
    match inputs:
        case [Units(), Units()]:
            layer = NodeLayer(node.name, "residual", 0)
            weights = (ONE, MINUS_ONE if isinstance(operation, op.Subtract) else ONE)
            sources = [value.numbers for value in inputs if isinstance(value, Units)]
            return Units(state.joined(layer, sources, ("identity", "identity"), weights))
        case [Units() as units, other] | [other, Units() as units]:
            return shifted(state, node, units, other)
        case [Entries() as entries, Constant() | Other()] | [Constant() | Other(), Entries() as entries]:
            return entries
    raise state.refused(node, COMPUTED)


def shifted(state: State, node: Node, units: Units, other: Value) -> Value:
    """Add a parameter or a constant: a bias where it is the same everywhere, else one more node per place."""
    if not isinstance(other, Entries):
        return noted(state, node, marked(state, node, units, other), "shift")
    numbers, places = units.numbers, other.places
    layer = NodeLayer(node.name, "residual", 0)
    columns, owners = met_by_units(numbers, places)
    rows, _ = unique_rows(columns)
    if len(rows) == 1 or len(owners.unique()) < len(owners):
        return Units(scaled(state, layer, numbers, shift=places))
    tables = state.add(
        NodeLayer(f"{node.name}.places", "constant", len(rows)), position=torch.arange(len(rows))
    )
    new = scaled(state, layer, numbers)
    state.connect(tables[:, None], collapsed(new).reshape(-1), "embedding", rows)
    return Units(new)


def marked(state: State, node: Node, units: Units, constant: Value) -> Value:
    """Let units through; those that a constant of the program treats differently become told apart by position."""
    if not isinstance(constant, Constant) or constant.tensor.numel() == 1:
        return units
    columns, _ = met_by_units(units.numbers, constant.tensor)
    rows, classes = unique_rows(columns.mT)
    if len(rows) == 1:
        return units
    small = collapsed(units.numbers)
    shape = torch.broadcast_shapes(small.shape, constant.tensor.shape)
    small = small.reshape(*[1] * (len(shape) - small.ndim), *small.shape)
    return Units(
        scaled(state, NodeLayer(node.name, "cell", 0), units.numbers, position=classes.reshape(small.shape))
    )


def met_by_units(numbers: Tensor, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the units meet in a tensor that is broadcast with them, (places, units), and the units."""
    small, met = collapsed(numbers), collapsed(tensor)
    shape = torch.broadcast_shapes(small.shape, met.shape)
    small = small.reshape(*[1] * (len(shape) - small.ndim), *small.shape)
    free = [axis for axis, n in enumerate(small.shape) if n == 1]
    laid = [axis for axis, n in enumerate(small.shape) if n > 1]
    return met.expand(shape).permute(*free, *laid).reshape(-1, small.numel()), small.reshape(-1)


@rule(op.Multiply, op.Divide)
def product(state: State, node: Node, operation: op.Operation, inputs: list[Value]) -> Value:
    """Gates are "product" nodes, parameters gains on new edges; constants only tell units apart."""
    match inputs:
        case [Units() as left, Units() as right]:
            if torch.equal(left.numbers, right.numbers):
                return activated(state, node, left, f"{operation.kind} by itself")
            layer = NodeLayer(node.name, "product", 0)
            kinds = ("identity", "gain" if isinstance(operation, op.Divide) else "identity")
            return Units(state.joined(layer, [left.numbers, right.numbers], kinds))
        case [Units() as units, Entries() as entries] | [Entries() as entries, Units() as units]:
            layer = NodeLayer(node.name, "normalization", 0)
            return Units(scaled(state, layer, units.numbers, entries.places))
        case [Units() as units, other] | [other, Units() as units]:
            return marked(state, node, units, other)
        case [Entries() as entries, Constant() | Other()] | [Constant() | Other(), Entries() as entries]:
            return entries
    raise state.refused(node, COMPUTED)


@rule(op.Elementwise)
def elementwise(state: State, node: Node, operation: op.Elementwise, inputs: list[Value]) -> Value:
    """Comparisons yield data without units; `maximum` and the like join units, `where` also by its condition."""
    if operation.name not in ("maximum", "minimum", "where", "remainder"):
        return Other()
    units = [value.numbers for value in inputs if isinstance(value, Units)]
    if not units:
        raise state.refused(node, COMPUTED)
    if len(units) > 1:
        layer = NodeLayer(node.name, "product", 0)
        result: Value = Units(state.joined(layer, units, ("identity",) * len(units)))
    else:
        result = noted(state, node, Units(units[0]), operation.name)
    for value in inputs:
        if isinstance(value, Constant) and isinstance(result, Units):
            result = marked(state, node, result, value)
    return result


@rule(op.Reduce)
def reduction(state: State, node: Node, operation: op.Reduce, inputs: list[Value]) -> Value:
    """A sum over units is a node that they all lead to; over time or space nothing changes hands."""
    if not isinstance(inputs[0], Units):
        raise state.refused(node, COMPUTED)
    numbers = inputs[0].numbers
    axes = [axis % numbers.ndim for axis in operation.axes] or list(range(numbers.ndim))
    pooled = state.pooled(NodeLayer(node.name, "hidden", 0), numbers, axes)
    if not operation.keep:
        pooled = pooled.reshape([n for axis, n in enumerate(pooled.shape) if axis not in axes])
    return (
        noted(state, node, Units(pooled), operation.name)
        if operation.name in ("amax", "amin")
        else Units(pooled)
    )


@rule(op.CumulativeSum)
def running_sum(state: State, node: Node, operation: op.CumulativeSum, inputs: list[Value]) -> Value:
    if isinstance(inputs[0], Units) and is_constant(inputs[0].numbers, operation.axis):
        return inputs[0]
    raise state.refused(node, "it sums along units, whose order then matters")
