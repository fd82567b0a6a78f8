r"""Bilinear autoencoders: the loss without matrices, and what training finds in hidden activations of digit networks.

loss: one loss with its gradient, 4 d latents and 256 samples in float32, by the kernel against the same from outer
    squares (n, d^2) and forms (m, d^2): time, peak memory, and how far the two losses are apart;
mnist: 60,000 hidden activations (256, after ReLU) of a 784-256-10 perceptron trained here, 1024 latents, 300 steps of
    512 samples (WEIGHTSPACE_DATA): FVU of the outer squares of 10,000 test images, Hoyer density, seconds of training,
    with and without sparsity, ordered, mixed;
digits: the same for the bundled bilinear network on scikit-learn's digits, 64 values in front of its bilinear layer, by
    the published schedule and size (1024 steps, 16 d latents).

Every training takes less than 3 minutes, all of it about 20, on two cores busy with other work. The figure is
docs/bilinear_manifolds.png.

    WEIGHTSPACE_DATA=... OMP_NUM_THREADS=1 python benchmarks/bilinear_autoencoders.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import interleaved, write
from torch import Tensor, nn

from interp.autoencoders.bilinear_autoencoder import BilinearAutoencoder
from interp.autoencoders.hoyer import measure_density
from interp.autoencoders.manifold_plots import manifold_figure
from interp.autoencoders.manifolds import project_manifold
from interp.autoencoders.metrics import evaluate
from interp.autoencoders.training import train
from interp.classifier_training import train_classifier
from weightspace.bundled import digits, load

Row = dict[str, Any]
FIGURE = Path(__file__).parent.parent / "docs" / "bilinear_manifolds.png"
SIZES = (64, 128, 256)
SAMPLES = 256
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sparsity .1": {"sparsity": 0.1},
    "sparsity .3": {"sparsity": 0.3},
    "ordered, sparsity .1": {"ordered": True, "sparsity": 0.1},
    "mixed": {"mixing": 64, "sparsity": 0.1},
}


def by_kernel(autoencoder: BilinearAutoencoder, x: Tensor) -> Tensor:
    total = autoencoder.loss(x).total
    total.backward()
    return total


def from_matrices(autoencoder: BilinearAutoencoder, x: Tensor) -> Tensor:
    left, right = autoencoder.left_weight, autoencoder.right_weight
    x = x / x.norm(dim=1, keepdim=True)
    forms = torch.einsum("mi,mj->mij", left, right)
    forms = ((forms + forms.mT) / 2).flatten(1)
    square = torch.einsum("ni,nj->nij", x, x).flatten(1)
    total = (square - (square @ forms.mT) @ forms).square().sum(1).mean()
    total.backward()
    return total


WAYS: dict[str, Callable[[BilinearAutoencoder, Tensor], Tensor]] = {
    "kernel": by_kernel,
    "matrices": from_matrices,
}


def problem(d: int) -> tuple[BilinearAutoencoder, Tensor]:
    return BilinearAutoencoder(d, 4 * d), torch.randn(SAMPLES, d, generator=torch.Generator().manual_seed(1))


def own_memory(name: str) -> float:
    """VmRSS or VmHWM of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def peak_memory(way: str, d: int) -> float:
    """Peak of resident memory that one loss and its gradient add, in a process of its own, MB."""
    command = [sys.executable, __file__, "memory", way, str(d)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_memory(way: str, d: int) -> None:
    WAYS[way](*problem(8))  # what torch loads at the first call is not counted
    autoencoder, x = problem(d)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = own_memory("VmRSS")
    WAYS[way](autoencoder, x)
    print(own_memory("VmHWM") - before)


def loss_rows() -> list[Row]:
    rows: list[Row] = []
    for d in SIZES:
        autoencoder, x = problem(d)
        runs = {name: lambda way=way: way(autoencoder, x) for name, way in WAYS.items()}  # noqa: B023
        a, b = (float(run().detach()) for run in runs.values())
        seconds = interleaved(runs, repeats=5, warmups=1)
        megabytes = {name: peak_memory(name, d) for name in WAYS}
        rows.append(
            {
                "loss": d,
                "latents": 4 * d,
                "seconds_kernel": seconds["kernel"],
                "seconds_matrices": seconds["matrices"],
                "time_ratio": seconds["matrices"] / seconds["kernel"],
                "megabytes_kernel": megabytes["kernel"],
                "megabytes_matrices": megabytes["matrices"],
                "memory_ratio": megabytes["matrices"] / megabytes["kernel"],
                "relative_difference": abs(a - b) / b,
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def trained(
    name: str, options: Row, x: Tensor, x_test: Tensor, **plan: Any
) -> tuple[BilinearAutoencoder, Row]:
    latents = plan.pop("latents")
    autoencoder = BilinearAutoencoder(x.shape[1], latents, **options)
    run = train(autoencoder, x, decay=1.0, progress=sys.stderr.isatty(), **plan)
    metrics = evaluate(autoencoder, x_test)
    row: Row = {
        "autoencoder": name,
        "products": latents,
        "latents": autoencoder.latents,
        "steps": plan["steps"],
        "batch_size": plan["batch_size"],
        "fvu": metrics.fvu,
        "cosine": metrics.cossim,
        "hoyer_density": measure_density(autoencoder, x_test).mean,
        "seconds": run.seconds,
    }
    print(row, file=sys.stderr, flush=True)
    return autoencoder, row


def mnist_activations() -> tuple[Tensor, Tensor, Tensor, float]:
    """Hidden activations of training and test images, classes of the latter, test accuracy."""
    with np.load(Path(os.environ["WEIGHTSPACE_DATA"]) / "mnist" / "mnist_full.npz") as file:
        x, y, x_test, y_test = (
            torch.from_numpy(file[name]) for name in ("x_train", "y_train", "x_test", "y_test")
        )
    x, x_test = x.flatten(1).float() / 255, x_test.flatten(1).float() / 255
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    run = train_classifier(
        model,
        x,
        y.long(),
        test=(x_test, y_test.long()),
        epochs=5,
        batch_size=512,
        weight_decay=0.01,
        noise=0.0,
        progress=False,
    )
    with torch.no_grad():
        return model[:2](x), model[:2](x_test), y_test.long(), run.test_accuracy or 0.0


def digit_activations() -> tuple[Tensor, Tensor]:
    """What the bilinear layer of the bundled network reads, for training and test images."""
    module: Any = load("digits_bilinear").to_module()
    images, _, test_images, _ = digits()
    with torch.no_grad():
        return module.values(images)["embedding"], module.values(test_images)["embedding"]


def strongest(autoencoder: BilinearAutoencoder, x: Tensor, count: int, *, sparse: bool) -> list[int]:
    """Latents that write most into the outer squares of x, of all or of the sparser half."""
    with torch.no_grad():
        written = autoencoder.encode(x).double().square().mean(0) * autoencoder.importance()
    density = measure_density(autoencoder, x).values
    return (written * (density < density.median()) if sparse else written).topk(count).indices.tolist()


def draw(pure: BilinearAutoencoder, mixed: BilinearAutoencoder, x: Tensor, labels: Tensor) -> None:
    x, labels = x[:2000], labels[:2000]
    shown = [project_manifold(pure, latent, x) for latent in strongest(pure, x, 3, sparse=True)]
    shown += [project_manifold(mixed, latent, x) for latent in strongest(mixed, x, 2, sparse=False)]
    for manifold in shown:
        print(manifold, file=sys.stderr)
    manifold_figure(shown, labels=labels).savefig(FIGURE, dpi=110)


def main() -> None:
    rows = loss_rows()
    x, x_test, labels, accuracy = mnist_activations()
    rows.append({"network": "mnist 784-256-10, ReLU", "test_accuracy": accuracy})
    found = {}
    for name, options in VARIANTS.items():
        found[name], row = trained(
            f"mnist, {name}", options, x, x_test, latents=1024, steps=300, batch_size=512
        )
        rows.append(row)
    draw(found["sparsity .3"], found["mixed"], x_test, labels)
    x, x_test = digit_activations()
    for name in ("plain", "sparsity .1", "mixed"):
        _, row = trained(
            f"digits, {name}", VARIANTS[name], x, x_test, latents=1024, steps=1024, batch_size=256
        )
        rows.append(row)
    write("bilinear_autoencoders", rows, "torch", "weightspace")


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print_memory(sys.argv[2], int(sys.argv[3]))
    else:
        main()
