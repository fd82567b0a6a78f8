"""Figures of decompositions; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.report.figures import BLUE, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp.decomposition import Decomposition


def image_shape(decomposition: Decomposition) -> tuple[int, int] | None:
    """Return height and width of the input as a picture, its own two axes or a square, else None."""
    return _image_shape(decomposition.input_shape)


def picture_shape(input_shape: tuple[int, ...], shape: tuple[int, int] | None) -> tuple[int, int]:
    """Return the shape asked for, else the input's own as a picture.

    Raises:
        ShapeError: the input is no picture of that shape.
    """
    size = math.prod(input_shape)
    found = shape or _image_shape(input_shape)
    if found is None or found[0] * found[1] != size:
        raise ShapeError(f"the figure needs height and width of the {size} inputs; shape is {found}")
    return found


def _image_shape(input_shape: tuple[int, ...]) -> tuple[int, int] | None:
    shape = tuple(size for size in input_shape if size != 1)
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
    shape = picture_shape(decomposition.input_shape, shape)
    size = shape[0] * shape[1]
    count = len(decomposition.values)
    chosen = list(range(min(count, 16))) if directions is None else list(directions)
    if any(not 0 <= index < count for index in chosen) or not chosen:
        raise ShapeError(f"eigenvector_figure has directions 0 to {count - 1} to draw; got {chosen}")
    labels = [str(index) for index in chosen] if names is None else list(names)
    columns = min(shown, decomposition.values.shape[1])
    figure = new_figure(2.4 + 1.25 * columns, 1.45 * len(chosen))
    axes = figure.subplots(
        len(chosen), 1 + columns, squeeze=False, gridspec_kw={"width_ratios": [1.7, *[1.0] * columns]}
    )
    for row, index, label in zip(axes, chosen, labels, strict=True):
        _draw_spectrum(row[0], decomposition.values[index, :20].tolist(), label)
        for term in range(columns):
            vector = decomposition.vectors[index, term]
            title = f"{decomposition.values[index, term].item():+.3g}"
            draw_vector(row[1 + term], vector[:size].reshape(shape).numpy(), title)
            if decomposition.padded:
                row[1 + term].set_xlabel(f"{vector[-1].item():+.2f}", fontsize=7, labelpad=2)
    return figure


def explanation_figure(
    decomposition: Decomposition,
    sample: Tensor,
    *,
    direction: int | None = None,
    shown: int = 8,
    shape: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    r"""Draw why one sample gets its output: the terms $\lambda_i (v_i \cdot x')^2$, which add up to it.

    Above the sample, the outputs of all directions and the sorted terms of one; below the eigenvectors of the
    terms that matter most, each with its term as the title.

    Args:
        sample: x, of the decomposition's input shape.
        direction: whose terms to draw; default the one with the largest output.
        shown: how many of them.
        shape: height and width of a picture; default `image_shape(decomposition)`.
        names: of all directions; default their index.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: the input is no picture, the sample has another shape, or there is no such direction.
    Source: the figures of Pearce et al. (2024), section 4.
    """
    shape = picture_shape(decomposition.input_shape, shape)
    if tuple(sample.shape) != decomposition.input_shape:
        raise ShapeError(
            f"explanation_figure needs one sample of shape {decomposition.input_shape}; "
            f"it has {tuple(sample.shape)}"
        )
    terms = decomposition.explain(sample)
    outputs = terms.sum(1)
    chosen = int(outputs.argmax()) if direction is None else direction
    if not 0 <= chosen < len(outputs):
        raise ShapeError(f"explanation_figure has directions 0 to {len(outputs) - 1}; got {chosen}")
    labels = [str(index) for index in range(len(outputs))] if names is None else list(names)
    kept = decomposition.values.shape[1]
    order = terms[chosen, :kept].abs().argsort(descending=True, stable=True)[:shown]
    figure = new_figure(max(6.0, 1.1 * len(order)), 3.6)
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.4, 1.0])
    picture, bars, sorted_terms = top.subplots(1, 3, gridspec_kw={"width_ratios": [1.0, 1.6, 1.6]})
    draw_vector(picture, sample.detach().reshape(shape).numpy(), "")
    _draw_bars(bars, outputs.tolist(), "output")
    bars.set_xticks(range(len(labels)), labels, fontsize=7)
    bars.get_xticklabels()[chosen].set_fontweight("bold")
    _draw_bars(sorted_terms, terms[chosen, order].tolist(), f"terms of {labels[chosen]}")
    sorted_terms.set_xticks(range(len(order)), [str(index) for index in order.tolist()], fontsize=7)
    size = shape[0] * shape[1]
    for axes, index in zip(bottom.subplots(1, len(order), squeeze=False)[0], order.tolist(), strict=True):
        vector = decomposition.vectors[chosen, index, :size].reshape(shape)
        draw_vector(axes, vector.numpy(), f"{terms[chosen, index].item():+.3g}")
    return figure


def _draw_spectrum(axes, values: list[float], label: str) -> None:
    _draw_bars(axes, values, "")
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11)
    axes.set_xticks([])


def _draw_bars(axes, values: list[float], title: str) -> None:
    axes.bar(range(len(values)), values, color=[RED if value > 0 else BLUE for value in values])
    axes.axhline(0.0, color="black", linewidth=0.5)
    axes.set_title(title, fontsize=8, pad=3)
    axes.tick_params(labelsize=6, length=2)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def draw_vector(axes, picture, title: str) -> None:
    """Draw a numpy array (height, width) in red and blue, centered at 0, the title in the color of its sign."""
    limit = abs(picture).max() or 1.0
    axes.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(title, fontsize=8, pad=3, color=RED if title.startswith("+") else BLUE)
    axes.set_xticks([])
    axes.set_yticks([])
