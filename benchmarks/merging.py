"""Merging measured: digits, MNIST against width and training time, a counterexample, BatchNorm networks.

    WEIGHTSPACE_DATA=... OMP_NUM_THREADS=1 python benchmarks/merging.py [PART ...]        default: all of them

Every part trains its networks from fixed seeds and takes one to ten minutes of one CPU core.

digits: N perceptrons 64-128-128-10 on scikit-learn's digits (1400 images to train on, 397 to test), merged; accuracy
    lost against their mean, over five splits. Without data, then with REPAIR on the training images.
balanced: the same networks, each of their units scaled to the least weights first (`balance_units`).
width, time: Git Re-Basin, sections 5.1 and 5.2, on MNIST: the barrier before and after alignment against the width
    of the network and against the epochs it was trained for.
counterexample: Git Re-Basin's limit: two small networks that solve the same task and which no permutation joins,
    shown by trying all of them.
norm: a residual network with BatchNorm, two seeds: the midpoint as it is, with running statistics measured anew,
    and with REPAIR of the BatchNorm outputs.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import RESULTS, write
from torch import Tensor, nn

from weightspace import (
    Average,
    MergeMany,
    Network,
    Reference,
    Universe,
    align,
    balance_units,
    barrier,
    merge,
    path_curvature,
)
from weightspace.permutation import permute
from weightspace.repair import reset_batch_norm, restore_statistics
from weightspace.state_dicts import perceptron

Row = dict[str, object]
Data = tuple[Tensor, Tensor]


def train_together(
    sizes: Sequence[int],
    data: Data,
    *,
    models: int,
    epochs: int,
    batch: int,
    seed: int = 0,
    rate: float = 1e-3,
) -> list[Network]:
    """Train ReLU perceptrons of several seeds at once with Adam; each has its own start and its own batches."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        bound = fan_in**-0.5  # as nn.Linear
        layers.append(
            (torch.rand(models, fan_out, fan_in, generator=generator) * 2 - 1).mul_(bound).requires_grad_()
        )
        layers.append(
            (torch.rand(models, 1, fan_out, generator=generator) * 2 - 1).mul_(bound).requires_grad_()
        )
    optimizer = torch.optim.Adam(layers, rate)
    x, y = data
    for _ in range(epochs):
        orders = torch.stack([torch.randperm(len(x), generator=generator) for _ in range(models)])
        for chosen in orders.split(batch, 1):
            h = x[chosen]
            for index in range(0, len(layers), 2):
                h = torch.baddbmm(layers[index + 1], h, layers[index].mT)
                h = h.relu() if index + 2 < len(layers) else h
            optimizer.zero_grad()
            (F.cross_entropy(h.flatten(0, 1), y[chosen].flatten()) * models).backward()
            optimizer.step()
    return [
        perceptron(
            {
                f"{index // 2}.{'bias' if index % 2 else 'weight'}": tensor[model].detach().squeeze(0).clone()
                for index, tensor in enumerate(layers)
            }
        )
        for model in range(models)
    ]


def accuracy(network: Network | nn.Module, data: Data) -> float:
    """Percent of images that are classified correctly."""
    module = network.to_module() if isinstance(network, Network) else network.eval()
    with torch.no_grad():
        return 100 * float((module(data[0]).argmax(-1) == data[1]).float().mean())


def cross_entropy(data: Data) -> Callable[[nn.Module], Tensor]:
    return lambda module: F.cross_entropy(module(data[0]), data[1])


# ---- digits ----------------------------------------------------------------------------------------------

METHODS = {"average": Average(), "reference": Reference(), "merge many": MergeMany(), "universe": Universe()}
TARGETS = {2: 0.5, 4: 1.0, 6: 2.0, 20: 4.0}


def digits(epochs: int = 30, splits: int = 5, *, balance: bool = False) -> list[Row]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images, labels = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    found: dict[tuple[int, str], list[tuple[float, ...]]] = {}
    for split in range(splits):
        rows = train_test_split(range(len(images)), test_size=397, random_state=split, stratify=bunch.target)
        train, test = ((images[part], labels[part]) for part in rows)
        networks = train_together((64, 128, 128, 10), train, models=20, epochs=epochs, batch=64, seed=split)
        alone = [accuracy(network, test) for network in networks]
        if balance:
            networks = [balance_units(network).network for network in networks]
        for count, (name, method) in itertools.product(TARGETS, METHODS.items()):
            started = time.perf_counter()
            merged = merge(networks[:count], method=method)
            seconds = time.perf_counter() - started
            aligned = [
                permute(network, merged.spec, elements) if elements else network
                for network, elements in zip(networks, merged.permutations, strict=False)
            ]
            repaired = restore_statistics(merged.model, aligned, train[0]).model
            mean = statistics.mean(alone[:count])
            drops = (mean - accuracy(merged.model, test), mean - accuracy(repaired, test))
            with torch.no_grad():
                losses = [float(cross_entropy(test)(n.to_module())) for n in (merged.model, repaired)]  # type: ignore[union-attr]
            found.setdefault((count, name), []).append((mean, *drops, *losses, merged.objective, seconds))
    return [
        {
            "part": "balanced" if balance else "digits", "models": count, "method": name, "splits": splits,
            **dict(zip(("alone", "drop", "drop_repaired", "loss", "loss_repaired", "objective", "seconds"),
                       (statistics.mean(column) for column in zip(*values, strict=True)), strict=True)),
            "drops": [round(value[1], 2) for value in values],
            "target": TARGETS[count],
        }
        for (count, name), values in found.items()
    ]  # fmt: skip


def balanced() -> list[Row]:
    return digits(balance=True)


# ---- MNIST -----------------------------------------------------------------------------------------------


def mnist(images: int = 10000, tested: int = 5000, *, flat: bool = True) -> tuple[Data, Data]:
    """The first images of both sets, standardized."""
    folder = os.environ.get("WEIGHTSPACE_DATA")
    if not folder:
        raise SystemExit("set WEIGHTSPACE_DATA to the folder that holds mnist/mnist_full.npz")
    arrays = np.load(Path(folder) / "mnist" / "mnist_full.npz")

    def part(name: str, count: int) -> Data:
        x = (torch.tensor(arrays[f"x_{name}"][:count], dtype=torch.float32) / 255 - 0.1307) / 0.3081
        return x.flatten(1) if flat else x[:, None], torch.tensor(arrays[f"y_{name}"][:count]).long()

    return part("train", images), part("test", tested)


def compared(a: Network, b: Network, train: Data, test: Data, **row: object) -> Row:
    """Barriers on training and test images before and after alignment, 11 points as in the paper."""
    started = time.perf_counter()
    alignment = align(a, b)
    seconds = time.perf_counter() - started
    seen = (train[0][:5000], train[1][:5000])
    result: Row = dict(row)
    for name, end in (("", b), ("_aligned", alignment.model)):
        on_test = barrier(a, end, cross_entropy(test), points=11, accuracy=lambda m: accuracy(m, test))
        assert on_test.accuracies is not None
        result[f"barrier{name}"] = on_test.barrier
        result[f"barrier_train{name}"] = barrier(a, end, cross_entropy(seen), points=11).barrier
        result[f"accuracy_drop{name}"] = on_test.accuracy_barrier
    ends = (on_test.accuracies[0], on_test.accuracies[-1])
    return {**result, "accuracy": statistics.mean(ends), "seconds_align": seconds}


def width() -> list[Row]:
    """Barrier against width: two hidden layers, five epochs."""
    train, test = mnist()
    rows = []
    for size in (16, 32, 64, 128, 256, 512):
        a, b = train_together((784, size, size, 10), train, models=2, epochs=5, batch=100)
        rows.append(compared(a, b, train, test, part="width", width=size))
        print(rows[-1], flush=True)
    return rows


def training_time() -> list[Row]:
    """Barrier against epochs: two hidden layers of 256."""
    train, test = mnist()
    rows = []
    for epochs in (0, 1, 2, 4, 8, 16):
        a, b = train_together((784, 256, 256, 10), train, models=2, epochs=epochs, batch=100)
        rows.append(compared(a, b, train, test, part="time", epochs=epochs))
        print(rows[-1], flush=True)
    return rows


def counterexample() -> list[Row]:
    """Networks of five hidden units that solve one task in different ways: no order of the units joins them.

    ReLU perceptrons 2-5-2 on the exclusive or of the signs of two numbers, 24 seeds; of those with at least 97 %
    accuracy all pairs are compared, and for every pair all 120 orders of the hidden units: the least barrier is
    what no matcher can go below. Wide networks have room to hold all these solutions at once; five units do not.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3000, 2, generator=generator) * 2 - 1
    data = (x, ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long())
    trained = train_together((2, 5, 2), data, models=24, epochs=40, batch=100, rate=1e-2)
    networks = [network for network in trained if accuracy(network, data) >= 97]
    seen = (x[:500], data[1][:500])
    ends = [_loss(network.parameters, seen) for network in networks]
    found = []
    for first, second in itertools.combinations(range(len(networks)), 2):
        least = min(
            max(
                _loss(_between(networks[first].parameters, networks[second].parameters, order, t), seen)
                - ((1 - t) * ends[first] + t * ends[second])
                for t in (0.0, 0.25, 0.5, 0.75)
            )
            for order in itertools.permutations(range(5))
        )
        found.append((least, first, second))
    least, first, second = max(found)
    a, b = networks[first], networks[second]
    curve = path_curvature(a, align(a, b).model, cross_entropy(data), points=9)
    return [
        {
            "part": "counterexample", "networks": len(networks), "pairs": len(found), "orders": 120,
            "least_barrier_of_worst_pair": least,
            "least_barrier_median": statistics.median(value for value, *_ in found),
            "share_of_pairs_above_0.1": statistics.mean(float(value > 0.1) for value, *_ in found),
            "accuracies": [accuracy(a, data), accuracy(b, data)], "verdict": curve.verdict,
        }
    ]  # fmt: skip


def _between(a: dict[str, Tensor], b: dict[str, Tensor], order: Sequence[int], t: float) -> dict[str, Tensor]:
    index = list(order)
    moved = {
        "0.weight": b["0.weight"][index],
        "0.bias": b["0.bias"][index],
        "1.weight": b["1.weight"][:, index],
    }
    return {name: torch.lerp(tensor, moved.get(name, b[name]), t) for name, tensor in a.items()}


def _loss(p: dict[str, Tensor], data: Data) -> float:
    hidden = F.linear(data[0], p["0.weight"], p["0.bias"]).relu()
    return float(F.cross_entropy(F.linear(hidden, p["1.weight"], p["1.bias"]), data[1]))


# ---- BatchNorm -------------------------------------------------------------------------------------------


class Block(nn.Module):
    """relu(x + BN(conv(relu(BN(conv(x))))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.second(F.relu(self.norm1(self.first(x))))))


def residual(channels: int) -> nn.Module:
    """Three residual blocks between a stem and a head, on images of 7 x 7."""
    stem = [nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    blocks = [nn.MaxPool2d(2), Block(channels), Block(channels), Block(channels)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def norm() -> list[Row]:
    """Midpoint of two residual networks of several widths, three epochs of 10000 images."""
    train, test = mnist(10000, flat=False)
    rows = []
    for channels in (8, 16, 32):
        ends = []
        for seed in range(2):
            torch.manual_seed(seed)
            module = residual(channels)
            optimizer = torch.optim.Adam(module.parameters(), 3e-3)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
            for _ in range(3):
                for chosen in torch.randperm(len(train[0])).split(100):
                    optimizer.zero_grad()
                    cross_entropy((train[0][chosen], train[1][chosen]))(module).backward()
                    optimizer.step()
                    schedule.step()
            ends.append(module.eval())
        row: Row = {"part": "norm", "channels": channels, "ends": [accuracy(end, test) for end in ends]}
        for name, method in (("average", Average()), ("aligned", Reference())):
            merged = merge(ends, method=method, example_inputs=train[0][:2])
            other = ends[1] if method == Average() else align(*ends, example_inputs=train[0][:2]).model
            pair = (ends[0], other)
            row[name] = accuracy(merged.model, test)
            row[f"{name}_reset"] = accuracy(reset_batch_norm(merged.model, train[0]).model, test)
            repaired = restore_statistics(merged.model, pair, train[0], batch_norm="repair")
            row[f"{name}_repaired"] = accuracy(repaired.model, test)
        rows.append(row)
        print(rows[-1], flush=True)
    return rows


PARTS = {
    "digits": digits,
    "balanced": balanced,
    "width": width,
    "time": training_time,
    "counterexample": counterexample,
    "norm": norm,
}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(PARTS)
    rows: list[Row] = []
    for part in chosen:
        started = time.perf_counter()
        found = PARTS[part]()
        rows += [*found, {"part": part, "seconds_of_part": round(time.perf_counter() - started, 1)}]
    earlier = RESULTS / "merging.json"
    if earlier.exists():  # parts that were not asked for keep their rows
        rows += [row for row in json.loads(earlier.read_text())["rows"] if row["part"] not in chosen]
    write(
        "merging", sorted(rows, key=lambda row: list(PARTS).index(str(row["part"]))), "torch", "scikit-learn"
    )
