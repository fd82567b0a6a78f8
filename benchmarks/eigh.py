"""`kernels.eigh` beside `torch.linalg.eigh` on batches of symmetric matrices: python benchmarks/eigh.py."""

from __future__ import annotations

import measure
import torch

import kernels

SHAPES = [(1, 512), (128, 128), (1024, 8), (2048, 32), (4096, 16)]


def main() -> None:
    rows = []
    for dtype in (torch.float32, torch.float64):
        for batch, n in SHAPES:
            a = torch.randn(batch, n, n, dtype=dtype, generator=torch.Generator().manual_seed(0))
            a = a + a.mT
            seconds = measure.interleaved(
                {"torch": lambda a=a: torch.linalg.eigh(a), "kernels": lambda a=a: kernels.eigh(a)}
            )
            rows.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "batch": batch,
                    "n": n,
                    "torch_ms": 1e3 * seconds["torch"],
                    "kernels_ms": 1e3 * seconds["kernels"],
                    "ratio": seconds["torch"] / seconds["kernels"],
                }
            )
    measure.write("eigh", rows, "torch")


if __name__ == "__main__":
    main()
