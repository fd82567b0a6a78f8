"""Graphs of a union as dense arrays of nodes and of pairs of nodes, padded to the largest graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.graph.structure import GraphStructure


@dataclass(frozen=True, eq=False)
class PaddedGraphs:
    """Where the nodes and edges of every graph stand among `size` nodes and `size` x `size` pairs.

    nodes: (nodes,) places among graphs * size.
    pairs: (edges,) places among graphs * size * size: graph, target, source.
    """

    graphs: int
    size: int
    nodes: Tensor
    pairs: Tensor

    @staticmethod
    def of(structure: GraphStructure) -> PaddedGraphs:
        graph, graphs = structure.node_graph, structure.graphs
        counts = graph.bincount(minlength=graphs)
        size = int(counts.max())
        within = torch.arange(len(graph), device=graph.device) - (counts.cumsum(0) - counts)[graph]
        nodes = graph * size + within
        source, target = structure.edge_index
        return PaddedGraphs(graphs, size, nodes, nodes[target] * size + within[source])

    @property
    def joined(self) -> Tensor:
        """Whether an edge leads from the last node of a pair to the first, (graphs, size, size)."""
        flat = torch.zeros(self.graphs * self.size**2, dtype=torch.bool, device=self.pairs.device)
        return flat.index_fill(0, self.pairs, True).view(self.graphs, self.size, self.size)

    @property
    def real(self) -> Tensor:
        """Whether a node is one of the graph's, (graphs, size)."""
        flat = torch.zeros(self.graphs * self.size, dtype=torch.bool, device=self.pairs.device)
        return flat.index_fill(0, self.nodes, True).view(self.graphs, self.size)

    def pad_nodes(self, states: Tensor) -> Tensor:
        """Bring (nodes, batch, channels) to (batch, graphs, size, channels)."""
        flat = states.new_zeros(self.graphs * self.size, *states.shape[1:]).index_add(0, self.nodes, states)
        return flat.view(self.graphs, self.size, *states.shape[1:]).movedim(2, 0)

    def pad_pairs(self, states: Tensor) -> Tensor:
        """Bring (edges, batch, channels) to (batch, graphs, size, size, channels); parallel edges are added up."""
        shape = (self.graphs, self.size, self.size)
        flat = states.new_zeros(self.graphs * self.size**2, *states.shape[1:])
        return flat.index_add(0, self.pairs, states).view(*shape, *states.shape[1:]).movedim(3, 0)

    def take_nodes(self, padded: Tensor) -> Tensor:
        """Undo `pad_nodes`."""
        return padded.movedim(0, 2).flatten(0, 1).index_select(0, self.nodes)

    def take_pairs(self, padded: Tensor) -> Tensor:
        """Return the pairs that are edges, (edges, batch, channels)."""
        return padded.movedim(0, 3).flatten(0, 2).index_select(0, self.pairs)
