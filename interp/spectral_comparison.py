"""Similarity of the eigenvectors of several decompositions: other seeds, other sizes, other data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from interp.decomposition import Decomposition
from weightspace.errors import ShapeError


@dataclass(frozen=True, eq=False, repr=False)
class SpectralComparison:
    r"""Agreement of the eigenvectors of several networks, rank by rank.

    Attributes:
        similarity: $|v \cdot w|$ of the vectors of equal direction and rank, in [0, 1], shape
            (pairs, u, k), one row for each pair of networks. Of clusters with projectors P and Q,
            $(\langle P, Q \rangle / \|P\| \|Q\|)^{1/2}$, which is the same for single vectors.
            If `matched`, of partners instead of equal ranks, in the order of the first network.
        unrelated: the mean of the same number over pairs of different directions, shape (pairs, k); None
            with one direction. What networks share without agreeing on the direction, such as the part of
            the input that they look at at all.
        pairs: indices of the networks compared.
        matched: whether vectors were paired by optimal assignment rather than by rank.
        chance: mean $|v \cdot w|$ of random unit vectors,
            $\Gamma(d/2) / (\sqrt{\pi}\, \Gamma((d+1)/2)) \approx \sqrt{2 / \pi d}$.
    """

    similarity: Tensor
    unrelated: Tensor | None
    pairs: tuple[tuple[int, int], ...]
    matched: bool
    chance: float

    @property
    def by_rank(self) -> Tensor:
        """Mean over pairs and directions, shape (k,)."""
        return self.similarity.mean((0, 1))

    def __repr__(self) -> str:
        leading = ", ".join(f"{value:.2f}" for value in self.by_rank[:5].tolist())
        kind = ", matched" if self.matched else ""
        return f"SpectralComparison({len(self.pairs)} pairs, similarity by rank{kind} {leading} ...)"


def compare_spectra(
    decompositions: Sequence[Decomposition], *, terms: int = 20, matched: bool = False
) -> SpectralComparison:
    r"""Compare the leading eigenvectors of every pair of networks that read the same input.

    The networks may have different sizes inside. Vectors of equal eigenvalues are arbitrary within their
    span, so a cluster is compared as a whole; decompose without `top`, which can cut a cluster in two.

    Args:
        decompositions: two or more, of the same directions and the same input.
        terms: how many leading eigenvectors to compare, at most what the smallest has.
        matched: pair the leading eigenvectors of a direction one to one so that the sum of similarities is
            largest. Where eigenvalues lie close, networks have the same vectors in another order.
    Raises:
        ShapeError: fewer than two, numbers of directions or axes that differ, or terms below 1.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
        interpretability (2024), section 4.

    Examples:
        >>> import interp
        >>> from weightspace.layers import Bilinear
        >>> found = interp.compare_spectra([interp.decompose(Bilinear(16, 8, 3)) for _ in range(2)], terms=4)
        >>> found.similarity.shape  # of one pair, three outputs, four terms
        torch.Size([1, 3, 4])
    """
    shapes = {(len(entry.vectors), entry.vectors.shape[2]) for entry in decompositions}
    if len(decompositions) < 2 or len(shapes) > 1:
        raise ShapeError(
            "compare_spectra needs two or more decompositions with equal numbers of directions and axes; got "
            f"{len(decompositions)} with {sorted(shapes)}"
        )
    if terms < 1:
        raise ShapeError(f"compare_spectra compares 1 or more leading eigenvectors; terms is {terms}")
    kept = min(terms, *(entry.vectors.shape[1] for entry in decompositions))
    pairs = tuple(combinations(range(len(decompositions)), 2))
    spans = [_spans(entry, kept) for entry in decompositions]
    pick = _partners if matched else lambda grid: grid.diagonal(dim1=2, dim2=3)
    everything = torch.stack(
        [pick(_overlaps(decompositions[i], decompositions[j], spans[i], spans[j])) for i, j in pairs]
    )
    count, size = shapes.pop()
    own = everything.diagonal(dim1=1, dim2=2).mT
    unrelated = None
    if count > 1:
        unrelated = (everything.sum((1, 2)) - own.sum(1)) / (count * (count - 1))
    chance = math.exp(math.lgamma(size / 2) - math.lgamma((size + 1) / 2)) / math.sqrt(math.pi)
    return SpectralComparison(own.contiguous(), unrelated, pairs, matched, chance)


def _spans(decomposition: Decomposition, kept: int) -> Tensor:
    """For every direction and rank i the indicator of the cluster of i, (u, kept, r), r as large as needed."""
    count, terms, _ = decomposition.vectors.shape
    members = torch.eye(terms, dtype=decomposition.vectors.dtype).repeat(count, 1, 1)
    for direction, clusters in enumerate(decomposition.clusters):
        for cluster in clusters:
            rows = torch.tensor(cluster)
            members[direction, rows[:, None], rows] = 1.0
    reach = int(members[:, :kept].any(0).any(0).nonzero().max()) + 1
    return members[:, :kept, :reach]


def _overlaps(a: Decomposition, b: Decomposition, span_a: Tensor, span_b: Tensor) -> Tensor:
    r"""Similarity of all leading vectors of every direction of a and every one of b, (u, u, k, k).

    $\langle P, Q \rangle = \sum_{i \in C, j \in D} (v_i \cdot w_j)^2$ for clusters C and D.
    """
    others, span_b = b.vectors[:, : span_b.shape[2]].to(a.vectors), span_b.to(span_a)
    rows = []
    for vectors, span in zip(a.vectors[:, : span_a.shape[2]], span_a, strict=True):
        squares = torch.einsum("id,ujd->uij", vectors, others).square()
        sizes = span.sum(-1)[:, None] * span_b.sum(-1)[:, None]
        rows.append((span @ squares @ span_b.mT / sizes.sqrt()).sqrt())
    return torch.stack(rows).clamp(max=1.0)


def _partners(grid: Tensor) -> Tensor:
    """Entries of the best assignment of rows to columns, (..., k, k) -> (..., k)."""
    chosen = [
        linear_sum_assignment(square, maximize=True)[1].tolist() for square in grid.flatten(0, 1).numpy()
    ]
    columns = torch.tensor(chosen).reshape(*grid.shape[:3], 1)
    return grid.gather(-1, columns).squeeze(-1)
