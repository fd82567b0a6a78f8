"""Convolutions of periodic functions by their leading Fourier modes, at any resolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError


class FourierOperator(nn.Module):
    r"""The operator $(Ax)_o(t) = \sum_i \int_0^1 a_{oi}(t - s)\, x_i(s)\, ds$ with kernels of modes $|\xi| \le K$.

    On a grid of n points it is $F^{-1}[\hat a(\xi)\, (Fx)(\xi)]$ where F carries the 1/n, so the weights do not depend
    on n: any grid of at least 2K points will do. At n = 2K (and at n = 2K + 1) it is the circular convolution
    $\frac1n \sum_s a(t - s)\, x(s)$ with arbitrary kernels; the mode K of n = 2K has no sine.

    `weight` (out_channels, in_channels, 2K + 1) holds the coefficients of the kernels in the orthonormal basis
    $1, \sqrt2 \cos 2\pi kt, \dots, \sqrt2 \sin 2\pi kt$ (k = 1, ..., K), so that the norm of a kernel in $L^2$ is that
    of its weights.

    Args:
        modes: K.
    Raises:
        ShapeError: `modes` is negative.
    Source: Li et al., Fourier Neural Operator for Parametric Partial Differential Equations (2021), section 4.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if modes < 0:
            raise ShapeError(f"a Fourier operator keeps the modes 0 to K with K >= 0; got {modes}")
        generator = generator or torch.Generator().manual_seed(0)
        self.modes = modes
        weight = torch.randn((out_channels, in_channels, 2 * modes + 1), generator=generator, dtype=dtype)
        self.weight = nn.Parameter((weight / math.sqrt(in_channels)).to(device))

    @property
    def multipliers(self) -> Tensor:
        r"""The complex multipliers $\hat a(\xi)$ of $\xi$ = 0, ..., K, (out_channels, in_channels, K + 1)."""
        cosine, sine = self.weight[..., : self.modes + 1], self.weight[..., self.modes + 1 :]
        constant, cosine = cosine.split([1, self.modes], -1)
        real = torch.cat([constant, cosine / math.sqrt(2)], -1)
        imaginary = torch.cat([torch.zeros_like(constant), sine / -math.sqrt(2)], -1)
        return torch.complex(real, imaginary)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator: (n, in_channels, points) -> (n, out_channels, points).

        Raises:
            ShapeError: fewer than 2K points.
        """
        return self._transform(x, "oik,nik->nok", self.multipliers)

    def adjoint(self, y: Tensor) -> Tensor:
        r"""Apply the adjoint for the inner product $\int xy$: (n, out_channels, points) -> (n, in_channels, points).

        Raises:
            ShapeError: fewer than 2K points.
        """
        return self._transform(y, "oik,nok->nik", self.multipliers.conj())

    def _transform(self, x: Tensor, contraction: str, multipliers: Tensor) -> Tensor:
        points = x.shape[-1]
        check_points(points, self.modes)
        spectrum = torch.fft.rfft(x, norm="forward")[..., : self.modes + 1]
        return torch.fft.irfft(torch.einsum(contraction, multipliers, spectrum), points, norm="forward")

    def kernels(self, points: int) -> Tensor:
        """Values of the kernels on a grid, (out_channels, in_channels, points).

        Raises:
            ShapeError: fewer than 2K points.
        """
        check_points(points, self.modes)
        return torch.fft.irfft(self.multipliers, points, norm="forward")

    @torch.no_grad()
    def set_kernels(self, kernels: Tensor) -> None:
        """Take the modes up to K of kernels given on a grid, (out_channels, in_channels, points).

        Raises:
            ShapeError: fewer than 2K points, or other numbers of channels.
        """
        points = kernels.shape[-1]
        check_points(points, self.modes)
        if kernels.shape[:-1] != self.weight.shape[:2]:
            raise ShapeError(
                f"the operator takes kernels of shape (out_channels, in_channels, points) with channels "
                f"{tuple(self.weight.shape[:2])}; got {tuple(kernels.shape)}"
            )
        spectrum = torch.fft.rfft(kernels, norm="forward")[..., : self.modes + 1]
        parts = [
            spectrum[..., :1].real,
            spectrum[..., 1:].real * math.sqrt(2),
            spectrum[..., 1:].imag * -math.sqrt(2),
        ]
        self.weight.copy_(torch.cat(parts, -1))

    @torch.no_grad()
    def norm(self) -> Tensor:
        r"""The norm of the operator on $L^2$, the largest singular value of all multipliers, ()."""
        return torch.linalg.matrix_norm(self.multipliers.permute(2, 0, 1), 2).amax()

    def extra_repr(self) -> str:
        out_channels, in_channels, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, modes={self.modes}"


def check_points(points: int, modes: int) -> None:
    """Refuse grids that do not resolve the modes.

    Raises:
        ShapeError: fewer than twice as many points as modes.
    """
    if points < max(2 * modes, 1):
        raise ShapeError(
            f"{points} points do not resolve the modes up to {modes}; sample the functions at {2 * modes} points or "
            f"more, or keep modes={points // 2}"
        )


def shift_cosines(first: Tensor, second: Tensor) -> Tensor:
    r"""The largest cosine of one function with another under circular shifts.

    $\max_s \langle a, b(\cdot - s)\rangle / |a||b|$ over all shifts of the grid; resample band-limited functions on a
    fine grid first where shifts between points matter.

    Args:
        first: (n, channels, points).
        second: (m, channels, points).
    Returns:
        (n, m), signed: the shift is that of the largest cosine, not of the largest magnitude. Zero functions have 0.
    """
    points = first.shape[-1]
    spectra = [torch.fft.rfft(function) for function in (first, second)]
    products = torch.einsum("nck,mck->nmk", spectra[0], spectra[1].conj())
    norms = [function.flatten(1).norm(dim=1) for function in (first, second)]
    scale = (norms[0][:, None] * norms[1]).clamp(min=torch.finfo(first.dtype).tiny)
    return torch.fft.irfft(products, points).amax(-1) / scale
