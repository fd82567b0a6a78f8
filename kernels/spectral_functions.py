"""Functions of symmetric matrices through their eigenvalues, with derivatives at repeated eigenvalues."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import operators
from kernels.divided_differences import NAMED, ScalarFunction, from_callable
from kernels.scaling import require_symmetric, widen
from kernels.spectral_gradients import assemble, assemble_differentiably


def project_psd(a: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Project symmetric matrices onto the positive semidefinite cone.

    $P = V \max(\Lambda, 0) V^\top = \arg\min_{X \succeq 0} \|X - A\|_F$.

    This is `spectral_function(a, "positive_part")`: only the lower triangle is read, the result is
    exactly symmetric, and first and second derivatives are finite and right at repeated eigenvalues.
    At an eigenvalue 0, where the projection has a kink, they are those of max(x, 0) with derivative 0 there.
    Where no derivative may be asked for, a backend that can assembles the result without storing eigenvectors,
    which rounds differently.

    Args:
        a: $A$, shape (..., n, n), n and the batch may be 0; half types are computed in float32.
        backend: a name from `available_backends()`; None chooses.
    Returns:
        $P$, shape (..., n, n), in the dtype of `a`; NaN for a matrix that is not finite.
    Raises:
        ValueError: `a` is not (..., n, n), has an integer dtype, or the backend is unknown.
        TypeError: `a` is not a tensor.
    Source: Higham, Computing a nearest symmetric positive semidefinite matrix (1988), theorem 2.1.

    Examples:
        >>> import torch, kernels
        >>> projected = kernels.project_psd(torch.diag(torch.tensor([2.0, -1.0])))
        >>> torch.allclose(projected, torch.diag(torch.tensor([2.0, 0.0])), atol=1e-6)
        True
    """
    require_symmetric(a, "project_psd")
    return _apply(a, NAMED["positive_part"], backend)


def spectral_function(
    a: Tensor, f: str | Callable[[Tensor], Tensor], *, backend: str | None = None
) -> Tensor:
    r"""Apply a scalar function to symmetric matrices.

    $f(A) = V f(\Lambda) V^\top$; Hermitian matrices likewise.

    Only the lower triangle is read; the result is exactly symmetric. A matrix with a NaN or an infinity
    gives NaN, its gradient is zero, and its neighbors notice nothing.

    The first derivative along symmetric E is $V (F \circ V^\top E V) V^\top$ with the divided differences
    $F_{ij} = f[\lambda_i, \lambda_j]$, the second one uses $f[\lambda_i, \lambda_k, \lambda_j]$. Both are right
    at repeated eigenvalues, in reverse mode and in forward mode, once or one over the other, but not in
    forward mode over forward mode; what `torch.compile` compiles has the first one in reverse mode. The
    gradient with respect to the whole matrix is symmetric. Named functions have no cancellation in F. The
    derivatives of a callable are found by `torch.func` and integrated between close eigenvalues; tensors
    that the callable holds, such as the weights of a learned filter, get gradients too.

    Args:
        a: $A$, shape (..., n, n), n and the batch may be 0; half types are computed in float32.
        f: "sqrt", "inv_sqrt", "inverse", "log", "exp", "abs", "sign", "positive_part", or an elementwise
            function of a tensor. Where it is not defined, the matrix becomes NaN; for "sqrt", values between
            $-n \epsilon \max|\lambda|$ and 0 count as 0. "abs", "sign" and "positive_part" have
            derivative 0 at 0.
        backend: a name from `available_backends()`; None chooses.
    Returns:
        $f(A)$, shape (..., n, n), in the dtype of `a`.
    Raises:
        ValueError: `a` is not (..., n, n), has an integer dtype, the backend or the name is unknown, or the
            callable changes the shape.
        TypeError: `a` is not a tensor.
        NotImplementedError: on the way to a third derivative, or in forward mode over forward mode.
    Source: Higham, Functions of Matrices (2008), theorem 3.11 (Daleckii and Krein, 1965) and section 3.2.

    Examples:
        >>> import torch, kernels
        >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> root = kernels.spectral_function(a, "sqrt")
        >>> torch.allclose(root @ root, a)
        True
        >>> torch.allclose(kernels.spectral_function(a, lambda x: x**3), a @ a @ a)
        True
    """
    require_symmetric(a, "spectral_function")
    if isinstance(f, str):
        if f not in NAMED:
            raise ValueError(
                f"`spectral_function` knows {sorted(NAMED)}; f = {f!r}: pass one of them, or a callable"
            )
        return _apply(a, NAMED[f], backend)
    return _apply(a, from_callable(f), backend)


def _apply(a: Tensor, function: ScalarFunction, backend: str | None) -> Tensor:
    differentiable = operators.needs_derivative(a)
    if function is NAMED["positive_part"] and not differentiable and operators.is_plain(a):
        projection = operators.solve_projection(widen(a), backend)
        if projection is not None:
            return projection.to(a.dtype)
    wide = operators.traceable(widen(a))
    values, vectors, info = operators.eigh(wide.detach(), backend)
    if a.numel() == 0:
        return a.clone()
    if function is NAMED["sqrt"]:
        rounding = values.shape[-1] * torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True)
        values = torch.where((values < 0) & (values >= -rounding), 0.0, values)
    if not differentiable and function in NAMED.values():
        return assemble(wide, function.value(values), values, vectors, function).to(a.dtype)
    # No NaN may enter a derivative: as 0 * NaN it would come back to the neighbors.
    finite = info >= 0
    values = torch.where(finite[..., None], values, 1.0)
    vectors = torch.where(finite[..., None, None], vectors, 0.0)
    mapped = function.value(values)
    if mapped.shape != values.shape:
        raise ValueError(
            f"`spectral_function` needs an elementwise f; it took eigenvalues of shape {tuple(values.shape)} "
            f"to {tuple(mapped.shape)}"
        )
    spectrum = values, vectors, finite
    return assemble_differentiably(wide, mapped.to(values.dtype), spectrum, function).to(a.dtype)
