"""One graph network that reads networks of several architectures at once and predicts how well they generalize.

Claim (benchmarks/README.md quotes the numbers): a single `NeuralGraphNet`, trained on graphs of convolutional networks
and perceptrons of different depth and width side by side, ranks the test accuracy of networks of all of them as well as
gradient boosting on pooled weight statistics, which compare across architectures too. On an architecture that neither
was trained on, the statistics are better. Beside them: boosting on the statistics of every tensor, for each
architecture a model of its own.

    python benchmarks/mixed_architectures.py

Parts are split by training run. Zoos, trainings and predictions are kept in `--folder`; started again after a kill, it
goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cnn_generalization import BASELINE, accuracy, boost, compare, grow, runs_of, show, tau
from measure import write
from torch import Tensor, nn

from weightspace.graph import NeuralGraphNet, ParameterGraph, batch_graphs, describe_graphs, encode
from weightspace.zoo import (
    ConvolutionalClassifier,
    PerceptronClassifier,
    WeightZoo,
    run_training,
    summarize_weights,
)

ARCHITECTURES = {
    "CNN 8-8": ConvolutionalClassifier((8, 8)),
    "CNN 12-12": ConvolutionalClassifier((12, 12)),
    "CNN 6-6-6-6": ConvolutionalClassifier((6, 6, 6, 6)),
    "MLP 8": PerceptronClassifier((8,)),
    "MLP 8-8": PerceptronClassifier((8, 8)),
    "CNN 8-8-8": ConvolutionalClassifier((8, 8, 8)),
}
HELD_OUT = "CNN 8-8-8"
READER = "neural graph"
OWN = "weight statistics, a model for each architecture"
KERNEL = (3, 3)
FIGURE = Path(__file__).parent.parent / "docs" / "mixed_architectures.png"
Row = dict[str, Any]
Parts = Mapping[str, Sequence[WeightZoo]]  # architecture -> training, validation, test


def natural_units(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights times the root of the inputs of a unit, and biases, which stay near 1/4, times 4.

    Both are then of order 1 in every architecture, with nothing fitted.
    """
    return {
        name: w * math.sqrt(math.prod(w.shape[2:])) if w.ndim > 2 else 4 * w for name, w in parameters.items()
    }


class MixedReader(nn.Module):
    """A `NeuralGraphNet` on the graphs of networks of any of the architectures."""

    def __init__(self, parts: Parts, width: int):
        super().__init__()
        self.graphs = {name: encode(own[0].template, kernel=KERNEL) for name, own in parts.items()}
        trained = [graph for name, graph in self.graphs.items() if name != HELD_OUT]
        self.union = batch_graphs(trained)
        vocabulary = describe_graphs(
            show(self.graphs[name], own[0][:1].parameters) for name, own in parts.items()
        )
        self.net = NeuralGraphNet(
            vocabulary, out_features=1, width=width, layers=4, readout="all", dropout=0.1
        )

    def forward(self, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return logits of networks of one architecture, (networks,)."""
        return self.read(self.graphs[name], parameters)[..., 0]

    def together(self, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return logits of equally many networks of every architecture trained on, (networks, architectures)."""
        named = {f"{i}.{name}": w for i, batch in enumerate(batches) for name, w in batch.items()}
        return self.read(self.union, named)[..., 0]

    def read(self, graph: ParameterGraph, parameters: Mapping[str, Tensor]) -> Tensor:
        return self.net(show(graph, natural_units(parameters)))


def train(parts: Parts, seed: int, options: argparse.Namespace) -> tuple[dict[str, np.ndarray], Row]:
    """Fit the reader on all architectures but one, and return its predictions for all test networks."""
    torch.manual_seed(seed)
    model = MixedReader(parts, 32)
    trained = [name for name in parts if name != HELD_OUT]

    def loss(generator: torch.Generator) -> Tensor:
        batches, wanted = [], []
        for name in trained:
            zoo = parts[name][0]
            rows = torch.randint(len(zoo), (options.batch,), generator=generator)
            batches.append({name: tensor[rows] for name, tensor in zoo.parameters.items()})
            wanted.append(zoo.measures["test_accuracy"][rows])
        return F.binary_cross_entropy_with_logits(model.together(batches), torch.stack(wanted, 1))

    def predict(name: str, part: int) -> np.ndarray:
        zoo = parts[name][part]
        places = torch.arange(len(zoo)).split(128)
        return torch.cat([model(name, zoo[rows].parameters) for rows in places]).sigmoid().numpy()

    def validate() -> dict[str, float]:
        predicted = np.concatenate([predict(name, 1) for name in trained])
        return {"validation_tau": tau(predicted, np.concatenate([accuracy(parts[n][1]) for n in trained]))}

    run = run_training(
        model, loss, validate, steps=options.steps, objective="validation_tau", learning_rate=3e-3,
        generator=torch.Generator().manual_seed(seed), checkpoint=options.folder / f"{READER} {seed}.pt",
    )  # fmt: skip
    with torch.no_grad():
        found = {name: predict(name, 2) for name in parts}
    row = {
        "parameters": sum(p.numel() for p in model.parameters()), "steps": options.steps,
        "curve": [[entry["step"], entry["validation_tau"]] for entry in run.history],
    }  # fmt: skip
    return found, row


def boost_pooled(parts: Parts, seed: int) -> tuple[dict[str, np.ndarray], Row]:
    """Fit one model to statistics that all architectures have, of all but one of them."""

    def features(zoo: WeightZoo) -> np.ndarray:
        return summarize_weights(natural_units(zoo.parameters), pooled=True).values.numpy()

    trained = [name for name in parts if name != HELD_OUT]
    inputs = [np.concatenate([features(parts[name][part]) for name in trained]) for part in (0, 1)]
    targets = [np.concatenate([accuracy(parts[name][part]) for name in trained]) for part in (0, 1)]
    tested = [features(own[2]) for own in parts.values()]
    predicted = boost([*inputs, np.concatenate(tested)], targets, seed)[0]
    ends = np.cumsum([len(rows) for rows in tested])[:-1]
    return dict(zip(parts, np.split(predicted, ends), strict=True)), {}


def boost_each(parts: Parts, seed: int) -> tuple[dict[str, np.ndarray], Row]:
    """Fit to every architecture, the held-out one too, a model of its own."""
    return {
        name: boost(
            [summarize_weights(part).values.numpy() for part in own], [accuracy(p) for p in own], seed
        )[0]
        for name, own in parts.items()
    }, {}


def predict_all(parts: Parts, seed: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Let every method predict the test networks, or read what it said before."""
    methods = {
        BASELINE: lambda: boost_pooled(parts, seed),
        OWN: lambda: boost_each(parts, seed),
        READER: lambda: train(parts, seed, options),
    }
    for method, predict in methods.items():
        path = options.folder / f"{method} {seed}.json"
        if not path.exists():
            started = time.process_time()
            predicted, row = predict()
            row["cpu_seconds"] = time.process_time() - started
            path.write_text(json.dumps({**row, "predicted": {n: v.tolist() for n, v in predicted.items()}}))
    return {method: json.loads((options.folder / f"{method} {seed}.json").read_text()) for method in methods}


def collect(parts: Parts, found: Mapping[str, Mapping[str, Any]], seed: int) -> None:
    """Write tau of every method on every architecture and on all that were trained on, and draw the reader's."""
    trained = [name for name in parts if name != HELD_OUT]
    rows: list[Row] = []
    for group in [*([name] for name in parts), trained]:
        measured = np.concatenate([accuracy(parts[name][2]) for name in group])
        runs, offset = [], 0
        for name in group:
            runs.append(runs_of(parts[name][2]).numpy() + offset)
            offset += 1 + int(runs[-1].max() - offset)
        entries = {}
        for method, result in found.items():
            predicted = np.concatenate([result["predicted"][name] for name in group])
            entries[method] = [
                {"predicted": predicted, "measured": measured, "run": np.concatenate(runs),
                 "tau": tau(predicted, measured)}
            ]  # fmt: skip
        for method, gain in compare(entries).items():
            rows.append(
                {
                    "architecture": group[0] if len(group) == 1 else "all that were trained on",
                    "held_out": group[0] == HELD_OUT, "method": method, "seed": seed, "tested": len(measured),
                    "tau": entries[method][0]["tau"], **gain,
                }
            )  # fmt: skip
    for method, result in found.items():
        rows.append({"method": method, **{key: v for key, v in result.items() if key != "predicted"}})
    write("mixed_architectures", rows, "torch", "scikit-learn", "scipy")
    draw(
        parts,
        {row["architecture"]: row["tau"] for row in rows if row.get("tau") and row["method"] == READER},
        found,
    )


def draw(parts: Parts, taus: Mapping[str, float], found: Mapping[str, Mapping[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(8.4, 5.8), sharex=True, sharey=True, layout="constrained")
    for axis, (name, own) in zip(axes.flat, parts.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        color = "C1" if name == HELD_OUT else "C0"
        axis.scatter(accuracy(own[2]), found[READER]["predicted"][name], s=5, alpha=0.6, color=color)
        held = ", not trained on" if name == HELD_OUT else ""
        axis.set(title=f"{name}{held}\n" + rf"$\tau$ = {taus[name]:.3f}")
    figure.supxlabel("measured test accuracy")
    figure.supylabel("predicted")
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=250, help="of every architecture")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=12, help="networks of every architecture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zoos/mixed_architectures"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True, parents=True)
    zoos = {
        name: grow(options.folder, name, architecture, options.runs, epochs=8, keep_epochs=(3,))
        for name, architecture in ARCHITECTURES.items()
    }
    parts = {
        name: zoo.split((0.6, 0.1, 0.3), torch.Generator().manual_seed(options.seed))
        for name, zoo in zoos.items()
    }
    collect(parts, predict_all(parts, options.seed, options), options.seed)


if __name__ == "__main__":
    main()
