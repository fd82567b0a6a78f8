"""What every benchmark shares: interleaved timing in one process, and a JSON file with versions and hardware."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    runs: Mapping[str, Callable[[], Any]], *, repeats: int = 9, warmups: int = 2
) -> dict[str, float]:
    """Call the runs in turn, A B A B ..., and return the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmups + repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn >= warmups:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def write(name: str, rows: list[dict[str, Any]], *packages: str) -> None:
    """Print the rows and write them, with the environment, to results/NAME.json."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    result = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "load": os.getloadavg()[0],
            "python": platform.python_version(),
            **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
            **{package: version(package) for package in packages},
        },
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(
            "  ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in row.items()
            )
        )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if cpuinfo.exists()
        else []
    )
    return names[0].split(":")[1].strip() if names else platform.processor()
