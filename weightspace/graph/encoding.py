"""Encode a network's parameters as a graph: one node per neuron, one edge per weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, eq=False)
class ParameterGraph:
    """A neural graph: nodes are neurons (inputs included), edges are weights.

    An exact zero weight keeps its edge: the edges follow from the structure, not from the values.

    Attributes:
        node_features: (nodes, 1), the bias of each neuron, 0 where there is none.
        node_layer: (nodes,) int64, 0 for the inputs.
        layer_sizes: number of neurons per layer; nodes are numbered layer by layer.
        activations: name of the nonlinearity behind each layer, "input" first, "linear" where there is none.
        edge_index: (2, edges) int64, source and target node.
        edge_features: (edges, 1), the weights, target-major: W[0, 0], W[0, 1], ...
    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
    (2024), section 3.
    """

    node_features: Tensor
    node_layer: Tensor
    layer_sizes: tuple[int, ...]
    activations: tuple[str, ...]
    edge_index: Tensor
    edge_features: Tensor

    def __repr__(self) -> str:
        sizes = "-".join(map(str, self.layer_sizes))
        return f"ParameterGraph({sizes}, {self.edge_index.shape[1]} edges, {', '.join(self.activations)})"

    def to_networkx(self) -> networkx.DiGraph:
        """Return a DiGraph with node attributes `layer`, `bias`, `activation` and edge attribute `weight`."""
        import networkx

        graph = networkx.DiGraph()
        layers, biases = self.node_layer.tolist(), self.node_features[:, 0].tolist()
        for node, (layer, bias) in enumerate(zip(layers, biases, strict=True)):
            graph.add_node(node, layer=layer, bias=bias, activation=self.activations[layer])
        weights = self.edge_features[:, 0].tolist()
        graph.add_weighted_edges_from(zip(*self.edge_index.tolist(), weights, strict=True))
        return graph

    def to_json(self) -> str:
        """Return the graph as JSON: layer sizes, activations, biases, edges and weights."""
        return json.dumps(
            {
                "layer_sizes": self.layer_sizes,
                "activations": self.activations,
                "biases": self.node_features[:, 0].tolist(),
                "edges": self.edge_index.mT.tolist(),
                "weights": self.edge_features[:, 0].tolist(),
            }
        )


def encode(network: Network) -> ParameterGraph:
    """Encode a multilayer perceptron: Linear layers with pointwise nonlinearities between them.

    Raises:
        UnsupportedOperationError: any other operation, by name and place.
    """
    matrices: list[Tensor] = []
    biases: list[Tensor] = []
    activations = ["input"]
    previous: str | None = None
    for node in network.nodes:
        operation = node.operation
        if previous is not None and node.inputs != (previous,):
            raise UnsupportedOperationError(
                f"{operation.kind} at {node.name!r} joins several values; encode reads plain chains of layers"
            )
        match operation:
            case op.Input() if previous is None:
                pass
            case op.Flatten() if not matrices:
                pass
            case op.Linear():
                weights = network.weights(node)
                matrix = operation.matrix(weights["weight"])
                matrices.append(matrix)
                biases.append(weights.get("bias", matrix.new_zeros(matrix.shape[0])))
                activations.append("linear")
            case op.Activation() if matrices:
                name = operation.name if isinstance(operation, op.Pointwise) else operation.kind
                activations[-1] = name if activations[-1] == "linear" else f"{activations[-1]}, {name}"
            case _:
                raise UnsupportedOperationError(
                    f"{operation.kind} at {node.name!r} has no encoding yet; encode reads Linear layers with "
                    "pointwise nonlinearities"
                )
        previous = node.name
    if not matrices:
        raise UnsupportedOperationError("encode found no Linear layer")
    return _assemble(matrices, biases, tuple(activations))


def _assemble(matrices: list[Tensor], biases: list[Tensor], activations: tuple[str, ...]) -> ParameterGraph:
    sizes = (matrices[0].shape[1], *(matrix.shape[0] for matrix in matrices))
    starts = torch.tensor([0, *sizes]).cumsum(0)
    edges = []
    for layer, matrix in enumerate(matrices):
        targets = torch.arange(matrix.shape[0]).repeat_interleave(matrix.shape[1]) + starts[layer + 1]
        sources = torch.arange(matrix.shape[1]).repeat(matrix.shape[0]) + starts[layer]
        edges.append(torch.stack([sources, targets]))
    return ParameterGraph(
        node_features=torch.cat([biases[0].new_zeros(sizes[0]), *biases])[:, None],
        node_layer=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        layer_sizes=sizes,
        activations=activations,
        edge_index=torch.cat(edges, 1),
        edge_features=torch.cat([matrix.reshape(-1) for matrix in matrices])[:, None],
    )
