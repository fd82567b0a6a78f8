"""How an equivariant layer summarizes the units that it does not keep: strategies, one class each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pooling(ABC):
    """A symmetric function of units. `nested`: pooling some axes, then others, pools them all."""

    nested = True
    linear = False

    @abstractmethod
    def pool(self, x: Tensor, axes: tuple[int, ...], query: Tensor | None) -> Tensor:
        """Pool axes of x, shape (batch, units..., channels), away."""

    def scale(self, count: int) -> float:
        """Standard deviation by which pooling of `count` units changes that of large, equal values."""
        return 1.0


@dataclass(frozen=True)
class Mean(Pooling):
    """The average; linear."""

    linear = True

    def pool(self, x: Tensor, axes: tuple[int, ...], query: Tensor | None) -> Tensor:
        return x.mean(axes)


@dataclass(frozen=True)
class Sum(Pooling):
    """The sum: tells how many units there are; linear."""

    linear = True

    def pool(self, x: Tensor, axes: tuple[int, ...], query: Tensor | None) -> Tensor:
        return x.sum(axes)

    def scale(self, count: int) -> float:
        return float(count)


@dataclass(frozen=True)
class Max(Pooling):
    """The largest value of each channel."""

    def pool(self, x: Tensor, axes: tuple[int, ...], query: Tensor | None) -> Tensor:
        return x.amax(axes)


@dataclass(frozen=True)
class Attention(Pooling):
    r"""The average with learned weights, $\mathrm{softmax}(\langle q, x_i \rangle)$ over all units pooled at once.

    Source: Lee et al., Set transformer (2019), section 3.2, pooling by attention, with one seed and one head.
    """

    nested = False

    def pool(self, x: Tensor, axes: tuple[int, ...], query: Tensor | None) -> Tensor:
        assert query is not None
        kept = [axis for axis in range(x.ndim - 1) if axis not in axes]
        x = x.permute(*kept, *axes, -1).flatten(len(kept), -2)
        weights = (x @ query).softmax(-1)
        return (weights[..., None, :] @ x)[..., 0, :]


def new_query(width: int) -> nn.Parameter:
    """Return the learned vector of one attention pooling, scores at first of unit scale."""
    return nn.Parameter(torch.randn(width) / math.sqrt(max(width, 1)))
