"""Attractors of autoencoders of digits, found from noise: memorized samples where there are few, prototypes where many.

Nonlinear autoencoders (64-256-256-256-256-64, ReLU, no bottleneck, 230 thousand weights) of the 8 x 8 digits of
scikit-learn, each trained on the first n = 10 ... 898 digits for 2000 steps; 898 others are held out. 300 starts of
Gaussian noise, with the mean and the spread of the training pixels, are followed to their fixed points. Measured:

memorization: share of attractors within 0.1 spreads of the training data of a training sample; recall: share of
    training samples found that way; share of the starts that end in one;
cosine and distance of attractors to the nearest training sample and to the nearest of n held-out ones.

Two ways to train, since it matters: reconstruction of samples from themselves, and from themselves with noise of 0.1
per pixel (denoising), which makes the map contract around them. Three seeds of n <= 100 with noise, else one. The same
in the space of two latents of an autoencoder 64-256-256-2-256-256-64 trained with noise.

About 3 minutes of one core; the figure is docs/latent_dynamics.png, of the denoising autoencoders.

    OMP_NUM_THREADS=1 python benchmarks/latent_dynamics.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from measure import write
from sklearn.datasets import load_digits
from torch import Tensor, nn

from interp.autoencoders.dynamics_plots import attractor_figure
from interp.autoencoders.latent_dynamics import Attractors, find_attractors, measure_memorization
from weightspace.errors import ConvergenceError
from weightspace.report.figures import BLUE, GREEN, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = Path(__file__).parent.parent / "docs" / "latent_dynamics.png"
SIZES = (10, 30, 100, 300, 898)
SEEDS = {10: 3, 30: 3, 100: 3, 300: 1, 898: 1}
DRAWN = (30, 898)
STEPS, BATCH, STARTS = 2000, 128, 300
Row = dict[str, Any]


def digits() -> tuple[Tensor, Tensor]:
    """Digits for training and as many held out, each (898, 64), pixels from 0 to 1."""
    pixels = torch.from_numpy(load_digits().data).float() / 16
    pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]
    return pixels[:898], pixels[898:1796]


class Planar(nn.Module):
    """An autoencoder with two latents."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = perceptron(64, 256, 256, 2), perceptron(2, 256, 256, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def perceptron(*widths: int) -> nn.Module:
    layers = [part for a, b in pairwise(widths[:-1]) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def train(samples: Tensor, noise: float, seed: int, space: str) -> nn.Module:
    torch.manual_seed(seed)
    model = Planar() if space == "latent" else perceptron(64, 256, 256, 256, 256, 64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        x = samples if len(samples) <= BATCH else samples[torch.randint(len(samples), (BATCH,))]
        loss = (model(x + noise * torch.randn_like(x)) - x).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def unexplained(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def measure(
    size: int, noise: float, seed: int, space: str = "input"
) -> tuple[Row, nn.Module, Attractors | None]:
    known, held_out = (samples[:size] for samples in digits())
    started = time.process_time()
    model = train(known, noise, seed, space)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Planar):
        with torch.no_grad():
            codes = model.encode(known)
        starts = codes.mean(0) + 2 * codes.std(0) * torch.randn(STARTS, 2, generator=generator)
    else:
        starts = known.mean() + known.std() * torch.randn(STARTS, 64, generator=generator)
    row: Row = {
        "space": space,
        "training_samples": size,
        "noise": noise,
        "seed": seed,
        "fvu_training": float(f"{unexplained(model, known):.3g}"),
        "fvu_held_out": float(f"{unexplained(model, digits()[1]):.3g}"),
    }
    attractors = None
    try:
        attractors = find_attractors(model, starts, space=space, tolerance=1e-4)
    except ConvergenceError as error:
        row |= {"converged": 0.0, "reason": str(error)}
    else:
        memory = measure_memorization(attractors, known, held_out)
        assert memory.test_distance is not None
        assert memory.test_cosine is not None
        row |= {
            "converged": round(float(attractors.converged.double().mean()), 4),
            "attractors": len(attractors.points),
            "stable": int(attractors.stable.sum()),
            "median_spectral_radius": round(float(attractors.spectral_radius.median()), 3),
            "memorization": round(memory.memorization, 4),
            "starts_ending_in_training_samples": round(memory.basin_share, 4),
            "recall": round(memory.recall, 4),
            "cosine_training": round(float(memory.training_cosine.mean()), 4),
            "cosine_held_out": round(float(memory.test_cosine.mean()), 4),
            "distance_training": round(float(memory.training_distance.mean()), 4),
            "distance_held_out": round(float(memory.test_distance.mean()), 4),
        }
    row["cpu_seconds"] = round(time.process_time() - started, 1)
    print(row, file=sys.stderr, flush=True)
    return row, model, attractors


def curves(rows: list[Row]) -> Figure:
    """Draw what is measured against the number of training samples, dots for seeds, lines for their means."""
    figure = new_figure(12.4, 3.0)
    panels = figure.subplots(1, 3)
    shown = (
        ({"memorization": (RED, "attractors that are training samples"),
          "recall": (BLUE, "training samples that are attractors"),
          "starts_ending_in_training_samples": (GREEN, "starts that end in training samples")}, "share"),
        ({"cosine_training": (RED, "training"), "cosine_held_out": (BLUE, "held out")},
         "cosine with the nearest sample"),
        ({"fvu_training": (RED, "training"), "fvu_held_out": (BLUE, "held out")}, "variance unexplained"),
    )  # fmt: skip
    for axes, (lines, label) in zip(panels, shown, strict=True):
        for key, (color, name) in lines.items():
            values = {size: [row[key] for row in rows if row["training_samples"] == size] for size in SIZES}
            axes.plot(SIZES, [statistics.mean(values[size]) for size in SIZES], color=color, label=name)
            for size in SIZES:
                axes.plot([size] * len(values[size]), values[size], ".", color=color)
        axes.set_xscale("log")
        axes.set_xlabel("training samples")
        axes.set_ylabel(label)
        axes.legend(fontsize=7, frameon=False)
        axes.grid(alpha=0.25)
    panels[2].set_yscale("log")
    return figure


def stack(rows: Sequence[Sequence[Figure]], path: Path) -> None:
    """Write figures side by side and below each other as one picture, on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    def render(figure: Figure) -> np.ndarray:
        figure.set_dpi(76)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]

    lines = [np.concatenate([render(figure) for figure in row], 1) for row in rows]
    width = max(line.shape[1] for line in lines)
    filled = [
        np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines
    ]
    imsave(path, np.concatenate(filled))


def main() -> None:
    rows: list[Row] = []
    figures: list[Figure] = []

    def add(*arguments: Any) -> Row:
        row, model, attractors = measure(*arguments)
        rows.append(row)
        size, noise, seed, *space = arguments
        if noise and seed == 0 and size in DRAWN and attractors is not None:
            shape = None if space else (8, 8)
            figure = attractor_figure(model, attractors, samples=digits()[0][:size], shape=shape)
            figure.suptitle(
                f"{size} training samples, {'two latents' if space else 'no bottleneck'}", fontsize=10
            )
            figures.append(figure)
        return row

    drawn = [add(size, 0.1, seed) for size in SIZES for seed in range(SEEDS[size])]
    for size in SIZES:
        add(size, 0.0, 0)
    for size in DRAWN:
        add(size, 0.1, 0, "latent")
    stack([[curves(drawn)], figures[2:], figures[:1], figures[1:2]], FIGURE)
    write("latent_dynamics", rows, "torch", "scikit-learn", "weightspace")


if __name__ == "__main__":
    main()
