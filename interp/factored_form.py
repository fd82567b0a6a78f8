"""A square or rectangular matrix known by two factors: attention heads, low-rank updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.decomposition import Decomposition, decompose_form
from interp.quadratic_form import QuadraticForm
from weightspace.errors import ShapeError


@dataclass(frozen=True, eq=False, repr=False)
class FactoredForm:
    r"""The matrix $M = L^\top R$ of rank at most h, in float64; no d x d matrix is formed unless asked for.

    Attributes:
        left, right: L (h, d_out) and R (h, d_in).
        padded: whether the last axis of both sides is the constant 1, which holds biases.
        dtype: of the weights it was read from.
    """

    left: Tensor
    right: Tensor
    padded: bool = False
    dtype: torch.dtype = torch.float64

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[1], self.right.shape[1]

    @property
    def norm(self) -> float:
        r"""$|M|_F = \mathrm{tr}(LL^\top RR^\top)^{1/2}$."""
        return float(((self.left @ self.left.mT) * (self.right @ self.right.mT)).sum().clamp_min(0).sqrt())

    @property
    def antisymmetric_share(self) -> float:
        r"""$|M - M^\top|_F^2 / 4|M|_F^2$, what the eigendecomposition of the symmetric part does not see."""
        self._require_square("antisymmetric_share")
        cross = self.right @ self.left.mT
        squared = self.norm**2
        return 0.5 * (1 - float((cross * cross.mT).sum()) / squared) if squared else 0.0

    def matrix(self) -> Tensor:
        """Return M, (d_out, d_in)."""
        return self.left.mT @ self.right

    def decompose(self, *, top: int | None = None, solved_in: torch.dtype = torch.float64) -> Decomposition:
        r"""Eigenpairs of the symmetric part, $x^\top M x = \sum \lambda_i (v_i \cdot x)^2$, as one direction.

        Raises:
            ShapeError: M is not square.
        """
        self._require_square("decompose")
        size = self.shape[0] - self.padded
        zero = self.left.new_zeros(1, size + 1)
        left, right = (
            x if self.padded else torch.nn.functional.pad(x, (0, 1)) for x in (self.left, self.right)
        )
        form = QuadraticForm(left, right, left.new_ones(1, len(left)), zero, (size,), self.dtype)
        return decompose_form(form, left.new_ones(1, 1), top=top, padded=self.padded, solved_in=solved_in)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return (U, S, V) with $M = U^\top \mathrm{diag}(S) V$: (r, d_out), (r,) descending, (r, d_in).

        By a QR factorization of each factor and a singular value decomposition of size h.
        """
        (basis, triangle), (other_basis, other) = (torch.linalg.qr(x.mT) for x in (self.left, self.right))
        first, values, second = torch.linalg.svd(triangle @ other.mT, full_matrices=False)
        return (basis @ first).mT, values, second @ other_basis.mT

    def composed_norm(self, other: FactoredForm) -> float:
        r"""$|M M_{other}|_F$, from matrices of the size of the factors.

        Raises:
            ShapeError: the matrices cannot be multiplied.
        """
        if self.shape[1] != other.shape[0]:
            raise ShapeError(f"matrices of shapes {self.shape} and {other.shape} cannot be multiplied")
        between = self.right @ other.left.mT
        outer = (self.left @ self.left.mT) @ between @ (other.right @ other.right.mT)
        return float((between * outer).sum().clamp_min(0).sqrt())

    @property
    def transposed(self) -> FactoredForm:
        return FactoredForm(self.right, self.left, self.padded, self.dtype)

    def _require_square(self, what: str) -> None:
        if self.shape[0] != self.shape[1]:
            raise ShapeError(f"{what} needs a square matrix; this one has shape {self.shape}: see svd()")

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"FactoredForm({rows} x {columns}, rank at most {len(self.left)}{', padded' if self.padded else ''})"
