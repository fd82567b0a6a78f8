"""Jacobi's method in registers, for many symmetric matrices of size n <= 32 on a GPU: cuda/jacobi.cu."""

from torch import Tensor

from kernels._backends.cuda_kernels import KernelSolver, Launch, Program, exist as exist, scalar_name

LARGEST = 32
THREADS = 128


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


_solver = KernelSolver(plan)
eigh, eigvalsh, project_psd = _solver.eigh, _solver.eigvalsh, _solver.project_psd
count_sweeps = _solver.count_sweeps
