"""The operator of implicit layers, z = phi(W z + U x + b), and its derivatives by the implicit function theorem.

It is registered as `torch.ops.weightspace.implicit`, so that a traced or exported network keeps it as one operation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.errors import ArchitectureError, ShapeError
from weightspace.fixed_point import (
    IMPLICIT_ACTIVATIONS,
    activation_slope,
    solve_adjoint,
    solve_fixed_point,
    solve_tangent,
)

_LIBRARY = torch.library.Library("weightspace", "FRAGMENT")
_LIBRARY.define(
    "implicit(Tensor x, Tensor weight, Tensor input_weight, Tensor? bias, str activation, float negative_slope)"
    " -> Tensor"
)


def _solution(
    x: Tensor,
    weight: Tensor,
    input_weight: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
) -> Tensor:
    rows = x.double().reshape(-1, x.shape[-1])
    w, u, b = weight.double(), input_weight.double(), None if bias is None else bias.double()
    size = F.linear(rows.abs(), u.abs(), None if b is None else b.abs()).amax(-1)
    z = solve_fixed_point(w, F.linear(rows, u, b), size, activation=activation, negative_slope=negative_slope)
    return z.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def _shape(x: Tensor, weight: Tensor, input_weight: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
    return F.linear(F.linear(x, input_weight, bias), weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.negative_slope = inputs
    ctx.save_for_backward(*tensors, output)


def _slope(
    ctx: Any, x: Tensor, weight: Tensor, input_weight: Tensor, bias: Tensor | None, z: Tensor
) -> Tensor:
    a = F.linear(z, weight) + F.linear(x, input_weight, bias)
    return activation_slope(ctx.activation, ctx.negative_slope, a)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """In operations that autograd differentiates again, through z as well."""
    x, weight, input_weight, bias, z = ctx.saved_tensors
    x_rows, z_rows = x.reshape(-1, x.shape[-1]), z.reshape(-1, z.shape[-1])
    slope = _slope(ctx, x_rows, weight, input_weight, bias, z_rows)
    v = solve_adjoint(weight, slope, gradient.reshape(z_rows.shape))
    back = (v @ input_weight).reshape(x.shape)
    return back, v.T @ z_rows, v.T @ x_rows, None if bias is None else v.sum(0), None, None


_LIBRARY.impl("implicit", _solution, "CompositeExplicitAutograd")
torch.library.register_fake("weightspace::implicit", _shape, lib=_LIBRARY)
torch.library.register_autograd("weightspace::implicit", _backward, setup_context=_save, lib=_LIBRARY)


class _Implicit(torch.autograd.Function):
    """The operator outside of graphs: registered operators take no forward derivative, and give a silent zero."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return torch.ops.weightspace.implicit(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4], output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, weight, input_weight, bias, z = ctx.saved_tensors
        dx, dw, du, db = tangents[:4]
        terms = [] if dx is None else [F.linear(dx, input_weight)]
        terms += [F.linear(value, d) for value, d in ((z, dw), (x, du)) if d is not None]
        change = sum(terms, torch.zeros_like(z) if db is None else db.expand_as(z))
        slope = _slope(ctx, x, weight, input_weight, bias, z)
        rows = solve_tangent(weight, slope.reshape(-1, z.shape[-1]), change.reshape(-1, z.shape[-1]))
        return rows.reshape(z.shape)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        if in_dims[1:4] == (None, None, None):
            return _Implicit.apply(arguments[0].movedim(in_dims[0], 0), *arguments[1:]), 0
        samples = [
            [
                value if dim is None else value.select(dim, index)
                for value, dim in zip(arguments, in_dims, strict=True)
            ]
            for index in range(info.batch_size)
        ]
        return torch.stack([_Implicit.apply(*sample) for sample in samples]), 0


def require_implicit_activation(activation: str) -> None:
    """Refuse an activation that implicit layers do not have.

    Raises:
        ArchitectureError: not one of "ReLU", "LeakyReLU", "Tanh", "Sigmoid", "Absolute".
    """
    if activation not in IMPLICIT_ACTIVATIONS:
        raise ArchitectureError(
            f"an implicit layer takes one of the activations {', '.join(IMPLICIT_ACTIVATIONS)}; got {activation!r}"
        )


def implicit(
    x: Tensor,
    weight: Tensor,
    input_weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "ReLU",
    negative_slope: float = 0.01,
) -> Tensor:
    r"""Return the fixed point $z = \varphi(W z + U x + b)$ of each sample, solved in float64.

    Differentiable to any order and in both modes by the implicit function theorem,
    $dz = (I - D W)^{-1} D\,(dW z + dU x + U dx + db)$ with D = diag(phi'). Where several fixed points exist, one of
    them is returned. A sample that is not finite gives NaN.

    Args:
        x: (..., m).
        weight: W, (n, n). The fixed point exists and is unique if its spectral norm is below 1 (any activation here,
            as long as |negative_slope| <= 1), or, for a nondecreasing one, if the eigenvalues of (W + W') / 2 are.
        input_weight: U, (n, m); bias: b, (n,).
        activation: "ReLU", "LeakyReLU", "Tanh", "Sigmoid" or "Absolute"; `negative_slope` is LeakyReLU's.
    Returns:
        Tensor of shape (..., n).
    Raises:
        ShapeError: the shapes do not fit.
        ArchitectureError: another activation.
        ConvergenceError: no fixed point was found.
    Source: El Ghaoui, Gu, Travacca, Askari, Tsai, Implicit deep learning (2021), equation 1.1; Bai, Kolter, Koltun,
    Deep equilibrium models (2019); Winston, Kolter, Monotone operator equilibrium networks (2020).
    """
    require_implicit_activation(activation)
    n, m = weight.shape[0], x.shape[-1] if x.ndim else 0
    if (
        x.ndim == 0
        or weight.shape != (n, n)
        or input_weight.shape != (n, m)
        or (bias is not None and bias.shape != (n,))
    ):
        found = [tuple(t.shape) for t in (x, weight, input_weight, bias) if t is not None]
        raise ShapeError(
            f"implicit needs x (..., m), weight (n, n), input_weight (n, m), bias (n,); got {found}"
        )
    if any(t is not None and t.dtype != x.dtype for t in (weight, input_weight, bias)):
        raise ShapeError(f"implicit needs x and the weights in one dtype; got {x.dtype} and {weight.dtype}")
    arguments = (x, weight, input_weight, bias, activation, float(negative_slope))
    if torch.compiler.is_compiling() or x.is_meta:  # whoever records a graph is to see one operation
        return torch.ops.weightspace.implicit(*arguments)
    return _Implicit.apply(*arguments)
