"""Making zoos of networks: implicit representations of images and small classifiers, many at once, on one core.

inrs: `fit_inrs`, 100 steps, beside the same networks fitted one after the other by a plain PyTorch loop, and beside one
    `baddbmm` batch of all of them through autograd; then all 1797 digits with 2-16-16-1 (337 weights) and 500 MNIST
    images (WEIGHTSPACE_DATA) with 2-32-32-1 (1185 weights), with the PSNR reached.
classifiers: one step of `train_classifiers` on 128 convolutional networks (4970 weights, batches of 64 digits), beside
    plain training one after the other, and the forward and backward pass by vmap beside grouped convolutions; then 1000
    networks of six epochs, with the quantiles of their test accuracy.

Claims: fit_inrs is more than 20 times faster than one after the other for 8 x 8 images and more than twice for
28 x 28; classifiers train more than twice as fast as one after the other, and 1000 that range from chance to 95 %
take about three minutes of one core.

About 4 minutes of one core.

    WEIGHTSPACE_DATA=... OMP_NUM_THREADS=1 python benchmarks/weight_zoos.py [inrs] [classifiers]
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import interleaved, write
from torch import Tensor

from weightspace.bundled import digits
from weightspace.zoo import ConvolutionalClassifier, Siren, WeightZoo, fit_inrs, pixel_grid, train_classifiers

Row = dict[str, Any]
STEPS = 100


def one_by_one(images: Tensor, hidden: tuple[int, int], rate: float) -> None:
    grid = pixel_grid((images.shape[1], images.shape[2]))
    for image in images.flatten(1):
        module = Siren(2, hidden, 1)
        optimizer = torch.optim.Adam(module.parameters(), lr=rate, fused=True)
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.mse_loss(module(grid)[:, 0], image).backward()
            optimizer.step()


def one_batch(images: Tensor, start: WeightZoo, rate: float) -> None:
    grid = pixel_grid((images.shape[1], images.shape[2])).expand(len(images), -1, -1)
    leaves = [tensor.clone().requires_grad_() for tensor in start.parameters.values()]
    optimizer = torch.optim.Adam(leaves, lr=rate, fused=True)
    for _ in range(STEPS):
        x = grid
        for number in range(0, len(leaves), 2):
            x = torch.baddbmm(leaves[number + 1].unsqueeze(1), x, leaves[number].mT)
            x = torch.sin(30.0 * x) if number < len(leaves) - 2 else x
        optimizer.zero_grad()
        (x[..., 0] - images.flatten(1)).square().mean(1).sum().backward()
        optimizer.step()


def inrs() -> list[Row]:
    x, _, x_test, _ = digits()
    with np.load(Path(os.environ["WEIGHTSPACE_DATA"]) / "mnist" / "mnist_full.npz") as file:
        mnist = torch.from_numpy(file["x_train"][:500]).reshape(-1, 28, 28).float() / 255
    cases = (
        ("digits", torch.cat([x, x_test]).reshape(-1, 8, 8), (16, 16), 2e-3),
        ("mnist", mnist, (32, 32), 1e-3),
    )
    rows = []
    for name, images, hidden, rate in cases:
        few, many = images[:4], images[:256] if name == "digits" else images[:64]
        options = {"hidden": hidden, "learning_rate": rate, "steps": STEPS, "progress": False}
        start = fit_inrs(many, **{**options, "steps": 0})
        seconds = interleaved(
            {
                "ours": lambda many=many, options=options: fit_inrs(many, **options),
                "batch": lambda many=many, start=start, rate=rate: one_batch(many, start, rate),
                "single": lambda few=few, hidden=hidden, rate=rate: one_by_one(few, hidden, rate),
            },
            repeats=5,
            warmups=1,
        )
        ours, batch = seconds["ours"] / len(many), seconds["batch"] / len(many)
        single = seconds["single"] / len(few)
        started = time.process_time()
        zoo = fit_inrs(images, **options)
        rows.append(
            {
                "what": f"{name} 2-{hidden[0]}-{hidden[1]}-1",
                "steps": STEPS,
                "ms_per_network": 1e3 * ours,
                "one_by_one_ratio": single / ours,
                "one_batch_autograd_ratio": batch / ours,
                "networks": len(zoo),
                "cpu_seconds": time.process_time() - started,
                "median_psnr_db": float(zoo.measures["psnr"].median()),
            }
        )
    return rows


def passes(networks: int, batch_size: int) -> dict[str, Callable[[], object]]:
    """One forward and backward pass of the default architecture by vmap and by grouped convolutions."""
    module = ConvolutionalClassifier()((1, 8, 8), 10)
    leaves = {
        name: (0.1 * torch.randn(networks, *tensor.shape)).requires_grad_()
        for name, tensor in module.named_parameters()
    }
    x, y = torch.rand(networks, batch_size, 1, 8, 8), torch.randint(10, (networks * batch_size,))

    def finish(logits: Tensor) -> object:
        return torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), y), list(leaves.values()))

    def vectorized() -> object:
        forward = torch.func.vmap(lambda p, x: torch.func.functional_call(module.eval(), p, (x,)))
        return finish(forward(leaves, x))

    def grouped() -> object:
        h = x.transpose(0, 1).flatten(1, 2)
        for number in range(3):
            weight, bias = (leaves[f"layers.{number}.{role}"].flatten(0, 1) for role in ("weight", "bias"))
            h = F.conv2d(h, weight, bias, stride=2, padding=1, groups=networks).relu()
        h = h.mean((2, 3)).unflatten(1, (networks, -1)).transpose(0, 1)
        return finish(torch.baddbmm(leaves["head.bias"].unsqueeze(1), h, leaves["head.weight"].mT))

    return {"vmap": vectorized, "grouped": grouped}


def train_one_by_one(x: Tensor, y: Tensor, networks: int) -> None:
    for _ in range(networks):
        module = ConvolutionalClassifier()((1, 8, 8), 10)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
        for _ in range(math.ceil(len(x) / 64)):
            rows = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()


def classifiers() -> list[Row]:
    x, y, x_test, y_test = digits()
    x, x_test = x.reshape(-1, 1, 8, 8), x_test.reshape(-1, 1, 8, 8)
    step = passes(128, 64)
    seconds = interleaved(step, repeats=9)
    few = (x_test[:1], y_test[:1])  # nothing to speak of, so that training is what is timed
    epoch = interleaved(
        {
            "ours": lambda: train_classifiers(x, y, few, networks=128, epochs=1, progress=False),
            "single": lambda: train_one_by_one(x, y, 8),
        },
        repeats=3,
        warmups=1,
    )
    started = time.process_time()
    zoo = train_classifiers(x, y, (x_test, y_test), networks=1000, progress=sys.stderr.isatty())
    accuracy = zoo.measures["test_accuracy"].quantile(torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]))
    return [
        {"what": "CNN step, 128 networks", **seconds, "ratio": seconds["grouped"] / seconds["vmap"]},
        {
            "what": "CNN epoch",
            "ms_per_network": 1e3 * epoch["ours"] / 128,
            "one_by_one_ratio": epoch["single"] / 8 / (epoch["ours"] / 128),
        },
        {
            "what": "CNN zoo, six epochs",
            "networks": len(zoo),
            "cpu_seconds": time.process_time() - started,
            "test_accuracy_quantiles_0_10_25_50_75_90_100": [round(float(a), 3) for a in accuracy],
        },
    ]


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["inrs", "classifiers"]
    rows: list[Row] = []
    if "inrs" in wanted:
        rows += inrs()
    if "classifiers" in wanted:
        rows += classifiers()
    write("weight_zoos", rows, "torch")
