"""Arithmetic between values, and reductions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weightspace.operations.base import Operation


@dataclass(frozen=True, kw_only=True)
class Add(Operation):
    """Broadcast sum of two values: residual connections, biases that are values."""

    def evaluate(self, inputs, weights):
        return inputs[0] + inputs[1]


@dataclass(frozen=True, kw_only=True)
class Subtract(Operation):
    """Broadcast difference of two values."""

    def evaluate(self, inputs, weights):
        return inputs[0] - inputs[1]


@dataclass(frozen=True, kw_only=True)
class Multiply(Operation):
    """Broadcast product of two values: gates, bilinear layers."""

    def evaluate(self, inputs, weights):
        return inputs[0] * inputs[1]


@dataclass(frozen=True, kw_only=True)
class Divide(Operation):
    """Broadcast quotient of two values."""

    def evaluate(self, inputs, weights):
        return inputs[0] / inputs[1]


@dataclass(frozen=True, kw_only=True)
class MatMul(Operation):
    """Batched matrix product of two values."""

    def evaluate(self, inputs, weights):
        return inputs[0] @ inputs[1]


@dataclass(frozen=True, kw_only=True)
class Einsum(Operation):
    """Sum of products over the indices that `equation` does not return, as torch.einsum; any number of inputs.

    The equation has no spaces and no ellipsis and states its result: "bqhd,bkhd->bhqk".
    """

    equation: str

    def evaluate(self, inputs, weights):
        return torch.einsum(self.equation, *inputs)


@dataclass(frozen=True, kw_only=True)
class Elementwise(Operation):
    """Any other broadcast function of two or three values, by the name torch gives it."""

    name: str

    NAMES = (
        "bitwise_and", "bitwise_or", "eq", "ge", "gt", "le", "logical_and", "logical_or", "lt", "maximum",
        "minimum", "ne", "remainder", "where",
    )  # fmt: skip

    def __post_init__(self):
        if self.name not in self.NAMES:
            raise TypeError(f"Elementwise knows {', '.join(self.NAMES)}, not {self.name!r}")

    def evaluate(self, inputs, weights):
        return getattr(torch, self.name)(*inputs)


@dataclass(frozen=True, kw_only=True)
class Power(Operation):
    """x ** exponent with a fixed exponent."""

    exponent: float

    def evaluate(self, inputs, weights):
        return inputs[0] ** self.exponent


@dataclass(frozen=True, kw_only=True)
class Reduce(Operation):
    """Sum, mean, largest or smallest value over `axes` (all when empty)."""

    name: str
    axes: tuple[int, ...] = ()
    keep: bool = False

    NAMES = ("amax", "amin", "mean", "sum")

    def __post_init__(self):
        if self.name not in self.NAMES:
            raise TypeError(f"Reduce knows {', '.join(self.NAMES)}, not {self.name!r}")

    def evaluate(self, inputs, weights):
        axes = self.axes or tuple(range(inputs[0].ndim))
        return getattr(torch, self.name)(inputs[0], dim=axes, keepdim=self.keep)


@dataclass(frozen=True, kw_only=True)
class CumulativeSum(Operation):
    """Sums of the elements up to and including each one along an axis."""

    axis: int

    def evaluate(self, inputs, weights):
        return torch.cumsum(inputs[0], self.axis)


@dataclass(frozen=True, kw_only=True)
class Cast(Operation):
    """Convert to another dtype, by torch's name for it. A floating target means the input's own precision
    when the network runs in another one (`Network.astype`), so it is only ever applied to change kind."""

    dtype: str

    def evaluate(self, inputs, weights):
        return inputs[0].to(getattr(torch, self.dtype))
