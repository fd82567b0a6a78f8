"""Figures that compare networks, ranks and masks; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.plots import draw_vector, picture_shape
from weightspace.errors import ShapeError
from weightspace.report.figures import BLUE, GRAY, GREEN, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp.decomposition import Decomposition
    from interp.masks import AdversarialMasks, MaskEffect
    from interp.rank_accuracy import RankAccuracy
    from interp.spectral_comparison import SpectralComparison

COLORS = (BLUE, RED, GREEN, "#762a83", "#e08214", GRAY)


def rank_accuracy_figure(curves: Mapping[str, Sequence[RankAccuracy]]) -> Figure:
    """Draw the accuracy against the number of eigenvectors per class.

    Args:
        curves: for every kind of network the curves of its seeds, with equal ranks: a line for their mean, a
            band from the lowest to the highest, and a dotted line for the whole networks.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: no curves, or curves of one kind with different ranks.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
        interpretability (2024), section 4.
    """
    if not curves or any(not runs for runs in curves.values()):
        raise ShapeError(f"rank_accuracy_figure needs one curve or more of every kind; got {dict(curves)}")
    figure = new_figure(5.0, 3.4)
    axes = figure.subplots()
    for (name, runs), color in zip(curves.items(), COLORS * len(curves), strict=False):
        if len({tuple(run.ranks.tolist()) for run in runs}) > 1:
            raise ShapeError(f"the curves of {name!r} have different ranks; measure them with equal ones")
        values = 100 * torch.stack([run.accuracies for run in runs])
        _draw_band(axes, runs[0].ranks.tolist(), values.mean(0), values.amin(0), values.amax(0), name, color)
        full = 100 * sum(run.full for run in runs) / len(runs)
        axes.axhline(full, color=color, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    ranks = next(iter(curves.values()))[0].ranks.tolist()
    axes.set_xticks([rank for rank in ranks if rank], [str(rank) for rank in ranks if rank])
    axes.minorticks_off()
    _finish(axes, "eigenvectors per class", "test accuracy (%)")
    return figure


def similarity_figure(comparisons: Mapping[str, SpectralComparison]) -> Figure:
    """Draw how similar eigenvectors of equal rank, or matched ones, are across networks.

    Lines are means over pairs of networks and directions, bands reach from the lower to the upper quartile;
    dashed: eigenvectors of different directions; dotted: random vectors.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: no comparison was given.
    Source: Pearce et al. (2024), section 4.
    """
    if not comparisons:
        raise ShapeError("similarity_figure needs at least one comparison; got none")
    figure = new_figure(5.0, 3.4)
    axes = figure.subplots()
    for (name, comparison), color in zip(comparisons.items(), COLORS * len(comparisons), strict=False):
        values = comparison.similarity.flatten(0, 1).double()
        low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64), dim=0)
        ranks = range(1, values.shape[1] + 1)
        _draw_band(axes, ranks, values.mean(0), low, high, name, color)
        if comparison.unrelated is not None:
            axes.plot(
                ranks, comparison.unrelated.mean(0).tolist(), color=color, linewidth=0.8, linestyle="--"
            )
        axes.axhline(comparison.chance, color=color, linewidth=0.8, linestyle=":")
    axes.set_ylim(0.0, 1.0)
    axes.locator_params(axis="x", integer=True)
    _finish(axes, "rank of the eigenvector", "similarity")
    return figure


def spectra_figure(decompositions: Mapping[str, Decomposition], *, shown: int = 20) -> Figure:
    r"""Draw the spectra of several networks: eigenvalues over the largest magnitude, both signs apart.

    Lines are means over the directions, bands reach from the lower to the upper quartile. Positive eigenvalues
    run from the largest down above the axis, negative ones below it.

    Args:
        shown: how many of each sign.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: no decomposition was given.
    """
    if not decompositions:
        raise ShapeError("spectra_figure needs at least one decomposition; got none")
    figure = new_figure(5.0, 3.4)
    axes = figure.subplots()
    quartiles = torch.tensor([0.25, 0.75], dtype=torch.float64)
    for (name, entry), color in zip(decompositions.items(), COLORS * len(decompositions), strict=False):
        values = entry.values.double()
        scale = values.abs().amax(1, keepdim=True)
        values = values / torch.where(scale > 0, scale, 1.0)
        label = f"{name}, effective rank {entry.effective_rank.mean():.1f}"
        for sign in (1, -1):
            part = sign * (sign * values).clamp(min=0).sort(1, descending=True).values[:, :shown]
            low, high = part.quantile(quartiles, dim=0)
            _draw_band(axes, range(1, part.shape[1] + 1), part.mean(0), low, high, label, color)
            label = "_"
    axes.axhline(0.0, color="black", linewidth=0.5)
    axes.locator_params(axis="x", integer=True)
    _finish(axes, "rank within its sign", r"$\lambda_i \,/\, \max |\lambda|$")
    return figure


def mask_figure(
    masks: AdversarialMasks, effect: MaskEffect, *, shape: tuple[int, int] | None = None
) -> Figure:
    """Draw the accuracy against the strength of the best mask and of the best permuted one, and the mask.

    The pictures are the eigenvector, the mask that moves it alone, with the sign that took most accuracy at
    the largest strength, and the same pixels permuted.

    Args:
        shape: height and width of a picture; default the input's own two axes or a square.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: the input is no picture.
    Source: Pearce et al. (2024), section 4 and appendix on adversarial masks.
    """
    shape = picture_shape(masks.input_shape, shape)
    best, sign = effect.strongest()
    figure = new_figure(6.4, 3.4)
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=[4.2, 1.4])
    axes = left.subplots()
    strengths = [0.0, *effect.strengths.tolist()]
    for values, name, color in (
        (effect.lowest, "best mask", RED),
        (effect.lowest_permuted, "best permuted mask", GRAY),
    ):
        shares = [100 * value for value in (effect.clean, *values.tolist())]
        axes.plot(strengths, shares, color=color, marker="o", markersize=3, label=name)
    axes.set_ylim(0.0, 100.0)
    _finish(axes, "strength (Euclidean norm)", "test accuracy (%)")
    direction, term = masks.origins[best]
    pictures = (
        (masks.vectors[best], f"eigenvector {term} of {direction}"),
        (sign * masks.masks[best], "mask"),
        (sign * masks.permuted[best], "permuted"),
    )
    for axes, (vector, title) in zip(right.subplots(3, 1), pictures, strict=True):
        draw_vector(axes, vector.reshape(shape).numpy(), title)
    return figure


def _draw_band(
    axes, x: Sequence[int], middle: Tensor, low: Tensor, high: Tensor, name: str, color: str
) -> None:
    axes.plot(x, middle.tolist(), color=color, marker="o", markersize=3, label=name)
    axes.fill_between(x, low.tolist(), high.tolist(), color=color, alpha=0.2, linewidth=0)


def _finish(axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
