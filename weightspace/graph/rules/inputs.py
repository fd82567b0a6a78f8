"""The units of network inputs, which follow from the layers that read them: channels, features or pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.graph.rules.state import State
from weightspace.graph.structure import NodeLayer
from weightspace.network import Network, Node

MOVES = (
    op.Reshape, op.Flatten, op.Permute, op.Unsqueeze, op.Squeeze, op.Slice, op.Select, op.PixelShuffle,
    op.PixelUnshuffle, op.Roll, op.Flip,
)  # fmt: skip
ELEMENTWISE = (op.Activation, op.Scale, op.Cast, op.Power, op.Add, op.Subtract, op.Multiply, op.Divide)


def input_units(state: State, node: Node) -> Tensor:
    """Add the nodes of a floating network input and return their numbers.

    A layer over channels makes every channel a unit, a linear layer behind a Flatten every pixel. Where layers
    differ, the coarsest units stay, and the finer ones become cells of theirs.
    """
    shape = [1 if n is None else n for n in node.shape]
    ids = torch.arange(torch.Size(shape).numel()).reshape(shape)
    labels = torch.full((ids.numel(),), -1)
    for reader, axis in sorted(_readers(state, node.name, ids), key=lambda pair: pair[0].shape[pair[1]]):
        _label(labels, reader, axis)
    if bool((labels < 0).any()) and ids.ndim:
        _label(labels, ids, 1 if 1 < ids.ndim != 3 else -1)
    names, numbers = labels.unique(return_inverse=True)
    units = state.add(
        NodeLayer(node.name, "input", len(names), "input"), position=torch.arange(len(names)) + state.inputs
    )
    state.inputs += len(names)
    return _strided(units[numbers].reshape(shape))


def _label(labels: Tensor, ids: Tensor, axis: int) -> None:
    """Let elements that no layer has claimed yet be the units of an axis."""
    place = torch.arange(ids.shape[axis]).reshape(
        [-1 if a == axis % ids.ndim else 1 for a in range(ids.ndim)]
    )
    place, ids = place.expand(ids.shape).reshape(-1), ids.reshape(-1)
    free = labels[ids] < 0
    labels[ids[free]] = place[free] + int(labels.max()) + 1


def _strided(numbers: Tensor) -> Tensor:
    """Store axes along which nothing changes once."""
    shape = numbers.shape
    for axis in range(numbers.ndim):
        if bool((numbers == numbers.narrow(axis, 0, 1)).all()):
            numbers = numbers.narrow(axis, 0, 1)
    return numbers.clone().expand(shape)


def _readers(state: State, name: str, ids: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The numbers of an input's elements as they arrive at layers with weights, and the axis those layers mix."""
    for user in state.network.consumers[name]:
        axis = _mixed_axis(state.network, user, name, ids)
        if axis is not None:
            yield ids, axis
        elif isinstance(user.operation, MOVES):
            yield from _readers(state, user.name, user.operation.evaluate((ids,), {}))
        elif isinstance(user.operation, op.Gather) and user.inputs[0] == name:
            index = state.network.node(user.inputs[1]).operation
            if isinstance(index, op.Parameter):
                positions = state.network.parameters[index.value]
                yield from _readers(state, user.name, user.operation.evaluate((ids, positions), {}))
        elif isinstance(user.operation, ELEMENTWISE) and len(user.shape) == ids.ndim:
            yield from _readers(state, user.name, ids)


def _mixed_axis(network: Network, user: Node, name: str, ids: Tensor) -> int | None:
    """The axis of the input that an operation sums over or treats as channels."""
    match user.operation:
        case op.Linear() | op.Bilinear() | op.Attention() | op.Recurrent():
            return -1
        case op.Conv():
            return 1
        case op.BatchNorm() | op.GroupNorm() | op.Interpolate():
            return 1 if ids.ndim > 1 else None
        case op.LayerNorm() | op.RMSNorm() if len(user.operation.normalized_shape) == 1:
            return -1
        case op.MaxPool() | op.AveragePool() | op.AdaptiveAveragePool():
            return 1 if ids.ndim > 2 else None
        case op.MatMul():
            return -1 if user.inputs[0] == name else -2
        case op.Einsum():
            terms, result = user.operation.equation.split("->")
            letters = terms.split(",")[user.inputs.index(name)]
            lost = [axis for axis, letter in enumerate(letters) if letter not in result]
            return lost[0] if len(lost) == 1 else None
    return None
