"""Two shapes of several operations that the derivation of symmetries must see as one."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace import operations as op
from weightspace.network import Network, Node


def reshaped_then_selected(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the Reshape nodes with those of their axes that are later taken apart by Select.

    That is how queries, keys and values come out of one matrix: view(..., 3, heads, width), then [0], [1], [2].
    """
    found = {}
    for node in network.nodes:
        if isinstance(node.operation, op.Reshape):
            axes = tuple(axis for axis in range(len(node.shape)) if _is_selected(network, node, axis))
            if axes:
                found[node.name] = axes
    return found


def _is_selected(network: Network, node: Node, axis: int) -> bool:
    """Whether every use of the axis, through operations that only move axes, is a Select."""
    users = network.consumers[node.name]
    for user in users:
        operation, rank = user.operation, len(node.shape)
        match operation:
            case op.Select() if operation.axis % rank == axis:
                continue
            case op.Permute():
                moved = operation.axes.index(axis)
            case op.Unsqueeze():
                moved = axis + (operation.axis % (rank + 1) <= axis)
            case op.Squeeze() if operation.axis % rank != axis:
                moved = axis - (operation.axis % rank < axis)
            case op.Cast():
                moved = axis
            case _:
                return False
        if not _is_selected(network, user, moved):
            return False
    return bool(users) and node.name not in network.outputs


@dataclass(frozen=True)
class RootMeanSquare:
    """x / sqrt(mean(x^2) + epsilon) over the last axis, written out: where x comes from, and the nodes inside."""

    source: str
    inner: tuple[str, ...]


def root_mean_squares(network: Network) -> dict[str, RootMeanSquare]:
    """Return the nodes that multiply a value by the reciprocal root of its own mean square."""
    found = {}
    for node in network.nodes:
        if isinstance(node.operation, op.Multiply | op.Divide) and len(node.inputs) == 2:
            pairs = (
                [node.inputs, node.inputs[::-1]] if isinstance(node.operation, op.Multiply) else [node.inputs]
            )
            for source, factor in pairs:
                inner = _mean_square_chain(network, source, factor, isinstance(node.operation, op.Divide))
                if inner is not None:
                    found[node.name] = RootMeanSquare(source, inner)
                    break
    return found


def _mean_square_chain(network: Network, source: str, factor: str, divided: bool) -> tuple[str, ...] | None:
    """The nodes from x^2 to the factor, or None when the factor is made in another way."""
    inner: list[str] = []
    stage = 0  # 0: the root, 1: the mean, 2: the square
    name = factor
    while True:
        node = network.node(name)
        operation = node.operation
        match operation:
            case op.Cast():
                pass
            case op.Scale() if stage == 1 and operation.factor == 1:
                pass
            case op.Pointwise() if stage == 0 and operation.name == ("sqrt" if divided else "rsqrt"):
                stage = 1
            case op.Power() if stage == 0 and operation.exponent == (0.5 if divided else -0.5):
                stage = 1
            case op.Reduce() if stage == 1 and operation.name == "mean" and operation.keep:
                rank = len(network.node(node.inputs[0]).shape)
                if [axis % rank for axis in operation.axes] != [rank - 1]:
                    return None
                stage = 2
            case op.Power() if stage == 2 and operation.exponent == 2:
                stage = 3
            case op.Pointwise() if stage == 2 and operation.name == "square":
                stage = 3
            case op.Multiply() if stage == 2 and node.inputs[0] == node.inputs[1]:
                stage = 3
            case _:
                return None
        inner.append(name)
        if stage == 3:
            return (
                tuple(inner)
                if _without_casts(network, node.inputs[0]) == _without_casts(network, source)
                else None
            )
        name = node.inputs[0]


def _without_casts(network: Network, name: str) -> str:
    while isinstance(network.node(name).operation, op.Cast):
        name = network.node(name).inputs[0]
    return name
