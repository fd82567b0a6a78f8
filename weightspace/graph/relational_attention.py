"""One layer of attention between all nodes of a graph whose queries, keys and values depend on the edges."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import ShapeError


class RelationalAttention(nn.Module):
    r"""Relational attention, feed-forward layers for nodes and edges, an update of the edges.

    For every head of width $d$,
    $$q_{ij} = Q h_i + Q' e_{ij}, \quad k_{ij} = K h_j + K' e_{ij}, \quad
      v_{ij} = (V h_j) \odot (M e_{ij}) + V' e_{ij},$$
    $$o_i = \sum_j \mathrm{softmax}_j\big(\langle q_{ij}, k_{ij}\rangle / \sqrt d\big)\, v_{ij}, \qquad
      e_{ij} \leftarrow e_{ij} + W\, \mathrm{SiLU}(E e_{ij} + E' e_{ji} + S h_i + T h_j).$$
    LayerNorm follows every residual.

    Raises:
        ShapeError: the width is no multiple of the heads.
    Source: Diao and Loynd, Relational attention (2023), section 3; Kofinas et al., Graph neural networks for learning
    equivariant representations of neural networks (2024), section 3.3. Published code divides by the root of the
    width of all heads together; here it is that of one head.
    """

    def __init__(self, width: int, edge_width: int, heads: int, *, edge_update: bool, dropout: float):
        super().__init__()
        if width % heads:
            raise ShapeError(f"width must be a multiple of heads; got width={width}, heads={heads}")
        self.heads, self.dropout = heads, dropout
        # One map each: the parts of a joint result would have to be put together again on the way back.
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.pair_query, self.pair_key, self.gain, self.shift = (
            nn.Linear(edge_width, width, bias=False) for _ in range(4)
        )
        self.out = nn.Linear(width, width)
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = FeedForward(width, dropout)
        self.edge_update = PairUpdate(width, edge_width, dropout) if edge_update else None

    def forward(self, nodes: Tensor, pairs: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Return new states.

        Args:
            nodes: (batch, graphs, n, width).
            pairs: (batch, graphs, n, n, edge_width), target before source.
            allowed: (graphs, n, n), what node i may attend to.
        """
        query = self.query(nodes).unsqueeze(3) + self.pair_query(pairs)
        key = self.key(nodes).unsqueeze(2) + self.pair_key(pairs)
        scores = self._by_head(query * key).sum(-1) / math.sqrt(query.shape[-1] // self.heads)
        weights = scores.masked_fill(~allowed[..., None], -torch.inf).softmax(3)
        values = self.gain(pairs) * self.value(nodes).unsqueeze(2) + self.shift(pairs)
        result = (weights[..., None] * self._by_head(values)).sum(3).flatten(-2)
        nodes = self.norm(nodes + F.dropout(self.out(result), self.dropout, self.training))
        nodes = self.last_norm(nodes + self.feed(nodes))
        return nodes, pairs if self.edge_update is None else self.edge_update(nodes, pairs)

    def _by_head(self, states: Tensor) -> Tensor:
        """Split the channels into (heads, width of a head)."""
        return states.unflatten(-1, (self.heads, -1))


class PairUpdate(nn.Module):
    """The residual update of pairs from both directions and the nodes at their ends, and their feed-forward layer."""

    def __init__(self, width: int, edge_width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.own = nn.Linear(edge_width, edge_width)
        self.reverse = nn.Linear(edge_width, edge_width, bias=False)
        self.target = nn.Linear(width, edge_width, bias=False)
        self.source = nn.Linear(width, edge_width, bias=False)
        self.out = nn.Linear(edge_width, edge_width)
        self.norm, self.last_norm = nn.LayerNorm(edge_width), nn.LayerNorm(edge_width)
        self.feed = FeedForward(edge_width, dropout)

    def forward(self, nodes: Tensor, pairs: Tensor) -> Tensor:
        hidden = self.own(pairs) + self.reverse(pairs).transpose(2, 3)
        hidden = hidden + self.target(nodes).unsqueeze(3) + self.source(nodes).unsqueeze(2)
        change = self.out(F.silu(hidden))
        pairs = self.norm(pairs + F.dropout(change, self.dropout, self.training))
        return self.last_norm(pairs + self.feed(pairs))


class FeedForward(nn.Module):
    """Two linear maps with SiLU between them."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.hidden, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        return F.dropout(self.out(F.silu(self.hidden(states))), self.dropout, self.training)
