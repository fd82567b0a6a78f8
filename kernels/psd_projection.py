"""The projection onto the positive semidefinite cone from eigenpairs, by the smaller side of the spectrum."""

import torch
from torch import Tensor


def assemble_positive_part(a: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    r"""Return $V \max(\Lambda, 0) V^H$, exactly Hermitian, as $X X^H$, or as $A + Y Y^H$ with the negative part.

    Args:
        a: $A$, shape (..., n, n); its lower triangle is read.
        values, vectors: its eigenpairs, shapes (..., n) and (..., n, n).
    """
    # Values ascend, so the smaller side lies in the first or in the last half of the columns: a fixed
    # number for the whole batch, whose other columns are weighted by zero.
    n = values.shape[-1]
    half = n // 2
    mostly_positive = (values > 0).sum(-1, keepdim=True) > half
    weights = torch.where(
        mostly_positive, (-values[..., : n - half]).clamp(min=0), values[..., half:].clamp(min=0)
    )
    sides = mostly_positive[..., None]
    columns = torch.where(sides, vectors[..., : n - half], vectors[..., half:]) * weights.sqrt()[..., None, :]
    gram = columns @ columns.mH
    return _mirror_lower(torch.where(sides, a + gram, gram))


def _mirror_lower(a: Tensor) -> Tensor:
    lower = torch.tril(a, -1)
    return lower + lower.mH + torch.diag_embed(a.diagonal(dim1=-2, dim2=-1).real)
