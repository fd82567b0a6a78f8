"""Predict from its weights how well a convolutional network generalizes: equivariant readers and weight statistics.

Claim (benchmarks/README.md quotes the numbers): Kendall's tau between predicted and measured test accuracy, on training
runs that nothing was fitted to, is as high for either reader as for gradient boosting on the statistics of each tensor
(Unterthiner et al. 2020), tuned on the same validation runs; the two readers together, and each of them together with
the statistics (mean of their ranks), are above it. The interval is a paired bootstrap over test runs.

    python benchmarks/cnn_generalization.py

The zoo: 1500 runs of 8-8-8 convolutional networks on the digits (8 x 8), varied in learning rate, initial scale, weight
decay, dropout, optimizer and data, each kept after 3 and after 8 epochs; parts are split by run. Zoo, trainings and
predictions are kept in `--folder`; started again after a kill, it goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor, nn
from tqdm import tqdm

from weightspace.bundled import digits
from weightspace.equivariant import DeepWeightSpaceNet, LowRank
from weightspace.graph import NeuralGraphNet, ParameterGraph, describe_graphs, encode
from weightspace.zoo import (
    ConvolutionalClassifier,
    WeightZoo,
    concatenate_zoos,
    run_training,
    standardize,
    summarize_weights,
    train_classifiers,
)

BASELINE = "weight statistics"
AVERAGED = f"{BASELINE}, 5 models averaged"
READERS = ("deep weight space", "neural graph")
FIGURE = Path(__file__).parent.parent / "docs" / "cnn_generalization.png"
PIECE = 250  # runs that are trained, and lost in a kill, together
# What a row keeps for every network or step.
SERIES = ("predicted", "averaged", "measured", "run", "epoch", "curve")
Row = dict[str, Any]


def grow(
    folder: Path, name: str, architecture: Callable[..., nn.Module], runs: int, **options: Any
) -> WeightZoo:
    """Train classifiers of the digits, or read those that were trained already."""
    x, y, x_test, y_test = (part.reshape(-1, 1, 8, 8) if part.ndim == 2 else part for part in digits())
    pieces = []
    for start in tqdm(range(0, runs, PIECE), desc=name, disable=None, leave=False):
        count = min(PIECE, runs - start)
        path = folder / f"{name}_{start}_{count}.safetensors"
        if not path.exists():
            piece = train_classifiers(
                x, y, (x_test, y_test), networks=count, architecture=architecture,
                generator=torch.Generator().manual_seed(start), **options,
            )  # fmt: skip
            replace(piece, sources=start + runs_of(piece)).save(path)
        pieces.append(WeightZoo.load(path))
    return concatenate_zoos(pieces)


def runs_of(zoo: WeightZoo) -> Tensor:
    assert zoo.sources is not None
    return zoo.sources


def tau(predicted: np.ndarray, measured: np.ndarray) -> float:
    from scipy.stats import kendalltau

    return float(np.asarray(kendalltau(predicted, measured))[0])


def boost(features: Sequence[np.ndarray], targets: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return predictions for the last part, those of the settings with the highest tau on the second part first.

    Twelve settings, each with the number of trees that does best on the second part.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    settings = [(rate, leaves, low) for rate in (0.03, 0.1) for leaves in (7, 15, 31) for low in (5, 20)]
    found = []
    for rate, leaves, low in tqdm(settings, desc="boosting", disable=None, leave=False):
        model = HistGradientBoostingRegressor(
            learning_rate=rate, max_leaf_nodes=leaves, min_samples_leaf=low, max_iter=400, max_features=0.5,
            random_state=seed,
        ).fit(features[0], targets[0])  # fmt: skip
        scores = [tau(stage, targets[1]) for stage in list(model.staged_predict(features[1]))[19::20]]
        best = int(np.argmax(scores))
        found.append((scores[best], list(model.staged_predict(features[2]))[19::20][best]))
    return [predicted for _, predicted in sorted(found, key=lambda pair: -pair[0])]


def views(parameters: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    """Return standardized weights, their size and its logarithm.

    Initial scales differ fifteenfold, and what a mean over linear maps of weights hides is how large they are.
    """
    return (
        dict(parameters),
        {name: w.abs() - 0.6 for name, w in parameters.items()},
        {name: (w.square() + 1e-2).log() / 2 + 1 for name, w in parameters.items()},
    )


class DeepWeightSpaceReader(nn.Module):
    """A `DeepWeightSpaceNet` on three channels for every weight."""

    def __init__(self, zoo: WeightZoo, channels: int):
        super().__init__()
        self.standardization = standardize(zoo)
        self.net = DeepWeightSpaceNet(
            zoo.spec, 1, in_channels=3, channels=(channels,) * 3, head_width=64, fixed=LowRank(8)
        )

    def forward(self, parameters: Mapping[str, Tensor]) -> Tensor:
        seen = views(self.standardization.apply(parameters))
        stacked = {name: torch.stack([view[name] for view in seen], 1) for name in seen[0]}
        return self.net(stacked)[:, 0]


class NeuralGraphReader(nn.Module):
    """A `NeuralGraphNet` on three features for every weight."""

    def __init__(self, zoo: WeightZoo, width: int):
        super().__init__()
        self.standardization = standardize(zoo)
        self.graph = encode(zoo.template)
        vocabulary = describe_graphs([self.look(zoo[:1].parameters)])
        self.net = NeuralGraphNet(
            vocabulary, out_features=1, width=width, layers=4, readout="all", dropout=0.1
        )

    def look(self, parameters: Mapping[str, Tensor]) -> ParameterGraph:
        return show(self.graph, self.standardization.apply(parameters))

    def forward(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return self.net(self.look(parameters))[..., 0]


def show(graph: ParameterGraph, parameters: Mapping[str, Tensor]) -> ParameterGraph:
    """Return the graphs of networks, with three features for every weight."""
    seen = [graph.with_parameters(view) for view in views(parameters)]
    return ParameterGraph(
        graph.structure,
        torch.cat([view.node_features for view in seen], -1),
        torch.cat([view.edge_features for view in seen], -1),
    )


def train(
    method: str, parts: Sequence[WeightZoo], seed: int, options: argparse.Namespace
) -> tuple[np.ndarray, Row]:
    """Fit a reader to soft labels, the accuracies, and return its predictions for the last part."""
    torch.manual_seed(seed)
    training, validation, test = parts
    graphs = method == "neural graph"
    model = NeuralGraphReader(training, 32) if graphs else DeepWeightSpaceReader(training, 12)
    steps = options.graph_steps if graphs else options.steps

    def loss(generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(training), (64,), generator=generator)
        logits = model({name: tensor[batch] for name, tensor in training.parameters.items()})
        return F.binary_cross_entropy_with_logits(logits, training.measures["test_accuracy"][batch])

    def predict(zoo: WeightZoo) -> np.ndarray:
        places = torch.arange(len(zoo)).split(256)
        return torch.cat([model(zoo[rows].parameters) for rows in places]).sigmoid().numpy()

    run = run_training(
        model, loss, lambda: {"validation_tau": tau(predict(validation), accuracy(validation))},
        steps=steps, objective="validation_tau", learning_rate=3e-3,
        generator=torch.Generator().manual_seed(seed), checkpoint=options.folder / f"{method} {seed}.pt",
    )  # fmt: skip
    with torch.no_grad():
        found = predict(test)
    row = {
        "parameters": sum(p.numel() for p in model.parameters()), "steps": steps,
        "validation_tau": run.best["validation_tau"],
        "curve": [[entry["step"], entry["validation_tau"]] for entry in run.history],
    }  # fmt: skip
    return found, row


def accuracy(zoo: WeightZoo) -> np.ndarray:
    return zoo.measures["test_accuracy"].double().numpy()


def predict_runs(zoo: WeightZoo, seed: int, options: argparse.Namespace) -> None:
    """Let every method predict the test runs of a split, and keep what it says."""
    parts = zoo.split((0.6, 0.1, 0.3), torch.Generator().manual_seed(seed))
    test = parts[-1]
    for family in (BASELINE, *READERS):
        path = options.folder / f"{family} {seed}.json"
        if path.exists():
            continue
        started = time.process_time()
        if family == BASELINE:
            features = [summarize_weights(part).values.numpy() for part in parts]
            boosted = boost(features, [accuracy(part) for part in parts], seed)
            predicted, row = boosted[0], {"averaged": np.mean(boosted[:5], 0).tolist()}
        else:
            predicted, row = train(family, parts, seed, options)
        row |= {
            "method": family, "seed": seed, "networks": len(parts[0]), "tested": len(test),
            "cpu_seconds": time.process_time() - started, "tau": tau(predicted, accuracy(test)),
        }  # fmt: skip
        print({key: value for key, value in row.items() if key not in SERIES}, flush=True)
        own = {
            "predicted": predicted, "measured": accuracy(test),
            "run": runs_of(test).numpy(), "epoch": test.measures["epoch"].numpy(),
        }  # fmt: skip
        path.write_text(json.dumps({**row, **{key: values.tolist() for key, values in own.items()}}))


def compare(
    found: Mapping[str, Sequence[Row]], baselines: Sequence[str] = (BASELINE,), draws: int = 1000
) -> dict[str, Row]:
    """Bootstrap the gain in tau over baselines: of every split and of their mean, by drawing runs anew."""
    runs = 1 + max(max(row["run"]) for rows in found.values() for row in rows)
    generator = np.random.default_rng(0)
    samples = {method: np.empty((draws, len(rows))) for method, rows in found.items()}
    for number in tqdm(range(draws), desc="bootstrap", disable=None, leave=False):
        multiplicity = np.bincount(generator.integers(runs, size=runs), minlength=runs)
        for method, rows in found.items():
            for split, row in enumerate(rows):
                chosen = np.repeat(np.arange(len(row["run"])), multiplicity[row["run"]])
                own = (np.asarray(row[key])[chosen] for key in ("predicted", "measured"))
                samples[method][number, split] = tau(*own)
    result: dict[str, Row] = {method: {} for method in found}
    for method, rows in found.items():
        for baseline in baselines:
            gain = samples[method] - samples[baseline]
            pairs = zip(rows, found[baseline], strict=True)
            result[method][f"over {baseline}"] = {
                "gain": float(np.mean([row["tau"] - other["tau"] for row, other in pairs])),
                "interval": np.quantile(gain.mean(1), [0.025, 0.975]).tolist(),
                "interval_by_seed": np.quantile(gain, [0.025, 0.975], axis=0).T.tolist(),
            }
    return result


def collect(folder: Path) -> None:
    """Write what all methods reached, with the intervals of the comparison, and draw it."""
    found: dict[str, list[Row]] = {
        method: [json.loads(path.read_text()) for path in sorted(folder.glob(f"{method} [0-9]*.json"))]
        for method in (BASELINE, *READERS)
    }
    found[AVERAGED] = [
        {
            **row, "method": AVERAGED, "predicted": row["averaged"],
            "tau": tau(np.array(row["averaged"]), np.array(row["measured"])),
        }
        for row in found[BASELINE]
    ]  # fmt: skip
    for methods in (READERS, *((reader, BASELINE) for reader in READERS)):
        splits = zip(*(found[method] for method in methods), strict=True)
        found[" + ".join(methods)] = [together(split) for split in splits]
    gains = compare(found, (BASELINE, AVERAGED))
    rows = []
    for method, own in found.items():
        for row in own:
            last = np.array(row["epoch"]) == max(row["epoch"])
            row["tau_last_epoch"] = tau(np.array(row["predicted"])[last], np.array(row["measured"])[last])
            rows.append({key: v for key, v in row.items() if key not in SERIES or key == "curve"})
        rows.append(
            {
                "method": method, "seeds": [row["seed"] for row in own],
                "mean_tau": float(np.mean([row["tau"] for row in own])), **gains[method],
            }
        )  # fmt: skip
    write("cnn_generalization", rows, "torch", "scikit-learn", "scipy")
    draw({method: found[method] for method in (BASELINE, *READERS)}, FIGURE)


def together(rows: Sequence[Row]) -> Row:
    """Return the mean of what several methods predicted, as ranks."""
    from scipy.stats import rankdata

    predicted = np.mean([rankdata(row["predicted"]) for row in rows], 0) / len(rows[0]["predicted"])
    shared = {key: rows[0][key] for key in ("seed", "networks", "tested", "measured", "run", "epoch")}
    return {
        "method": " + ".join(row["method"] for row in rows), **shared, "predicted": predicted.tolist(),
        "tau": tau(predicted, np.array(rows[0]["measured"])),
    }  # fmt: skip


def draw(found: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Predicted against measured accuracy of the first split, one picture per method."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(found), figsize=(3 * len(found), 3.3), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (method, rows) in zip(axes, found.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axis.scatter(rows[0]["measured"], rows[0]["predicted"], s=4, alpha=0.5)
        axis.set(title=f"{method}\n" + rf"$\tau$ = {np.mean([row['tau'] for row in rows]):.3f}")
        axis.set(xlabel="measured test accuracy")
    axes[0].set(ylabel="predicted")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="of 64 networks each")
    parser.add_argument("--graph-steps", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zoos/cnn_generalization"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True, parents=True)
    zoo = grow(
        options.folder, "cnn", ConvolutionalClassifier((8, 8, 8)), options.runs, epochs=8, keep_epochs=(3,)
    )
    for seed in options.seeds:
        predict_runs(zoo, seed, options)
    collect(options.folder)


if __name__ == "__main__":
    main()
