r"""Inner products of rank-one forms $l \otimes r$ from the vectors alone: no object of $d^2$ entries is made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_HELD = 4  # tiles on a side of a kernel that is held: 5/8 of the work and the memory of the whole


def form_gram(
    left: Tensor, right: Tensor, other_left: Tensor, other_right: Tensor, *, symmetric: bool
) -> Tensor:
    r"""Return all inner products of two lists of forms, (a, b).

    $K_{ij} = \langle l_i \otimes r_i, l'_j \otimes r'_j \rangle = (l_i \cdot l'_j)(r_i \cdot r'_j)$, and of the
    symmetric parts $\tfrac12 [K_{ij} + (l_i \cdot r'_j)(r_i \cdot l'_j)]$.

    Args:
        left, right: shape (a, d).
        other_left, other_right: shape (b, d).
        symmetric: of the symmetric parts, which are all that a quadratic form depends on.
    """
    straight = (left @ other_left.mT) * (right @ other_right.mT)
    if not symmetric:
        return straight
    return (straight + (left @ other_right.mT) * (right @ other_left.mT)) / 2


def norm_increments(
    weights: Tensor, left: Tensor, right: Tensor, *, symmetric: bool, tile: int | None = None
) -> Tensor:
    r"""Return what every form adds to the squared norms of weighted sums of the forms before it, (n, m).

    $s_j = g_j \left(K_{jj} g_j + 2 \sum_{i<j} K_{ij} g_i\right)$, so that $\sum_{j<p} s_j = \|\sum_{i<p} g_i\,
    l_i \otimes r_i\|^2$ for every prefix p at once. Tiles (I, J) of K with I before J count twice; of those on the
    diagonal, what stands above their own diagonal.

    Args:
        weights: g, shape (n, m).
        left, right: shape (m, d).
        symmetric: as of `form_gram`.
        tile: side of the square tiles of K where K is larger, each made when it is needed, and again for the gradient.
            A smaller K, or any with None, is held for the gradient, but for the tiles below the diagonal.
    """
    size = len(left)
    held = tile is None or size <= tile
    side = -(-size // _HELD) if held else tile
    blocks = tuple(zip(weights.split(side, 1), left.split(side), right.split(side), strict=True))
    increments = []
    for last, (weight, *form) in enumerate(blocks):
        call = _called if held else _recomputed
        along = call(_diagonal_tile, weight, *form, symmetric)
        for earlier in blocks[:last]:
            along = along + 2 * call(_tile, *earlier, *form, symmetric)
        increments.append(weight * along)
    return torch.cat(increments, 1)


def _tile(
    weight: Tensor, left: Tensor, right: Tensor, other_left: Tensor, other_right: Tensor, symmetric: bool
) -> Tensor:
    return weight @ form_gram(left, right, other_left, other_right, symmetric=symmetric)


def _diagonal_tile(weight: Tensor, left: Tensor, right: Tensor, symmetric: bool) -> Tensor:
    gram = form_gram(left, right, left, right, symmetric=symmetric)
    return weight @ (gram.triu() + gram.triu(1))


def _called(function: Callable[..., Tensor], *arguments: Tensor | bool) -> Tensor:
    return function(*arguments)


def _recomputed(function: Callable[..., Tensor], *arguments: Tensor | bool) -> Tensor:
    """Call a function whose intermediate results are made again for the gradient instead of being held."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def prefix_shares(size: int, like: Tensor) -> Tensor:
    r"""Return the share of the prefixes of lengths 1 to m that contain each form, $c_i = (m - i) / m$, i from 0.

    The mean over prefixes of $\sum_{i<p} a_i$ is $\sum_i c_i a_i$: an ordered loss in closed form.
    """
    return torch.arange(size, 0, -1, dtype=like.dtype, device=like.device) / size


def prefix_tails(size: int, like: Tensor) -> Tensor:
    r"""Return $t_i = \sum_{p=i+1}^{m} 1/p$: the mean over prefixes of their mean of a is $\tfrac1m \sum_i t_i a_i$."""
    lengths = torch.arange(1, size + 1, dtype=like.dtype, device=like.device)
    return lengths.reciprocal().flip(0).cumsum(0).flip(0)
