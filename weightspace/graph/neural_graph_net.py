"""`NeuralGraphNet`: message passing on graphs of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from weightspace.graph.aggregation import AGGREGATORS, require_aggregators
from weightspace.graph.embedding import initialize
from weightspace.graph.graph_network import GraphNetwork
from weightspace.graph.message_passing import Direction, MessagePassing
from weightspace.graph.vocabulary import GraphVocabulary


class NeuralGraphNet(GraphNetwork):
    """Rounds of `MessagePassing` on graphs of parameters; memory is linear in the edges.

    After `layers` rounds a node knows what is at most that many layers away: with `readout="outputs"` there should
    be as many as the networks have.

    Args:
        vocabulary: what the graphs contain (`describe_graphs`).
        width: channels of nodes.
        edge_width: channels of edges, default `width`.
        layers: rounds of messages.
        aggregators: among "mean", "min", "max", "std".
        edge_updates: False keeps the first states of the edges throughout.
        reverse: whether messages also go against the edges.
        options: out_features, level, readout, positions, fourier, probes, equivariance, dropout (`GraphNetwork`).
    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
    (2024), section 3.3.

    Examples:
        >>> import weightspace
        >>> from weightspace import graph
        >>> from weightspace.bundled import load
        >>> g = weightspace.encode(load("digits_mlp_a"))
        >>> reader = graph.NeuralGraphNet(graph.describe_graphs([g]), width=8, layers=2, out_features=10)
        >>> reader(g).shape
        torch.Size([10])
    """

    def __init__(
        self,
        vocabulary: GraphVocabulary,
        *,
        width: int = 32,
        edge_width: int | None = None,
        layers: int = 4,
        aggregators: tuple[str, ...] = AGGREGATORS,
        edge_updates: bool = True,
        reverse: bool = True,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ):
        edge_width = edge_width or width
        super().__init__(vocabulary, width, edge_width, dropout=dropout, **options)
        self.reverse = reverse
        self.layers = nn.ModuleList(
            MessagePassing(
                width,
                edge_width,
                require_aggregators(aggregators),
                directions=2 if reverse else 1,
                edge_update=edge_updates and (number < layers - 1 or self.readout.reads_edges),
                dropout=dropout,
            )
            for number in range(layers)
        )
        self.to(dtype=dtype, device=device)
        initialize(self, generator)

    def propagate(self, structure, nodes, edges):
        directions = [Direction.along(structure, nodes, self.vocabulary.log_degree)]
        if self.reverse:
            directions.append(Direction.against(structure, nodes, self.vocabulary.log_degree))
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, directions)
        return nodes, edges
