"""What a bilinear network learned about digits, from its weights: eigenvectors, masks, seeds, overfitting.

On MNIST (WEIGHTSPACE_DATA), by the published recipe (noise 0.4, weight decay 0.5) with batches of 512:

network: 784-512-10, ten epochs: its accuracy, and the accuracy from k eigenvectors per class;
masks: the test accuracy while one mask read from the weights is added to all inputs, either sign, and the same pixels
    in another order;
similarity: leading 20 eigenvectors of equal class across three seeds of width 256, and between widths 256 and 512, of
    equal rank and matched one to one;
overfitting: networks of width 256 trained on 1000 images only, over noise and weight decay.

About 6 minutes of one core; the figure is docs/bilinear_mnist.png.

    WEIGHTSPACE_DATA=... OMP_NUM_THREADS=1 python benchmarks/bilinear_mnist.py
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from measure import write
from torch import Tensor

import interp
from interp.classifier_training import ClassifierRun, train_classifier
from interp.comparison_plots import mask_figure, rank_accuracy_figure, similarity_figure, spectra_figure
from interp.masks import MaskEffect, adversarial_masks, measure_masks
from interp.overfitting import diagnose_overfitting
from interp.plots import eigenvector_figure, explanation_figure
from interp.rank_accuracy import measure_rank_accuracy
from interp.spectral_comparison import compare_spectra
from weightspace.layers import BilinearMLP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, object]
Data = tuple[Tensor, Tensor]
FIGURE = Path(__file__).parent.parent / "docs" / "bilinear_mnist.png"
STRENGTHS = (2.0, 4.0, 6.0, 8.0)


def digits() -> tuple[Data, Data]:
    with np.load(Path(os.environ["WEIGHTSPACE_DATA"]) / "mnist" / "mnist_full.npz") as file:
        x, y, x_test, y_test = (
            torch.from_numpy(file[name]) for name in ("x_train", "y_train", "x_test", "y_test")
        )
    return (x.flatten(1).float() / 255, y.long()), (x_test.flatten(1).float() / 255, y_test.long())


def train(
    width: int, seed: int, data: Data, test: Data, *, epochs: int, batch_size: int = 512, **options: Any
) -> tuple[ClassifierRun, Row]:
    torch.manual_seed(seed)
    started = time.process_time()
    run = train_classifier(
        BilinearMLP(784, width, 10),
        *data,
        test=test,
        epochs=epochs,
        batch_size=batch_size,
        progress=sys.stderr.isatty(),
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    row: Row = {
        "width": width,
        "seed": seed,
        "images": len(data[0]),
        "epochs": epochs,
        "batch_size": batch_size,
        **options,
        "train_accuracy": round(run.train_accuracy, 4),
        "test_accuracy": round(run.test_accuracy or 0.0, 4),
        "wall_seconds": round(run.seconds, 1),
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    print(row, file=sys.stderr, flush=True)
    return run, row


def mask_rows(effect: MaskEffect) -> list[Row]:
    rows: list[Row] = []
    for index, strength in enumerate(effect.strengths.tolist()):
        mask, sign = effect.strongest(index)
        below = (effect.accuracies[index].amin(1) < 0.5).sum()
        rows.append(
            {
                "mask_strength": strength,
                "accuracy": round(float(effect.lowest[index]), 4),
                "mask": mask,
                "sign": sign,
                "same_mask_permuted": round(float(effect.permuted[index, mask, (1 - sign) // 2]), 4),
                "best_permuted": round(float(effect.lowest_permuted[index]), 4),
                "masks_below_half": f"{int(below)} of {effect.accuracies.shape[1]}",
            }
        )
    return rows


def sheet(columns: Sequence[Sequence[Figure]], path: Path, *, dpi: int) -> None:
    """Write several figures as one picture, in columns from the top, on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    def render(figure: Figure) -> np.ndarray:
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]

    def pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
        free = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
        return np.pad(image, free, constant_values=255)

    stacks = []
    for column in columns:
        images = [render(figure) for figure in column]
        width = max(image.shape[1] for image in images)
        stacks.append(np.concatenate([pad(image, image.shape[0], width) for image in images]))
    height = max(stack.shape[0] for stack in stacks)
    whole = np.concatenate([pad(stack, height, stack.shape[1]) for stack in stacks], 1)
    Image.fromarray(whole).quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def main() -> None:
    data, test = digits()
    run, row = train(512, 42, data, test, epochs=10)
    rows: list[Row] = [row]
    large = interp.decompose(run.model)
    ranks = measure_rank_accuracy(large, *test)
    for rank, value in zip(ranks.ranks.tolist(), ranks.accuracies.tolist(), strict=True):
        rows.append({"eigenvectors_per_class": rank, "test_accuracy": round(value, 4)})
    rows.append(
        {
            "effective_rank": round(float(large.effective_rank.mean()), 1),
            "lossless_within_0.2_points": ranks.lossless_rank(0.002),
        }
    )
    masks = adversarial_masks(large)
    effect = measure_masks(masks, run.model, test, strengths=STRENGTHS)
    rows += mask_rows(effect)
    print(*rows[1:], sep="\n", file=sys.stderr, flush=True)

    seeds = []
    for seed in range(3):
        small, row = train(256, seed, data, test, epochs=10)
        seeds.append(interp.decompose(small.model))
        rows.append(row)
    comparisons = {
        f"{name}, {'matched' if matched else 'by rank'}": compare_spectra(entries, matched=matched)
        for name, entries in (("three seeds", seeds), ("width 256 and 512", [seeds[0], large]))
        for matched in (True, False)
    }
    for name, comparison in comparisons.items():
        unrelated = None if comparison.unrelated is None else comparison.unrelated.mean(0)
        for rank in (1, 2, 3, 5, 10, 20):
            rows.append(
                {
                    "similarity": name,
                    "rank": rank,
                    "mean": round(float(comparison.by_rank[rank - 1]), 3),
                    "of_different_classes": None
                    if unrelated is None
                    else round(float(unrelated[rank - 1]), 3),
                    "of_random_vectors": round(comparison.chance, 3),
                }
            )

    few = (data[0][:1000], data[1][:1000])
    models = {}
    for noise, decay in product((0.0, 0.2, 0.4), (0.0, 0.5, 2.0)):
        overfitted, row = train(
            256, 0, few, test, epochs=100, batch_size=100, noise=noise, weight_decay=decay
        )
        models[f"noise {noise:g}, weight decay {decay:g}"] = overfitted.model
        rows.append(row)
    diagnosis = diagnose_overfitting(models, few, test)
    print(diagnosis, file=sys.stderr)
    for name, signs in diagnosis.networks.items():
        rows.append(
            {
                "overfitting": name,
                "train_accuracy": round(signs.train_accuracy, 4),
                "test_accuracy": round(signs.test_accuracy, 4),
                "effective_rank": round(signs.effective_rank, 1),
                "share_of_top_10": round(signs.leading_share, 3),
                "roughness": round(signs.roughness or 0.0, 3),
                "on_rare_inputs": round(signs.rare_share, 3),
            }
        )
    extremes = {
        name: interp.decompose(models[name])
        for name in ("noise 0, weight decay 0", "noise 0.4, weight decay 0.5")
    }
    sample = test[1].tolist().index(5)
    columns = (
        [eigenvector_figure(large, directions=range(7), shown=4)],
        [
            rank_accuracy_figure({"width 512": [ranks]}),
            similarity_figure({name: entry for name, entry in comparisons.items() if entry.matched}),
            spectra_figure(extremes),
        ],
        [
            mask_figure(masks, effect),
            explanation_figure(large, test[0][sample], shown=6),
            *(
                eigenvector_figure(entry, directions=[5], names=[name.replace(", ", "\n")])
                for name, entry in extremes.items()
            ),
        ],
    )
    sheet(columns, FIGURE, dpi=76)
    write("bilinear_mnist", rows, "torch", "weightspace")


if __name__ == "__main__":
    main()
