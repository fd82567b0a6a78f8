"""Figures of whole tensors: spectra, HOSVD, interactions; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from interp.plots import draw_vector, image_shape
from weightspace.errors import ShapeError
from weightspace.report.figures import BLUE, GRAY, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp.decomposition import Decomposition
    from interp.feature_interactions import FeatureInteractions
    from interp.tensor_spectra import HOSVD


def spectrum_figure(decomposition: Decomposition, *, names: Sequence[str] | None = None) -> Figure:
    r"""Draw the eigenvalues of every direction, and those of a random symmetric matrix of the same norm.

    The gray curve is Wigner's semicircle: quantiles of a symmetric Gaussian matrix of the size of the vectors with
    the Frobenius norm of the form. A spectrum that leaves it has structure.

    Args:
        names: of the directions, for the legend; default their index; at most 16 are drawn.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: there is no eigenvalue.
    """
    count, terms, size = decomposition.vectors.shape
    if not count or not terms:
        raise ShapeError(f"spectrum_figure needs eigenvalues; this decomposition has {count} x {terms}")
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    labels = [str(index) for index in range(count)] if names is None else list(names)
    for values, label in list(zip(decomposition.values, labels, strict=True))[:16]:
        ordered = values.sort(descending=True).values
        axes.plot(range(1, terms + 1), ordered.tolist(), linewidth=1.0, label=label)
    norm = decomposition.values.square().sum(1).sqrt().mean()
    axes.plot(
        range(1, terms + 1), _semicircle(size, terms, float(norm)), color=GRAY, linewidth=1.6, label="random"
    )
    axes.axhline(0.0, color="black", linewidth=0.5)
    axes.set_xlabel("rank")
    axes.set_ylabel("eigenvalue")
    axes.legend(fontsize=7, ncols=2, frameon=False)
    return figure


def _semicircle(size: int, terms: int, norm: float) -> list[float]:
    """The `terms` largest magnitudes of the expected eigenvalues, in descending order of value."""
    radius = 2 * norm / math.sqrt(size)
    angles = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    share = (angles - angles.sin() * angles.cos()) / math.pi  # of eigenvalues above radius cos(angle)
    places = torch.searchsorted(share, (torch.arange(size) + 0.5) / size)
    values = radius * angles[places].cos()
    kept = values.abs().argsort(descending=True, stable=True)[:terms].sort().values
    return values[kept].tolist()


def hosvd_figure(
    found: HOSVD, *, count: int = 3, shown: int = 3, shape: tuple[int, int] | None = None
) -> Figure:
    r"""Draw a card of the leading components: $\sigma$, what each writes, and the eigenvectors it reads.

    Left the singular values; then a row for every component with the entries of $u_i$ as bars, and the leading
    eigenvectors of $\sigma_i Q_i$, as pictures where the input is one and as lines otherwise.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: `shape` is not that of the input.
    """
    decomposition = found.decompose(count, top=shown)
    rows, terms, size = decomposition.vectors.shape
    size -= decomposition.padded
    shape = shape or image_shape(decomposition)
    if shape is not None and shape[0] * shape[1] != size:
        raise ShapeError(f"hosvd_figure needs height and width of the {size} inputs; shape is {shape}")
    figure = new_figure(3.6 + 1.3 * terms, 1.5 * rows + 0.6)
    grid = figure.add_gridspec(rows, 2 + terms, width_ratios=[1.2, 1.6, *[1.0] * terms])
    axes = figure.add_subplot(grid[:, 0])
    axes.bar(range(len(found.values)), found.values.tolist(), color=BLUE)
    axes.set_title(r"$\sigma$", fontsize=9)
    axes.tick_params(labelsize=6)
    for row in range(rows):
        axes = figure.add_subplot(grid[row, 1])
        written = found.directions[row].tolist()
        axes.bar(range(len(written)), written, color=[RED if value > 0 else BLUE for value in written])
        axes.axhline(0.0, color="black", linewidth=0.5)
        axes.set_title("writes", fontsize=8)
        axes.tick_params(labelsize=6)
        for term in range(terms):
            axes = figure.add_subplot(grid[row, 2 + term])
            vector, title = (
                decomposition.vectors[row, term, :size],
                f"{float(decomposition.values[row, term]):+.3g}",
            )
            if shape is not None:
                draw_vector(axes, vector.reshape(shape).numpy(), title)
            else:
                axes.plot(vector.tolist(), color=BLUE, linewidth=0.8)
                axes.set_title(title, fontsize=8)
                axes.tick_params(labelsize=6)
    return figure


def feature_interaction_figure(
    interactions: FeatureInteractions, output: int, *, names: Sequence[str] | None = None, most: int = 30
) -> Figure:
    """Draw how input features interact on one output feature, as a map of those in its strongest pairs.

    Args:
        names: of all input features; default their index.
        most: features to draw at most, by the magnitude of their strongest interaction.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: there is no such output, or as many names as features are not given.
    Source: Pearce et al. (2024), section 5.
    """
    outputs, features = len(interactions.values), interactions.features
    if not 0 <= output < outputs or (names is not None and len(names) != features):
        raise ShapeError(
            f"feature_interaction_figure draws outputs 0 to {outputs - 1} with {features} names; output is {output}, "
            f"names {None if names is None else len(names)}"
        )
    matrix = interactions.matrix(output)
    kept = matrix.abs().amax(1).argsort(descending=True, stable=True)[:most].sort().values
    labels = [str(index) if names is None else str(names[index]) for index in kept.tolist()]
    figure = new_figure(1.2 + 0.22 * len(kept), 1.0 + 0.2 * len(kept))
    axes = figure.subplots()
    limit = float(matrix.abs().max()) or 1.0
    picture = axes.imshow(matrix[kept][:, kept].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(kept)), labels, rotation=90, fontsize=6)
    axes.set_yticks(range(len(kept)), labels, fontsize=6)
    axes.set_title(f"interactions on output {output}", fontsize=9)
    figure.colorbar(picture, ax=axes, shrink=0.7)
    return figure
