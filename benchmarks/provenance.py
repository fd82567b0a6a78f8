"""How far apart fine-tuned and independently trained networks are, in the units `weightspace.provenance` judges by.

Trains perceptrons and a residual CNN on scikit-learn's digits from several seeds, fine-tunes some, and counts the
grades. `OMP_NUM_THREADS=1 python benchmarks/provenance.py`, about five minutes.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import measure

from weightspace.bundled import digits
from weightspace.bundled.train import residual_network
from weightspace.kinship import provenance
from weightspace.permutation import permute, random_permutations
from weightspace.tracing import trace
from weightspace.verification import symmetry

SIZES = [(64, 8, 10), (64, 24, 12, 10), (64, 32, 10), (64, 128, 128, 10), (64, 256, 10), None]
X, Y, _, _ = digits()


def fit(module: nn.Module, steps: int, rate: float, seed: int, x=X, y=Y) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.train().parameters(), lr=rate)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        loss = F.cross_entropy(module(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def fresh(sizes: tuple[int, ...] | None, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if sizes is None:
        return residual_network()
    layers = [f for a, b in pairwise(sizes) for f in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


def relatives(sizes: tuple[int, ...] | None, seed: int) -> dict[str, list[tuple[nn.Module, nn.Module]]]:
    """Pairs of networks by how they are related."""
    steps = 400 if sizes else 150
    base = fit(fresh(sizes, seed), steps, 3e-3, seed)
    half = Y < 5
    labels = Y[torch.randperm(len(Y), generator=torch.Generator().manual_seed(seed))]

    def tuned(count: int, rate: float, x=X[half], y=Y[half]) -> nn.Module:
        return fit(copy.deepcopy(base), count, rate, seed + 50, x, y)

    return {
        "independent seeds": [
            (base, fit(fresh(sizes, seed + 100), steps, 3e-3, seed + 100)),
            (base, fit(fresh(sizes, seed + 200), 4 * steps, 3e-3, seed + 200)),
        ],
        "independent, untrained": [(fresh(sizes, seed), fresh(sizes, seed + 100))],
        "fine-tuned on half the classes": [
            (base, tuned(50, 1e-3)),
            (base, tuned(steps, 3e-3)),
            (base, tuned(steps, 1e-2)),
        ],
        "fine-tuned on random labels": [(base, tuned(steps, 3e-3, X, labels))],
        "siblings": [(tuned(steps, 3e-3), tuned(steps, 3e-3, X[~half], Y[~half]))],
        "same initialization": [(base, fit(fresh(sizes, seed), steps, 3e-3, seed + 7))],
        "its own initialization": [(base, fresh(sizes, seed).eval())],
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for sizes in SIZES:
        grades: dict[str, list] = {}
        for seed in range(5):
            for kind, pairs in relatives(sizes, seed).items():
                for first, second in pairs:
                    a, b = trace(first, X[:2]), trace(second, X[:2])
                    spec = symmetry(a)
                    elements = random_permutations(spec, torch.Generator().manual_seed(seed))
                    grades.setdefault(kind, []).append(provenance(a, b, spec=spec))
                    grades.setdefault(f"{kind}, reordered", []).append(
                        provenance(a, permute(b, spec, elements), spec=spec)
                    )
        for kind, found in grades.items():
            ratios = sorted(result.ratio for result in found)
            rows.append(
                {
                    "network": "-".join(map(str, sizes)) if sizes else "residual CNN",
                    "pairs": kind,
                    "smallest": ratios[0],
                    "median": ratios[len(ratios) // 2],
                    "largest": ratios[-1],
                    "order_score": sorted(result.order_score for result in found)[len(found) // 2],
                    **Counter(result.kinship.name.lower() for result in found),
                }
            )
            print(rows[-1], flush=True)
    measure.write("provenance", rows, "torch", "weightspace")


if __name__ == "__main__":
    main()
