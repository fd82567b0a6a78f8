"""The first states of nodes and edges: their features, and learned vectors for their kind and place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.structure import EDGE_KINDS, NODE_KINDS
from weightspace.graph.vocabulary import GraphVocabulary

EMBEDDING_SCALE = 0.3  # of each learned vector, so that they do not drown the features, which have unit scale


class GraphEmbedding(nn.Module):
    r"""Projected features plus embeddings of kind, nonlinearity, layer and place.

    $$h_i = P x_i + k_{kind(i)} + a_{activation(i)} + l_{layer(i)} + p_{place(i)}, \qquad
      e_{ij} = R w_{ij} + k'_{kind(ij)}$$

    Places are those of input units, output units and spatial cells; all other nodes of a layer look alike. Features
    should have unit scale, layer by layer.

    Args:
        vocabulary: the entries of the embeddings.
        width: channels of a node.
        edge_width: channels of an edge.
        positions: False leaves p out: permuting inputs or outputs then changes nothing.
        fourier: features pass through this many random frequencies first, None: they do not.
        fourier_scale: standard deviation of the frequencies.
        probes: number of activations of each neuron that are given as extras (`ProbeFeatures`).
    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
    (2024), sections 3.1 and 3.4.
    """

    def __init__(
        self,
        vocabulary: GraphVocabulary,
        width: int,
        edge_width: int,
        *,
        positions: bool = True,
        fourier: int | None = None,
        fourier_scale: float = 1.0,
        probes: int = 0,
    ):
        super().__init__()
        self.vocabulary, self.probes = vocabulary, probes
        self.nodes = _projection(vocabulary.node_channels, width, fourier, fourier_scale)
        self.edges = _projection(vocabulary.edge_channels, edge_width, fourier, fourier_scale)
        self.kind = nn.Embedding(len(NODE_KINDS), width)
        self.activation = nn.Embedding(len(vocabulary.activations), width)
        self.depth = nn.Embedding(vocabulary.depth, width)
        self.place = nn.Embedding(vocabulary.places, width) if positions else None
        self.edge_kind = nn.Embedding(len(EDGE_KINDS), edge_width)
        self.probe = nn.Sequential(nn.LayerNorm(probes), nn.Linear(probes, width)) if probes else None

    def forward(self, graph: ParameterGraph, node_extras: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the states of nodes, (nodes, batch, width), and of edges, (edges, batch, edge_width).

        Raises:
            ShapeError: the graph has other channels than the vocabulary, or places, layers or nonlinearities that
                it lacks; `node_extras` are missing, or given and not expected.
        """
        structure = graph.structure
        self._require_channels(graph, node_extras)
        kinds = torch.tensor([NODE_KINDS.index(layer.kind) for layer in structure.layers])
        sizes = torch.tensor([layer.size for layer in structure.layers])
        kind = kinds.repeat_interleave(sizes).to(structure.node_position.device)
        place = self.vocabulary.place_of_nodes(structure)
        known = self.kind(kind) + self.activation(self.vocabulary.activation_of_nodes(structure))
        known = known + self.depth(structure.node_depth)
        if self.place is not None and self.vocabulary.places:
            known = known + self.place(place.clamp(min=0)) * (place >= 0)[:, None]
        nodes = self.nodes(items_first(graph.node_features)) + known[:, None]
        if self.probe is not None and node_extras is not None:
            nodes = nodes + self.probe(items_first(node_extras))
        edges = self.edges(items_first(graph.edge_features)) + self.edge_kind(structure.edge_kind)[:, None]
        return nodes, edges

    def _require_channels(self, graph: ParameterGraph, node_extras: Tensor | None) -> None:
        for name, features, channels in (
            ("node", graph.node_features, self.vocabulary.node_channels),
            ("edge", graph.edge_features, self.vocabulary.edge_channels),
        ):
            if features.shape[-1] != channels:
                raise ShapeError(
                    f"the vocabulary has {channels} {name} channels and the graph {features.shape[-1]}; batch graphs "
                    "of several architectures together, so that they are padded alike"
                )
        found = 0 if node_extras is None else node_extras.shape[-1]
        if found != self.probes:
            raise ShapeError(
                f"node_extras must have {self.probes} channels, as the network was built with probes={self.probes}; "
                f"got {found}"
            )


class FourierFeatures(nn.Module):
    r"""Cosine and sine of random projections, $\sqrt2 (\cos 2\pi Bx, \sin 2\pi Bx)$ with $B \sim N(0, s^2)$ fixed.

    Source: Tancik et al., Fourier features let networks learn high frequency functions in low dimensional domains
    (2020), section 5.
    """

    def __init__(self, channels: int, frequencies: int, scale: float):
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", torch.empty(channels, frequencies))

    def forward(self, features: Tensor) -> Tensor:
        angles = (2 * math.pi) * (features @ self.get_buffer("frequencies"))
        return math.sqrt(2) * torch.cat([angles.cos(), angles.sin()], -1)


def initialize(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw all weights anew: matrices with variance 1/fan-in, biases 0, embeddings small.

    Activations then start at unit scale whatever the widths.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=EMBEDDING_SCALE, generator=generator)
        elif isinstance(part, FourierFeatures):
            nn.init.normal_(part.get_buffer("frequencies"), std=part.scale, generator=generator)


def items_first(features: Tensor) -> Tensor:
    """Bring (..., items, channels) to (items, batch, channels): gathering items then copies whole rows."""
    return features.reshape(-1, *features.shape[-2:]).transpose(0, 1).contiguous()


def _projection(channels: int, width: int, fourier: int | None, scale: float) -> nn.Module:
    if fourier is None:
        return nn.Linear(channels, width)
    return nn.Sequential(FourierFeatures(channels, fourier, scale), nn.Linear(2 * fourier, width))
