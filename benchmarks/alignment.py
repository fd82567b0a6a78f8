"""Alignment against `rebasin` and a plain weight matching; on trained networks, every matcher against the barrier.

Planted: a 784-h-h-h-10 perceptron against itself, permuted, with noise of half a standard deviation on every tensor.
`plain` is the published coordinate descent (git-re-basin) as written: groups in random order, the whole Gram matrix
for every group in every sweep, scipy's assignment, until a sweep gains nothing. All get the same float32 tensors.
Trained: pairs of 784-512-512-512-10 perceptrons, trained here on MNIST from different seeds (needs WEIGHTSPACE_DATA).
CPU seconds, OMP_NUM_THREADS=1; `pip install rebasin` (PyPI has no git-re-basin-pytorch).
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from weightspace import align, barrier, symmetry, trace
from weightspace.matching import (
    ActivationMatching,
    FrankWolfeMatching,
    Matcher,
    StraightThroughMatching,
    WeightMatching,
)
from weightspace.matching.alignment import Problem
from weightspace.network import Network
from weightspace.permutation import identity, inverse, permute, random_permutations


def main() -> None:
    rows = [planted(h) for h in (512, 1024, 2048)]
    if "WEIGHTSPACE_DATA" in os.environ:
        rows += trained()
    measure.write("alignment", rows, "torch", "scipy", *(["rebasin"] if _has_rebasin() else []))


# ---- planted permutations --------------------------------------------------------------------------------


def planted(h: int) -> dict[str, object]:
    reference = perceptron(h, seed=0)
    network = trace(reference, torch.zeros(2, 784))
    spec = symmetry(network)
    generator = torch.Generator().manual_seed(1)
    noisy = network.replace_parameters(
        {
            name: t + 0.5 * t.std() * torch.randn(t.shape, generator=generator)
            for name, t in network.parameters.items()
        }
    )
    elements = random_permutations(spec, generator)
    model, answer = permute(noisy, spec, elements), inverse(spec, elements)
    found: dict[str, list[dict[str, Tensor] | bool]] = {}
    order = iter(range(1000))

    def matched(matcher: Matcher) -> dict[str, Tensor]:
        return matcher.match(Problem(spec, network.parameters, model.parameters))

    runs: dict[str, Callable[[], dict[str, Tensor] | bool]] = {
        "weight matching": lambda: matched(WeightMatching()),
        "frank-wolfe": lambda: matched(FrankWolfeMatching()),
        "align, weight matching": lambda: dict(align(network, model, matcher=WeightMatching()).permutations),
        "align, default": lambda: dict(align(network, model).permutations),
        "plain": lambda: plain(Problem(spec, network.parameters, model.parameters), seed=next(order)),
    }
    if _has_rebasin():
        ours, theirs = (perceptron(h, 0) for _ in range(2))
        runs["rebasin"] = lambda: rebasin(ours, theirs, model, noisy)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(3):
        for name, run in runs.items():
            started = time.process_time()
            result = run()
            seconds[name].append(time.process_time() - started)
            found.setdefault(name, []).append(result)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    row: dict[str, object] = {"part": "planted", "h": h}
    for name in runs:
        row[f"{name}, cpu s"] = median[name]
        right = [
            r if isinstance(r, bool) else all(torch.equal(r[key], answer[key]) for key in answer)
            for r in found[name]
        ]
        row[f"{name}, recovered"] = sum(right) / len(right)
    for ours in ("weight matching", "frank-wolfe", "align, weight matching", "align, default"):
        for other in ("plain", "rebasin"):
            if other in median:
                row[f"{other} / {ours}"] = median[other] / median[ours]
    print(row, flush=True)
    return row


def perceptron(h: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    sizes = (784, h, h, h, 10)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def plain(problem: Problem, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    elements = identity(problem.spec)
    names = list(elements)
    while True:
        progress = False
        for place in torch.randperm(len(names), generator=generator).tolist():
            name = names[place]
            n = len(elements[name])
            gram = torch.zeros(n, n)
            for parameter, axis, _ in problem.spec.carriers[name]:
                a, b = problem.reference[parameter], problem.model[parameter]
                for other, segments in enumerate(problem.spec.axes[parameter]):
                    if other != axis and segments:
                        b = b.index_select(other, elements[segments[0].factors[0].name])
                gram += a.movedim(axis, 0).reshape(n, -1) @ b.movedim(axis, 0).reshape(n, -1).T
            chosen = torch.from_numpy(linear_sum_assignment(gram.numpy(), maximize=True)[1])
            before = float(gram[torch.arange(n), elements[name]].sum())
            progress |= float(gram[torch.arange(n), chosen].sum()) > before + 1e-12
            elements[name] = chosen
        if not progress:
            return elements


def rebasin(reference: nn.Module, model: nn.Module, permuted: Network, answer: Network) -> bool:
    """Run rebasin; returns whether it leaves the weights in their first order."""
    from rebasin import PermutationCoordinateDescent

    model.load_state_dict(dict(permuted.parameters))
    PermutationCoordinateDescent(reference, model, torch.zeros(2, 784)).rebasin()
    state = model.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in answer.parameters.items())


def _has_rebasin() -> bool:
    try:
        import rebasin  # noqa: F401
    except ImportError:
        return False
    return True


# ---- trained networks ------------------------------------------------------------------------------------


def trained() -> list[dict[str, object]]:
    data = np.load(Path(os.environ["WEIGHTSPACE_DATA"]) / "mnist" / "mnist_full.npz")
    x, x_test = (
        (torch.from_numpy(data[key]).reshape(-1, 784) / 255 - 0.1307) / 0.3081
        for key in ("x_train", "x_test")
    )
    y, y_test = (torch.from_numpy(data[key]).long() for key in ("y_train", "y_test"))
    few = [(x[start : start + 500], y[start : start + 500]) for start in range(0, 4000, 500)]
    matchers: dict[str, Matcher | None] = {
        "none": None,
        "weight matching": WeightMatching(),
        "weight matching, best of 10": WeightMatching(restarts=10),
        "frank-wolfe": FrankWolfeMatching(),
        "activations": ActivationMatching(x[:4000]),
        "straight-through": StraightThroughMatching(few, F.cross_entropy),
    }
    networks = [trace(fitted(x, y, seed), torch.zeros(2, 784)) for seed in range(6)]
    rows = []
    for number in range(0, len(networks), 2):
        a, b = networks[number : number + 2]
        spec = symmetry(a)
        ours, theirs = ({name: network.parameters[name] for name in spec.axes} for network in (a, b))
        given = Problem(spec, ours, theirs, (a, b), {name: name for name in a.parameters})
        for name, matcher in {**matchers, "plain, best of 10": None}.items():
            started = time.process_time()
            if name.startswith("plain"):
                elements = max((plain(given, seed) for seed in range(10)), key=given.objective)
            else:
                elements = identity(spec) if matcher is None else matcher.match(given)
            seconds = time.process_time() - started
            aligned = permute(b, spec, elements)
            loss, wrong = (
                barrier(a, aligned, measured(x_test, y_test, kind), points=11) for kind in ("loss", "error")
            )
            row = {
                "part": "trained",
                "pair": number // 2,
                "matcher": name,
                "cpu s": seconds,
                "objective": given.objective(elements),
                "barrier, test loss": loss.barrier,
                "midpoint test loss": loss.losses[5],
                "midpoint accuracy %": 100 - wrong.losses[5],
                "accuracy of the ends %": 100 - (wrong.losses[0] + wrong.losses[-1]) / 2,
            }
            print(row, flush=True)
            rows.append(row)
    return rows


def fitted(x: Tensor, y: Tensor, seed: int, epochs: int = 3, batch: int = 512) -> nn.Module:
    module = perceptron(512, seed).train()
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.Adam(module.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(batch)[: len(x) // batch]:
            optimizer.zero_grad()
            F.cross_entropy(module(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def measured(x: Tensor, y: Tensor, kind: str) -> Callable[[nn.Module], float]:
    def value(module: nn.Module) -> float:
        output = module(x)
        return (
            float(F.cross_entropy(output, y))
            if kind == "loss"
            else 100 * float((output.argmax(1) != y).float().mean())
        )

    return value


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print([planted(int(h)) for h in sys.argv[1:]])
    else:
        main()
