"""Local l-infinity Lipschitz bounds of one output over boxes: LipSDP with local slopes against what others compute.

    OMP_NUM_THREADS=1 python benchmarks/local_lipschitz.py

Needs WEIGHTSPACE_DATA. auto_LiRPA, which bounds Jacobians, does not install beside torch 2.13: its release 0.3 on PyPI
asks for torch below 1.13, imports what numpy 2 has removed, and has no Jacobians yet. In its place stands interval
arithmetic on the Jacobian, J = W_L D_K .. D_1 W_1 with every slope in D in its interval: the same slopes that LipSDP
gets, from the same linear bounds. Also the product of norms with these slopes and the bound for all inputs. Attained is
a secant found by search.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from measure import write

import certify
from certify import Box, LipSDP, NormProduct, checker
from certify.checking import network_arrays
from certify.local_regions import localize
from weightspace import read
from weightspace.network import Network

FOLDER = Path(os.environ.get("WEIGHTSPACE_DATA", "data"))
BOXES = 8


def interval_jacobian(network: Network, region: Box, output: int) -> float:
    """Return the largest l1 norm of a row of the Jacobian by interval arithmetic from the output to the input."""
    model, _ = localize(checker.rebuild(*network_arrays(network)), region)
    center = np.eye(model.steps[-1].width)[output]
    radius = np.zeros_like(center)
    for step in reversed(model.steps[1:]):
        if step.rule == "linear":
            center, radius = center @ step.matrix, radius @ np.abs(step.matrix)
        elif step.rule == "shifted":
            ends = [
                np.multiply(side, slope)
                for side in (center - radius, center + radius)
                for slope in (step.low, step.low + step.matrix)
            ]
            low, high = np.min(ends, axis=0), np.max(ends, axis=0)
            center, radius = (low + high) / 2, (high - low) / 2
        elif step.rule != "same":
            raise ValueError(step.rule)
    return float((np.abs(center) + radius).sum())


def compare(name: str, network: Network, radius: float, scale: float, rng: np.random.Generator) -> dict:
    width = checker.rebuild(*network_arrays(network)).steps[0].width
    ratios: dict[str, list[float]] = {"interval": [], "product": [], "global": [], "attained": []}
    everywhere = certify.lipschitz(network, norm="linf", output=0, bounder=LipSDP(tolerance=1e-4)).upper_bound
    seconds = []
    while len(seconds) < BOXES:
        center = scale * rng.uniform(-0.5, 0.5, size=width) + (0.5 if width > 100 else 0.0)
        region = Box(center - radius, center + radius)
        started = time.perf_counter()
        found = certify.lipschitz(
            network, norm="linf", output=0, region=region, bounder=LipSDP(tolerance=1e-4)
        )
        if not found.upper_bound:  # the output is constant there
            continue
        seconds.append(time.perf_counter() - started)
        product = certify.lipschitz(network, norm="linf", output=0, region=region, bounder=NormProduct())
        ratios["interval"].append(interval_jacobian(network, region, 0) / found.upper_bound)
        ratios["product"].append(product.upper_bound / found.upper_bound)
        ratios["global"].append(everywhere / found.upper_bound)
        ratios["attained"].append(found.sampled_lower_bound / found.upper_bound)
    medians = {f"{kind} / ours, median": statistics.median(values) for kind, values in ratios.items()}
    worst = {"interval / ours, least": min(ratios["interval"])}
    return {
        "network": name,
        "radius": radius,
        "boxes": BOXES,
        **medians,
        **worst,
        "seconds": statistics.median(seconds),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = []
    for a, b in ((1, 1), (2, 4), (3, 3), (4, 7), (5, 9)):
        network = read(FOLDER / "acasxu" / f"ACASXU_run2a_{a}_{b}_batch_2000.onnx")
        rows += [compare(f"ACAS Xu {a}_{b}", network, radius, 0.9, rng) for radius in (0.005, 0.02, 0.1)]
    network = read(FOLDER / "marabou_onnx" / "mnist2x10.onnx")
    rows += [compare("mnist2x10", network, radius, 1.0, rng) for radius in (0.01, 0.05)]
    write("local_lipschitz", rows, "numpy", "torch")
