"""The frame around every solver: check, isolate non-finite matrices, scale by an exact power of two, restore, sign."""

from dataclasses import dataclass

import torch
from torch import Tensor

PIVOT_SLACK = 2.0**-10
"""Entries this close to the largest count as equal to it, so that a tie is broken alike on every device."""


@dataclass(frozen=True, eq=False)
class ScaledMatrices:
    r"""A batch of symmetric matrices as a solver wants it: finite, $\max_{i \ge j} |a_{ij}|$ in [1/2, 1).

    The strict upper triangle is whatever the caller left there.
    """

    matrices: Tensor
    """$2^{-k} A$, or 0 for a matrix with a NaN or infinite entry, shape (..., n, n)."""
    exponent: Tensor
    """$k$, int32, shape (...)."""
    finite: Tensor
    """Whether the lower triangle was finite, bool, shape (...)."""

    def restore(self, scaled: Tensor) -> Tensor:
        """Multiply by $2^k$ what scales with the matrices, shape (..., then any axes); NaN if not finite."""
        return self.mark(_times_power_of_two(scaled, _append_axes(self.exponent, scaled)))

    def mark(self, result: Tensor) -> Tensor:
        """Fill with NaN what belongs to a matrix that was not finite."""
        return torch.where(_append_axes(self.finite, result), result, torch.nan)

    def info(self) -> Tensor:
        """0 for a finite matrix and -1 for another one, int32, shape (...)."""
        return torch.where(self.finite, 0, -1).to(torch.int32)


def scale(a: Tensor) -> ScaledMatrices:
    r"""Scale each matrix by its own power of two, which rounds nothing and lifts subnormal entries.

    Every matrix is scaled, not only large ones, so that no bit of a result depends on a neighbor.

    Args:
        a: shape (..., n, n) with n at least 1; the strict upper triangle is not read. Differentiable.
    """
    largest = torch.tril(a.detach()).abs().amax((-2, -1))
    finite = torch.isfinite(largest)
    exponent = torch.frexp(torch.where(finite, largest, 0.0)).exponent
    kept = torch.where(_append_axes(finite, a), a, 0.0)
    return ScaledMatrices(_times_power_of_two(kept, -_append_axes(exponent, a)), exponent, finite)


def fix_signs(vectors: Tensor) -> Tensor:
    """Make the first of the (nearly) largest entries of every column positive; complex phases stay."""
    if vectors.is_complex():
        return vectors
    fixed = vectors.detach()
    magnitude = fixed.abs()
    is_pivot = magnitude >= (1 - PIVOT_SLACK) * magnitude.amax(-2, keepdim=True)
    first = is_pivot.to(torch.uint8).argmax(-2, keepdim=True)
    negative = torch.take_along_dim(fixed, first, -2) < 0
    return torch.where(negative, -vectors, vectors)


def require_symmetric(a: Tensor, function: str) -> None:
    """Refuse what cannot be the lower triangle of symmetric matrices.

    Raises:
        TypeError: `a` is not a tensor.
        ValueError: `a` is not (..., n, n), or its dtype is neither floating point nor complex.
    """
    if not isinstance(a, Tensor):
        raise TypeError(
            f"`{function}` needs a torch.Tensor; `a` is a {type(a).__name__}: pass torch.as_tensor(a)"
        )
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(
            f"`{function}` needs symmetric matrices of shape (..., n, n); `a` has shape {tuple(a.shape)}: "
            f"move the two matrix axes last, or form a Gram matrix such as a.mT @ a"
        )
    if not (a.is_floating_point() or a.is_complex()):
        raise ValueError(
            f"`{function}` needs a floating-point dtype; `a` has dtype {a.dtype}: pass a.to(torch.float64)"
        )


def widen(a: Tensor) -> Tensor:
    """Half types as float32, the narrowest type LAPACK knows; everything else as it is."""
    return a.float() if a.is_floating_point() and a.dtype.itemsize < 4 else a


def _times_power_of_two(x: Tensor, exponent: Tensor) -> Tensor:
    # 2^k itself may leave the range although x 2^k does not: multiply by two halves.
    half = torch.div(exponent, 2, rounding_mode="floor")
    real = x.real.dtype if x.is_complex() else x.dtype
    return x * _power_of_two(half, real) * _power_of_two(exponent - half, real)


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    # By its bits: `exp2` and `pow` need not be exact on every device, and `ldexp` overflows in float32.
    if dtype == torch.float32:
        return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def _append_axes(per_matrix: Tensor, like: Tensor) -> Tensor:
    return per_matrix.reshape(per_matrix.shape + (1,) * (like.ndim - per_matrix.ndim))
