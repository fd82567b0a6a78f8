"""`Siren`: the sinusoidal network that represents one image as a function of pixel coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Siren(nn.Module):
    r"""Multilayer perceptron with sine units, $h_{l+1} = \sin(\omega (W_l h_l + b_l))$, and a linear last layer.

    Parameters are named `layers.0.weight` (out, in), `layers.0.bias`, ...; see `initial_bounds` for how they are
    drawn.
    Source: Sitzmann, Martel, Bergman, Lindell, Wetzstein, Implicit neural representations with periodic activation
    functions (2020), section 3.
    """

    def __init__(
        self,
        in_features: int = 2,
        hidden: Sequence[int] = (32, 32),
        out_features: int = 1,
        *,
        omega: float = 30.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.omega = omega
        widths = (in_features, *hidden, out_features)
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, a, b) for a, b in pairwise(widths))
        with torch.no_grad():
            for tensor, bound in zip(self.parameters(), initial_bounds(widths, omega), strict=True):
                tensor.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.sin(self.omega * layer(x))
        return last(x)


def initial_bounds(widths: Sequence[int], omega: float) -> list[float]:
    r"""Return the bounds a of the uniform distributions on (-a, a), for weight and bias of every layer in turn.

    With n inputs, $1/n$ for the weights of the first layer, $\sqrt{6/n} / \omega$ for those of the others, and
    $n^{-1/2}$ for biases.
    """
    bounds = []
    for number, fan_in in enumerate(widths[:-1]):
        bounds += [math.sqrt(6 / fan_in) / omega if number else 1 / fan_in, fan_in**-0.5]
    return bounds


def pixel_grid(
    size: tuple[int, int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Return the coordinates (row, column) of all pixels in [-1, 1], row-major, shape (height * width, 2)."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=dtype, device=device) for n in size)
    return torch.cartesian_prod(rows, columns)
