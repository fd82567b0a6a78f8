"""A small Fourier neural operator of one space dimension, whose hidden layers are functions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interp.autoencoders.fourier_operator import FourierOperator


class FourierLayer(nn.Module):
    r"""$v \mapsto \mathrm{gelu}(Av + Bv)$: a Fourier operator A and a pointwise affine map B."""

    def __init__(self, width: int, modes: int, *, dtype: torch.dtype | None, generator: torch.Generator):
        super().__init__()
        self.operator = FourierOperator(width, width, modes, dtype=dtype, generator=generator)
        self.pointwise = _pointwise(width, width, dtype, generator)

    def forward(self, v: Tensor) -> Tensor:
        """Functions (n, width, points) -> (n, width, points)."""
        return nn.functional.gelu(self.operator(v) + self.pointwise(v))


class FourierNeuralOperator(nn.Module):
    """A map between periodic functions of one variable: pointwise lift, Fourier layers, pointwise projection.

    It commutes with translations, and the same weights act on functions sampled at any number of points that resolves
    the modes. The hidden functions are the outputs of `layers.0`, `layers.1`, ....

    Args:
        modes: K, the largest frequency an operator keeps.
        layers: how many Fourier layers.
    Source: Li et al., Fourier Neural Operator for Parametric Partial Differential Equations (2021), figure 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        modes: int = 16,
        layers: int = 3,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.lift = _pointwise(in_channels, width, dtype, generator)
        self.layers = nn.Sequential(
            *(FourierLayer(width, modes, dtype=dtype, generator=generator) for _ in range(layers))
        )
        self.projection = nn.Sequential(
            _pointwise(width, 2 * width, dtype, generator),
            nn.GELU(),
            _pointwise(2 * width, out_channels, dtype, generator),
        )
        self.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """Functions (n, in_channels, points) -> (n, out_channels, points).

        Raises:
            ShapeError: fewer points than twice the modes.
        """
        return self.projection(self.layers(self.lift(x)))


def _pointwise(inputs: int, outputs: int, dtype: torch.dtype | None, generator: torch.Generator) -> nn.Conv1d:
    layer = nn.Conv1d(inputs, outputs, 1, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, 1, generator=generator, dtype=dtype) / inputs**0.5)
        layer.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    return layer
