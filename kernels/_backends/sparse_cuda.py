"""Products with sparse matrices on a GPU: cuda/sparse_multiply.cu and cuda/sparse_sample.cu."""

from torch import Tensor

from kernels._backends.cuda_kernels import (
    Launch,
    Launcher,
    Program,
    exist as exist,
    launch_on_device,
    scalar_name,
)

THREADS = 128


def multiply(
    starts: Tensor, columns: Tensor, values: Tensor, dense: Tensor, launcher: Launcher | None = None
) -> Tensor:
    """A D: starts (rows + 1,) and columns (entries,) int32, values (entries,), dense (columns, width)."""
    columns, values, dense = columns.contiguous(), values.contiguous(), dense.contiguous()
    result = dense.new_empty(len(starts) - 1, dense.shape[1])
    if result.numel():
        launch = Launch(
            Program("sparse_multiply.cu", scalar_name(dense), 0, "values"), len(result), THREADS, 0
        )
        pointers = (x.data_ptr() for x in (starts.contiguous(), columns, values, dense, result))
        (launcher or launch_on_device)(launch, (*pointers, dense.shape[1]), dense.device)
    return result


def sample(
    rows: Tensor, columns: Tensor, left: Tensor, right: Tensor, launcher: Launcher | None = None
) -> Tensor:
    r"""Entries (rows, columns), both (entries,) int32, of $L R^\top$ with left (n, width) and right (m, width)."""
    rows, columns, left, right = (
        rows.contiguous(),
        columns.contiguous(),
        left.contiguous(),
        right.contiguous(),
    )
    result = left.new_empty(len(rows))
    if len(rows):
        program = Program("sparse_sample.cu", scalar_name(left), 0, "values")
        launch = Launch(program, -(-len(rows) // (THREADS // 32)), THREADS, 0)
        pointers = (x.data_ptr() for x in (rows, columns, left, right, result))
        (launcher or launch_on_device)(launch, (*pointers, left.shape[1], len(rows)), left.device)
    return result
