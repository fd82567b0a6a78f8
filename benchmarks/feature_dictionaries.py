"""Sparse autoencoders of hidden activations: an MNIST network's and the bundled network's, measured, matched and drawn.

For both networks, every sparsity rule: seconds of training, FVU and L0 on test images, latents alive, and for TopK the
share of features that a second seed finds again. Cards of the TopK and of a bilinear autoencoder are written to
--cards FOLDER.

    WEIGHTSPACE_DATA=... OMP_NUM_THREADS=1 python benchmarks/feature_dictionaries.py --cards /tmp/cards
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from bilinear_autoencoders import digit_activations, mnist_activations
from measure import write
from torch import Tensor

import interp
from interp import (
    AuxiliaryLoss,
    BatchTopK,
    Gated,
    JumpReLU,
    LatentActivation,
    ReLU,
    SparseAutoencoder,
    TopK,
)
from weightspace.bundled import digits

STEPS = 800


def rules(k: int) -> dict[str, LatentActivation]:
    """Every rule with some k latents per sample in view."""
    return {
        "TopK": TopK(k),
        "BatchTopK": BatchTopK(k),
        "ReLU": ReLU(2.0),
        "JumpReLU": JumpReLU(2.0, target_l0=k, bandwidth=0.5, initial_threshold=1.0),
        "Gated": Gated(2.0),
        "TopK, nested": TopK(k),
        "TopK, seed 1": TopK(k),
    }


def rows_of(name: str, x: Tensor, test: Tensor, latents: int, k: int) -> tuple[list[dict[str, Any]], Any]:
    """One row per rule, and the TopK autoencoder."""
    rows, models = [], {}
    for rule, activation in rules(k).items():
        model = models[rule] = SparseAutoencoder(
            x.shape[1],
            latents,
            activation,
            scaling="standard",
            dead=AuxiliaryLoss(silent=50_000),
            matryoshka=(latents // 16, latents // 4) if rule == "TopK, nested" else (),
            generator=torch.Generator().manual_seed(int(rule == "TopK, seed 1")),
        )
        run = interp.train(
            model, x, steps=STEPS, batch_size=1024, learning_rate=1e-3, warmup=50, progress=False
        )
        metrics = interp.evaluate(model, test)
        rows.append(
            {
                "network": name, "rule": rule, "latents": latents, "steps": STEPS, "seconds": run.seconds,
                "fvu": metrics.fvu, "l0": metrics.l0, "alive": metrics.frac_alive,
                "largest decoder cosine": metrics.average_max_decoder_cosine_sim,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    matching = interp.match_features(models["TopK"], models["TopK, seed 1"])
    matched = {"matched cosine": matching.mean, "share over .7": matching.share(0.7)}
    rows.append({"network": name, "rule": "TopK, two seeds", **matched})
    return rows, models["TopK"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cards", type=Path, help="folder for the pages with cards")
    folder = parser.parse_args().cards
    rows: list[dict[str, Any]] = []
    for name, (x, test), images, latents, k in (
        ("bundled digits_bilinear", digit_activations(), digits()[2].reshape(-1, 8, 8), 512, 4),
        ("mnist 784-256-10", mnist_activations()[:2], mnist_images(), 2048, 16),
    ):
        found, model = rows_of(name, x, test, latents, k)
        rows += found
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            page = folder / f"{name.split()[0]}-topk.html"
            interp.write_feature_cards(model, test, page, images=images, title=f"TopK features of {name}")
            bilinear = interp.BilinearAutoencoder(x.shape[1], 4 * x.shape[1], sparsity=0.1)
            run = interp.train(bilinear, x, steps=200, batch_size=512, decay=1.0, progress=False)
            page = folder / f"{name.split()[0]}-bilinear.html"
            interp.write_feature_cards(
                bilinear, test, page, images=images, title=f"Bilinear features of {name}"
            )
            print(f"bilinear: {run}; cards in {folder}")
    write("feature_dictionaries", rows, "torch", "weightspace")


def mnist_images() -> Tensor:
    import numpy as np

    with np.load(Path(os.environ["WEIGHTSPACE_DATA"]) / "mnist" / "mnist_full.npz") as file:
        return torch.from_numpy(file["x_test"]).float() / 255


if __name__ == "__main__":
    main()
