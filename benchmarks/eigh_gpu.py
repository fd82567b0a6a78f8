"""`kernels.eigh` on a GPU beside torch.linalg.eigh and cusolverDnXsyevBatched: python benchmarks/eigh_gpu.py.

CUDA events on the current stream, calls of all sides in turn on the same input, medians and minima, the accuracy
ratios in the same row. Writes results/eigh_gpu.json and, with --write-table, the table that `kernels.dispatch` reads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

import measure
import torch

from kernels._backends import cuda_table, cusolver, householder_cuda, jacobi_cuda

SIZES = [2, 3, 4, 8, 16, 32, 33, 48, 64, 96, 128, 256, 512]
BATCHES = [1, 64, 1024, 16384, 10**6]
WARMUPS, REPEATS = 5, 20
ACCEPTED_RATIO = 10.0
BYTES = 2**32  # of one input


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write-table", action="store_true", help="enter this GPU into kernels/_backends/cuda_table.json"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "benchmarks/eigh_gpu.py needs a CUDA device, and torch sees none: run it on a machine with a GPU"
        )
    _print_versions()
    rows = []
    for dtype in (torch.float32, torch.float64):
        for n in options.sizes:
            for batch in BATCHES:
                if (batch <= 16384 or n <= 8) and batch * n * n * dtype.itemsize <= BYTES:
                    rows += [_row(dtype, batch, n, result) for result in ("vectors", "values", "projection")]
    measure.write("eigh_gpu", rows, "torch")
    if options.write_table:
        table = json.loads(cuda_table.PATH.read_text())
        table |= cuda_table.derive_rules([row for row in rows if row["result"] != "projection"])
        cuda_table.PATH.write_text(json.dumps(table, indent=1) + "\n")


def _print_versions() -> None:
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    print(
        f"{torch.cuda.get_device_name()}, compute capability {capability}; torch {torch.__version__}", end=""
    )
    print(f", CUDA {torch.version.cuda}; cuSOLVER", ".".join(map(str, _cusolver_version() or ("unknown",))))


def _cusolver_version() -> tuple[int, ...] | None:
    return cusolver.torch_platform().version if cusolver.exist() else None


def _row(dtype: torch.dtype, batch: int, n: int, result: str) -> dict[str, Any]:
    a = torch.randn(batch, n, n, dtype=dtype, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    a = (a + a.mT) / 2
    accurate, inaccurate, failed = {}, [], {}
    runs = _runs(a, result)
    for name, run in runs.items():
        try:
            run(a)
            ratios = _ratios(a[:256], run, result)
        except RuntimeError as error:  # torch at a million matrices, for one; no memory, for another
            failed[name] = str(error).splitlines()[0]
            continue
        if max(ratios) <= ACCEPTED_RATIO:
            accurate[name] = ratios
        else:
            inaccurate.append(name)
    milliseconds = _interleaved(a, {name: runs[name] for name in accurate})
    median = {name: statistics.median(times) for name, times in milliseconds.items()}
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "cusolver": _cusolver_version(),
        "dtype": str(dtype).removeprefix("torch."),
        "result": result,
        "n": n,
        "batch": batch,
        "seconds": {name: time / 1e3 for name, time in median.items()},
        "fastest_seconds": {name: min(times) / 1e3 for name, times in milliseconds.items()},
        "ratio": {name: median["torch"] / time for name, time in median.items() if "torch" in median},
        "accuracy": accurate,
        "inaccurate": inaccurate,
        "failed": failed,
    }


def _runs(a: torch.Tensor, result: str) -> dict[str, Callable[[torch.Tensor], Any]]:
    n = a.shape[-1]
    own = {"jacobi_cuda": jacobi_cuda, "householder_cuda": householder_cuda}
    fitting = {name: solver for name, solver in own.items() if solver.exist() and n <= solver.LARGEST}
    if result == "projection":
        return {"torch": _torch_projection, **{name: solver.project_psd for name, solver in fitting.items()}}
    if cusolver.exist():
        fitting["cusolver"] = cusolver
    if result == "values":
        return {"torch": torch.linalg.eigvalsh, **{name: solver.eigvalsh for name, solver in fitting.items()}}
    return {"torch": torch.linalg.eigh, **{name: solver.eigh for name, solver in fitting.items()}}


def _torch_projection(a: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.clamp(min=0)[..., None, :]) @ vectors.mT


def _ratios(a: torch.Tensor, run: Callable[[torch.Tensor], Any], result: str) -> tuple[float, ...]:
    """Residual and orthogonality; the error of the values, or of the projection, in the same units."""
    n, eps = a.shape[-1], torch.finfo(a.dtype).eps
    x = a.double()
    norm = x.abs().sum(-2).amax(-1)
    results = run(a)
    if result == "projection":
        projection = results if isinstance(results, torch.Tensor) else results[0]
        error = (projection.double() - _torch_projection(x)).abs().sum(-2).amax(-1)
        return (float((error / (n * eps * norm)).max()),)
    if result == "values":
        values = results if isinstance(results, torch.Tensor) else results[0]
        error = (values.double() - torch.linalg.eigvalsh(x)).abs().amax(-1)
        return (float((error / (n * eps * norm)).max()),)
    w, v = results[0].double(), results[1].double()
    residual = (x - (v * w[..., None, :]) @ v.mT).abs().sum(-2).amax(-1) / (n * eps * norm)
    basis = (torch.eye(n, device=a.device) - v.mT @ v).abs().sum(-2).amax(-1) / (n * eps)
    return float(residual.max()), float(basis.max())


def _interleaved(
    a: torch.Tensor, runs: Mapping[str, Callable[[torch.Tensor], Any]]
) -> dict[str, list[float]]:
    """Milliseconds of each repeat, between events on the current stream; A B A B ..."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARMUPS + REPEATS):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run(a)
            end.record()
            end.synchronize()
            if turn >= WARMUPS:
                times[name].append(start.elapsed_time(end))
    return times


if __name__ == "__main__":
    main()
