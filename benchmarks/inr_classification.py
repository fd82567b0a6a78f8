"""Classify images from the weights of networks that represent them: equivariant layers, graphs, and flat weights.

Claims (benchmarks/README.md quotes the numbers): on digits (8 x 8, SIRENs 2-16-16-1) both families beat a perceptron
on flattened weights, with or without permutation augmentation; the MNIST run (28 x 28, SIRENs 2-32-32-1, the setting
of the papers) is as long as the machine allowed.

    python benchmarks/inr_classification.py digits
    python benchmarks/inr_classification.py mnist --images 20000

Every digit is fitted ten times from independent initial weights; the parts are split by image, and test accuracy
counts every network by itself. All readers, the flat ones too, are given canonical signs and phases of the sine units
(`canonicalize_sine_units`) without `--raw-phases`. Zoos are cached in `--folder`, where runs resume after a kill;
`collect` writes the JSON and the figure of all runs there.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor, nn

from weightspace.equivariant import DeepWeightSpaceNet
from weightspace.graph import NeuralGraphNet, ProbeFeatures, describe_graphs, encode
from weightspace.zoo import (
    Augmentation,
    FlatReader,
    GraphReader,
    WeightSpaceReader,
    WeightZoo,
    canonicalize_sine_units,
    fit_inrs,
    run_training,
    standardize,
)

FAMILIES = ("deep weight space", "neural graph", "flat", "flat, permuted")


FIGURE = Path(__file__).parent.parent / "docs" / "inr_classification.png"


def digits(folder: Path, options: argparse.Namespace) -> WeightZoo:
    """All 1797 digits of scikit-learn, each fitted several times."""
    from sklearn.datasets import load_digits

    raw = "_raw" if options.raw_phases else ""
    path = folder / f"digits_{options.initializations}_omega_{options.omega:g}{raw}.safetensors"
    if not path.exists():
        images, labels = load_digits(return_X_y=True)
        zoo = fit_inrs(
            torch.as_tensor(images, dtype=torch.float32).reshape(-1, 8, 8) / 16,
            hidden=(16, 16), omega=options.omega, steps=100, learning_rate=5e-3,
            initializations=options.initializations, labels=torch.as_tensor(labels),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        (zoo if options.raw_phases else canonical(zoo, options.omega)).save(path)
    return WeightZoo.load(path)


def canonical(zoo: WeightZoo, omega: float) -> WeightZoo:
    """The same functions, every sine unit with one choice of its sign and phase."""
    return replace(zoo, parameters=canonicalize_sine_units(zoo.parameters, zoo.continuous_spec, omega=omega))


def mnist(folder: Path, count: int) -> WeightZoo:
    """The first images of MNIST, each fitted once, stored piece by piece."""
    path = folder / f"mnist_{count}.safetensors"
    if not path.exists():
        with np.load(Path(os.environ["WEIGHTSPACE_DATA"]) / "mnist" / "mnist_full.npz") as file:
            images, labels = (torch.from_numpy(file[name][:count]) for name in ("x_train", "y_train"))
        zoo = fit_inrs(
            images.reshape(-1, 28, 28).float() / 255,
            hidden=(32, 32), steps=50, learning_rate=3e-3, labels=labels.long(),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        canonical(zoo, 30.0).save(path)
    return WeightZoo.load(path)


def reader(family: str, zoo: WeightZoo, probes: int, options: argparse.Namespace) -> nn.Module:
    standardization = standardize(zoo)
    classes = int(zoo.labels.max()) + 1
    learned = ProbeFeatures(zoo.template, probes) if probes else None
    if family == "deep weight space":
        channels = (options.width,) * options.layers
        net = DeepWeightSpaceNet(
            zoo.spec, classes, in_channels=1 + probes, channels=channels, dropout=options.dropout
        )
        return WeightSpaceReader(net, standardization, learned)
    if family == "neural graph":
        graph = encode(zoo.template)
        net = NeuralGraphNet(
            describe_graphs([graph]), out_features=classes, width=options.width, edge_width=options.width // 2,
            layers=options.layers + 1, readout="all", probes=probes, dropout=options.dropout,
        )  # fmt: skip
        return GraphReader(net, graph, standardization, learned)
    return FlatReader(zoo.weights, classes, standardization)


def train(family: str, zoo: WeightZoo, seed: int, probes: int, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(seed)
    training, validation, test = zoo.split((0.8, 0.1, 0.1), torch.Generator().manual_seed(seed))
    model = reader(family, training, probes, options)
    permute = family == "flat, permuted"
    augment = Augmentation(zoo.spec, permute=permute, noise=options.noise)
    labels = training.labels

    def loss(generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(training), (options.batch,), generator=generator)
        parameters = {name: tensor[batch] for name, tensor in training.parameters.items()}
        return F.cross_entropy(model(augment(parameters, generator)), labels[batch], label_smoothing=0.1)

    def accuracy(part: WeightZoo) -> float:
        found = [
            model({name: tensor[start : start + 512] for name, tensor in part.parameters.items()}).argmax(-1)
            for start in range(0, len(part), 512)
        ]
        return float((torch.cat(found) == part.labels).double().mean())

    phases = "raw" if options.raw_phases else "canonical"
    name = f"{options.data} {family} probes {probes} {phases} omega {options.omega:g} steps {options.steps} seed {seed}"
    run = run_training(
        model, loss, lambda: {"validation_accuracy": accuracy(validation)},
        steps=options.steps, objective="validation_accuracy", learning_rate=options.learning_rate,
        generator=torch.Generator().manual_seed(seed), checkpoint=options.folder / f"{name}.pt",
    )  # fmt: skip
    with torch.no_grad():
        tested = accuracy(test)
    row = {
        "data": options.data, "family": family, "probes": probes, "seed": seed, "phases": phases,
        "omega": options.omega if options.data == "digits" else 30.0, "noise": options.noise,
        "networks": len(training), "parameters": sum(p.numel() for p in model.parameters()),
        "steps": options.steps, "batch": options.batch, "threads": torch.get_num_threads(),
        "seconds": run.history[-1]["seconds"],
        "validation_accuracy": run.best["validation_accuracy"], "test_accuracy": tested,
        "curve": [[entry["step"], entry["validation_accuracy"]] for entry in run.history],
    }  # fmt: skip
    (options.folder / f"{name}.json").write_text(json.dumps(row))
    print({key: value for key, value in row.items() if key != "curve"}, flush=True)
    return row


def collect(folder: Path) -> None:
    """Write what all runs in the folder reached, and draw it."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*seed*.json"))]
    write("inr_classification", rows, "torch")
    import matplotlib.pyplot as plt

    names = sorted({row["data"] for row in rows})
    figure, axes = plt.subplots(1, len(names), figsize=(10, 5), squeeze=False, layout="constrained")
    places = dict(zip(names, axes[0], strict=True))
    colors: dict[str, str] = {}
    for row in rows:
        probes = f", {row['probes']} probes" if row["probes"] else ""
        label = f"{row['family']}{probes}, omega {row['omega']:g}, {row['phases']} phases"
        new = label not in colors
        color = colors.setdefault(label, f"C{len(colors) % 10}")
        places[row["data"]].plot(
            *zip(*row["curve"], strict=True), color=color, label=label if new else None, alpha=0.8
        )
    for data, axis in places.items():
        axis.set(xlabel="step", ylabel="validation accuracy", title=data)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=["digits", "mnist", "collect"])
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--probes", type=int, default=0)
    parser.add_argument("--images", type=int, default=10000, help="of MNIST")
    parser.add_argument("--initializations", type=int, default=10, help="of every digit")
    parser.add_argument(
        "--omega", type=float, default=5.0, help="of digits: 8 x 8 pixels say nothing about 30"
    )
    parser.add_argument("--raw-phases", action="store_true", help="of digits: sine units as they were fitted")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zoos"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True, parents=True)
    if options.data == "collect":
        collect(options.folder)
    else:
        zoo = (
            digits(options.folder, options)
            if options.data == "digits"
            else mnist(options.folder, options.images)
        )
        for seed in options.seeds:
            for family in options.family or FAMILIES:
                train(family, zoo, seed, options.probes, options)


if __name__ == "__main__":
    main()
