"""Eigenvalues and eigenvectors of batches of symmetric matrices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from kernels import operators
from kernels.gradients import GRADIENTS, eigh_jvp, eigh_vjp
from kernels.scaling import require_symmetric, widen


@dataclass(frozen=True, eq=False)
class Eigh:
    """Eigenpairs; also unpacks, as in `values, vectors = eigh(a)`.

    Examples:
        >>> import torch, kernels
        >>> pairs = kernels.eigh(torch.diag(torch.tensor([2.0, 1.0])))
        >>> pairs.values
        tensor([1., 2.])
        >>> values, vectors = pairs
    """

    values: Tensor
    """Shape (..., k), real."""
    vectors: Tensor
    """Shape (..., n, k): column i belongs to value i."""

    def __iter__(self) -> Iterator[Tensor]:
        yield self.values
        yield self.vectors


# So that `torch.vmap`, `torch.func` and `torch.compile` see through it.
pytree.register_dataclass(Eigh)


def eigh(a: Tensor, *, backend: str | None = None, check: bool = False, gradient: str = "exact") -> Eigh:
    r"""Decompose symmetric matrices.

    $A = V \Lambda V^\top$ with $V^\top V = I$ and ascending $\Lambda$.

    Only the lower triangle is read. A matrix with a NaN or an infinity there gets NaN values and
    vectors and leaves the others alone. Real eigenvectors have a sign: the first entry within a
    factor $1 - 2^{-10}$ of the largest magnitude is positive. The basis of a repeated eigenvalue
    is arbitrary. Half types are computed in float32; complex matrices are taken as Hermitian and
    their vectors have the phase torch gives them.

    On the CPU, many small matrices go to our own solver: Householder tridiagonalization and implicit QL, one matrix
    per lane of a vector register. There a matrix has the same bits wherever it stands in a batch, whatever its
    neighbors and however many threads work; for n up to 16 also whatever the batch size.

    Derivatives of every order exist in both modes, also under `torch.func` and `torch.vmap`; what
    `torch.compile` compiles has first derivatives in reverse mode.
    The gradient with respect to the whole matrix is the symmetric one, and of a tangent only the symmetric
    part counts; a matrix that is not finite has gradient zero. Derivatives of vectors have the factors
    $F_{ij} = 1 / (\lambda_j - \lambda_i)$, infinite where eigenvalues repeat. With the tolerance
    $\eta = \sqrt{\epsilon} \max|\lambda|$, `gradient` makes them finite:

    * "exact": as they are.
    * "mask": $F_{ij} = 0$ where $|\lambda_j - \lambda_i| \le \eta$.
    * "lorentz": $F_{ij} = d / (d^2 + \eta^2)$ with $d = \lambda_j - \lambda_i$.

    **The last two are wrong, though finite, for losses that weigh vectors by a function of repeated
    eigenvalues**, such as $\mathrm{tr}(C \exp A)$: there the numerator vanishes with the gap, and what is
    dropped is $f'$. Use `spectral_function`, which is exact. They are right for projectors onto whole
    clusters. Nothing warns at run time: to tell the cases apart, the gradient would have to wait for the device.

    Args:
        a: $A$, shape (..., n, n), any strides, n and the batch may be 0. It is not changed.
        backend: a name from `available_backends()`; None chooses (see `kernels.dispatch`).
        check: raise if a matrix is not finite or not decomposed. This waits for the device, and is not
            for code that `torch.compile` or `torch.vmap` runs.
        gradient: "exact", "mask" or "lorentz", as above; complex matrices have the gradients of torch.
    Returns:
        Eigh with values (..., n), ascending, and contiguous vectors (..., n, n), in the dtype of `a`.
    Raises:
        ValueError: `a` is not (..., n, n), has an integer dtype, or the backend or gradient is unknown.
        TypeError: `a` is not a tensor.
        torch.linalg.LinAlgError: with `check`, naming the first matrices that failed and why.
    Source: Golub and Van Loan, Matrix Computations (4th ed.), algorithms 8.3.1 to 8.3.3; scaling as in LAPACK
        `dsyevd`, by powers of two only.

    Examples:
        >>> import torch, kernels
        >>> a = torch.diag(torch.tensor([2.0, 1.0])).expand(1000, 2, 2)
        >>> values, vectors = kernels.eigh(a)
        >>> values.shape, vectors.shape
        (torch.Size([1000, 2]), torch.Size([1000, 2, 2]))
        >>> values[0]
        tensor([1., 2.])
    """
    require_symmetric(a, "eigh")
    if gradient not in GRADIENTS:
        raise ValueError(f"`eigh` has the gradients {GRADIENTS}; gradient = {gradient!r}: pass one of them")
    wide = widen(a)
    values, vectors, info = _decompose(wide, backend, gradient)
    if check:
        operators.raise_failures(info, "eigh")
    if wide is a:
        return Eigh(values, vectors)
    return Eigh(values.to(a.dtype), vectors.to(a.dtype))


def eigvalsh(a: Tensor, *, backend: str | None = None, check: bool = False) -> Tensor:
    r"""Compute the eigenvalues of symmetric matrices, ascending: $\det(A - \lambda_i I) = 0$.

    Reads, scales and refuses as `eigh` does. The gradient is $V \mathrm{diag}(g) V^\top$, finite also at repeated
    eigenvalues; second derivatives need distinct ones. Where a derivative may be asked for, the values come
    from `eigh`, and may differ in the last bits.

    Args:
        a: $A$, shape (..., n, n).
        backend: a name from `available_backends()`; None chooses.
        check: as in `eigh`.
    Returns:
        Shape (..., n), ascending, real, in the precision of `a`.
    Raises:
        ValueError, TypeError, torch.linalg.LinAlgError: as `eigh`.

    Examples:
        >>> import torch, kernels
        >>> kernels.eigvalsh(torch.tensor([[0.0, 1.0], [1.0, 0.0]])).round(decimals=4)
        tensor([-1.,  1.])
    """
    require_symmetric(a, "eigvalsh")
    wide = widen(a)
    if operators.needs_derivative(wide):
        values, _, info = _decompose(wide, backend, "exact")
    else:
        values, info = operators.eigvalsh(wide, backend)
    if check:
        operators.raise_failures(info, "eigvalsh")
    return values if wide is a else values.to(a.dtype)


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
        TypeError: as `eigh`.
    Source: Eckart and Young (1936), Mirsky (1960). All n pairs are computed and k kept.

    Examples:
        >>> import torch, kernels
        >>> a = torch.diag(torch.tensor([1.0, -3.0, 2.0]))
        >>> kernels.top_eigh(a, 2).values
        tensor([-3.,  2.])
        >>> kernels.top_eigh(a, 2, by="value").values
        tensor([2., 1.])
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


def _decompose(a: Tensor, backend: str | None, gradient: str) -> tuple[Tensor, Tensor, Tensor]:
    if a.is_complex():
        return operators.solve_eigh(a, backend)  # torch's own operations, with torch's derivatives
    if not operators.needs_derivative(a):
        return operators.eigh(a, backend)
    function = _EighReverse if torch.compiler.is_compiling() else _Eigh
    return function.apply(operators.traceable(a), backend, gradient)  # pyright: ignore[reportReturnType]


class _EighReverse(torch.autograd.Function):
    """The eigenpairs with info, in reverse mode. Derivatives of the derivative go through the saved outputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, backend: str | None, gradient: str) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Detached, since an operator with a registered derivative refuses `torch.func`.
        return operators.eigh(a.detach(), backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.gradient = inputs[2]
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, by_values: Tensor | None, by_vectors: Tensor | None, _: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors, info = ctx.saved_tensors
        return eigh_vjp(values, vectors, info, by_values, by_vectors, ctx.gradient), None, None


class _Eigh(_EighReverse):
    """With forward mode, which Dynamo does not trace."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _EighReverse.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors, info = ctx.saved_tensors
        # Forward mode is off in here, and with it an outer level of forward mode.
        with forward_ad._set_fwd_grad_enabled(True):
            return *eigh_jvp(values, vectors, info, tangent, ctx.gradient), None
