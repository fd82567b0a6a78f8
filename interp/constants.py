"""Values of a network that depend on no input."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network


def constant_values(network: Network) -> dict[str, Tensor]:
    """Return the value of every node that is made from parameters alone, by name; the other nodes are moving.

    An operation that cannot be run counts as moving: it is refused where its value is needed.
    """
    constants: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in network.nodes:
            if not isinstance(node.operation, op.Input) and all(name in constants for name in node.inputs):
                inputs = tuple(constants[name] for name in node.inputs)
                with suppress(UnsupportedOperationError):
                    constants[node.name] = node.operation.evaluate(inputs, network.weights(node))
    return constants
