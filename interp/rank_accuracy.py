"""How many eigenvectors of each class a classifier needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.decomposition import Decomposition
from weightspace.errors import ShapeError


@dataclass(frozen=True, eq=False, repr=False)
class RankAccuracy:
    """Accuracy of a decomposed classifier cut to its k leading terms per class.

    Attributes:
        ranks: k, ascending, shape (r,).
        accuracies: share of right predictions from k terms, shape (r,).
        full: from all terms the decomposition has; without `top`, the accuracy of the network.
    """

    ranks: Tensor
    accuracies: Tensor
    full: float

    def lossless_rank(self, tolerance: float = 0.002) -> int | None:
        """Return the smallest measured k from which on the accuracy stays within `tolerance` of the full one."""
        lossy = (self.accuracies < self.full - tolerance).nonzero().flatten()
        first = int(lossy[-1]) + 1 if len(lossy) else 0
        return int(self.ranks[first]) if first < len(self.ranks) else None

    def __repr__(self) -> str:
        pairs = ", ".join(
            f"{rank}: {value:.4f}"
            for rank, value in zip(self.ranks.tolist(), self.accuracies.tolist(), strict=True)
        )
        return f"RankAccuracy({pairs}; full {self.full:.4f})"


def measure_rank_accuracy(
    decomposition: Decomposition,
    x: Tensor,
    y: Tensor,
    *,
    ranks: Sequence[int] = (1, 2, 3, 5, 10, 20, 30, 50),
) -> RankAccuracy:
    r"""Measure the accuracy of $\arg\max_u \sum_{i \le k} \lambda_{ui} (v_{ui} \cdot x')^2$ for several k.

    The same predictions as `decomposition.truncate(k)`, with the terms computed once for all k.

    Args:
        x: inputs, shape (n, *input_shape).
        y: classes, shape (n,): indices of the decomposition's directions.
        ranks: k; those above the number of terms are left out.
    Raises:
        ShapeError: x or y have another shape, or a rank is negative.
    """
    terms = decomposition.values.shape[1]
    if min(ranks, default=0) < 0:
        raise ShapeError(f"ranks are numbers of terms, at least 0; got {list(ranks)}")
    if y.shape != x.shape[:1] or not len(y):
        raise ShapeError(
            f"measure_rank_accuracy needs one class for every input; got {tuple(y.shape)} and {tuple(x.shape)}"
        )
    kept = sorted({rank for rank in ranks if rank <= terms})
    right = torch.zeros(len(kept) + 1, dtype=torch.float64)
    for part, classes in zip(x.split(1024), y.split(1024), strict=True):
        parts = decomposition.explain(part)
        affine = parts[..., terms:].sum(
            -1, keepdim=True
        )  # linear and constant part, where they are not padded
        sums = torch.cat([affine, affine + parts[..., :terms].cumsum(-1)], -1)
        predicted = sums[..., [*kept, terms]].argmax(1)
        right += (predicted == classes[:, None]).sum(0)
    shares = right / len(x)
    return RankAccuracy(torch.tensor(kept), shares[:-1], float(shares[-1]))
