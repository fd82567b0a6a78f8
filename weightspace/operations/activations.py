"""Pointwise nonlinearities: one scalar function on every element."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.operations.base import Operation, parameter


@dataclass(frozen=True, kw_only=True)
class Activation(Operation, abstract=True):
    """A scalar function without learned numbers (PReLU, which has them, stands beside it)."""

    @abstractmethod
    def function(self, x: Tensor) -> Tensor:
        """Apply the scalar function elementwise."""

    def evaluate(self, inputs, weights):
        return self.function(inputs[0])


@dataclass(frozen=True, kw_only=True)
class ReLU(Activation):
    """max(x, 0)."""

    def function(self, x):
        return F.relu(x)


@dataclass(frozen=True, kw_only=True)
class LeakyReLU(Activation):
    """x for x >= 0, otherwise negative_slope * x."""

    negative_slope: float = 0.01

    def function(self, x):
        return F.leaky_relu(x, self.negative_slope)


@dataclass(frozen=True, kw_only=True)
class PReLU(Operation):
    """Leaky ReLU with a learned slope, one (1,) or per channel (axis 1)."""

    weight: str = parameter()

    def evaluate(self, inputs, weights):
        return F.prelu(inputs[0], weights["weight"])


@dataclass(frozen=True, kw_only=True)
class Tanh(Activation):
    """Hyperbolic tangent."""

    def function(self, x):
        return torch.tanh(x)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    def function(self, x):
        return torch.sigmoid(x)


@dataclass(frozen=True, kw_only=True)
class GELU(Activation):
    """x Phi(x); `approximate` is "none" or "tanh"."""

    approximate: str = "none"

    def function(self, x):
        return F.gelu(x, approximate=self.approximate)


@dataclass(frozen=True, kw_only=True)
class SiLU(Activation):
    """x sigmoid(x)."""

    def function(self, x):
        return F.silu(x)


@dataclass(frozen=True, kw_only=True)
class ELU(Activation):
    """scale * x for x >= 0, otherwise scale * alpha (exp(input_scale x) - 1): ELU, CELU and SELU."""

    alpha: float = 1.0
    scale: float = 1.0
    input_scale: float = 1.0

    def function(self, x):
        return torch.ops.aten.elu(x, self.alpha, self.scale, self.input_scale)


@dataclass(frozen=True, kw_only=True)
class Softplus(Activation):
    """log(1 + exp(beta x)) / beta, the identity where beta x > threshold."""

    beta: float = 1.0
    threshold: float = 20.0

    def function(self, x):
        return F.softplus(x, self.beta, self.threshold)


@dataclass(frozen=True, kw_only=True)
class Clip(Activation):
    """min(max(x, lower), upper): hardtanh, ReLU6, clamp; None leaves a side open."""

    lower: float | None = None
    upper: float | None = None

    def function(self, x):
        return torch.clamp(x, self.lower, self.upper)


@dataclass(frozen=True, kw_only=True)
class Absolute(Activation):
    """|x|."""

    def function(self, x):
        return x.abs()


@dataclass(frozen=True, kw_only=True)
class Pointwise(Activation):
    """Any other scalar function, by the name torch gives it."""

    name: str

    NAMES = (
        "atan", "ceil", "cos", "erf", "exp", "expm1", "floor", "hardsigmoid", "hardswish", "isnan",
        "log", "log1p", "log_sigmoid", "logical_not", "mish", "reciprocal", "round", "rsqrt",
        "sign", "sin", "softsign", "sqrt", "square", "tan",
    )  # fmt: skip

    def __post_init__(self):
        if self.name not in self.NAMES:
            raise TypeError(f"Pointwise knows {', '.join(self.NAMES)}, not {self.name!r}")

    def function(self, x):
        if self.name == "log_sigmoid":
            return F.logsigmoid(x)
        return (getattr(torch, self.name, None) or getattr(F, self.name))(x)
