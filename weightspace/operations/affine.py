"""Operations that are affine in their input, with learned coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from weightspace.operations.base import Operation, parameter


@dataclass(frozen=True, kw_only=True)
class Linear(Operation):
    """y = W x + b over the last axis; `weight` is (out, in), or (in, out) when `transposed`."""

    weight: str = parameter()
    bias: str | None = parameter(optional=True)
    transposed: bool = False

    def matrix(self, weight: Tensor) -> Tensor:
        """Return W with shape (out, in), however it is stored."""
        return weight.mT if self.transposed else weight

    def evaluate(self, inputs, weights):
        return F.linear(inputs[0], self.matrix(weights["weight"]), weights.get("bias"))


@dataclass(frozen=True, kw_only=True)
class Conv(Operation):
    """Convolution over the last one, two or three axes; `weight` is (out, in/groups, kernel...).

    `transposed` gives the adjoint (nn.ConvTranspose) with `weight` (in, out/groups, kernel...).
    """

    weight: str = parameter()
    bias: str | None = parameter(optional=True)
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def axes(self) -> int:
        """Number of axes the kernel moves along."""
        return len(self.stride)

    def evaluate(self, inputs, weights):
        return _convolve(self, inputs[0], weights["weight"], weights.get("bias"))


@dataclass(frozen=True, kw_only=True)
class ComputedConv(Operation):
    """Convolution as `Conv` does it with a kernel, and a bias, that the network computes.

    Inputs: x, the kernel, laid out as `Conv.weight`, and optionally the bias.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def evaluate(self, inputs, weights):
        x, weight, *bias = inputs
        return _convolve(self, x, weight, bias[0] if bias else None)


def _convolve(operation: Conv | ComputedConv, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    axes = len(operation.stride)
    groups, dilation = operation.groups, operation.dilation
    if operation.transposed:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        output_padding = operation.output_padding or (0,) * axes
        return function(
            x, weight, bias, operation.stride, operation.padding, output_padding, groups, dilation
        )
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return function(x, weight, bias, operation.stride, operation.padding, dilation, groups)


@dataclass(frozen=True, kw_only=True)
class Bilinear(Operation):
    """y_o = x1' W_o x2 + b_o of two inputs (nn.Bilinear); `weight` is (out, in1, in2)."""

    weight: str = parameter()
    bias: str | None = parameter(optional=True)

    def evaluate(self, inputs, weights):
        return F.bilinear(inputs[0], inputs[1], weights["weight"], weights.get("bias"))


@dataclass(frozen=True, kw_only=True)
class Embedding(Operation):
    """Rows of `weight` (vocabulary, width) chosen by integer input."""

    weight: str = parameter()

    def evaluate(self, inputs, weights):
        return F.embedding(inputs[0], weights["weight"])


@dataclass(frozen=True, kw_only=True)
class Scale(Operation):
    """y = factor * x + shift with two fixed numbers."""

    factor: float = 1
    shift: float = 0

    def evaluate(self, inputs, weights):
        x = inputs[0]
        if not (x.is_floating_point() or x.is_complex()):
            return x * self.factor + self.shift  # numbers decide the dtype: int * 1.0 is floating
        if self.factor != 1:
            x = x * self.factor
        return x + self.shift if self.shift != 0 else x
