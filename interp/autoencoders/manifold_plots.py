"""Figures of manifolds; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.autoencoders.manifolds import Manifold
from weightspace.errors import ShapeError
from weightspace.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def manifold_figure(manifolds: Sequence[Manifold], *, labels: Tensor | None = None) -> Figure:
    r"""Draw the samples on the leading axes of each latent, one column per latent, colored by activation.

    Red is positive, blue negative, white 0, on a scale for each latent that 1 % of the samples exceed. The axes are
    labeled by their eigenvalues: the activation is the sum of $\lambda_i$ times the squares of the coordinates, and of
    what is not shown.

    Args:
        manifolds: of `project_manifold`; those with three axes are drawn in space, others in the plane of two.
        labels: classes of the samples, integers from 0, (n,); a second row is colored by them.
    Returns:
        A matplotlib Figure that is registered nowhere: `figure.savefig(path)`.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: no manifold, one with a single axis, or labels of another length.
    """
    if not manifolds or any(manifold.points.shape[1] < 2 for manifold in manifolds):
        raise ShapeError("manifold_figure needs at least one manifold, each with two axes or more")
    if labels is not None and any(len(manifold.points) != len(labels) for manifold in manifolds):
        raise ShapeError(f"the labels of the samples are {len(labels)}, the samples another number")
    rows = 1 if labels is None else 2
    figure = new_figure(3.1 * len(manifolds), 3.3 * rows)
    for column, manifold in enumerate(manifolds, 1):
        panel = _panel(figure, rows, len(manifolds), column, manifold)
        limit = float(manifold.activations.abs().quantile(0.99)) or 1.0  # a few are far above the rest
        drawn = _scatter(panel, manifold, manifold.activations, cmap="RdBu_r", vmin=-limit, vmax=limit)
        bar = figure.colorbar(drawn, ax=panel, shrink=0.6, pad=0.12, extend="both")
        bar.ax.tick_params(labelsize=6)
        panel.set_title(
            f"latent {manifold.latent}\ndensity {manifold.density:.2f}, effective rank "
            f"{manifold.effective_rank:.1f}\nimportance {manifold.importance:.2g}, {manifold.shown:.0%} shown",
            fontsize=7,
        )
    if labels is not None:
        classes = int(labels.max()) + 1
        for column, manifold in enumerate(manifolds, len(manifolds) + 1):
            panel = _panel(figure, rows, len(manifolds), column, manifold)
            drawn = _scatter(
                panel, manifold, labels, cmap=_class_colors(classes), vmin=-0.5, vmax=classes - 0.5
            )
            bar = figure.colorbar(drawn, ax=panel, shrink=0.6, pad=0.12, ticks=range(min(classes, 20)))
            bar.ax.tick_params(labelsize=6)
    return figure


def _class_colors(classes: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10" if classes <= 10 else "turbo"].resampled(classes)


def _panel(figure: Figure, rows: int, columns: int, index: int, manifold: Manifold) -> Any:
    spatial = manifold.points.shape[1] >= 3
    panel: Any = figure.add_subplot(rows, columns, index, projection="3d" if spatial else None)
    names = [rf"$\lambda$ = {value:+.2g}" for value in manifold.values[:3].tolist()]
    panel.set_xlabel(names[0], fontsize=7, labelpad=-6 if spatial else 2)
    panel.set_ylabel(names[1], fontsize=7, labelpad=-6 if spatial else 2)
    if spatial:
        panel.set_zlabel(names[2], fontsize=7, labelpad=-8)
    if not spatial:
        panel.set_facecolor("0.88")  # on white the samples with activations near 0 would not be seen
    panel.tick_params(labelsize=5, pad=-3 if spatial else 2)
    return panel


def _scatter(panel: Any, manifold: Manifold, colors: Tensor, **options: Any) -> Any:
    # Strong activations are drawn last, lest the many weak ones hide them.
    order = manifold.activations.abs().argsort()
    points = manifold.points[order, :3].numpy().T
    return panel.scatter(*points, c=colors.cpu()[order].numpy(), s=4, linewidths=0, **options)
