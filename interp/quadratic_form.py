"""The quadratic function of a bilinear layer, with everything affine around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import NonFiniteError
from weightspace.layers import Bilinear


@dataclass(frozen=True, eq=False)
class QuadraticForm:
    r"""The function $y = P\,[(W'x') \odot (V'x')] + A'x'$ with $x' = [x; 1]$, all in float64.

    Attributes:
        left, right: $W' = [W\; b]$ and $V' = [V\; c]$, shape (h, d + 1).
        output: $P$, shape (o, h).
        affine: $A'$, shape (o, d + 1): residual connections and biases after the product.
        input_shape: shape of one sample; d is its number of entries.
        dtype: in which the network computes.
        embedding: $[E\; e]$, shape (r, d + 1), an affine map of fewer than d rows through which everything
            passes, or None: the rows of W', V' and A' are combinations of its rows and of the axis of the 1.
        residual: share of the output's variance that the function leaves out, 0.0 when it is exact.
    """

    left: Tensor
    right: Tensor
    output: Tensor
    affine: Tensor
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    embedding: Tensor | None = None
    residual: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate on (n, d); returns (n, o)."""
        padded = torch.cat([x, x.new_ones(len(x), 1)], 1)
        return (padded @ self.left.mT) * (padded @ self.right.mT) @ self.output.mT + padded @ self.affine.mT

    def magnitude(self, x: Tensor) -> Tensor:
        """Evaluate with the magnitudes of all terms, (n, o): what rounding errors are measured against."""
        padded = torch.cat([x, x.new_ones(len(x), 1)], 1)
        terms = ((padded @ self.left.mT) * (padded @ self.right.mT)).abs() @ self.output.mT.abs()
        return terms + padded.abs() @ self.affine.mT.abs()

    @property
    def is_homogeneous(self) -> bool:
        """Whether there is neither a linear nor a constant part, so that no axis need be padded."""
        return not bool(self.left[:, -1].any() or self.right[:, -1].any() or self.affine.any())

    def affine_parts(self) -> tuple[Tensor, Tensor]:
        """Return the linear and the constant part of every output, (o, d) and (o,)."""
        b, c = self.left[:, -1:], self.right[:, -1:]
        if self.is_homogeneous:
            return torch.zeros_like(self.affine[:, :-1]), torch.zeros_like(self.affine[:, -1])
        linear = self.output @ (c * self.left[:, :-1] + b * self.right[:, :-1])
        return linear + self.affine[:, :-1], self.output @ (b * c)[:, 0] + self.affine[:, -1]

    def padded_factors(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return (L, R, P') with $y = P'\,[(Lx') \odot (Rx')]$: the affine part is a product with the 1.

        Shapes (h + o, d + 1), (h + o, d + 1) and (o, h + o); without the o further units where they are zero.
        """
        if not bool(self.affine.any()):
            return self.left, self.right, self.output
        one = torch.zeros_like(self.affine)
        one[:, -1] = 1.0
        identity = torch.eye(len(self.affine), dtype=self.affine.dtype)
        return (
            torch.cat([self.left, self.affine]),
            torch.cat([self.right, one]),
            torch.cat([self.output, identity], 1),
        )


def form_of_layer(layer: Bilinear) -> QuadraticForm:
    """Take the factors of a `Bilinear` layer as they are.

    Raises:
        NonFiniteError: NaN or infinite weights.
    """
    factors = []
    for name, linear in (("left", layer.left), ("right", layer.right), ("output", layer.output)):
        weight = linear.weight.detach().double().cpu()
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().double().cpu()
        factors.append(torch.cat([weight, bias[:, None]], 1))
        if not bool(
            factors[-1].sum().isfinite() or factors[-1].isfinite().all()
        ):  # the sum is quick, and may overflow
            raise NonFiniteError(f"the {name} factor of the bilinear layer has NaN or infinite entries")
    left, right, output = factors
    affine = left.new_zeros(len(output), left.shape[1])
    affine[:, -1] = output[:, -1]
    return QuadraticForm(left, right, output[:, :-1], affine, (left.shape[1] - 1,), layer.left.weight.dtype)
