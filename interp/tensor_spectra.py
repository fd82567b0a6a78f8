"""Higher-order singular value decomposition of a bilinear layer, by the Gram matrix of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import kernels
from interp.decomposition import Decomposition, decompose_form
from interp.quadratic_form import QuadraticForm
from interp.recognition import recognize
from interp.tensor_similarity import hidden_kernel
from weightspace.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class HOSVD:
    r"""A bilinear layer as $B = \sum_i \sigma_i\, u_i \otimes Q_i$ with orthonormal $u_i$ and $Q_i$.

    Attributes:
        values: $\sigma$, shape (r,), descending.
        directions: $u_i$ as rows, (r, o).
        form: the layer.
    """

    values: Tensor
    directions: Tensor
    form: QuadraticForm

    def decompose(self, count: int | None = None, *, top: int | None = None) -> Decomposition:
        r"""Decompose the first `count` forms $\sigma_i Q_i = Q_{u_i}$; `top` as in `interp.decompose`."""
        return decompose_form(
            self.form, self.directions[:count].double(), top=top, padded=not self.form.is_homogeneous
        )

    def __repr__(self) -> str:
        leading = ", ".join(f"{value:.3g}" for value in self.values[:5].tolist())
        return f"HOSVD({len(self.values)} of {self.directions.shape[1]} directions, values {leading} ...)"


def hosvd(
    layer_or_model: nn.Module | Network, *, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> HOSVD:
    r"""Find the output directions that a bilinear layer uses most, and their forms.

    The singular value decomposition of the (o, d^2) unfolding, from the o x o Gram matrix
    $P K P^\top = U S^2 U^\top$ with the kernel K of `interp.similarity`; biases are padded. Values below
    $10^{-7} \sigma_1$ are rounding noise of the Gram matrix and left out.

    Raises: as `interp.decompose`.
    Source: De Lathauwer, De Moor, Vandewalle, A multilinear singular value decomposition (2000); for bilinear layers
        Pearce et al. (2024), section 3.

    Examples:
        >>> import interp
        >>> from weightspace.layers import Bilinear
        >>> found = interp.hosvd(Bilinear(64, 8, 10))
        >>> found.values.shape, found.directions.shape
        (torch.Size([8]), torch.Size([8, 10]))
    """
    form = recognize(layer_or_model, example_inputs)
    factors = form.padded_factors()
    gram = factors[2] @ hidden_kernel(factors, factors) @ factors[2].mT
    values, vectors = kernels.eigh((gram + gram.mT) / 2)
    values = values.clamp_min(0.0).sqrt().flip(0)
    kept = int((values > 1e-7 * values[:1]).sum())
    dtype = form.dtype if form.dtype == torch.float32 else torch.float64
    return HOSVD(values[:kept].to(dtype), vectors.flip(1)[:, :kept].mT.to(dtype), form)
