"""Products and sums of one large array in one pass each, with a gradient that is put together in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply the channels: (rows, columns) times (batch, columns, ...)."""
    if x.ndim == 2:
        return x @ matrix.mT
    # Not a view to autograd, so that the result may be added to in place.
    product = torch.bmm(matrix.expand(x.shape[0], *matrix.shape), x.flatten(2))
    return torch.ops.aten._unsafe_view(product, (x.shape[0], matrix.shape[0], *x.shape[2:]))


def mix_and_sum(matrix: Tensor, x: Tensor, axes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
    """Return `multiply(matrix, x)` and x summed over each of `axes`.

    The gradient with respect to x is the product's, to which those of the sums are added in place: for arrays that
    do not fit the cache, allocating is the larger part of the work.
    """
    return _MixAndSum.apply(matrix, x, axes)  # type: ignore[return-value]


class _MixAndSum(torch.autograd.Function):
    @staticmethod
    def forward(matrix: Tensor, x: Tensor, axes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        return multiply(matrix, x), *(x.sum(over) for over in axes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        matrix, x, ctx.axes = inputs
        ctx.save_for_backward(matrix, x)

    @staticmethod
    def backward(ctx: Any, product: Tensor, *sums: Tensor) -> tuple[Tensor | None, ...]:
        matrix, x = ctx.saved_tensors
        to_matrix = torch.bmm(product.flatten(2), x.flatten(2).mT).sum(0) if ctx.needs_input_grad[0] else None
        to_x = None
        if ctx.needs_input_grad[1]:
            to_x = multiply(matrix.mT, product)
            for over, gradient in zip(ctx.axes, sums, strict=True):
                for axis in over:  # ascending, so that each stands where it stood
                    gradient = gradient.unsqueeze(axis)
                to_x = to_x.add_(gradient)
        return to_matrix, to_x, None
