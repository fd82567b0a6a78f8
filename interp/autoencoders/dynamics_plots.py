"""Figures of the dynamics of an autoencoder; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.autoencoders.latent_dynamics import Attractors, follow_trajectories, vector_field
from interp.plots import picture_shape
from weightspace.errors import ShapeError
from weightspace.report.figures import GRAY, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Color = tuple[float, float, float]
GRID, BASIN_STEPS = 40, 200  # of the drawn field, and steps after which its points have arrived
ARRIVED = 0.05  # distance from an attractor within which they have
PATHS = 200  # trajectories drawn


def attractor_figure(
    autoencoder: nn.Module | Callable[[Tensor], Tensor],
    attractors: Attractors,
    *,
    samples: Tensor | None = None,
    shape: tuple[int, int] | None = None,
    shown: int = 8,
    steps: int = 30,
) -> Figure:
    """Draw attractors in a plane with the field and the basins, and as pictures where a shape is given.

    Stars are attractors, larger with their basins, with a red edge where unstable; what ends in one has its color. In
    more than two dimensions the plane is that of the two leading principal components of the samples, or of the ends,
    and lines are trajectories of the starts.

    Args:
        autoencoder: what `find_attractors` was given.
        samples: of the training, drawn as points, (n, *sample_shape); in the space "latent" they are encoded.
        shape: height and width of a sample as a picture: the attractors are drawn in the order of their basins, below
            each the nearest of the samples.
        shown: number of attractors with a picture.
        steps: length of the trajectories drawn in more than two dimensions.
    Returns:
        A matplotlib Figure that is registered nowhere: `figure.savefig(path)`.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: the samples are no pictures of that shape, or have another than those of the autoencoder.
    """
    if samples is not None and samples.shape[1:] != attractors.samples.shape[1:]:
        raise ShapeError(
            f"the attractors have samples of shape {tuple(attractors.samples.shape[1:])}; these are "
            f"{tuple(samples.shape)}"
        )
    shown = min(shown, len(attractors.points))
    pictures = None if shape is None else picture_shape(tuple(attractors.samples.shape[1:]), shape)
    rows = 1 if samples is None else 2
    widths = [4.6] if pictures is None else [4.6, 0.95 * shown]
    figure = new_figure(sum(widths), 3.8)
    columns = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
    _draw_plane(columns[0].subplots(), autoencoder, attractors, samples, steps)
    if pictures is not None:
        _draw_pictures(columns[1].subplots(rows, shown, squeeze=False), attractors, samples, pictures)
    return figure


def _draw_plane(
    axes,
    autoencoder: nn.Module | Callable[[Tensor], Tensor],
    attractors: Attractors,
    samples: Tensor | None,
    steps: int,
) -> None:
    points, known = attractors.points.flatten(1), None
    if samples is not None:
        with torch.no_grad():
            known = (samples if attractors.space == "input" else autoencoder.encode(samples)).flatten(1)  # pyright: ignore
    palette = _palette(len(points))
    if points.shape[1] == 2:
        basis, names = torch.eye(2).to(points), ("first entry", "second entry")
        _draw_field(axes, autoencoder, attractors, known, palette)
    else:
        basis = _principal(attractors.ends.flatten(1) if known is None else known)
        names = ("first principal component", "second principal component")
        paths = follow_trajectories(
            autoencoder, attractors.starts[:PATHS], steps=steps, space=attractors.space
        ).flatten(2)
        for path, owner in zip(
            (paths @ basis).transpose(0, 1).cpu().numpy(), attractors.membership, strict=False
        ):
            axes.plot(path[:, 0], path[:, 1], color=palette[int(owner)], linewidth=0.5, alpha=0.35)
    if known is not None:
        axes.scatter(*(known @ basis).mT.cpu().numpy(), s=7, color=GRAY, alpha=0.5, zorder=3)
    axes.scatter(
        *(points @ basis).mT.cpu().numpy(),
        s=40 + 260 * attractors.basins.cpu().numpy(),
        c=palette[:-1],
        edgecolors=["black" if stable else RED for stable in attractors.stable.tolist()],
        marker="*",
        zorder=4,
    )
    axes.set_xlabel(names[0], fontsize=8)
    axes.set_ylabel(names[1], fontsize=8)
    axes.tick_params(labelsize=7)
    converged = float(attractors.converged.double().mean())
    axes.set_title(f"{len(points)} attractors, {converged:.0%} of starts converged", fontsize=9)


def _draw_field(
    axes, autoencoder, attractors: Attractors, known: Tensor | None, palette: list[Color]
) -> None:
    shape = attractors.points.shape[1:]
    inside = torch.cat([attractors.points.flatten(1)] + ([] if known is None else [known]))
    low, high = inside.amin(0), inside.amax(0)
    margin = max(0.3 * float((high - low).max()), 0.3 * attractors.scale)
    ticks = [
        torch.linspace(float(a) - margin, float(b) + margin, GRID) for a, b in zip(low, high, strict=True)
    ]
    grid = torch.cartesian_prod(*ticks).to(inside)
    field = vector_field(autoencoder, grid.reshape(-1, *shape), space=attractors.space).flatten(1)
    across, along = field.reshape(GRID, GRID, 2).transpose(0, 1).cpu().unbind(-1)
    axes.streamplot(*(tick.numpy() for tick in ticks), across.numpy(), along.numpy(),
                    color=GRAY, linewidth=0.5, arrowsize=0.6, density=1.1)  # fmt: skip
    ends = follow_trajectories(
        autoencoder, grid.reshape(-1, *shape), steps=BASIN_STEPS, space=attractors.space
    )[-1]
    distance, nearest = torch.cdist(ends.flatten(1), attractors.points.flatten(1)).min(1)
    arrived = distance <= ARRIVED * attractors.scale
    colors = torch.tensor(palette)[torch.where(arrived, nearest, -1).cpu()]
    axes.imshow(colors.reshape(GRID, GRID, 3).transpose(0, 1).numpy(), origin="lower", alpha=0.25, aspect="auto",
                extent=(*ticks[0][[0, -1]].tolist(), *ticks[1][[0, -1]].tolist()), zorder=0)  # fmt: skip


def _draw_pictures(axes, attractors: Attractors, samples: Tensor | None, shape: tuple[int, int]) -> None:
    pictures = [attractors.samples[: axes.shape[1]]]
    titles = [[f"{share:.0%}" for share in attractors.basins[: axes.shape[1]].tolist()]]
    labels = ["attractors,\nshare of starts"]
    if samples is not None:
        distances = torch.cdist(pictures[0].flatten(1).double(), samples.flatten(1).double())
        pictures.append(samples[distances.argmin(1)])
        titles.append([f"{distance:.2g}" for distance in distances.amin(1).tolist()])
        labels.append("nearest samples,\ndistance")
    for row, images, texts, label in zip(axes, pictures, titles, labels, strict=True):
        row[0].set_ylabel(label, fontsize=8)
        for place, image, text in zip(row, images, texts, strict=True):
            place.imshow(image.reshape(shape).detach().cpu().numpy(), cmap="gray")
            place.set_title(text, fontsize=8, pad=3)
            place.set_xticks([])
            place.set_yticks([])


def _principal(points: Tensor) -> Tensor:
    """The two leading principal directions, (d, 2)."""
    return torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh[:2].mT


def _palette(count: int) -> list[Color]:
    """Colors of `count` attractors, in turns; one more, the last, of starts that end in none."""
    from matplotlib import colormaps

    table = colormaps["tab20"]
    colors: list[Color] = [tuple(table(2 * index % 19)[:3]) for index in range(count)]  # pyright: ignore
    return [*colors, (1.0, 1.0, 1.0)]
