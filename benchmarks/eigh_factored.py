"""`kernels.eigh_factored` beside the dense form and `torch.linalg.eigh`: python benchmarks/eigh_factored.py."""

from __future__ import annotations

import measure
import torch

import kernels

SHAPES = [(64, 32, 10), (784, 64, 10), (784, 256, 10), (1024, 64, 4), (2048, 64, 1)]  # d, h, outputs


def dense(left: torch.Tensor, right: torch.Tensor, weights: torch.Tensor) -> object:
    q = torch.einsum("hi,uh,hj->uij", left, weights, right)
    return torch.linalg.eigh((q + q.mT) / 2)


def main() -> None:
    rows = []
    for d, h, outputs in SHAPES:
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(h, d, generator=generator) for _ in range(2))
        weights = torch.randn(outputs, h, generator=generator)
        seconds = measure.interleaved(
            {
                "dense": lambda args=(left, right, weights): dense(*args),
                "factored": lambda args=(left, right, weights): kernels.eigh_factored(*args),
            },
            repeats=3,
            warmups=1,
        )
        rows.append(
            {
                "d": d,
                "h": h,
                "outputs": outputs,
                "dense_ms": 1e3 * seconds["dense"],
                "factored_ms": 1e3 * seconds["factored"],
                "ratio": seconds["dense"] / seconds["factored"],
            }
        )
    measure.write("eigh_factored", rows, "torch")


if __name__ == "__main__":
    main()
