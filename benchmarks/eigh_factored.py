"""`kernels.eigh_factored` beside the dense form and `torch.linalg.eigh`: python benchmarks/eigh_factored.py."""

from __future__ import annotations

import measure
import torch

import kernels
from kernels import factored

SHAPES = [  # d, h, weights
    *((16, h, u) for h in (2, 6) for u in (1, 64)),
    *((64, h, u) for h in (8, 16, 24, 30) for u in (1, 8, 64)),
    *((128, h, u) for h in (16, 32, 48, 60) for u in (1, 8, 64)),
    *((256, h, u) for h in (32, 64, 96, 120) for u in (1, 16)),
    *((512, h, u) for h in (16, 64, 128, 192, 240) for u in (1, 4)),
    (784, 64, 10),
    (784, 256, 10),
    (1024, 64, 4),
    (2048, 64, 1),
    (2048, 256, 1),
]


def dense(left: torch.Tensor, right: torch.Tensor, weights: torch.Tensor) -> object:
    q = (left.mT * weights[:, None, :]) @ right
    return torch.linalg.eigh((q + q.mT) / 2)


def main() -> None:
    rows = []
    for dtype in (torch.float32, torch.float64):
        for d, h, directions in SHAPES:
            generator = torch.Generator().manual_seed(0)
            left, right = (torch.randn(h, d, generator=generator, dtype=dtype) for _ in range(2))
            weights = torch.randn(directions, h, generator=generator, dtype=dtype)
            seconds = measure.interleaved(
                {
                    "dense": lambda args=(left, right, weights): dense(*args),
                    "factored": lambda args=(left, right, weights): kernels.eigh_factored(*args),
                },
                repeats=15 if d <= 128 else 3,
                warmups=1,
            )
            rows.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "d": d,
                    "h": h,
                    "weights": directions,
                    "reduced": 2 * h < d and factored._reduction_pays(2 * h, d, directions),
                    "dense_ms": 1e3 * seconds["dense"],
                    "factored_ms": 1e3 * seconds["factored"],
                    "ratio": seconds["dense"] / seconds["factored"],
                }
            )
    measure.write("eigh_factored", rows, "torch")


if __name__ == "__main__":
    main()
