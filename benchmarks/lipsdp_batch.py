"""A batch of small networks of one shape in one call against one after another.

    OMP_NUM_THREADS=1 python benchmarks/lipsdp_batch.py

Solver alone (matrix inequality in, multipliers out), tolerance 1e-6 of rho, CPU seconds, one thread; and the whole of
`certify.lipschitz_many` against `certify.lipschitz`, certificates and checks included.
"""

from __future__ import annotations

import itertools
import statistics
import time

import measure
import numpy as np
import torch
from torch import nn

import certify
import weightspace
from certify.lmi import Inequality, SlopeChain
from certify.preparation import normalize, prepare, rescale_to_start
from certify.structured.batch import minimize_batch
from certify.structured.chain_program import chain_program
from certify.structured.interior_point import minimize

SHAPES = {
    20: ([4, 8, 8, 2], 1000),
    40: ([8, 16, 16, 2], 300),
    60: ([12, 24, 24, 3], 120),
    80: ([16, 32, 32, 5], 60),
}


def chain_of_shape(widths: list[int], seed: int) -> SlopeChain:
    rng = np.random.default_rng(seed)
    weights = tuple(rng.normal(size=(b, a)) * np.sqrt(2 / a) for a, b in itertools.pairwise(widths))
    slopes = [(np.zeros(len(w)), np.ones(len(w))) for w in weights[:-1]]
    return SlopeChain(weights, *(tuple(side) for side in zip(*slopes, strict=True)))


def alone(chain: SlopeChain) -> float:
    scaled, exponents = normalize(chain)
    prepared = rescale_to_start(prepare(scaled, balance=True))
    assert prepared is not None
    solution = minimize(chain_program(prepared.chain), tolerance=1e-6)
    assert solution is not None
    return float(np.ldexp(solution.x[0] * prepared.bound_factor**2, 2 * sum(exponents)))


def batched(inequalities: list[Inequality]) -> list[float]:
    found = minimize_batch(inequalities, tolerance=1e-6)
    return [float("nan") if one is None else float(one[0][0] * one[1].x[0]) for one in found]


def main() -> None:
    rows = []
    for size, (widths, count) in SHAPES.items():
        chains = [chain_of_shape(widths, seed) for seed in range(count)]
        ratios, difference = [], 0.0
        for _ in range(3):
            started = time.process_time()
            together = batched([chain.inequality() for chain in chains])
            middle = time.process_time()
            single = [alone(chain) for chain in chains[: max(20, count // 10)]]
            ended = time.process_time()
            each = (middle - started) / count
            ratios.append((ended - middle) / len(single) / each)
            pairs = zip(single, together, strict=False)
            difference = max(difference, max(abs(b / a - 1) for a, b in pairs))
        rows.append(
            {
                "variables": size, "networks": count, "batch_ms_each": 1e3 * each,
                "ratio": statistics.median(ratios), "largest_difference": difference,
                "not_converged": int(np.isnan(together).sum()),
            }
        )  # fmt: skip
    template = weightspace.trace(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        (torch.zeros(2, 4),),
    )
    generator = torch.Generator().manual_seed(0)
    networks = [
        template.replace_parameters(
            {
                name: torch.randn(value.shape, generator=generator)
                for name, value in template.parameters.items()
            }
        )
        for _ in range(1000)
    ]
    started = time.process_time()
    certify.lipschitz_many(networks)
    middle = time.process_time()
    for network in networks[:50]:
        certify.lipschitz(network, bounder=certify.LipSDP())
    ended = time.process_time()
    rows.append(
        {
            "variables": 20, "networks": 1000, "what": "lipschitz_many, checked certificates",
            "batch_ms_each": middle - started, "ratio": 20 * (ended - middle) / (middle - started),
        }
    )  # fmt: skip
    measure.write("lipsdp_batch", rows, "numpy", "scipy", "torch")


if __name__ == "__main__":
    main()
