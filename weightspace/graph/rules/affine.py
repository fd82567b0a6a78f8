"""Rules of layers with weights: one edge per weight, or per kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.graph.layout import collapsed, is_constant, unique_rows
from weightspace.graph.rules.state import Constant, Entries, Other, State, Units, Value, rule
from weightspace.graph.structure import NodeLayer
from weightspace.network import Node


def apply_weights(
    state: State,
    name: str,
    units: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    kind: str = "linear",
) -> Tensor:
    """Add the nodes W makes of units, where W has one block per group: (..., groups, in) -> (..., groups, out).

    Elements of the leading axes whose units differ, such as heads that share W, get nodes of their own.

    Args:
        units: numbers (..., groups, in).
        weights: entries (groups, out, in), or (groups, out, in, rows, columns) for kernels.
        bias: entries (groups, out).
    """
    groups, outputs = weights.shape[:2]
    leading = units.shape[:-2]
    small = units
    for axis in range(len(leading)):
        if is_constant(small, axis):
            small = small.narrow(axis, 0, 1)
    rows, inverse = unique_rows(small.flatten(-2))
    rows = state.distinct(name, rows.reshape(len(rows), groups, -1))
    shape = (len(rows), groups, outputs)
    repeated = None if bias is None else bias.expand(shape).reshape(-1)
    layer = NodeLayer(name, "hidden", len(rows) * groups * outputs)
    new = state.add(layer, bias=repeated).reshape(shape)
    state.connect(rows[:, :, None, :], new[..., None], kind, weights.expand(len(rows), *weights.shape))
    return new[inverse].expand(*leading, groups, outputs)


@rule(op.Linear)
def linear(state: State, node: Node, operation: op.Linear, inputs: list[Value]) -> Value:
    units = state.distinct(node.inputs[0], state.units(node, inputs[0], node.inputs[0]))
    state.remember(node.inputs[0], units)
    weights = operation.matrix(state.entries(operation.weight))[None]
    bias = state.optional(operation.bias)
    result = apply_weights(
        state, node.name, units[..., None, :], weights, None if bias is None else bias[None]
    )
    return Units(result[..., 0, :])


@rule(op.Conv)
def convolution(state: State, node: Node, operation: op.Conv, inputs: list[Value]) -> Value:
    """One edge per pair of connected channels; units that differ along space are pooled into their channel."""
    if operation.axes > 2:
        raise state.refused(
            node, "edges hold kernels of one or two axes; encode the layers around it on their own"
        )
    space = range(2, 2 + operation.axes)
    units = state.units(node, inputs[0], node.inputs[0])
    pooled = state.pooled(NodeLayer(f"{node.name}.channels", "cell", 0), units, list(space))
    channels = pooled[(slice(None), slice(None), *[0] * operation.axes)]
    weights = state.entries(operation.weight)
    if operation.axes == 1:
        weights = weights[:, :, None]
    groups = operation.groups
    if operation.transposed:  # (in, out / groups, ...)
        weights = weights.unflatten(0, (groups, -1)).transpose(1, 2)
    else:  # (out, in / groups, ...)
        weights = weights.unflatten(0, (groups, -1))
    bias = state.optional(operation.bias)
    result = apply_weights(
        state,
        node.name,
        channels.unflatten(-1, (groups, -1)),
        weights,
        None if bias is None else bias.reshape(groups, -1),
        "convolution",
    ).flatten(-2)
    size = [1 if n is None else n for n in node.shape[2:]]
    return Units(result.reshape(*result.shape, *[1] * operation.axes).expand(*result.shape, *size))


@rule(op.Bilinear)
def bilinear(state: State, node: Node, operation: op.Bilinear, inputs: list[Value]) -> Value:
    """A "product" node for every pair of units, weighted as by a linear layer."""
    left, right = (
        state.distinct(name, state.units(node, value, name))
        for value, name in zip(inputs, node.inputs, strict=True)
    )
    products = state.joined(
        NodeLayer(f"{node.name}.products", "product", 0),
        [left[..., :, None], right[..., None, :]],
        ("query", "key"),
    )
    bias = state.optional(operation.bias)
    result = apply_weights(
        state,
        node.name,
        products.flatten(-2)[..., None, :],
        state.entries(operation.weight).flatten(1)[None],
        None if bias is None else bias[None],
    )
    return Units(result[..., 0, :])


@rule(op.Embedding)
def embedding(state: State, node: Node, operation: op.Embedding, inputs: list[Value]) -> Value:
    """A node per word, an edge per entry; rows that constants choose (learned positions) are no inputs."""
    places = state.entries(operation.weight)
    match inputs[0]:
        case Constant():
            units = state.table(node.name, places)
        case Other():
            units = state.table(node.name, places, "input", state.inputs)
            state.inputs += len(places)
        case _:
            raise state.refused(node, "its index is made of units; encode the part of the network behind it")
    rank = len(node.shape)
    size = [1 if n is None else n for n in node.shape]
    return Units(units[0].reshape(*[1] * (rank - 1), -1).expand(size))


@rule(op.Cast)
def unchanged(state: State, node: Node, operation: op.Operation, inputs: list[Value]) -> Value:
    """Dtypes belong to the architecture."""
    return inputs[0]


@rule(op.Householder)
def householder(state: State, node: Node, operation: op.Householder, inputs: list[Value]) -> Value:
    """Every unit of a run acts on every unit of it, by the entries of the run's direction."""
    units = state.units(node, inputs[0], node.inputs[0]).movedim(operation.axis, -1)
    places = state.entries(operation.weight)  # (groups, n)
    blocks = units.unflatten(-1, places.shape)
    weights = places[:, None, :].expand(-1, places.shape[1], -1)
    result = apply_weights(state, node.name, blocks, weights, kind="gain")
    position = torch.arange(places.shape[1]).expand(places.shape).reshape(-1)
    state.positions[-1] = position.repeat(len(state.positions[-1]) // len(position))
    state.change_layer(len(state.layers) - 1, kind="cell", activation="Householder")
    return Units(result.flatten(-2).movedim(-1, operation.axis))


def scaled(
    state: State,
    layer: NodeLayer,
    units: Tensor,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    position: Tensor | None = None,
) -> Tensor:
    """Add one node behind every unit: the gain on the edge, shift and statistics at the node.

    All tensors are entries that broadcast to the units. A unit whose entries differ from place to place gets a node
    for each, numbered by `position` (the argument, the same way, gives other numbers of places).
    """
    given = [gain, shift, *(statistics or (None, None)), position]
    present = [collapsed(tensor) for tensor in (units, *given) if tensor is not None]
    small = torch.stack(torch.broadcast_tensors(*present), -1)
    rows, inverse = unique_rows(small)
    columns = iter(rows.mT)
    source = next(columns)
    gains, shifts, means, variances, places = (None if t is None else next(columns) for t in given)
    if places is None:
        _, owner, counts = source.unique(return_inverse=True, return_counts=True)
        places = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[owner]  # rows are sorted by unit
    new = state.add(
        NodeLayer(layer.name, "cell" if bool(places.any()) else layer.kind, len(rows), layer.activation),
        position=places,
        bias=shifts,
        statistics=None if means is None or variances is None else (means, variances),
    )
    if gains is None:
        state.connect(source, new, "identity")
    else:
        state.connect(source, new, "gain", gains)
    full = torch.broadcast_shapes(units.shape, *(t.shape for t in given if t is not None))
    return new[inverse].expand(full)


@rule(op.Parameter)
def parameter(state: State, node: Node, operation: op.Parameter, inputs: list[Value]) -> Value:
    """Trained parameters are entries, constants of the program are numbers."""
    tensor = state.network.parameters[operation.value]
    if operation.value in state.network.buffers or not tensor.is_floating_point():
        return Constant(tensor)
    return Entries(state.entries(operation.value))
