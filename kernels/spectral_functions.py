"""Functions of symmetric matrices through their eigenvalues, with gradients at repeated eigenvalues."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.dispatch import choose_backend, load_backend
from kernels.scaling import require_symmetric, scale, widen


def project_psd(a: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Project symmetric matrices onto the positive semidefinite cone.

    $P = V \max(\Lambda, 0) V^\top = \arg\min_{X \succeq 0} \|X - A\|_F$.

    Only the lower triangle is read; the result is exactly symmetric. A matrix with a NaN or an
    infinity gives NaN, and its gradient is zero. The gradient is finite and right at repeated
    eigenvalues; at an eigenvalue 0, where the projection has a kink, it is the one of max(x, 0)
    with derivative 0 there.

    Args:
        a: $A$, shape (..., n, n), n and the batch may be 0; half types are computed in float32.
        backend: a name from `available_backends()`; None chooses.
    Returns:
        $P$, shape (..., n, n), in the dtype of `a`.
    Raises:
        ValueError: `a` is not (..., n, n), has an integer dtype, or the backend is unknown.
        TypeError: `a` is not a tensor.
    Source: Higham, Computing a nearest symmetric positive semidefinite matrix (1988), theorem 2.1;
        gradient by Daleckii and Krein (1965).
    """
    require_symmetric(a, "project_psd")
    choose_backend(a, backend)  # refuse an unknown name also where nothing is left to do
    if a.numel() == 0:
        return a.clone()
    projected, _, _ = _PositivePart.apply(widen(a), backend)  # pyright: ignore[reportGeneralTypeIssues]
    return projected.to(a.dtype)


class _PositivePart(torch.autograd.Function):
    # The map A -> P is positively homogeneous, so its derivative at A is the one at 2^-k A: the
    # eigenvalues are kept in scaled form and no gradient passes through the scaling.
    #
    # Derivative (Daleckii-Krein): dP = V (F o (V^T dA V)) V^T with the divided differences
    #   F_ij = (f(a) - f(b)) / (a - b),  f = max(., 0),  a = lambda_i, b = lambda_j.
    # Both positive: 1. None positive: 0. Otherwise max(a, b) / (|a| + |b|). All three are
    # (f(a) + f(b)) / (|a| + |b|), which has no cancellation and no gap in a denominator.
    # The map dA -> dP is its own adjoint, hence the same formula for the gradient.

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, backend: str | None) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scaled = scale(a)
        symmetric = _mirror_lower(scaled.matrices)
        solver = load_backend(choose_backend(a, backend))
        values, vectors = solver.eigh(symmetric.reshape(a.shape[:-2].numel(), *a.shape[-2:]))
        values, vectors = values.reshape(a.shape[:-1]), vectors.reshape(a.shape)
        return scaled.restore(_positive_part(symmetric, values, vectors)), values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, values, vectors = output
        ctx.mark_non_differentiable(values, vectors)
        ctx.save_for_backward(values, vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors = ctx.saved_tensors
        kept = values.clamp(min=0)
        size = values.abs()
        denominator = size[..., :, None] + size[..., None, :]
        quotient = (kept[..., :, None] + kept[..., None, :]) / denominator
        quotient = torch.where(denominator > 0, quotient, 0.0)
        symmetric = (gradient + gradient.mH) / 2
        return vectors @ (quotient * (vectors.mH @ symmetric @ vectors)) @ vectors.mH, None


def _positive_part(symmetric: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Assemble P from the smaller side of the spectrum: X X^T, or A + Y Y^T with the negative part Y Y^T.

    Values ascend, so the smaller side lies in the first or in the last half of the columns: a fixed
    number for the whole batch, whose other columns are weighted by zero.
    """
    n = values.shape[-1]
    half = n // 2
    mostly_positive = (values > 0).sum(-1, keepdim=True) > half
    weights = torch.where(
        mostly_positive, (-values[..., : n - half]).clamp(min=0), values[..., half:].clamp(min=0)
    )
    sides = mostly_positive[..., None]
    columns = torch.where(sides, vectors[..., : n - half], vectors[..., half:]) * weights.sqrt()[..., None, :]
    gram = columns @ columns.mH
    return _mirror_lower(torch.where(sides, symmetric + gram, gram))


def _mirror_lower(a: Tensor) -> Tensor:
    lower = torch.tril(a, -1)
    return lower + lower.mH + torch.diag_embed(a.diagonal(dim1=-2, dim2=-1).real)
