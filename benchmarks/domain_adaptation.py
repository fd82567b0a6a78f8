"""Adapt classifiers to a shifted domain by their weights alone: no image and no label when a network is adapted.

Claim (benchmarks/README.md quotes the numbers): an equivariant network that was trained on other classifiers changes
the weights of unseen ones so that they classify unseen images of the target domain. One change of weights shared by all
networks, and a perceptron on flattened weights, do little; a neural graph of this width, in which 64 pixels pass
through 32 channels of a unit, stops between.

    python benchmarks/domain_adaptation.py

Source: digits of scikit-learn, 8 x 8, perceptrons 64-32-10, each from initial weights of its own. Target: the same
digits turned by `DEGREES`, brighter, at lower contrast, with noise. Images are split once: classifiers are trained
on half of them, the adapter on target versions of a fifth, and everything is tested on target versions of the rest;
classifiers are split too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor, nn

from weightspace.equivariant import DeepWeightSpaceNet, Full
from weightspace.graph import GraphParameterMap, NeuralGraphNet, describe_graphs, encode
from weightspace.zoo import (
    Augmentation,
    HyperparameterRanges,
    PerceptronClassifier,
    WeightEditor,
    WeightZoo,
    run_perceptrons,
    run_training,
    standardize,
    train_classifiers,
)

FAMILIES = ("shared change", "flat", "flat, permuted", "deep weight space", "neural graph")
DEGREES, CONTRAST, BRIGHTNESS, NOISE = 30.0, 0.6, 0.3, 0.1
FIGURE = Path(__file__).parent.parent / "docs" / "domain_adaptation.png"
RANGES = HyperparameterRanges(
    learning_rate=(2e-3, 6e-3), initial_scale=(0.7, 1.4), weight_decay=(1e-5, 1e-4), dropout=(0.0, 0.1),
    fraction=(0.9, 1.0), optimizers=("adam",),
)  # fmt: skip


class SharedChange(nn.Module):
    """The same change for all networks: one number per weight."""

    def __init__(self, zoo: WeightZoo):
        super().__init__()
        self.names = tuple(zoo.parameters)
        self.changes = nn.ParameterList(torch.zeros_like(tensor[0]) for tensor in zoo.parameters.values())

    def forward(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: change[None, None] for name, change in zip(self.names, self.changes, strict=True)}


class FlatMap(nn.Module):
    """A perceptron from all weights in a row to changes of all weights."""

    def __init__(self, zoo: WeightZoo, width: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(zoo.weights, width), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, zoo.weights),
        )  # fmt: skip

    def forward(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        changes = self.layers(torch.cat([tensor.flatten(1) for tensor in parameters.values()], 1))
        parts = changes.split([tensor[0].numel() for tensor in parameters.values()], 1)
        return {
            name: part.view_as(parameters[name]).unsqueeze(1)
            for name, part in zip(parameters, parts, strict=True)
        }


def load() -> tuple[Tensor, Tensor]:
    """All digits, (1797, 8, 8) from 0 to 1, and their classes, shuffled."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    pixels = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 8, 8) / 16
    return pixels[order], torch.as_tensor(labels)[order]


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """The same images in the target domain, with noise of their own at every call."""
    angle = torch.tensor(DEGREES).deg2rad()
    turn = torch.stack(
        [angle.cos(), -angle.sin(), torch.zeros(()), angle.sin(), angle.cos(), torch.zeros(())]
    )
    grid = F.affine_grid(
        turn.view(1, 2, 3).expand(len(images), -1, -1), [len(images), 1, 8, 8], align_corners=False
    )
    turned = F.grid_sample(images.unsqueeze(1), grid, align_corners=False).squeeze(1)
    return BRIGHTNESS + CONTRAST * turned + NOISE * torch.randn(turned.shape, generator=generator)


def classifiers(
    path: Path, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], networks: int, seed: int
) -> WeightZoo:
    """Train them once; the file is read ever after."""
    if not path.exists():
        train_classifiers(
            x.flatten(1), y, (test[0].flatten(1), test[1]),
            networks=networks, architecture=PerceptronClassifier((32,)), ranges=RANGES, epochs=20,
            generator=torch.Generator().manual_seed(seed),
        ).save(path)  # fmt: skip
    return WeightZoo.load(path)


def adapter(family: str, zoo: WeightZoo, options: argparse.Namespace) -> WeightEditor:
    if family == "shared change":
        return WeightEditor(SharedChange(zoo), standardize(zoo), scale=1.0)
    if family.startswith("flat"):
        return WeightEditor(FlatMap(zoo), standardize(zoo), scale=0.02)
    if family == "deep weight space":
        net: nn.Module = DeepWeightSpaceNet(
            zoo.spec, channels=(options.channels,) * options.layers, fixed=Full()
        )
    else:
        graph = encode(zoo.template)
        layers = NeuralGraphNet(describe_graphs([graph]), level="edge", width=32, layers=options.layers)
        net = GraphParameterMap(layers, graph.structure)
    return WeightEditor(net, standardize(zoo), scale=0.02)


def accuracy(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Of every network, (networks,)."""
    return (run_perceptrons(parameters, x.flatten(1)).argmax(-1) == y).double().mean(1)


def train(family: str, data: dict[str, Any], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    name = f"adaptation {family} {options.networks} networks {options.steps} steps seed {seed}"
    result = options.folder / f"{name}.json"
    if result.exists():
        return json.loads(result.read_text())
    torch.manual_seed(seed)
    training, validation, test = data["zoo"].split((0.8, 0.1, 0.1), torch.Generator().manual_seed(seed))
    (x, y), (x_seen, y_seen), (x_test, y_test) = data["adapting"], data["validation"], data["test"]
    model = adapter(family, training, options)
    augment = Augmentation(training.spec, permute=family == "flat, permuted")

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(training), (options.batch,), generator=generator)
        images = torch.randint(len(x), (options.batch, 64), generator=generator)
        parameters = {key: tensor[rows] for key, tensor in training.parameters.items()}
        pixels = shift(x[images].flatten(0, 1), generator).view(options.batch, 64, 64)
        logits = run_perceptrons(model(augment(parameters, generator)), pixels)
        return F.cross_entropy(logits.flatten(0, 1), y[images].flatten())

    def adapted() -> dict[str, float]:
        return {"validation_accuracy": float(accuracy(model(validation.parameters), x_seen, y_seen).mean())}

    run = run_training(
        model, loss, adapted, steps=options.steps, objective="validation_accuracy",
        learning_rate=options.learning_rate, generator=torch.Generator().manual_seed(seed),
        checkpoint=options.folder / f"{name}.pt",
    )  # fmt: skip
    with torch.no_grad():
        before, after = (
            accuracy(parameters, x_test, y_test) for parameters in (test.parameters, model(test.parameters))
        )
        fitted = accuracy(model(training.parameters), x_test, y_test)
    row = {
        "family": family, "seed": seed, "training_networks": len(training), "test_networks": len(test),
        "parameters": sum(p.numel() for p in model.parameters()), "steps": options.steps, "batch": options.batch,
        "threads": torch.get_num_threads(), "seconds": run.history[-1]["seconds"],
        "before": float(before.mean()), "after": float(after.mean()), "after_worst": float(after.min()),
        "after_on_training_networks": float(fitted.mean()),
        "curve": [[entry["step"], entry["validation_accuracy"]] for entry in run.history],
    }  # fmt: skip
    result.write_text(json.dumps(row))
    print({key: value for key, value in row.items() if key != "curve"}, flush=True)
    return row


def prepare(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The zoo, the target images of every part, and what no adaptation needs: accuracies at source and target."""
    images, labels = load()
    generator = torch.Generator().manual_seed(1)
    ends = (0, 900, 1250, 1350, len(images))
    own, adapting, seen, test = ((images[a:b], labels[a:b]) for a, b in pairwise(ends))
    shifted = {key: (shift(x, generator), y) for key, (x, y) in {"validation": seen, "test": test}.items()}
    zoo = classifiers(
        options.folder / f"clean_{options.networks}.safetensors", *own, test, options.networks, 0
    )
    # Several noisy versions of each image, as the adapter sees.
    trained_on = (torch.cat([shift(own[0], generator) for _ in range(4)]), own[1].repeat(4))
    domain = f"target_{DEGREES:g}_{CONTRAST:g}_{BRIGHTNESS:g}_{NOISE:g}"
    direct = classifiers(options.folder / f"{domain}.safetensors", *trained_on, shifted["test"], 32, 1)
    bounds = {
        "reference": "networks without adaptation",
        "source_accuracy": float(zoo.measures["test_accuracy"].double().mean()),
        "target_accuracy": float(accuracy(zoo.parameters, *shifted["test"]).mean()),
        "trained_on_target_accuracy": float(direct.measures["test_accuracy"].double().mean()),
    }
    return {"zoo": zoo, "adapting": adapting, **shifted}, bounds


def collect(folder: Path, bounds: dict[str, Any]) -> None:
    """Write what all runs in the folder reached, and draw it."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("adaptation *.json"))]
    write("domain_adaptation", [bounds, *rows], "torch")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for family in FAMILIES:
        for turn, row in enumerate(row for row in rows if row["family"] == family):
            axis.plot(
                *zip(*row["curve"], strict=True),
                color=f"C{FAMILIES.index(family)}",
                label=None if turn else family,
            )
    axis.axhline(
        bounds["trained_on_target_accuracy"], color="black", ls="--", lw=1, label="trained on the target"
    )
    axis.axhline(bounds["target_accuracy"], color="black", ls=":", lw=1, label="not adapted")
    axis.set(xlabel="step", ylabel="target accuracy of unseen networks\non validation images", ylim=(0, 1))
    axis.legend(fontsize=7)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--networks", type=int, default=600)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zoos"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True, parents=True)
    data, bounds = prepare(options)
    print(bounds, flush=True)
    for seed in options.seeds:
        for family in options.family or FAMILIES:
            train(family, data, seed, options)
    collect(options.folder, bounds)


if __name__ == "__main__":
    main()
