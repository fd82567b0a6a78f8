"""A transformer of one layer with a bilinear MLP and no normalization, so that its weights can be multiplied out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.layers import Bilinear


class BilinearTransformer(nn.Module):
    r"""Causal language model $\mathrm{head}\,(r + \mathrm{mlp}(r))$, $r = x + \mathrm{attention}(x)$, no biases.

    $x_t = e_{w_t} + p_t$ is the embedding of token and position,
    $\mathrm{attention}(x)_t = \sum_h \sum_{s \le t} A^h_{ts}\, O_h V_h x_s$, and the MLP $P[(Wr) \odot (Vr)]$.
    There is no normalization: given the attention pattern A, every logit is a quadratic form of the embeddings.

    Args:
        vocabulary: number of tokens.
        width: of the residual stream, a multiple of `heads`.
        hidden: units of the MLP; default 4 x width.
        context: longest sequence.
    Raises:
        ShapeError: the heads do not divide the width; in the forward pass, a sequence longer than `context`.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
        interpretability (2024), section 5; Elhage et al., A mathematical framework for transformer circuits
        (2021), on the paths through one layer.
    """

    def __init__(self, vocabulary: int, width: int, *, heads: int, context: int, hidden: int | None = None):
        super().__init__()
        if width % heads:
            raise ShapeError(f"width must be a multiple of heads; got width {width} and heads {heads}")
        self.heads = heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(context, width))
        self.query, self.key, self.value, self.output = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.mlp = Bilinear(width, hidden or 4 * width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        with torch.no_grad():  # products of unit-scale features would otherwise drown the residual stream
            self.embedding.weight.mul_(0.3)
            self.positions.mul_(0.3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, (n, t, vocabulary), for tokens (n, t)."""
        length = tokens.shape[1]
        if length > len(self.positions):
            raise ShapeError(f"the context is {len(self.positions)} tokens; the sequences have {length}")
        r = self.attend(self.embedding(tokens) + self.positions[:length])
        return self.head(r + self.mlp(r))

    def attend(self, x: Tensor) -> Tensor:
        """Return the residual stream after the attention, (n, t, width), for embeddings of that shape."""
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.output(mixed.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, context={len(self.positions)}"
