"""`GraphNetwork`: what message passing and attention on graphs of parameters have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from weightspace.graph.embedding import GraphEmbedding
from weightspace.graph.gauge import choose_gauge, express, require_group, return_units
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.readout import GraphReadout
from weightspace.graph.structure import GraphStructure
from weightspace.graph.vocabulary import GraphVocabulary


class GraphNetwork(nn.Module, ABC):
    """A network that reads networks: an embedding, `propagate`, a readout.

    The result does not depend on the order of hidden units: that of a graph stays, those of nodes and edges move
    with them.

    Args:
        vocabulary: what the graphs contain (`describe_graphs`).
        width, edge_width: channels of nodes and of edges.
        out_features: channels of the result, None for the states themselves.
        level: "graph", "node" or "edge".
        readout: what is read of a graph: "outputs", "nodes", "edges" or "all" (`GraphReadout`).
        positions: whether input units, output units and spatial cells are told apart by where they stand.
        fourier: number of random frequencies that features pass through first, None for plain features.
        fourier_scale: standard deviation of those frequencies.
        probes: channels of `node_extras` (`ProbeFeatures`).
        equivariance: "scale" (positively homogeneous units) or "sign" (odd ones): results of graphs are then invariant
            when the weights into a hidden unit are multiplied and those out of it divided, results of nodes and
            edges transform as biases and weights do (`choose_gauge`). Features must then be the plain parameters, or
            these times one number per layer: centered features have no such symmetry.
    Raises:
        ShapeError: an option of another name; when called, a graph that the vocabulary does not cover.
    """

    def __init__(
        self,
        vocabulary: GraphVocabulary,
        width: int,
        edge_width: int,
        *,
        out_features: int | None = None,
        level: str = "graph",
        readout: str = "outputs",
        positions: bool = True,
        fourier: int | None = None,
        fourier_scale: float = 1.0,
        probes: int = 0,
        equivariance: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.vocabulary = vocabulary
        self.equivariance = None if equivariance is None else require_group(equivariance)
        self.embedding = GraphEmbedding(
            vocabulary,
            width,
            edge_width,
            positions=positions,
            fourier=fourier,
            fourier_scale=fourier_scale,
            probes=probes,
        )
        self.readout = GraphReadout(
            vocabulary,
            width,
            edge_width,
            out_features,
            level=level,
            readout=readout,
            ordered=positions,
            dropout=dropout,
        )

    @abstractmethod
    def propagate(self, structure: GraphStructure, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return new states of nodes, (nodes, batch, width), and of edges, (edges, batch, edge_width)."""

    def forward(self, graph: ParameterGraph, node_extras: Tensor | None = None) -> Tensor:
        """Read networks.

        Args:
            graph: features with any leading axes.
            node_extras: (..., nodes, probes).
        Returns:
            (..., graphs, out) for graphs, without that axis when the structure holds one; (..., nodes, out) or
            (..., edges, out).
        """
        structure, level = graph.structure, self.readout.level
        gauge = None if self.equivariance is None else choose_gauge(graph, self.equivariance)
        nodes, edges = self.embedding(graph if gauge is None else express(graph, gauge), node_extras)
        result = self.readout(structure, *self.propagate(structure, nodes, edges)).transpose(0, 1)
        result = result.reshape(*graph.node_features.shape[:-2], *result.shape[1:])
        if gauge is not None:
            result = return_units(result, structure, level, gauge)
        return result.squeeze(-2) if level == "graph" and structure.graphs == 1 else result
