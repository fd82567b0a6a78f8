"""One round of messages along the edges of a graph, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.graph.aggregation import Neighborhoods, aggregate
from weightspace.graph.structure import EdgeBucket, GraphStructure


@dataclass(frozen=True, eq=False)
class Direction:
    """The edges as seen by those who receive along them.

    sender, receiver: (edges,) node numbers.
    neighborhoods: the edges of every receiver.
    degree_scale: (nodes, 1, 1), log(degree + 1) over its mean.
    """

    sender: Tensor
    receiver: Tensor
    neighborhoods: Neighborhoods
    degree_scale: Tensor

    @staticmethod
    def along(structure: GraphStructure, like: Tensor, log_degree: float) -> Direction:
        """Along the edges: targets receive. `like` gives dtype and device."""
        source, target = structure.edge_index
        return Direction._of(source, target, structure.incoming, like, log_degree)

    @staticmethod
    def against(structure: GraphStructure, like: Tensor, log_degree: float) -> Direction:
        """Against the edges: sources receive."""
        source, target = structure.edge_index
        return Direction._of(target, source, structure.outgoing, like, log_degree)

    @staticmethod
    def _of(
        sender: Tensor, receiver: Tensor, buckets: Sequence[EdgeBucket], like: Tensor, log_degree: float
    ) -> Direction:
        degrees = receiver.bincount(minlength=sum(len(bucket.nodes) for bucket in buckets))
        scale = degrees.to(like).log1p() / log_degree
        return Direction(sender, receiver, Neighborhoods.of(buckets), scale[:, None, None])


class MessagePassing(nn.Module):
    r"""Messages modulated by the edges, several aggregators, updates of nodes and edges.

    $$m_{ij} = \gamma(e_{ij}) \odot \phi(h_i, h_j) + \beta(e_{ij}), \qquad \phi(h_i, h_j) = P h_i + Q h_j$$
    $$h_i \leftarrow \mathrm{LN}\big(h_i + \psi(h_i, \{1, s_i\} \otimes \{mean, min, max, std\}_j\, m_{ij})\big), \qquad
      s_i = \log(deg_i + 1) / \overline{\log(deg + 1)}$$
    $$e_{ij} \leftarrow \mathrm{LN}\big(e_{ij} + W\, \mathrm{SiLU}(E e_{ij} + U h_i + V h_j)\big)$$

    P, Q, U and V act on the nodes before anything is gathered to the edges. Against the edges go messages with the same
    $\gamma$ and $\beta$, as backpropagation uses the weights that the network uses, and with other P, Q and $\psi$.

    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
    (2024), section 3.3; Corso et al., Principal neighbourhood aggregation for graph nets (2020), equations 5 to 8;
    Brockschmidt, GNN-FiLM (2020).
    """

    def __init__(
        self,
        width: int,
        edge_width: int,
        aggregators: tuple[str, ...],
        *,
        directions: int,
        edge_update: bool,
        dropout: float,
    ):
        super().__init__()
        self.aggregators, self.dropout = aggregators, dropout

        def per_direction(inner: int, outer: int) -> nn.ModuleList:
            # Without bias, as every state has a constant part already: that of its embedding or of its norm.
            return nn.ModuleList(nn.Linear(inner, outer, bias=False) for _ in range(directions))

        self.gain = nn.Linear(edge_width, width, bias=False)
        self.shift = nn.Linear(edge_width, width, bias=False)
        self.sent = per_direction(width, width)
        self.received = per_direction(width, width)
        self.summary = per_direction(len(aggregators) * width, 2 * width)
        self.own = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.edge_update = EdgeUpdate(width, edge_width, dropout) if edge_update else None

    def forward(self, nodes: Tensor, edges: Tensor, directions: Sequence[Direction]) -> tuple[Tensor, Tensor]:
        """Return new states of nodes (nodes, batch, width) and edges (edges, batch, edge_width)."""
        hidden = self.own(nodes)
        gain, shift = self.gain(edges), self.shift(edges)
        for number, direction in enumerate(directions):
            pairs = at_ends(
                self.sent[number](nodes), direction.sender, self.received[number](nodes), direction.receiver
            )
            messages = (gain * pairs).add_(shift)
            summary = aggregate(messages, direction.neighborhoods, self.aggregators)
            plain, scaled = self.summary[number](summary).chunk(2, -1)
            hidden = hidden + plain + scaled * direction.degree_scale
        change = F.dropout(self.out(F.silu(hidden)), self.dropout, self.training)
        nodes = self.norm(nodes + change)
        if self.edge_update is not None:
            forward = directions[0]
            edges = self.edge_update(nodes, edges, forward.sender, forward.receiver)
        return nodes, edges


class EdgeUpdate(nn.Module):
    """The residual update of edges from their own states and those of the nodes at their ends."""

    def __init__(self, width: int, edge_width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.source = nn.Linear(width, edge_width, bias=False)
        self.target = nn.Linear(width, edge_width, bias=False)
        self.own = nn.Linear(edge_width, edge_width, bias=False)
        self.out = nn.Linear(edge_width, edge_width, bias=False)
        self.norm = nn.LayerNorm(edge_width)

    def forward(self, nodes: Tensor, edges: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ends = at_ends(self.source(nodes), source, self.target(nodes), target)
        change = self.out(F.silu(ends.add_(self.own(edges))))
        return self.norm(edges + F.dropout(change, self.dropout, self.training))


def at_ends(first: Tensor, first_nodes: Tensor, second: Tensor, second_nodes: Tensor) -> Tensor:
    """Add what stands at the two ends of every edge, (edges, batch, channels)."""
    return first.index_select(0, first_nodes).add_(second.index_select(0, second_nodes))
