"""Which eigensolver is fastest on which GPU: what benchmarks/eigh_gpu.py measured and wrote to cuda_table.json.

The file maps the name of a GPU and a dtype to rules `{"result", "smallest_n", "largest_n", "smallest_batch",
"backend"}`, the first that fits decides. Where none does, and on a GPU that nobody measured, torch solves.
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).with_name("cuda_table.json")


def find_fastest(gpu: str, dtype: torch.dtype, n: int, *, batch: int, vectors: bool) -> str | None:
    """Name the backend for a batch of matrices of size n, or None where nothing better than torch was measured.

    Args:
        gpu: as `torch.cuda.get_device_name` has it.
    """
    return match_rule(_rules(gpu, dtype), n, batch=batch, vectors=vectors)


def match_rule(rules: list[dict[str, Any]], n: int, *, batch: int, vectors: bool) -> str | None:
    """The backend of the first rule that fits."""
    result = "vectors" if vectors else "values"
    for rule in rules:
        fits = rule["smallest_n"] <= n <= rule["largest_n"] and batch >= rule["smallest_batch"]
        if fits and rule["result"] == result:
            return rule["backend"]
    return None


def derive_rules(
    rows: list[dict[str, Any]], *, margin: float = 1.05
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Turn measurements into the content of the file.

    Args:
        rows: with "gpu", "dtype", "result", "n", "batch" and "seconds", a dict from backend to seconds; what failed,
            or failed the accuracy check, is not in it.
        margin: how many times faster than torch a backend must be, at this batch and at every larger one measured.
    """
    table: dict[str, dict[str, list[dict[str, Any]]]] = {}
    groups: dict[tuple[str, str, str, int], dict[int, dict[str, float]]] = {}
    for row in rows:
        groups.setdefault((row["gpu"], row["dtype"], row["result"], row["n"]), {})[row["batch"]] = row[
            "seconds"
        ]
    for (gpu, dtype, result, n), by_batch in sorted(groups.items()):
        batches = sorted(by_batch)
        largest = by_batch[batches[-1]]
        winner = min(largest, key=lambda name: largest[name], default="torch")
        wins = [batch for batch in batches if _wins(by_batch[batch], winner, margin)]
        lasting = [batch for batch in wins if all(other in wins for other in batches if other >= batch)]
        if winner == "torch" or not lasting:
            continue
        rules = table.setdefault(gpu, {}).setdefault(dtype, [])
        rule = {
            "result": result,
            "smallest_n": n,
            "largest_n": n,
            "smallest_batch": lasting[0],
            "backend": winner,
        }
        previous = rules[-1] if rules else None
        if previous and all(previous[key] == rule[key] for key in ("result", "smallest_batch", "backend")):
            measured = sorted(key[3] for key in groups if key[:3] == (gpu, dtype, result))
            if measured.index(n) == measured.index(previous["largest_n"]) + 1:
                previous["largest_n"] = (
                    n  # neighbors among the sizes measured: what lies between goes with them
                )
                continue
        rules.append(rule)
    return table


def _wins(seconds: dict[str, float], name: str, margin: float) -> bool:
    return name in seconds and margin * seconds[name] <= seconds.get("torch", math.inf)


def _rules(gpu: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    return _read().get(gpu, {}).get(str(dtype).removeprefix("torch."), [])


@cache
def _read() -> dict[str, dict[str, list[dict[str, Any]]]]:
    return json.loads(PATH.read_text()) if PATH.exists() else {}
