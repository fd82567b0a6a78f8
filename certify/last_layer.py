"""The last layer of a network: the features it reads, and the network with other weights in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from certify.evaluation import flat_function
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network, Node
from weightspace.operations import Linear


@dataclass(frozen=True)
class LastLayer:
    """A Linear node that makes the network's only output and shares its parameters with no other node."""

    network: Network
    node: Node
    operation: Linear

    @classmethod
    def of(cls, network: Network) -> LastLayer:
        """Find it.

        Raises:
            UnsupportedOperationError: there is none, named with what is there instead.
        """
        node = network.node(network.outputs[-1])
        if len(network.outputs) != 1 or not isinstance(node.operation, Linear):
            raise UnsupportedOperationError(
                f"repair changes a Linear node at the end; the network ends in {node.operation.kind} at {node.name!r}; "
                "take what follows the last Linear out and state the properties for the rest"
            )
        own = set(node.operation.parameters.values())
        for other in network.nodes:
            if other is not node and (shared := own & set(other.operation.parameters.values())):
                raise UnsupportedOperationError(
                    f"repair changes {node.name!r}, which shares {min(shared)!r} with {other.name!r}; untie the two"
                )
        return cls(network, node, node.operation)

    @property
    def theta(self) -> np.ndarray:
        """The weight with the bias as last column, if there is one, (outputs, k)."""
        weights = self.network.weights(self.node)
        parts = [self.operation.matrix(weights["weight"])]
        if "bias" in weights:
            parts.append(weights["bias"][:, None])
        return torch.cat(parts, dim=1).double().numpy()

    def features(self, x: np.ndarray) -> np.ndarray:
        """Return what theta multiplies for flat inputs, (n, k).

        Raises:
            UnsupportedOperationError: the layer is applied at several positions.
        """
        before = replace(self.network, outputs=self.node.inputs)
        with torch.no_grad():
            values = flat_function(before)(torch.as_tensor(x)).numpy()
        width = self.operation.matrix(self.network.weights(self.node)["weight"]).shape[1]
        if values.shape[1] != width:
            raise UnsupportedOperationError(
                f"repair needs a last layer that is applied once; {self.node.name!r} reads "
                f"{values.shape[1]} numbers with rows of {width}"
            )
        if self.operation.bias is None:
            return values
        return np.concatenate([values, np.ones((len(values), 1))], axis=1)

    def replaced(self, theta: np.ndarray) -> Network:
        """Return the network with another theta, rounded to the layer's dtype."""
        operation, old = self.operation, self.network.parameters[self.operation.weight]
        new = torch.as_tensor(theta, dtype=old.dtype)
        weight = new if operation.bias is None else new[:, :-1]
        parameters = {operation.weight: operation.matrix(weight).contiguous()}
        if operation.bias is not None:
            parameters[operation.bias] = new[:, -1].contiguous()
        return self.network.replace_parameters(parameters)
