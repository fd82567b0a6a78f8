"""Sparse codes: which latents fire for which sample, and products with them that never form the dense (n, m) matrix.

The forward pass holds dense pre-activations for a few hundred samples at a time; gradients live on the pattern of the
codes alone (reference: the fast step of `benchmarks/autoencoder_step.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

import kernels
from kernels.sparse_products import multiply_sparse, sample_product

CHUNK_ENTRIES = 1 << 21
"""Pre-activations held at once on the CPU: 8 MiB in float32, which the allocator reuses and the caches hold."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where an (n, m) matrix of codes may be nonzero, in compressed sparse rows.

    Attributes:
        starts: (n + 1,) int32, where each row begins.
        columns: (nonzeros,) int32, sorted within each row.
        width: m.
    """

    starts: Tensor
    columns: Tensor
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.starts) - 1, self.width

    @cached_property
    def rows(self) -> Tensor:
        """The row of every entry, (nonzeros,)."""
        n = len(self.starts) - 1
        counts = self.starts.diff()
        return torch.repeat_interleave(torch.arange(n, device=counts.device, dtype=torch.int32), counts)

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Starts of the columns (m + 1,), the rows of their entries, and which entry of ours each is."""
        return _by_counting(self) if self.columns.device.type == "cpu" else _by_sorting(self)

    def multiply(self, values: Tensor, dense: Tensor) -> Tensor:
        """A D of the matrix with these values (nonzeros,) and D (m, d): (n, d)."""
        return multiply_sparse(self.starts, self.columns, values, dense)

    def multiply_transposed(self, values: Tensor, dense: Tensor) -> Tensor:
        r"""$A^\top G$ with G (n, d): (m, d)."""
        starts, rows, order = self.transposed
        return multiply_sparse(starts, rows, values[order], dense)

    def sample_product(self, left: Tensor, right: Tensor) -> Tensor:
        r"""The entries of $L R^\top$ on the pattern, L (n, d) and R (m, d): (nonzeros,)."""
        return sample_product(self.starts, self.rows, self.columns, left, right)

    def column_sums(self, values: Tensor) -> Tensor:
        """The sum of every column, (m,)."""
        return values.new_zeros(self.width).index_add_(0, self.columns, values)

    def dense(self, values: Tensor) -> Tensor:
        """The (n, m) matrix with these values."""
        return values.new_zeros(self.shape).index_put((self.rows, self.columns), values)

    def split(self, boundaries: Sequence[int]) -> list[tuple[Pattern, Tensor]]:
        """The parts between boundaries, columns from one up to the next, each with which entries of ours it has."""
        parts = []
        for first, last in zip([0, *boundaries[:-1]], boundaries, strict=True):
            kept = ((self.columns >= first) & (self.columns < last)).nonzero()[:, 0]
            counts = torch.bincount(self.rows[kept], minlength=self.shape[0])
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
            parts.append((Pattern(starts, self.columns[kept], self.width), kept))
        return parts


def _by_counting(pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
    order = np.arange(len(pattern.columns), dtype=np.int32)
    stored = (order, pattern.columns.numpy(), pattern.starts.numpy())
    columns = sparse.csr_array(stored, shape=pattern.shape).tocsc()
    starts, rows, order = (torch.from_numpy(x) for x in (columns.indptr, columns.indices, columns.data))
    return starts, rows, order


def _by_sorting(pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.sort(pattern.columns, stable=True)[1]
    counts = torch.bincount(pattern.columns, minlength=pattern.width)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    return starts, pattern.rows[order], order


def select_top(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Pattern]:
    r"""The k largest entries of every row of $\mathrm{relu}(x W^\top + b)$ and where they are, without derivatives.

    Args:
        x: (n, d), centered.
        weight, bias: W (m, d) and b (m,).
    Returns:
        Values (n k,), zero where fewer than k are positive, and their pattern.
    """
    values, places = [x.new_empty(0, k)], [torch.empty(0, k, dtype=torch.int32, device=x.device)]
    for chunk in _dense_chunks(x, weight, bias):
        best, where = kernels.select_largest(chunk, k)
        values.append(best)
        places.append(where)
    starts = torch.arange(0, len(x) * k + 1, k, dtype=torch.int32, device=x.device)
    return torch.cat(values).flatten().relu_(), Pattern(starts, torch.cat(places).flatten(), len(weight))


def select_batch_top(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Pattern]:
    r"""The n k largest entries of $\mathrm{relu}(x W^\top + b)$ in the whole batch, those that are positive."""
    wanted = len(x) * k
    kept, places = _largest(x, weight, bias, wanted, guess=True)
    if len(kept) < wanted:  # the guess was too high, or fewer are positive
        kept, places = _largest(x, weight, bias, wanted, guess=False)
    places, order = places.sort()
    return kept[order], _pattern_of(places, len(x), len(weight))


def _largest(x: Tensor, weight: Tensor, bias: Tensor, wanted: int, *, guess: bool) -> tuple[Tensor, Tensor]:
    """At most `wanted` largest positive entries of the batch and their places in the flattened matrix, unsorted.

    A guess, from a sample of the first rows, of what twice as many entries exceed spares most of the gathering.
    """
    kept = torch.empty(0, dtype=x.dtype, device=x.device)
    places = torch.empty(0, dtype=torch.int64, device=x.device)
    floor, first = 0.0, 0
    for chunk in _dense_chunks(x, weight, bias):
        entries = chunk.flatten()
        if guess and first == 0:
            sample = entries[::31]
            count = min(2 * wanted * len(sample) // (len(x) * len(weight)) + 8, len(sample))
            floor = max(float(sample.topk(count, sorted=False).values.min()), 0.0)
        above = (entries > floor).nonzero()[:, 0]
        kept = torch.cat([kept, entries[above]])
        places = torch.cat([places, above + first])
        first += chunk.numel()
        if len(kept) > 4 * wanted:  # what lies below the largest so far cannot be among those of the batch
            kept, best = kept.topk(wanted, sorted=False)
            places, floor = places[best], float(kept.min())
    if len(kept) > wanted:
        kept, best = kept.topk(wanted, sorted=False)
        places = places[best]
    return kept, places


def encode(
    x: Tensor, center: Tensor | None, weight: Tensor, bias: Tensor, selected: tuple[Tensor, Pattern]
) -> Tensor:
    r"""Selected entries of $\mathrm{relu}((x - c) W^\top + b)$, (nonzeros,), differentiable in x, c, W and b.

    Args:
        x, center: (n, d), and c (d,) or None for 0.
        weight, bias: W (m, d) and b (m,).
        selected: values and pattern as the functions above found them for x - c; no gradient passes where a value is 0.
    """
    values, pattern = selected
    nothing = weight.new_zeros(()) if center is None else center
    return _Encode.apply(x, nothing, weight, bias, values, pattern, center is not None)  # type: ignore[return-value]


def decode(values: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    r"""$A D$ with the sparse matrix A of these values (nonzeros,) and D (m, d): (n, d), differentiable in both."""
    return _Decode.apply(values, weight, pattern)  # type: ignore[return-value]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, center, weight, bias, values, pattern, centered):
        ctx.save_for_backward(x, center, weight, values)
        ctx.pattern, ctx.centered = pattern, centered
        return values.clone()

    @staticmethod
    def backward(ctx, *gradients):
        x, center, weight, values = ctx.saved_tensors
        for_x, for_center, for_weight, for_bias = ctx.needs_input_grad[:4]
        inner = torch.where(values > 0, gradients[0], 0.0)
        sums = ctx.pattern.column_sums(inner)
        d_x = ctx.pattern.multiply(inner, weight) if for_x else None
        d_center = -(sums @ weight) if ctx.centered and for_center else None
        d_weight = None
        if for_weight:  # x - c before the product: differences of large sums would lose digits
            d_weight = ctx.pattern.multiply_transposed(inner, x - center if ctx.centered else x)
        return d_x, d_center, d_weight, sums if for_bias else None, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weight, pattern):
        ctx.save_for_backward(values, weight)
        ctx.pattern = pattern
        return pattern.multiply(values, weight)

    @staticmethod
    def backward(ctx, *gradients):
        values, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        for_values, for_weight = ctx.needs_input_grad[:2]
        d_values = ctx.pattern.sample_product(gradient, weight) if for_values else None
        d_weight = ctx.pattern.multiply_transposed(values, gradient) if for_weight else None
        return d_values, d_weight, None


def _dense_chunks(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
    r"""$x W^\top + b$ for some rows after the others, in one buffer that is written over."""
    rows = min(len(x), max(CHUNK_ENTRIES // len(weight), 1)) if x.device.type == "cpu" else len(x)
    buffer = x.new_empty(rows, len(weight))
    for start in range(0, len(x), max(rows, 1)):
        part = x[start : start + rows]
        yield torch.addmm(bias, part, weight.mT, out=buffer[: len(part)])


def _pattern_of(places: Tensor, rows: int, width: int) -> Pattern:
    """The pattern of sorted places in the flattened matrix."""
    counts = torch.bincount(places // width, minlength=rows)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    return Pattern(starts, (places % width).to(torch.int32), width)
