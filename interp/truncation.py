"""A module that evaluates a sum of squares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TruncatedForm(nn.Module):
    r"""$y_u = \sum_i \lambda_{ui} (v_{ui} \cdot x')^2$, plus $l_u \cdot x + k_u$ where these are given.

    Args:
        values: shape (u, k).
        vectors: shape (u, k, d); (u, k, d + 1) for $x' = [x; 1]$.
        linear, constant: shapes (u, d) and (u,), or None: then the vectors may be padded.

    All are buffers: the module describes trained weights and is not trained itself.
    """

    values: Tensor
    vectors: Tensor
    linear: Tensor | None
    constant: Tensor | None

    def __init__(self, values: Tensor, vectors: Tensor, linear: Tensor | None, constant: Tensor | None):
        super().__init__()
        self.register_buffer("values", values.clone())
        self.register_buffer("vectors", vectors.clone())
        self.register_buffer("linear", None if linear is None else linear.clone())
        self.register_buffer("constant", None if constant is None else constant.clone())

    def terms(self, x: Tensor) -> Tensor:
        """Return every term of every sample, (n, u, k); with `linear` k + 1, the last one affine."""
        x = x.flatten(1)
        count, terms, size = self.vectors.shape
        rows = self.vectors.reshape(count * terms, size)
        padded = size == x.shape[1] + 1
        along = F.linear(x, rows[:, :-1], rows[:, -1]) if padded else F.linear(x, rows)
        squares = along.reshape(len(x), count, terms).square() * self.values
        if self.linear is None:
            return squares
        return torch.cat([squares, F.linear(x, self.linear, self.constant)[..., None]], -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.terms(x).sum(-1)

    def extra_repr(self) -> str:
        directions, terms, size = self.vectors.shape
        return f"directions={directions}, terms={terms}, axes={size}"
