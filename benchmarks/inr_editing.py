"""Edit images in the weights of the networks that represent them: dilation of MNIST digits.

Claim (benchmarks/README.md quotes the numbers): an equivariant network that sees and returns nothing but weights makes
the network of an image into one of the dilated image (the maximum over 3 x 3 pixels), of test images it never saw. The
error stands beside that of the networks as they are, and beside the papers' figures, which come from 55,000 networks
and another fit of them: no parity is claimed.

    python benchmarks/inr_editing.py

SIRENs 2-32-32-1 on 28 x 28 pixels, each image fitted once from initial weights of its own. The loss is the mean squared
error of the rendered image, through which gradients flow. The zoo is cached in `--folder`; runs resume from it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor, nn

from weightspace.equivariant import DeepWeightSpaceNet
from weightspace.graph import GraphParameterMap, NeuralGraphNet, describe_graphs, encode
from weightspace.zoo import (
    Augmentation,
    WeightEditor,
    WeightZoo,
    fit_inrs,
    render_inrs,
    run_training,
    standardize,
)

WIDTHS = {"deep weight space": 32, "neural graph": 16}  # channels, for about equal time
SIZE = (28, 28)
PARTS = (0.85, 0.05, 0.1)
# Mean squared error x 1e-2 of dilation, as published; the two sets of networks differ.
PUBLISHED = {"set of Navon et al.": {"DWSNets": 2.58, "NG-GNN": 2.06},
             "set of Zhou et al.": {"NFN": 0.068, "NG-GNN": 0.0635, "NG-T": 0.0556}}  # fmt: skip
FIGURE = Path(__file__).parent.parent / "docs" / "inr_editing.png"


def digits(count: int) -> Tensor:
    """The first images of MNIST, (count, 28, 28), pixels from 0 to 1."""
    with np.load(Path(os.environ["WEIGHTSPACE_DATA"]) / "mnist" / "mnist_full.npz") as file:
        return torch.from_numpy(file["x_train"][:count]).reshape(-1, *SIZE).float() / 255


def dilate(images: Tensor) -> Tensor:
    return F.max_pool2d(images.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)


def represented(folder: Path, count: int) -> WeightZoo:
    path = folder / f"mnist_{count}.safetensors"
    if not path.exists():
        zoo = fit_inrs(
            digits(count), hidden=(32, 32), steps=50, learning_rate=3e-3,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        zoo.save(path)
    return WeightZoo.load(path)


def images_of(zoo: WeightZoo) -> Tensor:
    """The number of the image that each network represents, (networks,)."""
    assert zoo.sources is not None
    return zoo.sources


def editor(family: str, zoo: WeightZoo, options: argparse.Namespace) -> WeightEditor:
    if family == "deep weight space":
        net: nn.Module = DeepWeightSpaceNet(zoo.spec, channels=(WIDTHS[family],) * options.layers)
    else:
        graph = encode(zoo.template)
        layers = NeuralGraphNet(
            describe_graphs([graph]), level="edge", width=WIDTHS[family], layers=options.layers
        )
        net = GraphParameterMap(layers, graph.structure)
    return WeightEditor(net, standardize(zoo))


def error(parameters: dict[str, Tensor], targets: Tensor) -> Tensor:
    return F.mse_loss(render_inrs(parameters, SIZE), targets)


def train(family: str, zoo: WeightZoo, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    name = f"editing {family} {options.images} images {options.steps} steps seed {seed}"
    result = options.folder / f"{name}.json"
    if result.exists():
        return json.loads(result.read_text())
    torch.manual_seed(seed)
    targets = dilate(digits(options.images))
    training, validation, test = zoo.split(PARTS, torch.Generator().manual_seed(seed))
    model = editor(family, training, options)
    augment = Augmentation(zoo.continuous_spec, permute=False, signs=True)

    def loss(generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(training), (options.batch,), generator=generator)
        parameters = {key: tensor[batch] for key, tensor in training.parameters.items()}
        return error(model(augment(parameters, generator)), targets[images_of(training)[batch]])

    def measure(part: WeightZoo) -> float:
        squares = [
            error(
                model({key: tensor[rows] for key, tensor in part.parameters.items()}),
                targets[images_of(part)[rows]],
            )
            * len(rows)
            for rows in torch.arange(len(part)).split(250)
        ]
        return float(sum(squares)) / len(part)

    run = run_training(
        model, loss, lambda: {"validation_error": measure(validation)},
        steps=options.steps, objective="validation_error", maximize=False, learning_rate=options.learning_rate,
        generator=torch.Generator().manual_seed(seed), checkpoint=options.folder / f"{name}.pt",
    )  # fmt: skip
    with torch.no_grad():
        tested = measure(test)
        wanted = targets[images_of(test)]
        shown = {key: tensor[:8] for key, tensor in test.parameters.items()}
        images = torch.stack([render_inrs(shown, SIZE), render_inrs(model(shown), SIZE), wanted[:8]])
    row = {
        "family": family, "seed": seed, "training_networks": len(training), "test_networks": len(test),
        "pixels": SIZE[0] * SIZE[1], "psnr": float(zoo.measures["psnr"].median()),
        "parameters": sum(p.numel() for p in model.parameters()), "width": WIDTHS[family], "steps": options.steps,
        "batch": options.batch,
        "threads": torch.get_num_threads(), "seconds": run.history[-1]["seconds"],
        "test_error_e2": 100 * tested,
        "curve": [[entry["step"], 100 * entry["validation_error"]] for entry in run.history],
    }  # fmt: skip
    np.save(options.folder / f"{name}.npy", images.numpy())
    result.write_text(json.dumps(row))
    print({key: value for key, value in row.items() if key != "curve"}, flush=True)
    return row


def references(zoo: WeightZoo, seed: int = 0) -> dict[str, Any]:
    """Errors on the test part of what knows nothing of the weights: leave, or stretch the pixel values of all alike."""
    training, _, test = zoo.split(PARTS, torch.Generator().manual_seed(seed))
    targets = dilate(digits(int(images_of(zoo).max()) + 1))
    (x, y), (pixels, wanted) = (
        (render_inrs(part, SIZE), targets[images_of(part)]) for part in (training, test)
    )
    gain = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    stretched = y.mean() + gain * (pixels - x.mean())
    return {
        "reference": "no network", "psnr": float(zoo.measures["psnr"].median()),
        "unedited_error_e2": 100 * float(F.mse_loss(pixels, wanted)),
        "stretched_error_e2": 100 * float(F.mse_loss(stretched, wanted)),
    }  # fmt: skip


def collect(folder: Path, zoo: WeightZoo) -> None:
    """Write what all runs in the folder reached, and draw the images of the first of each family."""
    paths = sorted(folder.glob("editing *.json"))
    rows = [json.loads(path.read_text()) for path in paths]
    write("inr_editing", [references(zoo), *rows, {"published_error_e2": PUBLISHED}], "torch")
    import matplotlib.pyplot as plt

    images = {row["family"]: np.load(path.with_suffix(".npy")) for row, path in zip(rows, paths, strict=True)}
    found = list(images.values())
    shown = {"original": found[0][0], **{f"{key}, edited": value[1] for key, value in images.items()}}
    shown["dilated image"] = found[0][2]
    figure, axes = plt.subplots(len(shown), 8, figsize=(8, len(shown) + 0.4), layout="constrained")
    for (name, pictures), line in zip(shown.items(), axes, strict=True):
        for picture, axis in zip(pictures, line, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name.replace(", ", ",\n"), fontsize=7)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=WIDTHS, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=2500, help="of MNIST")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zoos"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True, parents=True)
    zoo = represented(options.folder, options.images)
    for seed in options.seeds:
        for family in options.family or WIDTHS:
            train(family, zoo, seed, options)
    collect(options.folder, zoo)


if __name__ == "__main__":
    main()
