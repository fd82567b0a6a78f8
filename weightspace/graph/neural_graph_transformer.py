"""`NeuralGraphTransformer`: relational attention on graphs of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from weightspace.graph.embedding import initialize
from weightspace.graph.graph_network import GraphNetwork
from weightspace.graph.padding import PaddedGraphs
from weightspace.graph.relational_attention import RelationalAttention
from weightspace.graph.vocabulary import GraphVocabulary


class NeuralGraphTransformer(GraphNetwork):
    """Layers of `RelationalAttention` between all nodes of a network; a pair knows the edges of both directions.

    Memory is batch * heads * n^2 * head width for n nodes: for small networks only. A learned vector stands for
    "no edge", another for the pair of a node with itself.

    Args:
        vocabulary: what the graphs contain (`describe_graphs`).
        width, edge_width: channels of nodes and of edges.
        heads: of attention; they divide `width`.
        layers: of attention.
        masked: True lets a node attend to its neighbors (either direction) and itself alone; False to all.
        options: out_features, level, readout, positions, fourier, probes, equivariance, dropout (`GraphNetwork`).
    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
    (2024), section 3.3.

    Examples:
        >>> import weightspace
        >>> from weightspace import graph
        >>> from weightspace.bundled import load
        >>> g = weightspace.encode(load("digits_mlp_a"))
        >>> options = {"width": 8, "edge_width": 4, "heads": 2, "layers": 1, "out_features": 10}
        >>> graph.NeuralGraphTransformer(graph.describe_graphs([g]), **options)(g).shape
        torch.Size([10])
    """

    def __init__(
        self,
        vocabulary: GraphVocabulary,
        *,
        width: int = 64,
        edge_width: int = 32,
        heads: int = 8,
        layers: int = 4,
        masked: bool = False,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ):
        super().__init__(vocabulary, width, edge_width, dropout=dropout, **options)
        self.masked = masked
        self.absent = nn.Embedding(2, edge_width)
        self.reverse = nn.Linear(edge_width, edge_width, bias=False)
        self.layers = nn.ModuleList(
            RelationalAttention(
                width,
                edge_width,
                heads,
                edge_update=number < layers - 1 or self.readout.reads_edges,
                dropout=dropout,
            )
            for number in range(layers)
        )
        self.to(dtype=dtype, device=device)
        initialize(self, generator)

    def propagate(self, structure, nodes, edges):
        padded = PaddedGraphs.of(structure)
        joined = padded.joined
        itself = torch.eye(padded.size, dtype=torch.bool, device=joined.device)
        if self.masked:
            allowed = joined | joined.mT | itself
        else:
            allowed = (padded.real[:, :, None] & padded.real[:, None, :]) | itself
        absent = self.absent(itself.long()) * ~joined[..., None]
        states, pairs = padded.pad_nodes(nodes), padded.pad_pairs(edges) + absent
        pairs = pairs + self.reverse(pairs).transpose(2, 3)
        for layer in self.layers:
            states, pairs = layer(states, pairs, allowed)
        return padded.take_nodes(states), padded.take_pairs(pairs)
