r"""Derivatives of eigenpairs: $dA \mapsto (d\Lambda, dV)$ and its adjoint.

With $E = V^\top \mathrm{sym}(dA) V$ and $F_{ij} = 1/(\lambda_j - \lambda_i)$, $F_{ii} = 0$:
$d\lambda_i = E_{ii}$ and $dV = V (F \circ E)$. The adjoint takes $(g_\lambda, g_V)$ to
$V (\mathrm{diag}(g_\lambda) + F \circ \tfrac12 (M - M^\top)) V^\top$ with $M = V^\top g_V$. Both are written in
differentiable operations, so that derivatives of any order follow.
"""

import torch
from torch import Tensor

GRADIENTS = ("exact", "mask", "lorentz")


def eigh_vjp(
    values: Tensor,
    vectors: Tensor,
    info: Tensor,
    by_values: Tensor | None,
    by_vectors: Tensor | None,
    gradient: str = "exact",
) -> Tensor | None:
    """Gradient with respect to the matrices, symmetric, zero where they were not finite.

    Args:
        values, vectors, info: result of `eigh`, shapes (..., n), (..., n, n), (...).
        by_values, by_vectors: gradients with respect to the first two, or None for zero.
        gradient: how $F$ treats close eigenvalues, see `kernels.eigh`.
    """
    values, vectors, finite = _without_nan(values, vectors, info)
    if by_vectors is not None:
        projected = vectors.mT @ by_vectors
        inner = _reciprocal_gaps(values, gradient) * ((projected - projected.mT) / 2)
        if by_values is not None:
            inner = inner + torch.diag_embed(by_values)
        result = vectors @ inner @ vectors.mT
    elif by_values is not None:
        result = (vectors * by_values[..., None, :]) @ vectors.mT
    else:
        return None
    return torch.where(finite, symmetrize(result), 0.0)


def eigh_jvp(
    values: Tensor, vectors: Tensor, info: Tensor, tangent: Tensor, gradient: str = "exact"
) -> tuple[Tensor, Tensor]:
    """Tangents of values and vectors along `tangent`, whose symmetric part counts."""
    values, vectors, finite = _without_nan(values, vectors, info)
    inner = vectors.mT @ torch.where(finite, symmetrize(tangent), 0.0) @ vectors
    return inner.diagonal(dim1=-2, dim2=-1), vectors @ (_reciprocal_gaps(values, gradient) * inner)


def symmetrize(a: Tensor) -> Tensor:
    """(A + A^H) / 2."""
    return (a + a.mH) / 2


def _without_nan(values: Tensor, vectors: Tensor, info: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # A NaN would also reach the neighbors' second derivatives as 0 * NaN; distinct values keep the gaps nonzero.
    finite = info >= 0
    spread = torch.arange(values.shape[-1], dtype=values.dtype, device=values.device)
    return (
        torch.where(finite[..., None], values, spread),
        torch.where(finite[..., None, None], vectors, 0.0),
        finite[..., None, None],
    )


def _reciprocal_gaps(values: Tensor, gradient: str) -> Tensor:
    gap = values[..., None, :] - values[..., :, None]
    if gradient == "exact":
        equal = torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
        return 1 / torch.where(equal, torch.inf, gap)
    largest = values.detach().abs().amax(-1)[..., None, None]
    tolerance = torch.finfo(values.dtype).eps ** 0.5 * largest
    if gradient == "mask":
        return 1 / torch.where(gap.abs() <= tolerance, torch.inf, gap)
    square = gap.square() + tolerance.square()
    return gap / torch.where(square > 0, square, 1.0)
