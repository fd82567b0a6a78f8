"""`ProbeFeatures`: what the neurons of networks answer to a few learned inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, UnsupportedOperationError
from weightspace.graph.encoding import describe_structure
from weightspace.graph.structure import GraphStructure
from weightspace.network import Network, Node


class ProbeFeatures(nn.Module):
    """Activations of every neuron of many networks at `probes` inputs, which are learned.

    They begin uniform in [-1, 1]. To be given as `node_extras` to a network built with as many `probes`.

    Args:
        network: one of the architecture; parameters that `forward` is not given are taken from it.
        probes: number of inputs.
        structure: as `describe_structure(network)` gives it, which is the default.
    Raises:
        UnsupportedOperationError: an input of integers.
        ShapeError: an input with another free axis than that of the batch.
    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
    (2024), section 3.4.
    """

    def __init__(
        self,
        network: Network,
        probes: int,
        *,
        structure: GraphStructure | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.network = network
        self.structure = describe_structure(network) if structure is None else structure
        self.inputs = nn.ParameterList(
            torch.empty(_probe_shape(node, probes), dtype=dtype).uniform_(-1, 1, generator=generator)
            for node in network.inputs
        ).to(device)

    def forward(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the activations, (..., nodes, probes); 0 at nodes that are no units of a value.

        Args:
            parameters: name -> (..., *shape), the same leading axes for all.
        Raises:
            ShapeError: leading axes that differ, or no parameter of the network among the names.
        """
        flat, leading = {}, set()
        for name in self.network.parameters.keys() & parameters.keys():
            tensor, shape = parameters[name], self.network.parameters[name].shape
            leading.add(tuple(tensor.shape[: tensor.ndim - len(shape)]))
            flat[name] = tensor.reshape(-1, *shape)
        if len(leading) != 1:
            raise ShapeError(
                f"the parameters of all networks must have the same leading axes; found {sorted(leading) or 'none'}"
            )
        activations = torch.func.vmap(self._answer)(flat)
        return activations.mT.reshape(*leading.pop(), *activations.mT.shape[1:])

    def _answer(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return what one network answers, (probes, nodes)."""
        values = {node.name: probe for node, probe in zip(self.network.inputs, self.inputs, strict=True)}
        like = self.inputs[0]
        for node in self.network.nodes:
            if node.name in values:
                continue
            weights = {
                role: parameters[name]
                if name in parameters
                else self.network.parameters[name].to(like.device)
                for role, name in node.operation.parameters.items()
            }
            values[node.name] = node.operation.evaluate(tuple(values[name] for name in node.inputs), weights)
        return self.structure.read_values(values)


def _probe_shape(node: Node, probes: int) -> tuple[int, ...]:
    if not getattr(torch, node.dtype).is_floating_point:
        raise UnsupportedOperationError(
            f"input {node.name!r} takes {node.dtype}, and probes are learned as real numbers; use probes=0"
        )
    free = [axis for axis, size in enumerate(node.shape) if size is None]
    if len(free) != 1:
        raise ShapeError(
            f"input {node.name!r} must have one free axis, the batch; its shape is {node.shape}: trace it with inputs "
            "of fixed size"
        )
    return tuple(probes if size is None else size for size in node.shape)
