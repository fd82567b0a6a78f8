"""`GraphParameterMap`: a graph network from parameters to parameters, as an equivariant head has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.graph.embedding import initialize
from weightspace.graph.graph_network import GraphNetwork
from weightspace.graph.message_passing import at_ends
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.structure import GraphStructure
from weightspace.graph.vocabulary import GraphVocabulary


def widen_vocabulary(vocabulary: GraphVocabulary, channels: int) -> GraphVocabulary:
    """Return the vocabulary of the same graphs with `channels` numbers for every parameter instead of one."""
    return replace(
        vocabulary,
        node_channels=channels * vocabulary.node_channels,
        edge_channels=channels * vocabulary.edge_channels,
    )


class GraphParameterMap(nn.Module):
    r"""Parameters as features of nodes and edges, a graph network, and its states read at the places of parameters.

    $$ b_i' = A h_i + a, \qquad w_{ij}' = B e_{ij} + C h_i + D h_j $$

    with the last states $h$ of nodes and $e$ of edges. It takes and returns what a `DeepWeightSpaceNet` with the
    equivariant head does: features name -> (batch, in_channels, *shape), or (batch, *shape) for one channel, results
    name -> (batch, out_channels, *shape). It commutes with the permutations of hidden units. A parameter that stands at
    several places of the graph gets the mean of what is read there.

    Args:
        net: made with `level="edge"`, no `out_features`, for the vocabulary of `structure` widened to the channels of
            the features (`widen_vocabulary`).
        structure: of the networks that are read.
    Raises:
        ShapeError: a net of another level or with a gauge, or channels that are no multiple of the structure's; in a
            call, parameters are missing or have another shape.
    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
        (2024), sections 3.3 and 4.4.
    """

    def __init__(
        self,
        net: GraphNetwork,
        structure: GraphStructure,
        out_channels: int = 1,
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if (
            net.readout.level != "edge"
            or net.readout.out_features is not None
            or net.equivariance is not None
        ):
            raise ShapeError(
                'a GraphParameterMap reads the states of nodes and edges itself: make the net with level="edge", '
                "without out_features and equivariance"
            )
        self.net, self.out_channels = net, out_channels
        self.readout = _ParameterReadout(net, structure, out_channels)
        initialize(self.readout, generator)
        self.readout.to(next(net.parameters()))
        self._fit(structure)

    def with_structure(self, structure: GraphStructure) -> GraphParameterMap:
        """Return the same map, with the same learned weights, for networks of other widths."""
        other = GraphParameterMap(self.net, structure, self.out_channels, generator=torch.Generator())
        other.readout = self.readout
        return other

    def _fit(self, structure: GraphStructure) -> None:
        channels, rest = divmod(self.net.vocabulary.edge_channels, structure.edge_entries.shape[1])
        if rest or channels * structure.node_entries.shape[1] != self.net.vocabulary.node_channels:
            raise ShapeError(
                f"the net reads {self.net.vocabulary.node_channels} channels of nodes and "
                f"{self.net.vocabulary.edge_channels} of edges; the graph has {structure.node_entries.shape[1]} and "
                f"{structure.edge_entries.shape[1]} parameters there: see widen_vocabulary"
            )
        self.structure, self.in_channels = structure, channels
        entries = torch.cat([structure.node_entries.flatten(), structure.edge_entries.flatten()])
        self._places = (entries >= 0).nonzero()[:, 0]
        self._entries = entries[self._places]
        self._sizes = [math.prod(shape) for _, shape in structure.parameters]
        self._counts = self._entries.bincount(minlength=sum(self._sizes)).clamp(min=1)[:, None, None]

    def forward(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = {
            name: self._with_channels(parameters, name, len(shape))
            for name, shape in self.structure.parameters
        }
        device = next(iter(values.values())).device
        structure = self.structure.to(device)
        nodes, edges = (_channels_last(features) for features in structure.gather(values))
        graph = ParameterGraph(structure, nodes, edges)
        states = self.net.propagate(structure, *self.net.embedding(graph, None))
        read = torch.cat([self._by_place(part) for part in self.readout(structure, *states)])
        read = read.index_select(0, self._places.to(device))
        flat = read.new_zeros(len(self._counts), *read.shape[1:])
        flat = flat.index_add(0, self._entries.to(device), read) / self._counts.to(read)
        parts = flat.permute(1, 2, 0).split(self._sizes, -1)
        return {
            name: part.unflatten(-1, shape)
            for (name, shape), part in zip(self.structure.parameters, parts, strict=True)
        }

    def _with_channels(self, parameters: Mapping[str, Tensor], name: str, rank: int) -> Tensor:
        if name not in parameters:
            raise ShapeError(f"the graph reads parameter {name!r}, which is not among those given")
        x = parameters[name]
        x = x.unsqueeze(1) if self.in_channels == 1 and x.ndim == rank + 1 else x
        if x.ndim != rank + 2 or x.shape[1] != self.in_channels:
            raise ShapeError(
                f"parameter {name!r} must have shape (batch, {self.in_channels}, *shape); it has {tuple(x.shape)}"
            )
        return x

    def _by_place(self, read: Tensor) -> Tensor:
        """From (items, batch, places x channels) to (items x places, batch, channels)."""
        return read.unflatten(-1, (-1, self.out_channels)).transpose(1, 2).flatten(0, 1)


class _ParameterReadout(nn.Module):
    """Linear maps from states to what is written at nodes and at edges."""

    def __init__(self, net: GraphNetwork, structure: GraphStructure, out_channels: int):
        super().__init__()
        width = net.embedding.kind.embedding_dim
        edge_width = net.embedding.edge_kind.embedding_dim
        on_nodes, on_edges = (
            out_channels * entries.shape[1] for entries in (structure.node_entries, structure.edge_entries)
        )
        self.nodes = nn.Linear(width, on_nodes)
        self.edges = nn.Linear(edge_width, on_edges)
        self.source = nn.Linear(width, on_edges, bias=False)
        self.target = nn.Linear(width, on_edges, bias=False)

    def forward(self, structure: GraphStructure, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        source, target = structure.edge_index
        ends = at_ends(self.source(nodes), source, self.target(nodes), target)
        return self.nodes(nodes), self.edges(edges) + ends


def _channels_last(features: Tensor) -> Tensor:
    """From (batch, channels, items, places) to (batch, items, places x channels)."""
    return features.permute(0, 2, 3, 1).flatten(2)
