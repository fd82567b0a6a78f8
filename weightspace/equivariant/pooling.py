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

    @abstractmethod
    def pool(self, x: Tensor, axes: tuple[int, ...], query: Tensor | None) -> Tensor:
        """Pool axes of x, shape (batch, channels, units...), away."""

    def scale(self, count: int) -> float:
        """The factor by which pooling multiplies `count` equal values."""
        return 1.0


@dataclass(frozen=True)
class LinearPooling(Pooling, ABC):
    """A multiple of the sum."""

    def pool(self, x: Tensor, axes: tuple[int, ...], query: Tensor | None) -> Tensor:
        return self.of_sum(x.sum(axes), math.prod([x.shape[axis] for axis in axes]))

    @abstractmethod
    def of_sum(self, total: Tensor, count: int) -> Tensor:
        """Return the pooled value, given the sum of `count` values."""


@dataclass(frozen=True)
class Mean(LinearPooling):
    """The average."""

    def of_sum(self, total: Tensor, count: int) -> Tensor:
        return total / count


@dataclass(frozen=True)
class Sum(LinearPooling):
    """The sum: it tells how many units there are."""

    def of_sum(self, total: Tensor, count: int) -> Tensor:
        return total

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
        scores = torch.einsum("bc...,c->b...", x, query)
        over = tuple(axis - 1 for axis in axes)
        weights = (scores - scores.amax(over, keepdim=True)).exp()
        weights = weights / weights.sum(over, keepdim=True)
        return (x * weights[:, None]).sum(axes)


def new_query(width: int) -> nn.Parameter:
    """Return the learned vector of one attention pooling, scores at first of unit scale."""
    return nn.Parameter(torch.randn(width) / math.sqrt(max(width, 1)))
