"""Train the bundled networks: `python -m weightspace.bundled.train [--out DIR]`, under a minute.

Every network is a recipe below; each starts from its own seed and runs on one thread, so that a second run on
the same machine and torch version writes the same bytes. Other machines round differently.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from weightspace.bundled import FOLDER, digits
from weightspace.layers import BilinearMLP, MaxMin
from weightspace.result import write_text
from weightspace.tracing import trace


class ResidualBlock(nn.Module):
    """relu(x + BN(conv(relu(BN(conv(x))))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(h)))


def perceptron() -> nn.Module:
    """ReLU, 64-24-12-10: small enough that the certificate takes seconds."""
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10))


def residual_network() -> nn.Module:
    """Convolution, two residual blocks of 16 channels with BatchNorm, average pooling, head."""
    stem = [
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    blocks = [ResidualBlock(16), nn.AvgPool2d(2), ResidualBlock(16), nn.AvgPool2d(2)]
    return nn.Sequential(*stem, *blocks, nn.Flatten(), nn.Linear(64, 10))


def maxmin_network() -> nn.Module:
    """MaxMin, 64-48-32-10, every matrix with singular values 1."""
    network = nn.Sequential(nn.Linear(64, 48), MaxMin(), nn.Linear(48, 32), MaxMin(), nn.Linear(32, 10))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
    return network


def bilinear_network() -> nn.Module:
    """Embedding, one bilinear layer of 64 units, head; no biases."""
    return BilinearMLP(64, 64, 10)


@dataclass(frozen=True)
class Recipe:
    """How one network is built and trained.

    Attributes:
        noise: standard deviation of the Gaussian noise added to the pixels of every batch.
        temperature: factor of the logits in the loss; a 1-Lipschitz network cannot make them large.
        orthogonal: put every matrix back to singular values 1 after each step.
    """

    description: str
    build: Callable[[], nn.Module]
    seed: int
    epochs: int = 60
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    noise: float = 0.0
    temperature: float = 1.0
    orthogonal: bool = False


RECIPES = {
    "digits_mlp_a": Recipe("ReLU perceptron 64-24-12-10", perceptron, 7),
    "digits_mlp_b": Recipe("the same as digits_mlp_a from another seed", perceptron, 8),
    "digits_resnet": Recipe("convolutional residual network with BatchNorm", residual_network, 3, 20),
    "digits_maxmin": Recipe(
        "MaxMin perceptron 64-48-32-10, orthogonal matrices", maxmin_network, 4, 80, weight_decay=0.0,
        temperature=10.0, orthogonal=True,
    ),
    # Noise and weight decay as Pearce et al. (2024), section 4, without which eigenvectors overfit.
    "digits_bilinear": Recipe(
        "bilinear layer of 64 units between embedding and head, no biases", bilinear_network, 5, 300,
        weight_decay=0.5, noise=0.3,
    ),
}  # fmt: skip


def fit(recipe: Recipe, x: Tensor, y: Tensor) -> nn.Module:
    """Train one network from its seed: AdamW, batches of 64, cosine schedule, cross-entropy."""
    torch.manual_seed(recipe.seed)
    network = recipe.build().train()
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            noise = recipe.noise * torch.randn(len(batch), x.shape[1], generator=generator)
            loss = F.cross_entropy(recipe.temperature * network(x[batch] + noise), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recipe.orthogonal:
                orthogonalize(network)
        schedule.step()
    return network.eval()


def orthogonalize(network: nn.Module) -> None:
    """Replace every matrix by its polar factor, the nearest one whose singular values are 1."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                left, _, right = torch.linalg.svd(layer.weight.double(), full_matrices=False)
                layer.weight.copy_(left @ right)


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the images whose largest logit is that of their class."""
    with torch.no_grad():
        return (network(x).argmax(1) == y).double().mean().item()


def main(out: Annotated[Path, typer.Option(help="Folder to write to.")] = FOLDER) -> None:
    """Train all bundled networks and write them with their accuracies."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    x_train, y_train, x_test, y_test = digits()
    records = {}
    out.mkdir(parents=True, exist_ok=True)
    for name, recipe in RECIPES.items():
        network = fit(recipe, x_train, y_train)
        trace(network, x_test[:2]).save(out / f"{name}.safetensors")
        records[name] = {
            "description": recipe.description,
            "test_accuracy": accuracy(network, x_test, y_test),
            "train_accuracy": accuracy(network, x_train, y_train),
            "train_images": len(x_train),
            "test_images": len(x_test),
            "seed": recipe.seed,
        }
        typer.echo(f"{name}: {records[name]['test_accuracy']:.4f} on {len(x_test)} test images")
    write_text(out / "accuracy.json", json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
