"""Convolutions and pools as matrices: values are flattened row-major per sample, (channels, *positions)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from weightspace.operations import AdaptiveAveragePool, AveragePool, Conv, MaxPool

Matrix = Any  # np.ndarray or scipy.sparse.csr_array
Sizes = Sequence[int]

LARGEST = 2**25  # entries, zeros included, up to which the check writes a matrix out
_DENSE = 256  # width up to which identities are dense


def window_entries(
    sizes: Sizes, outputs: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Iterator[tuple[tuple[int, ...], np.ndarray, np.ndarray]]:
    r"""Yield (offset in the window, output positions, the input positions they see there), flat; none in the padding.

    Along each axis output p sees inputs $s p - \text{padding} + d o$, $0 \le o <$ kernel.
    """
    for offset in np.ndindex(*kernel):
        places, seen = [], []
        for size, count, step, pad, gap, at in zip(
            sizes, outputs, stride, padding, dilation, offset, strict=True
        ):
            reached = np.arange(count) * step - pad + gap * at
            inside = (reached >= 0) & (reached < size)
            places.append(np.flatnonzero(inside))
            seen.append(reached[inside])
        yield offset, _flat(places, outputs), _flat(seen, sizes)


def _flat(axes: Sequence[np.ndarray], sizes: Sizes) -> np.ndarray:
    return np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), tuple(sizes)).reshape(-1)


def convolution_matrix(
    operation: Conv, weight: np.ndarray, sizes: Sizes, outputs: Sizes
) -> scipy.sparse.csr_array:
    """Return the matrix of a convolution with zero padding, (out * prod(outputs), in * prod(sizes)), sparse.

    Args:
        weight: (out, in / groups, *kernel).
        sizes, outputs: positions along each axis before and after.
    """
    out, each, *kernel = weight.shape
    channels = (
        np.arange(out)[:, None],
        np.arange(each) + (np.arange(out) // (out // operation.groups) * each).reshape(-1, 1),
    )
    rows, columns, values = [], [], []
    entries = window_entries(sizes, outputs, kernel, operation.stride, operation.padding, operation.dilation)
    for offset, places, seen in entries:
        taps = weight[(slice(None), slice(None), *offset)]
        shape = (*taps.shape, len(places))
        rows.append(np.broadcast_to(channels[0][..., None] * math.prod(outputs) + places, shape).reshape(-1))
        columns.append(np.broadcast_to(channels[1][..., None] * math.prod(sizes) + seen, shape).reshape(-1))
        values.append(np.broadcast_to(taps[..., None], shape).reshape(-1))
    shape = (out * math.prod(outputs), each * operation.groups * math.prod(sizes))
    place = (np.concatenate(rows), np.concatenate(columns))
    matrix = scipy.sparse.csr_array(scipy.sparse.coo_array((np.concatenate(values), place), shape))
    matrix.eliminate_zeros()
    return matrix


def average_matrix(
    operation: AveragePool | AdaptiveAveragePool, channels: int, sizes: Sizes, outputs: Sizes
) -> scipy.sparse.csr_array:
    """Return the matrix of a mean over windows, (channels * prod(outputs), channels * prod(sizes)), sparse."""
    if isinstance(operation, AdaptiveAveragePool):
        axes = [adaptive_average(size, count) for size, count in zip(sizes, outputs, strict=True)]
    else:
        shape = zip(sizes, outputs, operation.kernel, operation.stride, operation.padding, strict=True)
        axes = [moving_average(*one, operation.count_padding) for one in shape]
    matrix = scipy.sparse.csr_array(np.ones((1, 1)))
    for axis in axes:  # a mean over a box is a mean along each axis
        matrix = scipy.sparse.kron(matrix, axis, format="csr")
    eye = scipy.sparse.eye_array(channels)
    return scipy.sparse.csr_array(scipy.sparse.kron(eye, matrix, format="csr"))


def moving_average(
    size: int, count: int, kernel: int, stride: int, padding: int, counted: bool
) -> np.ndarray:
    """Return the matrix of a moving average along one axis, (count, size), as torch divides."""
    starts = np.arange(count) * stride - padding
    inside = (np.arange(size) >= starts[:, None]) & (np.arange(size) < starts[:, None] + kernel)
    ends = np.minimum(starts + kernel, size + padding)
    return inside / (ends - starts if counted else inside.sum(axis=1))[:, None]


def adaptive_average(size: int, count: int) -> np.ndarray:
    """Return the matrix of means over [floor(i size / count), ceil((i + 1) size / count)), (count, size)."""
    starts = np.arange(count) * size // count
    ends = -(-(np.arange(count) + 1) * size // count)
    inside = (np.arange(size) >= starts[:, None]) & (np.arange(size) < ends[:, None])
    return inside / inside.sum(axis=1, keepdims=True)


def window_table(operation: MaxPool, channels: int, sizes: Sizes, outputs: Sizes) -> np.ndarray:
    """Return the entries that each maximum is taken of, (channels * prod(outputs), prod(kernel)); -1 is padding."""
    table = np.full((math.prod(outputs), math.prod(operation.kernel)), -1)
    entries = window_entries(
        sizes, outputs, operation.kernel, operation.stride, operation.padding, operation.dilation
    )
    for place, (_, places, seen) in enumerate(entries):
        table[places, place] = seen
    shifts = np.arange(channels)[:, None, None] * math.prod(sizes)
    return np.where(table < 0, -1, table + shifts).reshape(-1, table.shape[1])


# ---- matrices, dense or sparse -----------------------------------------------------------------------------


def identity(width: int) -> Matrix:
    """Return the identity, sparse where it is large."""
    return np.eye(width) if width <= _DENSE else scipy.sparse.csr_array(scipy.sparse.eye_array(width))


def zeros(rows: int, columns: int) -> Matrix:
    """Return the matrix of zeros, sparse where it is large."""
    return (
        np.zeros((rows, columns)) if rows * columns <= _DENSE**2 else scipy.sparse.csr_array((rows, columns))
    )


def dense(matrix: Matrix) -> np.ndarray:
    """Return the matrix as an array."""
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def is_zero(matrix: Matrix) -> bool:
    """Return whether no entry differs from zero."""
    return not (matrix if isinstance(matrix, np.ndarray) else matrix.data).any()


def scale_rows(matrix: Matrix, factors: np.ndarray | float) -> Matrix:
    """Return diag(factors) times the matrix."""
    if isinstance(matrix, np.ndarray):
        return np.reshape(factors, (-1, 1)) * matrix
    each = np.full(matrix.shape[0], factors) if np.ndim(factors) == 0 else factors
    return scipy.sparse.csr_array(scipy.sparse.diags_array(each) @ matrix)


def stack(matrices: Sequence[Matrix]) -> Matrix:
    """Return the matrices on top of each other."""
    if all(isinstance(matrix, np.ndarray) for matrix in matrices):
        return np.concatenate(matrices)
    return scipy.sparse.csr_array(scipy.sparse.vstack(matrices))
