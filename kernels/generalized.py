"""Eigenpairs of symmetric pencils: a v = w b v with positive definite b."""

import torch
from torch import Tensor

from kernels.block_tridiagonal import BlockTridiagonal, factorize
from kernels.eigensolver import Eigh, eigh
from kernels.scaling import fix_signs, require_symmetric, scale, widen


def generalized_eigh(a: Tensor, b: Tensor, *, backend: str | None = None, check: bool = False) -> Eigh:
    r"""Decompose symmetric pencils: $A V = B V \Lambda$, $V^\top B V = I$, ascending $\Lambda$.

    With $D$ diagonal, of powers of two, such that $DBD$ has a diagonal in [1/4, 1), and
    $DBD = L L^\top$: $L^{-1} D A D L^{-\top} = U \Lambda U^\top$ and $V = D L^{-\top} U$.

    The computed values err by at most $c\,n\,u\,\kappa(DBD)\,\max|\lambda|$ with a modest c (2 suffices in the tests
    up to $\kappa = 10^{10}$), and $V^\top B V - I$ by $c\,n\,u\,\kappa$: small values next to large ones lose
    relative accuracy where $B$ is ill conditioned. The residual $\|AV - BV\Lambda\|$ relative to
    $(\|A\| + \|B\|\max|\lambda|)\|V\|$ stays below $10\,n\,u\sqrt\kappa$ there.

    Only the lower triangles are read. Where one of the two matrices is not finite or $B$ is not positive definite,
    the values and vectors of this pencil are NaN and its gradients 0. The sign rule is that of `eigh`, applied to
    the columns of V. Gradients through vectors need distinct values, as those of `eigh`; the gradient with respect
    to `a` stands in the lower triangle, that with respect to `b` is symmetric.

    Args:
        a: $A$, shape (..., n, n), real, any strides, n and the batch may be 0; half types are computed in float32.
        b: $B$, shape (..., n, n), dtype and device of `a`; the batch axes broadcast.
        backend: as in `eigh`.
        check: raise if a pencil could not be decomposed; this waits for the device.
    Returns:
        Eigh with values (..., n), ascending, and vectors (..., n, n) in the dtype of `a`.
    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or the backend is unknown.
        TypeError: an argument is not a tensor.
        torch.linalg.LinAlgError: with `check`, naming the first matrices that failed.
    Source: Golub and Van Loan, Matrix computations (2013), algorithm 8.7.1; the scaling by van der Sluis,
        Condition numbers and equilibration of matrices (1969); the bound as in the LAPACK users' guide (1999),
        section 4.10.

    Examples:
        >>> import torch, kernels
        >>> a, b = torch.diag(torch.tensor([1.0, 6.0])), torch.diag(torch.tensor([1.0, 2.0]))
        >>> kernels.generalized_eigh(a, b).values.round(decimals=4)
        tensor([1., 3.])
    """
    _require_pencil(a, b)
    dtype = a.dtype
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (widen(matrix).expand(*batch, *matrix.shape[-2:]) for matrix in (a, b))
    if a.numel() == 0:
        return eigh(a.to(dtype), backend=backend)
    scaled = scale(a)
    root = b.detach().diagonal(dim1=-2, dim2=-1).sqrt()
    # frexp(x) / x is a power of two; the roots of a bad diagonal do not matter.
    shrink = torch.where(torch.isfinite(root) & (root > 0), torch.frexp(root).mantissa / root, 1.0)
    factor = factorize(BlockTridiagonal([b * shrink[..., None] * shrink[..., None, :]]))
    good = scaled.finite & (factor.info == 0)
    if check:
        _raise_failures(scaled.finite, factor.info)
    lifting = shrink[..., None] * factor.inverse_factors[0].mT
    lower = torch.tril(scaled.matrices)
    reduced = lifting.mT @ (lower + torch.tril(lower, -1).mT) @ lifting
    # Distinct values in place of a bad pencil, so that no derivative divides by a gap of 0.
    spread = torch.arange(a.shape[-1], dtype=reduced.dtype, device=reduced.device).diag()
    values, vectors = eigh(torch.where(good[..., None, None], reduced, spread), backend=backend)
    values = torch.where(good[..., None], scaled.restore(values), torch.nan)
    vectors = torch.where(good[..., None, None], fix_signs(lifting @ vectors), torch.nan)
    return Eigh(values.to(dtype), vectors.to(dtype))


def _raise_failures(finite: Tensor, info: Tensor) -> None:
    for good, name, reason in (
        (finite, "a", "has a NaN or infinite entry in its lower triangle: mask such pencils out"),
        (info == 0, "b", "is not positive definite: add a multiple of the identity, or use float64"),
    ):
        failed = (~good).nonzero()
        if len(failed):
            raise torch.linalg.LinAlgError(  # pyright: ignore[reportPrivateImportUsage]
                f"`generalized_eigh` failed for {len(failed)} of {good.numel()} pencils: `{name}` at batch index "
                f"{tuple(failed[0].tolist())} {reason}"
            )


def _require_pencil(a: Tensor, b: Tensor) -> None:
    require_symmetric(a, "generalized_eigh")
    require_symmetric(b, "generalized_eigh")
    if a.is_complex() or b.is_complex():
        raise ValueError(
            f"`generalized_eigh` needs real matrices; `a` has dtype {a.dtype}, `b` {b.dtype}: "
            f"embed H as [[H.real, -H.imag], [H.imag, H.real]]"
        )
    if a.shape[-1] != b.shape[-1] or a.dtype != b.dtype or a.device != b.device:
        raise ValueError(
            f"`generalized_eigh` needs two matrices of one size, dtype and device; `a` is {tuple(a.shape)} {a.dtype} "
            f"on {a.device}, `b` {tuple(b.shape)} {b.dtype} on {b.device}: convert one of them"
        )
