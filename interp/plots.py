"""Figures of decompositions; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightspace.errors import MissingDependencyError, ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp.decomposition import Decomposition


def image_shape(decomposition: Decomposition) -> tuple[int, int] | None:
    """Return height and width of the input as a picture, its own two axes or a square, else None."""
    shape = tuple(size for size in decomposition.input_shape if size != 1)
    if len(shape) == 2:
        return shape
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    return (side, side) if side > 1 and side * side == shape[0] else None


def eigenvector_figure(
    decomposition: Decomposition,
    *,
    directions: Sequence[int] | None = None,
    shown: int = 4,
    shape: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    r"""Draw the spectrum and the leading eigenvectors of each direction, one row per direction.

    Vectors are pictures in red (positive) and blue (negative), centered at 0 and scaled each on its own, with
    $\lambda$ as the title; a vector and its negative mean the same. Of padded vectors the last entry, the
    one of the constant 1, is left out of the picture and written below it.

    Args:
        directions: which rows of `decomposition.directions` to draw; default the first 16.
        shown: how many eigenvectors of each.
        shape: height and width of a picture; default `image_shape(decomposition)`.
        names: of the directions drawn; default their index.
    Returns:
        A matplotlib Figure that is registered nowhere: `figure.savefig(path)`.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: the input is no picture, or a direction does not exist.
    Source: the figures of Pearce et al. (2024), section 4.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            'drawing needs matplotlib; install it with `pip install "weightspace[report]"`'
        ) from error
    size = decomposition.vectors.shape[2] - decomposition.padded
    shape = shape or image_shape(decomposition)
    if shape is None or shape[0] * shape[1] != size:
        raise ShapeError(f"eigenvector_figure needs height and width of the {size} inputs; shape is {shape}")
    count = len(decomposition.values)
    chosen = list(range(min(count, 16))) if directions is None else list(directions)
    if any(not 0 <= index < count for index in chosen) or not chosen:
        raise ShapeError(f"eigenvector_figure has directions 0 to {count - 1} to draw; got {chosen}")
    labels = [str(index) for index in chosen] if names is None else list(names)
    columns = min(shown, decomposition.values.shape[1])
    figure = Figure(figsize=(2.4 + 1.25 * columns, 1.45 * len(chosen)), layout="constrained")
    axes = figure.subplots(
        len(chosen), 1 + columns, squeeze=False, gridspec_kw={"width_ratios": [1.7, *[1.0] * columns]}
    )
    for row, index, label in zip(axes, chosen, labels, strict=True):
        _draw_spectrum(row[0], decomposition.values[index, :20].tolist(), label)
        for term in range(columns):
            vector = decomposition.vectors[index, term]
            title = f"{decomposition.values[index, term].item():+.3g}"
            _draw_vector(row[1 + term], vector[:size].reshape(shape).numpy(), title)
            if decomposition.padded:
                row[1 + term].set_xlabel(f"{vector[-1].item():+.2f}", fontsize=7, labelpad=2)
    return figure


def _draw_spectrum(axes, values: list[float], label: str) -> None:
    colors = ["#b2182b" if value > 0 else "#2166ac" for value in values]
    axes.bar(range(len(values)), values, color=colors)
    axes.axhline(0.0, color="black", linewidth=0.5)
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11)
    axes.tick_params(labelsize=6, length=2)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_vector(axes, picture, title: str) -> None:
    limit = abs(picture).max() or 1.0
    axes.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(title, fontsize=8, pad=3, color="#b2182b" if title.startswith("+") else "#2166ac")
    axes.set_xticks([])
    axes.set_yticks([])
