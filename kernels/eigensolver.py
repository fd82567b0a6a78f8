"""Eigenvalues and eigenvectors of batches of symmetric matrices."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.dispatch import choose_backend, load_backend
from kernels.scaling import require_symmetric, scale, widen

# Entries this close to the largest count as equal to it, so that a tie is broken alike on every device.
_PIVOT_SLACK = 2.0**-10


@dataclass(frozen=True, eq=False)
class Eigh:
    """Eigenpairs; also unpacks, as in `values, vectors = eigh(a)`."""

    values: Tensor
    """Shape (..., k), real."""
    vectors: Tensor
    """Shape (..., n, k): column i belongs to value i."""

    def __iter__(self) -> Iterator[Tensor]:
        yield self.values
        yield self.vectors


def eigh(a: Tensor, *, backend: str | None = None) -> Eigh:
    r"""Decompose symmetric matrices.

    $A = V \Lambda V^\top$ with $V^\top V = I$ and ascending $\Lambda$.

    Only the lower triangle is read. A matrix with a NaN or an infinity there gets NaN values and
    vectors and leaves the others alone. Real eigenvectors have a sign: the first entry within a
    factor $1 - 2^{-10}$ of the largest magnitude is positive. The basis of a repeated eigenvalue
    is arbitrary. Half types are computed in float32; complex matrices are taken as Hermitian and
    their vectors have the phase torch gives them.

    Gradients are those of `torch.linalg.eigh`: symmetric, and for vectors infinite where
    eigenvalues repeat. Use a spectral function such as `project_psd` where that matters.

    Args:
        a: $A$, shape (..., n, n), any strides, n and the batch may be 0. It is not changed.
        backend: a name from `available_backends()`; None chooses (see `kernels.dispatch`).
    Returns:
        Eigh with values (..., n), ascending, and contiguous vectors (..., n, n), in the dtype of `a`.
    Raises:
        ValueError: `a` is not (..., n, n), has an integer dtype, or the backend is unknown.
        TypeError: `a` is not a tensor.
        torch.linalg.LinAlgError: LAPACK did not converge.
    Source: LAPACK `syevd` through torch; scaling as in LAPACK `dsyevd`, by powers of two only.
    """
    require_symmetric(a, "eigh")
    solver = load_backend(choose_backend(a, backend))
    if a.numel() == 0:
        return Eigh(a.real.sum(-1), a.clone(memory_format=torch.contiguous_format))
    scaled = scale(widen(a))
    values, vectors = solver.eigh(_flatten_batch(scaled.matrices))
    values = scaled.restore(values.reshape(a.shape[:-1]))
    vectors = scaled.mark(_fix_signs(vectors).reshape(a.shape))
    return Eigh(values.to(a.real.dtype), vectors.to(a.dtype).contiguous())


def eigvalsh(a: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Compute the eigenvalues of symmetric matrices, ascending: $\det(A - \lambda_i I) = 0$.

    Reads, scales and refuses as `eigh` does.

    Args:
        a: $A$, shape (..., n, n).
        backend: a name from `available_backends()`; None chooses.
    Returns:
        Shape (..., n), ascending, real, in the precision of `a`.
    Raises:
        ValueError, TypeError, torch.linalg.LinAlgError: as `eigh`.
    Source: LAPACK `syevd` through torch.
    """
    require_symmetric(a, "eigvalsh")
    solver = load_backend(choose_backend(a, backend))
    if a.numel() == 0:
        return a.real.sum(-1)
    scaled = scale(widen(a))
    values = solver.eigvalsh(_flatten_batch(scaled.matrices))
    return scaled.restore(values.reshape(a.shape[:-1])).to(a.real.dtype)


def top_eigh(a: Tensor, k: int, *, by: str = "magnitude", backend: str | None = None) -> Eigh:
    r"""Compute the k leading eigenpairs of symmetric matrices, the leading one first.

    $\sum_{i<k} \lambda_i v_i v_i^\top$ with `by="magnitude"` is the best rank-k approximation of $A$
    in every unitarily invariant norm.

    Args:
        a: $A$, shape (..., n, n).
        k: number of pairs, 0 to n.
        by: "magnitude" orders by $|\lambda|$, "value" by $\lambda$, both descending; of two values of
            equal magnitude the negative one comes first.
        backend: a name from `available_backends()`; None chooses.
    Returns:
        Eigh with values (..., k) and contiguous vectors (..., n, k).
    Raises:
        ValueError: `k` is not in 0..n, `by` is unknown; otherwise as `eigh`.
        TypeError, torch.linalg.LinAlgError: as `eigh`.
    Source: Eckart and Young (1936), Mirsky (1960). All n pairs are computed and k kept.
    """
    require_symmetric(a, "top_eigh")
    n = a.shape[-1]
    if not 0 <= k <= n:
        raise ValueError(f"`top_eigh` has {n} eigenpairs to choose from; k = {k}: pass a k from 0 to {n}")
    if by not in ("magnitude", "value"):
        raise ValueError(f"`top_eigh` orders by 'magnitude' or by 'value'; by = {by!r}: pass one of the two")
    values, vectors = eigh(a, backend=backend)
    key = values.abs() if by == "magnitude" else values
    order = torch.argsort(key.detach(), dim=-1, descending=True, stable=True)[..., :k]
    return Eigh(
        torch.take_along_dim(values, order, -1), torch.take_along_dim(vectors, order[..., None, :], -1)
    )


def _fix_signs(vectors: Tensor) -> Tensor:
    """Make the first of the (nearly) largest entries of every column positive; complex phases stay."""
    if vectors.is_complex():
        return vectors
    fixed = vectors.detach()
    magnitude = fixed.abs()
    is_pivot = magnitude >= (1 - _PIVOT_SLACK) * magnitude.amax(-2, keepdim=True)
    first = is_pivot.to(torch.uint8).argmax(-2, keepdim=True)
    negative = torch.take_along_dim(fixed, first, -2) < 0
    return torch.where(negative, -vectors, vectors)


def _flatten_batch(a: Tensor) -> Tensor:
    return a.reshape(a.shape[:-2].numel(), *a.shape[-2:])
