"""`kernels.eigh`, `eigvalsh` and `project_psd` beside torch.linalg on batches of symmetric matrices.

One thread against one thread and all against all, over n; one matrix alone and 16 show the overhead of a call.
"""

from __future__ import annotations

import measure
import torch

import kernels
from kernels import dispatch
from kernels._backends import simd

SIZES = [2, 3, 4, 8, 16, 32, 48, 64, 128, 256, 512]


def main() -> None:
    rows = []
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.float64):
            for n in SIZES:
                for batch in sorted({1, 16, _large_batch(n)} if threads == 1 else {_large_batch(n)}):
                    rows.append(_row(dtype, batch, n, threads))
    measure.write("eigh", rows, "torch")
    print("instruction sets:", *simd.instruction_sets())


def _large_batch(n: int) -> int:
    """About 20 ms for torch."""
    return max(16, min(20000, int(3e6 / n**2.2)))


def _row(dtype: torch.dtype, batch: int, n: int, threads: int) -> dict[str, object]:
    a = torch.randn(batch, n, n, dtype=dtype, generator=torch.Generator().manual_seed(0))
    a = a + a.mT
    runs = {
        "torch": lambda: torch.linalg.eigh(a),
        "kernels": lambda: kernels.eigh(a),
        "torch values": lambda: torch.linalg.eigvalsh(a),
        "kernels values": lambda: kernels.eigvalsh(a),
        "torch psd": lambda: _project_with_torch(a),
        "kernels psd": lambda: kernels.project_psd(a),
    }
    seconds = measure.interleaved(runs, repeats=20 if batch * n**3 < 3e7 else 7, warmups=5)
    residual, orthogonality = _accuracy(a)
    return {
        "threads": threads,
        "dtype": str(dtype).removeprefix("torch."),
        "n": n,
        "batch": batch,
        "backend": dispatch.choose_backend(a),
        "torch_us": 1e6 * seconds["torch"] / batch,
        "kernels_us": 1e6 * seconds["kernels"] / batch,
        "ratio": seconds["torch"] / seconds["kernels"],
        "ratio_values_only": seconds["torch values"] / seconds["kernels values"],
        "ratio_project_psd": seconds["torch psd"] / seconds["kernels psd"],
        "residual": residual,
        "orthogonality": orthogonality,
    }


def _project_with_torch(a: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.clamp(min=0)[..., None, :]) @ vectors.mT


def _accuracy(a: torch.Tensor) -> tuple[float, float]:
    """LAPACK's test ratios, the worst of the batch."""
    n, eps = a.shape[-1], torch.finfo(a.dtype).eps
    values, vectors = kernels.eigh(a)
    x, w, v = a.double(), values.double(), vectors.double()
    norm = x.abs().sum(-2).amax(-1)
    residual = (x - (v * w[:, None]) @ v.mT).abs().sum(-2).amax(-1) / (norm * n * eps)
    orthogonality = (torch.eye(n, dtype=torch.float64) - v.mT @ v).abs().sum(-2).amax(-1) / (n * eps)
    return residual.max().item(), orthogonality.max().item()


if __name__ == "__main__":
    main()
