"""Singular values of one matrix, in memory bounded by its smaller side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.tensor_statistics import TILE_ELEMENTS, is_zero, tiles, to_float64

SMALL_ELEMENTS = 4_000_000  # up to here a float64 copy and a full decomposition are affordable
# The Gram matrix squares the condition number: up to here its relative errors in singular values are < 1e-6.
GRAM_CONDITION = 1e4


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a matrix.

    Attributes:
        spectral_norm: the largest.
        singular_values: all min(rows, columns) of them, descending, float64; None above the limit.
        rank: how many rise above the rounding of the entries; None with `singular_values`.
        exact: whether `spectral_norm` comes from a full decomposition (relative error < 1e-6) or is an
            estimate from below.
    """

    spectral_norm: float
    singular_values: Tensor | None
    rank: int | None
    exact: bool


def compute_spectrum(matrix: Tensor, *, largest_side: int = 4096) -> Spectrum:
    r"""Compute the singular values of a finite real matrix in float64.

    Well-conditioned or large matrices go through the Gram matrix of the smaller side, $\sigma_i = \sqrt{
    \lambda_i(W W^\top)}$, summed over pieces of W, so that memory is $O(\min(m, n)^2)$. It resolves singular
    values down to $\sqrt{n\epsilon}\,\sigma_1$ only; ill-conditioned matrices of at most 4 million entries
    are decomposed directly instead. Above `largest_side` only the spectral norm is estimated, by Lanczos
    iteration.

    The rank counts $\sigma_i > 4\,\epsilon\,\|W\|_F(\sqrt m+\sqrt n)/\sqrt{mn}$, four times the norm of a
    perturbation of all entries by one unit of rounding; $\epsilon$ is that of float64 for float64 weights and
    that of float32 otherwise (the rank of the numbers as stored, not of what half precision lost).

    Args:
        matrix: W, shape (rows, columns), any real floating dtype, possibly mapped from a file.
        largest_side: the largest min(rows, columns) whose spectrum is computed; time grows with its cube.
    Returns:
        Spectrum.
    """
    rows, columns = matrix.shape
    side = min(rows, columns)
    magnitude = max((_magnitude(tile) for _, _, tile in tiles(matrix) if not is_zero(tile)), default=0.0)
    if side == 0 or magnitude == 0:
        values = torch.zeros(side, dtype=torch.float64) if side <= largest_side else None
        return Spectrum(0.0, values, 0 if values is not None else None, True)
    # Extreme entries are scaled, exactly, by a power of two: no square may leave the floating range.
    scale = 1.0 if 1e-12 < magnitude < 1e12 else 2.0 ** min(1000, max(-1000, math.frexp(magnitude)[1]))
    if side > max(largest_side, 16):  # Lanczos iteration needs a matrix larger than its subspace
        return Spectrum(scale * _estimate_norm(matrix, scale), None, None, False)
    gram = torch.zeros(side, side, dtype=torch.float64)
    for tall in _tall_pieces(matrix, scale):
        gram.addmm_(tall.T, tall)
    square_norm = float(gram.diagonal().sum())
    squares = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    del gram
    resolution = math.sqrt(side * torch.finfo(torch.float64).eps)
    if float(squares[0]) * GRAM_CONDITION**2 < float(squares[-1]) and matrix.numel() <= SMALL_ELEMENTS:
        values = torch.linalg.svdvals(to_float64(matrix) / scale)
        resolution = side * torch.finfo(torch.float64).eps
    else:
        values = squares.sqrt().flip(0)
    epsilon = torch.finfo(torch.float64 if matrix.dtype == torch.float64 else torch.float32).eps
    noise = (
        4
        * epsilon
        * math.sqrt(square_norm)
        * (math.sqrt(rows) + math.sqrt(columns))
        / math.sqrt(rows * columns)
    )
    rank = int((values > max(noise, resolution * float(values[0]))).sum())
    # Between 1 and the side: a nonzero row alone must not fall below its own rounding.
    return Spectrum(scale * float(values[0]), scale * values, max(1, rank), True)


def _magnitude(tile: Tensor) -> float:
    low, high = to_float64(tile).aminmax()
    return max(-float(low), float(high))


def _tall_pieces(matrix: Tensor, scale: float, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """Yield pieces T of W / scale or its transpose, whose T'T add up to the smaller Gram matrix."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    height = max(1, TILE_ELEMENTS // tall.shape[1])
    for start in range(0, tall.shape[0], height):
        piece = tall[start : start + height]
        # A Gram matrix costs far more than looking for zeros first, a product with a vector costs less.
        if dtype != torch.float64 or not is_zero(piece):
            yield piece.cpu().to(dtype) if scale == 1 else (to_float64(piece) / scale).to(dtype)


def _estimate_norm(matrix: Tensor, scale: float) -> float:
    """Estimate the largest singular value of W / scale: a Ritz value, above it by rounding only."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    side = min(matrix.shape)
    # Every pass reads the whole matrix; float32 is precise enough for an estimate and needs no copy of it.
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32

    def multiply(vector):
        x = torch.from_numpy(vector).to(dtype).reshape(side)
        y = torch.zeros(side, dtype=torch.float64)
        for tall in _tall_pieces(matrix, scale, dtype):
            y.add_(tall.T @ (tall @ x))
        return y.numpy()

    # A fixed start, so that two runs agree.
    start = torch.randn(side, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    operator = LinearOperator((side, side), matvec=multiply, dtype=start.dtype)  # type: ignore[reportCallIssue]
    options = {"k": 1, "which": "LA", "tol": 1e-3, "ncv": min(side, 12), "return_eigenvectors": False}
    value = eigsh(operator, v0=start, **options)
    return math.sqrt(max(0.0, float(value[0])))
