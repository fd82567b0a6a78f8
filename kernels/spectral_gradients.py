r"""Derivatives of $f(A) = V f(\Lambda) V^H$, with the decomposition taken as given.

With $\tilde E = V^H E V$, divided differences $F_{ij} = f[\lambda_i, \lambda_j]$ and
$F_{ikj} = f[\lambda_i, \lambda_k, \lambda_j]$:

* $Df(A)[E] = V (F \circ \tilde E) V^H$, linear in E and its own adjoint (Daleckii and Krein);
* $D^2 f(A)[E, H] = V \big(\sum_k F_{ikj} (\tilde E_{ik} \tilde H_{kj} + \tilde H_{ik} \tilde E_{kj})\big) V^H$,
  whose trace with a third matrix is symmetric in all three, so that it serves both modes, too.

A is an argument of everything only to carry the graph. Each function is a pair of classes, since Dynamo traces
none that has forward mode.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from kernels.divided_differences import NAMED, ScalarFunction
from kernels.gradients import symmetrize
from kernels.psd_projection import assemble_positive_part

_SLAB = 2**20  # entries of the table of F_ikj that are held at once


def assemble(a: Tensor, mapped: Tensor, values: Tensor, vectors: Tensor, function: ScalarFunction) -> Tensor:
    """Return f(A), exactly Hermitian, from mapped = f(values)."""
    if function is NAMED["positive_part"]:
        return assemble_positive_part(a, values, vectors)
    return _scatter(mapped, vectors)


def assemble_differentiably(
    a: Tensor, mapped: Tensor, spectrum: tuple[Tensor, Tensor, Tensor], function: ScalarFunction
) -> Tensor:
    """Return f(A) as a function of A and of f(values), which has the graph of the tensors that a callable holds.

    Args:
        a: shape (..., n, n).
        mapped: shape (..., n).
        spectrum: values (..., n) and vectors (..., n, n), detached and free of NaN, and where A was finite (...).
        function: f.
    Raises:
        NotImplementedError: two levels of forward mode are open.
    """
    if torch.compiler.is_compiling():
        return _ValueReverse.apply(a, mapped, *spectrum, function)  # pyright: ignore[reportReturnType]
    if sum(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ()) > 1:
        # Torch closes the outer level while the inner one runs, and would return zeros.
        raise NotImplementedError(
            "`spectral_function` and `project_psd` have no forward mode over forward mode: "
            "use torch.func.hessian, or jacfwd and jacrev in turn"
        )
    return _Value.apply(a, mapped, *spectrum, function)  # pyright: ignore[reportReturnType]


class _ValueReverse(torch.autograd.Function):
    """f(A)"""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        a: Tensor, mapped: Tensor, values: Tensor, vectors: Tensor, finite: Tensor, function: ScalarFunction
    ) -> Tensor:
        return torch.where(finite[..., None, None], assemble(a, mapped, values, vectors, function), torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        a, _, *spectrum, ctx.function = inputs
        ctx.save_for_backward(a, *spectrum)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if gradient is None:
            return 6 * (None,)
        a, values, vectors, finite = ctx.saved_tensors
        gradient = symmetrize(torch.where(finite[..., None, None], gradient, 0.0))
        compiling = torch.compiler.is_compiling()
        first, end = (_FirstReverse, _EndReverse) if compiling else (_First, _End)
        by_a = first.apply(a, gradient, _table(values, ctx.function), values, vectors, ctx.function)
        by_mapped = None
        if ctx.needs_input_grad[1]:
            by_mapped = end.apply(a, _rotate(gradient, vectors).diagonal(dim1=-2, dim2=-1).real)
        return by_a, by_mapped, None, None, None, None


class _Value(_ValueReverse):
    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _ValueReverse.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)
        a, _, *spectrum, _ = inputs
        ctx.save_for_forward(a, *spectrum)

    @staticmethod
    def jvp(ctx: Any, along_a: Tensor | None, along_mapped: Tensor | None, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, values, vectors, finite = ctx.saved_tensors
        terms = []
        if along_a is not None:
            direction = symmetrize(torch.where(finite[..., None, None], along_a, 0.0))
            table = _table(values, ctx.function)
            terms.append(_First.apply(a, direction, table, values, vectors, ctx.function))
        if along_mapped is not None:
            terms.append(_End.apply(a, _scatter(along_mapped, vectors)))
        return sum(terms)


class _FirstReverse(torch.autograd.Function):
    """Df(A)[E] for Hermitian E, with F given, as a callable's tensors have derivatives through it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        a: Tensor, direction: Tensor, table: Tensor, values: Tensor, vectors: Tensor, function: ScalarFunction
    ) -> Tensor:
        return _first(direction, table, vectors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.function = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if gradient is None:
            return 6 * (None,)
        a, direction, table, values, vectors = ctx.saved_tensors
        gradient = symmetrize(gradient)
        by_a = by_direction = by_table = None
        if ctx.needs_input_grad[0]:
            by_a = _End.apply(a, _second(direction, gradient, table, values, vectors, ctx.function))
        if ctx.needs_input_grad[1]:
            by_direction = _First.apply(a, gradient, table, values, vectors, ctx.function)
        if ctx.needs_input_grad[2]:
            product = _rotate(direction, vectors).conj() * _rotate(gradient, vectors)
            by_table = _End.apply(a, product.real)
        return by_a, by_direction, by_table, None, None, None


class _First(_FirstReverse):
    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _FirstReverse.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(*inputs[:-1])

    @staticmethod
    def jvp(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, along_a: Tensor | None, along_direction: Tensor | None, along_table: Tensor | None, *_: Any
    ) -> Any:
        a, direction, table, values, vectors = ctx.saved_tensors
        terms = []
        if along_a is not None:
            second = _second(direction, symmetrize(along_a), table, values, vectors, ctx.function)
            terms.append(_End.apply(a, second))
        if along_direction is not None:
            along = symmetrize(along_direction)
            terms.append(_First.apply(a, along, table, values, vectors, ctx.function))
        if along_table is not None:
            terms.append(_End.apply(a, _first(direction, along_table, vectors)))
        return sum(terms)


class _EndReverse(torch.autograd.Function):
    """x, which depends on A in a way that is not differentiated any further, and says so when asked."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.needs_input_grad[0] and gradient is not None:
            raise _too_deep()
        return None, gradient


class _End(_EndReverse):
    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, by_x: Tensor | None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if tangent is not None:
            raise _too_deep()
        return by_x


def _too_deep() -> NotImplementedError:
    return NotImplementedError(
        "`spectral_function` and `project_psd` have first and second derivatives with respect to the matrix, no "
        "third one, and none that mixes the matrix with tensors held by a callable in reverse mode; "
        "`eigh` has derivatives of any order where eigenvalues are distinct"
    )


def _first(direction: Tensor, table: Tensor, vectors: Tensor) -> Tensor:
    return symmetrize(vectors @ (table * _rotate(direction, vectors)) @ vectors.mH)


def _second(
    one: Tensor, other: Tensor, table: Tensor, values: Tensor, vectors: Tensor, function: ScalarFunction
) -> Tensor:
    one, other = _rotate(one, vectors), _rotate(other, vectors)
    n = values.shape[-1]
    inner = torch.zeros_like(one)
    width = max(1, _SLAB // max(1, one.numel()))
    for start in range(0, n, width):
        k = slice(start, min(start + width, n))
        first = table[..., :, k, None], table[..., None, k, :], table[..., :, None, :]
        second = function.second(
            values[..., :, None, None], values[..., None, k, None], values[..., None, None, :], first
        )
        terms = one[..., :, k, None] * other[..., None, k, :] + other[..., :, k, None] * one[..., None, k, :]
        inner = inner + (second * terms).sum(-2)
    return symmetrize(vectors @ inner @ vectors.mH)


def _table(values: Tensor, function: ScalarFunction) -> Tensor:
    return function.first(values[..., :, None], values[..., None, :])


def _rotate(a: Tensor, vectors: Tensor) -> Tensor:
    return vectors.mH @ a @ vectors


def _scatter(diagonal: Tensor, vectors: Tensor) -> Tensor:
    return symmetrize((vectors * diagonal[..., None, :]) @ vectors.mH)
