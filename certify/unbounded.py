"""What has no finite Lipschitz constant on all inputs: products of values that depend on the input, and powers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from certify.constraints import SlopeRestricted
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network, Node
from weightspace.operations import (
    Attention,
    Bilinear,
    ComputedConv,
    Divide,
    Einsum,
    Input,
    MatMul,
    Multiply,
    Pointwise,
    Power,
)

if TYPE_CHECKING:
    from certify.signals import Nonlinearity

_PRODUCTS = (Attention, Bilinear, ComputedConv, Divide, Einsum, MatMul, Multiply)


def is_square(node: Node) -> bool:
    """Return whether a node multiplies a value by itself, in whichever way it is written."""
    operation = node.operation
    return (isinstance(operation, Multiply) and len(set(node.inputs)) == 1) or (
        isinstance(operation, Power) and operation.exponent == 2
    )


def refuse_products(network: Network) -> None:
    """Raise where the output depends on a product of different values that all depend on the input.

    Their slopes grow with the values: gates and dot-product attention have no finite constant on all inputs, and no
    bounds over a region in this version.

    Raises:
        UnsupportedOperationError: it does; the message names the node and what would have a constant.
    Source: Kim, Papamakarios, Mnih, The Lipschitz constant of self-attention (2021), theorem 3.1.
    """
    needed = set(network.outputs)
    for node in reversed(network.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    moving: set[str] = set()
    for node in network.nodes:
        depends = [name for name in node.inputs if name in moving]
        if node.name in needed and _is_product(node, depends):
            raise UnsupportedOperationError(_reason(node, depends))
        if depends or isinstance(node.operation, Input):
            moving.add(node.name)


def has_unbounded_slopes(layers: Iterable[Nonlinearity]) -> bool:
    """Return whether an activation has slopes without bound."""
    constraints = [layer.constraint for layer in layers]
    return any(isinstance(one, SlopeRestricted) and not math.isfinite(one.lipschitz) for one in constraints)


def refuse_unbounded_slopes(layers: Iterable[Nonlinearity]) -> None:
    """Raise where an activation has slopes without bound, as x*x and exp have on all inputs.

    Raises:
        UnsupportedOperationError: one has; the message names its node and what would have a constant.
    """
    for layer in layers:
        operation = layer.operation
        if has_unbounded_slopes([layer]):
            name = operation.name if isinstance(operation, Pointwise) else operation.kind
            raise UnsupportedOperationError(
                f"{name} at node {layer.name!r} has no finite Lipschitz constant on all inputs; it has one over a "
                "region: give region=Box(..) or Ball(..), on the command line --box; or take bounded slopes, as of Tanh"
            )


def _is_product(node: Node, depends: list[str]) -> bool:
    operation = node.operation
    if is_square(node):
        return False
    if isinstance(operation, Power):
        return bool(depends) and operation.exponent not in (0, 1)
    if isinstance(operation, Divide):
        return node.inputs[1] in depends
    return isinstance(operation, _PRODUCTS) and len(depends) > 1


def _reason(node: Node, depends: list[str]) -> str:
    operation = node.operation
    place = f"{operation.kind} at node {node.name!r}"
    if isinstance(operation, Power):
        what = f"raises {depends[0]!r} to the power {operation.exponent:g}"
    elif isinstance(operation, Divide):
        what = f"divides by {node.inputs[1]!r}, which depends on the input"
    else:
        what = f"multiplies values that all depend on the input, {' and '.join(map(repr, dict.fromkeys(depends)))}"
    hint = ""
    if isinstance(operation, Attention | MatMul | Einsum):
        hint = "; in place of softmax attention, fixed attention weights have one: a Linear layer over the positions"
    return (
        f"{place} {what}: it has no finite Lipschitz constant on all inputs, and this version has no bounds of it over "
        f"a box or a ball; certify the network up to {depends[0]!r}{hint}"
    )
