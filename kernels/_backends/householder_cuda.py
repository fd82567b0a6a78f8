"""Householder tridiagonalization and implicit QL in shared memory, one block of threads per matrix of size n <= 128 on
a GPU: cuda/householder.cu."""

import torch
from torch import Tensor

from kernels._backends.cuda_kernels import Launch, Launcher, Program, exist as exist, scalar_name, solve

LARGEST = 128


def eigh(a: Tensor, launcher: Launcher | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Reflectors, then QL sweeps whose rotations one warp computes while the others apply the previous ones."""
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
    """The QL sweeps that `eigh` spends on each matrix, shape (batch,)."""
    sweeps = a.new_zeros(a.shape[:1], dtype=torch.int32)
    solve(a, plan(a, "vectors"), launcher, sweeps=sweeps)
    return sweeps


def plan(a: Tensor, result: str) -> Launch:
    """One block per matrix, two threads per column."""
    batch, n, _ = a.shape
    threads = 2 * 32 * -(-n // 32)
    program = Program("householder.cu", scalar_name(a), 0, result)
    return Launch(program, batch, threads, shared_bytes(n, a.element_size()))


def shared_bytes(n: int, element_size: int) -> int:
    """The arrays of `Workspace` in householder.cu: the matrix, eight vectors, a number per warp, six integers."""
    return (n * (n | 1) + 8 * n + 8) * element_size + 24
