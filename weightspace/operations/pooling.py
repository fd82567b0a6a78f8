"""Pooling and interpolation over the trailing spatial axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F

from weightspace.operations.base import Operation


@dataclass(frozen=True, kw_only=True)
class MaxPool(Operation):
    """Largest value of each window."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool = False

    def evaluate(self, inputs, weights):
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(self.kernel) - 1]
        return function(inputs[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil)


@dataclass(frozen=True, kw_only=True)
class AveragePool(Operation):
    """Mean of each window."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil: bool = False
    count_padding: bool = True

    def evaluate(self, inputs, weights):
        function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(self.kernel) - 1]
        return function(inputs[0], self.kernel, self.stride, self.padding, self.ceil, self.count_padding)


@dataclass(frozen=True, kw_only=True)
class AdaptiveAveragePool(Operation):
    """Mean over windows chosen so that the output has the spatial shape `size`; all ones is the global mean."""

    size: tuple[int, ...]

    def evaluate(self, inputs, weights):
        function: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[
            len(self.size) - 1
        ]
        return function(inputs[0], self.size)


@dataclass(frozen=True, kw_only=True)
class Interpolate(Operation):
    """Resize the axes after the second to `size`, or by the factors `scale`; modes as torch names them.

    Each output element is a fixed combination of input elements of the same channel.
    """

    mode: str
    size: tuple[int, ...] | None = None
    scale: tuple[float, ...] | None = None
    align_corners: bool = False
    antialias: bool = False

    MODES = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear")

    def __post_init__(self):
        if self.mode not in self.MODES:
            raise TypeError(f"Interpolate knows {', '.join(self.MODES)}, not {self.mode!r}")

    def evaluate(self, inputs, weights):
        return F.interpolate(
            inputs[0],
            self.size,
            self.scale,
            self.mode,
            None if self.mode.startswith("nearest") else self.align_corners,
            antialias=self.antialias,
        )
