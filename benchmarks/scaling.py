"""How the cost of inspecting, comparing and certifying grows, and what a kill costs in the middle of 2,000 checkpoints.

Networks 64-32-10 in families of ten: a root and nine that had half of their weights moved, every second one with its
neurons reordered. Two processes inspect and compare the folder on the command line, are killed with SIGKILL when half
of it is inspected and when most of it is compared, and started again; what comes out must equal an uninterrupted run,
bit by bit. The growth with
width, depth and number is measured in processor time of one thread, which other programs on the machine change
little, and drawn with the exponents of the three largest sizes.
`OMP_NUM_THREADS=1 python benchmarks/scaling.py [number of checkpoints]`, about six minutes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import measure

import certify
import weightspace
from weightspace.network import Network
from weightspace.permutation import permute, random_permutations

FIGURE = Path(__file__).parents[1] / "docs" / "scaling.png"
FAMILY = 10  # checkpoints of one origin
SIZES = (125, 250, 500, 1000)
STRANGERS = (63, 125, 250)
WIDTHS = (16, 32, 64, 128, 256)
DEPTHS = (1, 2, 4, 8, 16)
COLORS = {
    "inspect": "#0072B2",
    "compare": "#D55E00",
    "compare, no two related": "#CC79A7",
    "certify": "#009E73",
}


def perceptron(*widths: int) -> Network:
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return weightspace.trace(nn.Sequential(*layers[:-1]), (torch.zeros(2, widths[0]),))


def relatives(
    template: Network, count: int, generator: torch.Generator, family: int = FAMILY
) -> list[Network]:
    """Draw networks in families, every second one in another neuron order."""
    spec, found, root = weightspace.symmetry(template), [], dict(template.parameters)
    for number in range(count):
        if number % family == 0:
            root = {
                name: torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5
                for name, tensor in root.items()
            }
        moved = {}
        for name, tensor in root.items():
            chosen = torch.rand(tensor.shape, generator=generator) < 0.5
            moved[name] = tensor + 0.02 * chosen * torch.randn(tensor.shape, generator=generator)
        network = template.replace_parameters(moved)
        order = random_permutations(spec, generator)
        found.append(permute(network, spec, order) if number % 2 else network)
    return found


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Return the processor time of this process."""
    return float(np.median([timed(run)[0] for _ in range(repeats)]))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = run()
    return time.process_time() - started, found


def point(task: str, along: str, size: int, value: float) -> dict[str, Any]:
    row = {"what": "growth", "task": task, "along": along, "size": size, "seconds": value}
    print(row, flush=True)
    return row


def growth_with_architecture() -> list[dict[str, Any]]:
    generator, rows = torch.Generator().manual_seed(0), []
    shapes = [("width", width, (32, width, width, 10)) for width in WIDTHS]
    shapes += [("depth", depth, (32, *[32] * depth, 10)) for depth in DEPTHS]
    first = relatives(perceptron(8, 8, 4), 4, generator)  # what is loaded when it is first needed
    (
        weightspace.inspect(first[0]),
        weightspace.compare(first),
        certify.lipschitz(first[0], bounder=certify.LipSDP()),
    )
    for along, size, widths in shapes:
        networks = relatives(perceptron(*widths), 4, generator)
        rows.append(point("inspect", along, size, seconds(lambda n=networks: weightspace.inspect(n[0]))))
        rows.append(point("compare", along, size, seconds(lambda n=networks: weightspace.compare(n))))
        value = seconds(lambda n=networks: certify.lipschitz(n[0], bounder=certify.LipSDP()), 1)
        rows.append(point("certify", along, size, value))
    return rows


def killed(command: list[str], journal: Path, lines: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a command, kill it when its journal has so many lines, and run it again."""
    command = [
        sys.executable,
        "-m",
        "weightspace.cli",
        *command,
        "--workers",
        "2",
        "--journal",
        str(journal),
        "--json",
    ]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as nothing:
        process = subprocess.Popen(command, stdout=nothing)
        while process.poll() is None and count_lines(journal) < lines:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    until = time.perf_counter() - started
    kept = count_lines(journal)
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    row = {
        "seconds until the kill": until,
        "lines kept": kept,
        "seconds of the rest": time.perf_counter() - started,
        "lines in the end": count_lines(journal),
    }
    return json.loads(done.stdout), row


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def many_checkpoints(folder: Path, count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    template = perceptron(64, 32, 10)
    networks = relatives(template, count, generator)
    for number, network in enumerate(networks):
        network.save(folder / f"{number:05}.safetensors")
    paths = weightspace.find_checkpoints([folder])
    rows = []
    for size in (*(size for size in SIZES if size < count), count):
        value, inspections = timed(lambda n=size: weightspace.inspect_many(paths[:n]))
        rows.append(point("inspect", "number", size, value))
        value, comparison = timed(lambda n=size: weightspace.compare(paths[:n]))
        rows.append(point("compare", "number", size, value))
    for size in STRANGERS:
        strangers = relatives(template, size, generator, family=1)
        value = seconds(lambda s=strangers: weightspace.compare(s), 1)
        rows.append(point("compare, no two related", "number", size, value))
    families = len(set(comparison.families))
    with tempfile.TemporaryDirectory() as place:
        found, row = killed(["inspect", str(folder)], Path(place) / "inspect.jsonl", count // 2)
        equal = found["checkpoints"] == [json.loads(one.to_json()) for one in inspections]
        alone = {row["task"]: row["seconds"] for row in rows if row["size"] == count}
        rows.append({"what": "kill", "task": "inspect", "checkpoints": count, **row, "equal": equal})
        rows[-1]["processor seconds uninterrupted"] = alone["inspect"]
        print(rows[-1], flush=True)
        found, row = killed(["similarity", str(folder)], Path(place) / "compare.jsonl", 2 * count)
        equal = (
            found["distances"] == comparison.distances.tolist()
            and found["families"] == list(comparison.families)
            and found["canonical_hashes"] == list(comparison.hashes)
        )
        rows.append({"what": "kill", "task": "compare", "checkpoints": count, **row, "equal": equal})
        rows[-1] |= {"processor seconds uninterrupted": alone["compare"], "families": families}
        print(rows[-1], flush=True)
    return rows


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope through the three largest sizes, both axes logarithmic."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(values[-3:]), 1)[0])


def draw(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "width": "32-w-w-10, four networks compared",
        "depth": "d hidden layers of 32, four networks compared",
        "number": "checkpoints 64-32-10, in families of ten",
    }
    figure, panels = pyplot.subplots(1, 3, figsize=(12.6, 4.1), layout="constrained")
    fits = []
    for panel, (along, title) in zip(panels, titles.items(), strict=True):
        for task, color in COLORS.items():
            points = sorted(
                (row["size"], row["seconds"])
                for row in rows
                if row["what"] == "growth" and (row["task"], row["along"]) == (task, along)
            )
            if not points:
                continue
            sizes, values = [size for size, _ in points], [value for _, value in points]
            slope = exponent(sizes, values)
            fits.append({"what": "exponent", "task": task, "along": along, "exponent": slope})
            panel.loglog(sizes, values, "o-", color=color, label=f"{task}: exponent {slope:.1f}")
        panel.set_xlabel(along)
        ticks = sorted({row["size"] for row in rows if row.get("along") == along and "size" in row})
        panel.set_xticks(ticks, [f"{size:,}" for size in ticks], minor=False)
        panel.set_xticks([], minor=True)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("processor seconds, one thread")
    figure.savefig(FIGURE, dpi=150)
    return fits


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        rows = growth_with_architecture() + many_checkpoints(Path(folder), count)
    rows += draw(rows, count)
    measure.write("scaling", rows, "torch", "numpy", "scipy")
    if not all(row.get("equal", True) for row in rows):
        raise SystemExit("a resumed run differs from an uninterrupted one")


if __name__ == "__main__":
    main()
