"""How much of a known family tree `weightspace.lineage` recovers from the weights of 100 fine-tuned digits networks.

Each network (64-32-10) is fine-tuned for 20 to 80 steps from a random earlier one: on half of the classes, with 30 % of
the labels random, or on 200 images; half of the networks then get their neurons reordered at random. The first one is
fresh or trained. Competitor: the minimum spanning tree of raw or of exact Euclidean distances, rooted in its middle.
`OMP_NUM_THREADS=1 python benchmarks/lineage.py`, about ten minutes.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import measure

from weightspace.bundled import digits
from weightspace.common_order import gram
from weightspace.heritage import _directed, _largest_branch, _spanning_tree, lineage
from weightspace.network import Network
from weightspace.permutation import permute, random_permutations
from weightspace.tracing import trace
from weightspace.verification import symmetry

NETWORKS, SEEDS = 100, 3
X, Y, _, _ = digits()
# name: (optimizer, weight decay, steps of the root, noise on the inputs)
REGIMES = {
    "Adam, fresh root": ("adam", 0.0, 0, 0.0),
    "Adam, trained root": ("adam", 0.0, 400, 0.0),
    "SGD, trained root": ("sgd", 0.0, 400, 0.0),
    "AdamW 0.3, trained root": ("adam", 0.3, 400, 0.0),
    "SGD with decay 0.005, trained root": ("sgd", 5e-3, 400, 0.0),
    "Adam, trained root, tanh and noisy inputs: every weight moves": ("adam", 0.0, 400, 0.1),
    "SGD, trained root, tanh and noisy inputs: every weight moves": ("sgd", 0.0, 400, 0.1),
}


def fit(module: nn.Module, steps: int, seed: int, x: Tensor, y: Tensor, regime: tuple) -> nn.Module:
    name, decay, _, noise = regime
    generator = torch.Generator().manual_seed(seed)
    if name == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.09, momentum=0.9, weight_decay=decay)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        inputs = x[rows] + noise * torch.randn(64, 64, generator=generator)
        loss = F.cross_entropy(module(inputs), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def task(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    kind = int(torch.randint(0, 3, (1,), generator=generator))
    if kind == 0:
        chosen = torch.isin(Y, torch.randperm(10, generator=generator)[:5])
        return X[chosen], Y[chosen]
    if kind == 1:
        wrong = torch.rand(len(Y), generator=generator) < 0.3
        return X, torch.where(wrong, torch.randint(0, 10, Y.shape, generator=generator), Y)
    rows = torch.randperm(len(X), generator=generator)[:200]
    return X[rows], Y[rows]


def family(seed: int, regime: tuple) -> tuple[list[Network], list[Network], list[int]]:
    """Return the networks with half of them reordered, the same in their first order, and everybody's parent."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    between = nn.Tanh() if regime[3] else nn.ReLU()
    start = nn.Sequential(nn.Linear(64, 32), between, nn.Linear(32, 10))
    modules, parents = [fit(start, regime[2], seed, X, Y, regime)], [-1]
    for number in range(1, NETWORKS):
        parents.append(int(torch.randint(0, number, (1,), generator=generator)))
        steps = int(torch.randint(20, 80, (1,), generator=generator))
        x, y = task(generator)
        modules.append(fit(copy.deepcopy(modules[parents[-1]]), steps, 1000 * seed + number, x, y, regime))
    networks = [trace(module, X[:2]) for module in modules]
    spec = symmetry(networks[0])
    moved = list(networks)
    for number in torch.randperm(NETWORKS, generator=generator)[: NETWORKS // 2].tolist():
        moved[number] = permute(networks[number], spec, random_permutations(spec, generator))
    return moved, networks, parents


def plain_tree(networks: list[Network]) -> list[tuple[int, int]]:
    """The competitor: a minimum spanning tree of Euclidean distances, directed away from its middle."""
    products = gram(networks, centered=True)
    squares = products.diagonal()
    links = _spanning_tree(np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0)))
    root = min(range(len(networks)), key=lambda n: _largest_branch(links, n, len(networks)))
    return _directed(links, root)


def scores(edges: list[tuple[int, int]], parents: list[int]) -> tuple[float, float]:
    """Shares of the edges that join parent and child, and that also point from one to the other."""
    true = {(parent, child) for child, parent in enumerate(parents) if parent >= 0}
    directed = sum(edge in true for edge in edges)
    reversed_ = sum((b, a) in true for a, b in edges)
    return (directed + reversed_) / len(true), directed / len(true)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, regime in REGIMES.items():
        for seed in range(SEEDS):
            moved, networks, parents = family(seed, regime)
            started = time.perf_counter()
            found = lineage(moved)
            seconds = time.perf_counter() - started
            undirected, directed = scores([(int(e.parent), int(e.child)) for e in found.edges], parents)
            raw, exact = scores(plain_tree(moved), parents), scores(plain_tree(networks), parents)
            rows.append(
                {
                    "training": name,
                    "seed": seed,
                    "edges": undirected,
                    "directed": directed,
                    "families": len(found.trees),
                    "root found": found.trees[0].root == "0",
                    "evidence": found.trees[0].evidence.name.lower(),
                    "agreement": found.trees[0].agreement,
                    "Euclidean edges, order known": exact[0],
                    "Euclidean directed, order known": exact[1],
                    "Euclidean edges, as given": raw[0],
                    "seconds": seconds,
                }
            )
            print(rows[-1], flush=True)
    measure.write("lineage", rows, "torch", "scipy")


if __name__ == "__main__":
    main()
