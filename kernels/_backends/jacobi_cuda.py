"""Jacobi's method in registers, for many symmetric matrices of size n <= 32 on a GPU: cuda/jacobi.cu."""

import torch
from torch import Tensor

from kernels._backends.cuda_kernels import Launch, Launcher, Program, exist as exist, scalar_name, solve

LARGEST = 32
THREADS = 128


def eigh(a: Tensor, launcher: Launcher | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """One rotation (n = 2), four cyclic sweeps (n = 3) or sweeps of disjoint pairs until nothing is left (n > 3)."""
    return solve(a, plan(a, "vectors"), launcher)


def eigvalsh(a: Tensor, launcher: Launcher | None = None) -> tuple[Tensor, Tensor]:
    """The values of `eigh` by the same rotations."""
    values, _, info = solve(a, plan(a, "values"), launcher)
    return values, info


def project_psd(a: Tensor, launcher: Launcher | None = None) -> tuple[Tensor, Tensor]:
    """The projection (batch, n, n) onto the positive semidefinite cone, and info; no eigenvectors are written."""
    _, projection, info = solve(a, plan(a, "projection"), launcher)
    return projection, info


def count_sweeps(a: Tensor, launcher: Launcher | None = None) -> Tensor:
    """The sweeps that `eigh` spends on each matrix, shape (batch,)."""
    sweeps = a.new_zeros(a.shape[:1], dtype=torch.int32)
    solve(a, plan(a, "vectors"), launcher, sweeps=sweeps)
    return sweeps


def plan(a: Tensor, result: str) -> Launch:
    """A thread per matrix for n <= 3, otherwise as many lanes as the next power of two has.

    n = 3 in four lanes would compute every rotation on four lanes and move each row through shuffles, where the
    traffic with memory is the limit anyway.
    """
    batch, n, _ = a.shape
    lanes = n if n <= 3 else 1 << (n - 1).bit_length()
    per_block = THREADS if n <= 3 else THREADS // lanes
    shared = 0
    if n <= 3:  # results leave through shared memory: a matrix and its values per thread
        shared = THREADS * (n * n + n)
    elif result == "projection":  # the vectors, in rows of odd length
        shared = THREADS * (lanes + 1)
    program = Program("jacobi.cu", scalar_name(a), lanes, result)
    return Launch(program, -(-batch // per_block), THREADS, shared * a.element_size())
