"""`kernels.factorize` beside dense and banded Cholesky and sparse LU: python benchmarks/block_tridiagonal.py."""

from __future__ import annotations

from collections.abc import Callable

import measure
import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch

import kernels

SHAPES = [  # blocks, size, batch
    (8, 16, 1),
    (32, 16, 1),
    (128, 16, 1),
    (8, 64, 1),
    (32, 64, 1),
    (128, 64, 1),
    (8, 16, 64),
    (32, 16, 64),
    (8, 64, 64),
]
COLUMNS = 4
LARGEST_DENSE = 2048 * 2048  # entries of the dense batch; above, the dense competitor takes seconds


def random_matrix(blocks: int, size: int, batch: int) -> kernels.BlockTridiagonal:
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(batch, size, size, dtype=torch.float64, generator=generator)

    diagonal = [
        (g @ g.mT) / size + 3 * torch.eye(size, dtype=torch.float64) for g in (draw() for _ in range(blocks))
    ]
    return kernels.BlockTridiagonal(diagonal, [draw() / size**0.5 for _ in range(blocks - 1)])


def banded_storage(matrix: kernels.BlockTridiagonal) -> list[np.ndarray]:
    """The lower diagonals of every matrix, as `scipy.linalg.solveh_banded` takes them."""
    (batch, size, _), width = matrix.shape, 2 * matrix.sizes[0]
    stored = np.zeros((batch, width, size))
    for k, (block, start) in enumerate(zip(matrix.diagonal, range(0, size, width // 2), strict=True)):
        below = [matrix.lower[k]] if k < len(matrix.lower) else []
        column = torch.cat([torch.tril(block), *below], -2).numpy()
        for j in range(width // 2):
            stored[:, : column.shape[1] - j, start + j] = column[:, j:, j]
    return list(stored)


def sparse_matrices(matrix: kernels.BlockTridiagonal) -> list[scipy.sparse.csc_array]:
    found = []
    for i in range(matrix.shape[0]):
        grid: list[list[np.ndarray | None]] = [[None] * len(matrix.diagonal) for _ in matrix.diagonal]
        for k, block in enumerate(matrix.diagonal):
            grid[k][k] = block[i].numpy()
        for k, block in enumerate(matrix.lower):
            grid[k + 1][k], grid[k][k + 1] = block[i].numpy(), block[i].mT.numpy()
        found.append(scipy.sparse.csc_array(scipy.sparse.block_array(grid, format="csc")))
    return found


def competitors(matrix: kernels.BlockTridiagonal, b: torch.Tensor) -> dict[str, Callable[[], object]]:
    banded, sparse, right = banded_storage(matrix), sparse_matrices(matrix), b.numpy()
    runs: dict[str, Callable[[], object]] = {
        "solve": lambda: kernels.factorize(matrix).solve(b),
        "solve_refined": lambda: kernels.factorize(matrix).solve(b, refinements=1),
        "solve_banded": lambda: [
            scipy.linalg.solveh_banded(a, x, lower=True) for a, x in zip(banded, right, strict=True)
        ],
        "solve_splu": lambda: [
            scipy.sparse.linalg.splu(a).solve(x) for a, x in zip(sparse, right, strict=True)
        ],
        "selected": lambda: kernels.factorize(matrix).selected_inverse(),
    }
    if matrix.shape.numel() <= LARGEST_DENSE:
        dense = matrix.to_dense()
        runs["solve_dense"] = lambda: torch.cholesky_solve(b, torch.linalg.cholesky(dense))
        runs["inverse"] = lambda: kernels.factorize(matrix).inverse()
        runs["inverse_dense"] = lambda: torch.cholesky_inverse(torch.linalg.cholesky(dense))
    return runs


def main() -> None:
    rows = []
    for blocks, size, batch in SHAPES:
        matrix = random_matrix(blocks, size, batch)
        b = torch.randn(batch, blocks * size, COLUMNS, dtype=torch.float64)
        runs = competitors(matrix, b)
        for name in ("solve_banded", "solve_splu"):
            np.testing.assert_allclose(np.stack(runs[name]()), runs["solve"]().numpy(), atol=1e-9)
        seconds = measure.interleaved(runs, repeats=5, warmups=1)
        row = {"blocks": blocks, "size": size, "batch": batch}
        row |= {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
        for name in ("dense", "banded", "splu"):
            if f"solve_{name}" in seconds:
                row[f"solve_ratio_{name}"] = seconds[f"solve_{name}"] / seconds["solve"]
        if "inverse_dense" in seconds:
            row["selected_ratio_dense"] = seconds["inverse_dense"] / seconds["selected"]
            row["inverse_ratio_dense"] = seconds["inverse_dense"] / seconds["inverse"]
        rows.append(row)
    measure.write("block_tridiagonal", rows, "torch", "scipy")


if __name__ == "__main__":
    main()
