"""Softmax and attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from weightspace.operations.base import Operation


@dataclass(frozen=True, kw_only=True)
class Softmax(Operation):
    """exp(x) / sum exp(x) along one axis, or its logarithm."""

    axis: int = -1
    logarithm: bool = False

    def evaluate(self, inputs, weights):
        return (torch.log_softmax if self.logarithm else torch.softmax)(inputs[0], self.axis)


@dataclass(frozen=True, kw_only=True)
class Attention(Operation):
    """softmax(q k' * scale + mask) v on (..., heads, time, width); inputs q, k, v and optionally a mask.

    `scale` None is 1/sqrt(width); `grouped`: several query heads share one key and value head (GQA).
    """

    causal: bool = False
    scale: float | None = None
    grouped: bool = False

    def evaluate(self, inputs, weights):
        query, key, value, *mask = inputs
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask[0] if mask else None,
            is_causal=self.causal,
            scale=self.scale,
            enable_gqa=self.grouped,
        )
