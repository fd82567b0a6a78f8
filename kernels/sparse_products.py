"""Products of sparse matrices in compressed rows with dense ones, and entries of dense products on their pattern.

Indices are trusted: nothing here looks whether they lie in range.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from kernels._backends import sparse_cuda

_NARROW = (torch.float16, torch.bfloat16)
"""Computed in float32: neither MKL nor our kernels know them."""


def multiply_sparse(starts: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """Return A D for a sparse matrix A: (rows, width). MKL on the CPU; our own kernel on a GPU.

    Args:
        starts: (rows + 1,), int32: where each row begins.
        columns: (entries,), int32, sorted within each row.
        values: (entries,).
        dense: D, (columns of A, width), of the dtype of the values.
    """
    if dense.dtype in _NARROW:
        return multiply_sparse(starts, columns, values.float(), dense.float()).to(dense.dtype)
    if _ours(dense):
        return sparse_cuda.multiply(starts, columns, values, dense)
    return _matrix(starts, columns, values, len(dense)) @ dense


def sample_product(starts: Tensor, rows: Tensor, columns: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""Return the entries of $L R^\top$ on a pattern: (entries,). MKL on the CPU; our own kernel on a GPU.

    Args:
        starts, rows, columns: of the pattern, int32: where each row begins, and the row and column of every entry.
        left: L, (rows of the pattern, width).
        right: R, (columns of the pattern, width).
    """
    if left.dtype in _NARROW:
        return sample_product(starts, rows, columns, left.float(), right.float()).to(left.dtype)
    if _ours(left):
        return sparse_cuda.sample(rows, columns, left, right)
    zero = _matrix(starts, columns, left.new_zeros(len(columns)), len(right))
    return torch.sparse.sampled_addmm(zero, left, right.mT, beta=0.0).values()


def _ours(dense: Tensor) -> bool:
    return dense.is_cuda and dense.dtype in (torch.float32, torch.float64) and sparse_cuda.exist()


def _matrix(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    shape = (len(starts) - 1, width)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)  # "beta", once a process
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
