"""Where a graph attends: as one operation, or as a product, a softmax and another product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from weightspace import operations as op
from weightspace.network import Network, Node


@dataclass(frozen=True)
class Attention:
    """Names of queries and keys (batch, heads, time, width), values, and of the result; the scale of the scores."""

    name: str
    query: str
    key: str
    value: str
    scale: float | None
    keys_transposed: bool
    capped: bool = False


def find_attention(network: Network, node: Node, constants: Mapping[str, Tensor]) -> Attention | None:
    """Return what attends at this node, if it does; `constants` are the values that depend on no input."""
    if isinstance(node.operation, op.Attention):
        query, key, value = node.inputs[:3]
        return Attention(node.name, query, key, value, node.operation.scale, False)
    if not isinstance(node.operation, op.MatMul):
        return None
    weights = network.node(node.inputs[0])
    while isinstance(weights.operation, op.Cast):
        weights = network.node(weights.inputs[0])
    found = None
    if isinstance(weights.operation, op.Softmax):
        found = _scores(network, network.node(weights.inputs[0]), constants)
    if found is None:
        return None
    scores, scale, capped = found
    query, key = scores.inputs
    return Attention(node.name, query, key, node.inputs[1], scale, True, capped)


def _scores(network: Network, node: Node, constants: Mapping[str, Tensor]) -> tuple[Node, float, bool] | None:
    """The product of queries and keys behind what a softmax takes, the factor on it, and whether Tanh caps it."""
    moving = [network.node(name) for name in node.inputs if name not in constants]
    factor, capped = 1.0, False
    match node.operation:
        case op.MatMul() if len(moving) == 2:
            return node, 1.0, False
        case op.Scale(factor=given):
            factor = float(given)
        case op.Multiply() | op.Divide() as operation if len(moving) == 1:
            value = constants[next(name for name in node.inputs if name in constants)]
            if value.numel() == 1:
                factor = float(value) if isinstance(operation, op.Multiply) else 1 / float(value)
            elif not bool(((value == 0) | (value == 1)).all()):  # a mask
                return None
        case op.Tanh():
            capped = True
        case (
            op.Cast() | op.Add() | op.Elementwise(name="where")
        ):  # what is added is a mask or a bias of positions
            pass
        case _:
            return None
    behind = (_scores(network, each, constants) for each in moving if len(each.shape) == len(node.shape))
    found = next((each for each in behind if each), None)
    return found and (found[0], factor * found[1], capped or found[2])
