"""Rules of normalizations: new nodes, the gain on the edge from the old one, the shift at the node."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.graph.layout import collapsed, is_constant, unique_rows
from weightspace.graph.rules.affine import scaled
from weightspace.graph.rules.state import State, Units, Value, rule
from weightspace.graph.structure import NodeLayer
from weightspace.network import Node


@rule(op.BatchNorm)
def batch_normalization(state: State, node: Node, operation: op.BatchNorm, inputs: list[Value]) -> Value:
    units = state.units(node, inputs[0], node.inputs[0])
    gain, shift, mean, variance = (
        _of_channels(state.optional(name), units.ndim)
        for name in (operation.weight, operation.bias, operation.running_mean, operation.running_var)
    )
    assert mean is not None
    assert variance is not None
    layer = NodeLayer(node.name, "normalization", 0)
    return Units(scaled(state, layer, units, gain, shift, (mean, variance)))


@rule(op.LayerNorm, op.RMSNorm)
def layer_normalization(
    state: State, node: Node, operation: op.LayerNorm | op.RMSNorm, inputs: list[Value]
) -> Value:
    units = state.units(node, inputs[0], node.inputs[0])
    gain = state.optional(operation.weight)
    shift = state.optional(operation.bias) if isinstance(operation, op.LayerNorm) else None
    axes = range(units.ndim - len(operation.normalized_shape), units.ndim)
    return Units(normalized(state, node.name, units, axes, gain, shift))


@rule(op.GroupNorm)
def group_normalization(state: State, node: Node, operation: op.GroupNorm, inputs: list[Value]) -> Value:
    units = state.units(node, inputs[0], node.inputs[0]).unflatten(1, (operation.groups, -1))
    gain, shift = (
        None if places is None else places.reshape(operation.groups, -1, *[1] * (units.ndim - 3))
        for places in (state.optional(operation.weight), state.optional(operation.bias))
    )
    return Units(normalized(state, node.name, units, range(2, units.ndim), gain, shift).flatten(1, 2))


def normalized(
    state: State, name: str, units: Tensor, axes: Iterable[int], gain: Tensor | None, shift: Tensor | None
) -> Tensor:
    """Add the nodes of units that are normalized over some axes.

    Where not all units are normalized together, those that are lead to one more node, and it to what they become.
    """
    axes = list(axes)
    others = [axis for axis in range(units.ndim) if axis not in axes]
    together = None
    if all(any(not is_constant(units, axis) for axis in own) for own in (axes, others)):
        together = state.pooled(NodeLayer(f"{name}.groups", "normalization", 0), units, axes)
    new = scaled(state, NodeLayer(name, "normalization", 0), units, gain, shift)
    if together is not None:
        pairs, _ = unique_rows(torch.stack(torch.broadcast_tensors(together, collapsed(new)), -1))
        state.connect(pairs[:, 0], pairs[:, 1], "identity")
    return new


def _of_channels(places: Tensor | None, rank: int) -> Tensor | None:
    """Shape (channels,) so that it broadcasts along axis 1."""
    return None if places is None else places.reshape(-1, *[1] * (rank - 2))
