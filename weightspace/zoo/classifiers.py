"""Architectures of small classifiers, as strategies that build a module for inputs of a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import ArchitectureError, ShapeError


@dataclass(frozen=True)
class ConvolutionalClassifier:
    """Convolutions, mean over space, dropout, a linear head; for inputs (channels, height, width).

    The defaults are the architecture of the CNN zoo, 4970 weights for one input channel and ten classes.
    `activation` is a function of torch by name.

    Source: Unterthiner, Keysers, Gelly, Bousquet, Tolstikhin, Predicting neural network accuracy from weights
        (2020), section 3.
    """

    channels: Sequence[int] = (16, 16, 16)
    kernel: int = 3
    stride: int = 2
    activation: str = "relu"

    def __call__(self, shape: Sequence[int], classes: int) -> nn.Module:
        """Return the module. Raises ShapeError for inputs without three axes."""
        if len(shape) != 3:
            raise ShapeError(
                f"a convolutional classifier reads inputs (n, channels, height, width); got (n, "
                f"{', '.join(map(str, shape))}): reshape x, or use PerceptronClassifier"
            )
        layers = [
            nn.Conv2d(a, b, self.kernel, self.stride, self.kernel // 2)
            for a, b in pairwise((shape[0], *self.channels))
        ]
        return _Classifier(layers, nn.Linear(self.channels[-1], classes), self.activation)


@dataclass(frozen=True)
class PerceptronClassifier:
    """Linear layers on flattened inputs, dropout before the last. `activation` is a function of torch by name."""

    hidden: Sequence[int] = (32, 32)
    activation: str = "relu"

    def __call__(self, shape: Sequence[int], classes: int) -> nn.Module:
        """Return the module."""
        layers = [nn.Linear(a, b) for a, b in pairwise((math.prod(shape), *self.hidden))]
        return _Classifier(layers, nn.Linear(self.hidden[-1], classes), self.activation)


class Dropout(nn.Module):
    """Dropout at a rate that is a tensor, so that networks trained at once may have different ones."""

    rate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rate", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand_like(x) >= self.rate) / (1 - self.rate)


class _Classifier(nn.Module):
    def __init__(self, layers: Sequence[nn.Module], head: nn.Linear, activation: str):
        super().__init__()
        self.layers, self.head = nn.ModuleList(layers), head
        function = getattr(F, activation, None) or getattr(torch, activation, None)
        if function is None:
            raise ArchitectureError(f"activation {activation!r} is no function of torch; relu and tanh are")
        self.activation, self.dropout = function, Dropout()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layers[0], nn.Linear):
            x = x.flatten(1)
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(self.dropout(x.mean((2, 3)) if x.ndim == 4 else x))
