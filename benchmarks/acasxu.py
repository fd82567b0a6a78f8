"""The 45 ACAS Xu networks from their ONNX files: Lipschitz constants, global and local, and properties 1 to 4.

    OMP_NUM_THREADS=1 python benchmarks/acasxu.py lipschitz      45 x (all inputs, boxes of properties 1-4, radius .02)
    OMP_NUM_THREADS=1 python benchmarks/acasxu.py properties     45 x 4 verdicts, proofs checked, refutations replayed

Needs WEIGHTSPACE_DATA (acasxu) and onnxruntime. Two processes. Every certificate is checked when it is written; with
--evidence DIR all of them are kept.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import write

import certify
from certify import Box, Polyhedron, Property
from weightspace import read

FOLDER = Path(os.environ.get("WEIGHTSPACE_DATA", "data")) / "acasxu"
MEAN, RANGE = np.array([19791.091, 0, 0, 650, 600]), np.array([60261, 2 * np.pi, 2 * np.pi, 1100, 1200])
NETWORKS = [(a, b) for a in range(1, 6) for b in range(1, 10)]


def cpu_seconds() -> float:
    """Return the processor time of all finished processes: on idle cores, two of them need half of it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def network_file(a: int, b: int) -> Path:
    return FOLDER / f"ACASXU_run2a_{a}_{b}_batch_2000.onnx"


def read_property(number: int) -> Property:
    """Read a property of the data folder; its box is in physical units."""
    lines = (FOLDER / f"acasxu_prop_{number}_input_prenormalized.txt").read_text().split("\n")
    ends = np.array([[float(end) for end in line.strip("[] ").split(",")] for line in lines if line.strip()])
    box = Box((ends[:, 0] - MEAN) / RANGE, (ends[:, 1] - MEAN) / RANGE)
    words = (FOLDER / f"acasxu_prop_{number}_constraints.txt").read_text().split("\n")[1].split()
    identity = np.eye(5)
    output = int(words[0][1:])
    others = np.delete(identity, output, axis=0)
    match words[1:]:
        case ["<=", limit]:
            unsafe = Polyhedron(-identity[[output]], [-float(limit)])
        case ["notmax"]:
            unsafe = Polyhedron(others - identity[output], np.zeros(4))
        case ["notmin"]:
            unsafe = Polyhedron(identity[output] - others, np.zeros(4))
        case other:
            raise ValueError(f"property {number}: {other}")
    return Property(box, (unsafe,), f"property {number}")


def bounds_of(place: tuple[int, int], evidence: Path | None) -> dict[str, tuple[float, float, float]]:
    """Return region -> (upper bound, attained, seconds) of one network."""
    torch.set_num_threads(1)
    network = read(network_file(*place))
    regions: dict[str, Box | None] = {"global": None}
    regions |= {f"property {number}": read_property(number).region for number in (1, 2, 3, 4)}
    regions["radius .02"] = Box([-0.02] * 5, [0.02] * 5)
    found = {}
    for name, region in regions.items():
        certificate = certify.lipschitz(network, region=region, bounder=certify.LipSDP(tolerance=1e-4))
        assert certificate.upper_bound is not None, (place, name, certificate.status)
        if evidence is not None:
            (evidence / f"{place[0]}_{place[1]} {name}.json").write_text(certificate.to_json())
        found[name] = certificate.upper_bound, certificate.sampled_lower_bound, certificate.seconds
    return found


def lipschitz(evidence: Path | None) -> None:
    started = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        results = list(pool.map(partial(bounds_of, evidence=evidence), NETWORKS))
    seconds, used = time.perf_counter() - started, cpu_seconds()
    rows = []
    for name in results[0]:
        factors = [one["global"][0] / one[name][0] for one in results]
        rows.append(
            {
                "region": name,
                "networks": len(results),
                "smallest": min(one[name][0] for one in results),
                "largest": max(one[name][0] for one in results),
                "global / local, median": statistics.median(factors),
                "global / local, least": min(factors),
                "upper / attained, median": statistics.median(one[name][0] / one[name][1] for one in results),
                "upper / attained, least": min(one[name][0] / one[name][1] for one in results),
                "seconds each, median": statistics.median(one[name][2] for one in results),
                "seconds, all rows": seconds,
                "CPU seconds, all rows": used,
            }
        )
    write("acasxu_lipschitz", rows, "numpy", "torch")


def verdict_of(task: tuple[int, int, int], seconds: float, evidence: Path | None) -> dict:
    """Decide one property of one network; a refutation is replayed in onnxruntime."""
    import onnxruntime

    torch.set_num_threads(1)
    a, b, number = task
    network, property = read(network_file(a, b)), read_property(number)
    verdict = certify.verify(network, property, seconds=seconds)
    row = {
        "status": verdict.status.name,
        "seconds": verdict.seconds,
        "boxes": verdict.regions,
        "replayed": None,
    }
    if verdict.counterexample is not None:
        session = onnxruntime.InferenceSession(network_file(a, b).read_bytes())
        entry = session.get_inputs()[0]
        point = np.array(verdict.counterexample.input, dtype=np.float32)
        shape = [size if isinstance(size, int) else 1 for size in entry.shape]
        output = session.run(None, {entry.name: point.reshape(shape)})[0].reshape(-1)
        (unsafe,) = property.unsafe
        row["replayed"] = bool((np.array(unsafe.matrix) @ output <= np.array(unsafe.bounds)).all())
        row["difference"] = float(np.abs(output - np.array(verdict.counterexample.output)).max())
    if verdict.certificate is not None and evidence is not None:
        (evidence / f"{a}_{b} property {number}.json").write_text(verdict.certificate)
    return row


def properties(seconds: float, evidence: Path | None) -> None:
    tasks = [(a, b, number) for number in (1, 2, 3, 4) for a, b in NETWORKS]
    started = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        results = list(pool.map(partial(verdict_of, seconds=seconds, evidence=evidence), tasks))
    total, used = time.perf_counter() - started, cpu_seconds()
    rows = []
    for number in (1, 2, 3, 4):
        mine = [row for task, row in zip(tasks, results, strict=True) if task[2] == number]
        open_ = [
            f"{task[0]}_{task[1]}"
            for task, row in zip(tasks, results, strict=True)
            if task[2] == number and row["status"] == "UNKNOWN"
        ]
        count = {
            name: sum(row["status"] == name for row in mine) for name in ("PROVED", "REFUTED", "UNKNOWN")
        }
        rows.append(
            {
                "property": number,
                **count,
                "refutations replayed": sum(bool(row["replayed"]) for row in mine),
                "largest difference": max((row.get("difference", 0.0) for row in mine), default=0.0),
                "boxes, median": statistics.median(row["boxes"] for row in mine),
                "boxes, most": max(row["boxes"] for row in mine),
                "seconds, median": statistics.median(row["seconds"] for row in mine),
                "seconds, most": max(row["seconds"] for row in mine),
                "undecided": " ".join(open_),
                "seconds, all properties": total,
                "CPU seconds, all properties": used,
            }
        )
    decided = sum(row["status"] != "UNKNOWN" for row in results)
    print(f"{decided} of {len(results)} decided ({decided / len(results):.1%}) in {math.ceil(total)} s")
    write("acasxu_properties", rows, "numpy", "torch", "onnxruntime")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("lipschitz", "properties"))
    parser.add_argument("--seconds", type=float, default=30.0, help="for each property of each network")
    parser.add_argument("--evidence", type=Path)
    arguments = parser.parse_args()
    if arguments.evidence is not None:
        arguments.evidence.mkdir(parents=True, exist_ok=True)
    if arguments.part == "lipschitz":
        lipschitz(arguments.evidence)
    else:
        properties(arguments.seconds, arguments.evidence)
