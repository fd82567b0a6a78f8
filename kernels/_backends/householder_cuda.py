"""Householder tridiagonalization and implicit QL in shared memory, one block of threads per matrix of size n <= 128 on
a GPU: cuda/householder.cu."""

from torch import Tensor

from kernels._backends.cuda_kernels import KernelSolver, Launch, Program, exist as exist, scalar_name

LARGEST = 128


def plan(a: Tensor, result: str) -> Launch:
    """One block per matrix, two threads per column."""
    batch, n, _ = a.shape
    threads = 2 * 32 * -(-n // 32)
    program = Program("householder.cu", scalar_name(a), 0, result)
    return Launch(program, batch, threads, shared_bytes(n, a.element_size()))


def shared_bytes(n: int, element_size: int) -> int:
    """The arrays of `Workspace` in householder.cu: the matrix, eight vectors, a number per warp, six integers."""
    return (n * (n | 1) + 8 * n + 8) * element_size + 24


_solver = KernelSolver(plan)
eigh, eigvalsh, project_psd = _solver.eigh, _solver.eigvalsh, _solver.project_psd
count_sweeps = _solver.count_sweeps
