"""What a graph network returns: one vector per graph, node or edge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.graph.message_passing import at_ends
from weightspace.graph.structure import GraphStructure
from weightspace.graph.vocabulary import GraphVocabulary

LEVELS = ("graph", "node", "edge")
READOUTS = ("outputs", "nodes", "edges", "all")


class GraphReadout(nn.Module):
    """Reads graphs, nodes or edges off their states.

    Args:
        level: "graph", "node" or "edge".
        out_features: channels of the result; None leaves out the last layers and returns states.
        readout: of graphs, what is read: "outputs" (the states of the output units, side by side in their order, or
            their mean where `ordered` is False), "nodes" or "edges" (means), "all" of these.
        ordered: whether output units are told apart.
    Raises:
        ShapeError: a level or readout of another name.
    """

    def __init__(
        self,
        vocabulary: GraphVocabulary,
        width: int,
        edge_width: int,
        out_features: int | None,
        *,
        level: str,
        readout: str,
        ordered: bool,
        dropout: float,
    ):
        super().__init__()
        if level not in LEVELS or readout not in READOUTS:
            raise ShapeError(
                f"level must be among {', '.join(LEVELS)} and readout among {', '.join(READOUTS)}; "
                f"got {level!r} and {readout!r}"
            )
        self.level, self.dropout = level, dropout
        self.slots = vocabulary.outputs if ordered else 0
        widths = {"outputs": width * max(self.slots, 1), "nodes": width, "edges": edge_width}
        self.parts = tuple(widths) if readout == "all" else (readout,)
        if level == "graph":
            self.norms = nn.ModuleDict({part: nn.LayerNorm(widths[part]) for part in self.parts})
            features = sum(widths[part] for part in self.parts)
            if out_features is not None:
                self.hidden = nn.Linear(features, 2 * width)
                self.out = nn.Linear(2 * width, out_features)
        elif out_features is not None:
            self.out = nn.Linear(width if level == "node" else edge_width, out_features)
            if level == "edge":
                self.source = nn.Linear(width, out_features, bias=False)
                self.target = nn.Linear(width, out_features, bias=False)
        self.out_features = out_features

    @property
    def reads_edges(self) -> bool:
        """Whether the states of the edges are used."""
        return self.level == "edge" or (self.level == "graph" and "edges" in self.parts)

    def forward(self, structure: GraphStructure, nodes: Tensor, edges: Tensor) -> Tensor:
        """Return (graphs, nodes or edges; batch; out_features)."""
        if self.level == "graph":
            pooled = [self.norms[part](self._pool(part, structure, nodes, edges)) for part in self.parts]
            states = torch.cat(pooled, -1)
            if self.out_features is None:
                return states
            states = F.dropout(F.silu(self.hidden(states)), self.dropout, self.training)
            return self.out(states)
        states = nodes if self.level == "node" else edges
        if self.out_features is None:
            return states
        if self.level == "node":
            return self.out(states)
        source, target = structure.edge_index
        return self.out(states) + at_ends(self.source(nodes), source, self.target(nodes), target)

    def _pool(self, part: str, structure: GraphStructure, nodes: Tensor, edges: Tensor) -> Tensor:
        """Return one part of what is read of every graph, (graphs, batch, channels)."""
        graph, graphs = structure.node_graph, structure.graphs
        if part == "nodes":
            return _mean(nodes, graph, graphs)
        if part == "edges":
            return _mean(edges, graph[structure.edge_index[1]], graphs)
        outputs = _output_nodes(structure)
        states = nodes.index_select(0, outputs)
        if not self.slots:
            return _mean(states, graph[outputs], graphs)
        slot = graph[outputs] * self.slots + structure.node_position[outputs]
        placed = states.new_zeros(graphs * self.slots, *states.shape[1:]).index_add(0, slot, states)
        return placed.unflatten(0, (graphs, self.slots)).transpose(1, 2).flatten(2)


def _mean(states: Tensor, graph: Tensor, graphs: int) -> Tensor:
    if graphs == 1:
        return states.mean(0, keepdim=True)
    counts = graph.bincount(minlength=graphs).clamp(min=1).to(states)
    sums = states.new_zeros(graphs, *states.shape[1:]).index_add(0, graph, states)
    return sums / counts[:, None, None]


def _output_nodes(structure: GraphStructure) -> Tensor:
    """Return the numbers of the output units, (outputs,)."""
    kinds = torch.tensor([layer.kind == "output" for layer in structure.layers])
    sizes = torch.tensor([layer.size for layer in structure.layers])
    return kinds.repeat_interleave(sizes).nonzero()[:, 0].to(structure.node_position.device)
