"""Draw the report's figures; matplotlib is imported here and only when a figure is drawn."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from weightspace.errors import MissingDependencyError
from weightspace.report.content import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from weightspace.curvature import PathCurvature
    from weightspace.graph import ParameterGraph

BLUE, RED, GRAY, GREEN = "#2166ac", "#b2182b", "#777777", "#1b7837"
EDGES_DRAWN = 1500
LABEL_LENGTH = 45


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that belongs to no window; a notebook shows it whichever backend is set.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            'figures need matplotlib; install it with: pip install "weightspace[report]"'
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80, metadata={"Software": None})
    return stream.getvalue()


def plain(text: str) -> str:
    """Keep matplotlib from reading dollar signs in a name as mathematics, and a long name from taking all the room."""
    if len(text) > LABEL_LENGTH:
        text = f"{text[: LABEL_LENGTH // 3]}…{text[1 - 2 * LABEL_LENGTH // 3 :]}"
    return text.replace("$", r"\$")


def picture(
    figure: Figure, caption: str, *, alt: str, form: str = "svg", methods: Sequence[str] = ()
) -> Picture:
    """Turn a figure into a data URI; `form` is "svg" for lines, "png" for images.

    The background is left out: the page shows its own, and inverts the rest where it is dark.
    """
    stream = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}} if form == "svg" else {"dpi": 140}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a file name in a script the font lacks
        figure.savefig(stream, format=form, transparent=True, **options)
    kind = "image/svg+xml" if form == "svg" else "image/png"
    content = stream.getvalue() if form == "svg" else _reduced(stream)
    return Picture(f"data:{kind};base64,{base64.b64encode(content).decode()}", caption, alt, tuple(methods))


def _reduced(stream: io.BytesIO) -> bytes:
    """A PNG with 256 colors: a third of the size, the same to the eye."""
    from PIL import Image

    reduced = io.BytesIO()
    stream.seek(0)
    Image.open(stream).quantize(256, method=Image.Quantize.FASTOCTREE).save(reduced, "png", optimize=True)
    return reduced.getvalue()


def spectra_figure(spectra: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the singular values of several matrices, largest first; logarithmic where they differ much."""
    figure = new_figure(7.2, 3.4)
    axes = figure.subplots()
    for name, values in spectra.items():
        array = np.asarray(values, dtype=float)
        floor = array.max(initial=0.0) * 1e-9
        axes.plot(np.arange(1, len(array) + 1), np.maximum(array, floor), label=plain(name), linewidth=1.3)
    positive = [value for values in spectra.values() for value in values if value > 0]
    if positive and max(positive) > 3 * min(positive):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.1 * max(positive, default=1.0))
    if max(map(len, spectra.values()), default=0) > 100:
        axes.set_xscale("log")
    axes.set_xlabel("rank")
    axes.set_ylabel("singular value")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return figure


def graph_figure(graph: ParameterGraph) -> Figure:
    """Draw nodes in columns by layer and the largest weights between them, blue negative, red positive.

    Edges that are no parameters (residual connections, heads) are gray; a kernel is shown by its largest entry.
    """
    from matplotlib.collections import LineCollection

    sizes = graph.layer_sizes
    figure = new_figure(max(7.2, 0.55 * len(sizes)), 3.8)
    axes = figure.subplots()
    positions = np.concatenate(
        [
            np.stack([np.full(size, layer, dtype=float), -(np.arange(size) - (size - 1) / 2) / size], 1)
            for layer, size in enumerate(sizes)
        ]
    )
    source, target = graph.edge_index.numpy()
    kernels = graph.edge_features.double().numpy()
    weights = np.take_along_axis(kernels, np.abs(kernels).argmax(1)[:, None], 1)[:, 0]
    trained = (graph.structure.edge_entries >= 0).any(1).numpy()
    column = graph.node_layer.numpy()[target]
    largest = np.full(len(sizes), 1e-300)
    size_of = np.where(np.isfinite(weights), np.abs(weights), 0)
    np.maximum.at(largest, column[trained], size_of[trained])
    strength = np.where(trained, size_of / largest[column], 0)  # 1 for the largest finite one of each layer
    order = np.argsort(-strength, kind="stable")[:EDGES_DRAWN][::-1]  # the largest is drawn last, on top
    chosen = order[trained[order]]
    segments = np.stack([positions[source], positions[target]], 1)
    fixed = np.flatnonzero(~trained)[:EDGES_DRAWN]
    axes.add_collection(
        LineCollection(list(segments[fixed]), colors=GRAY, alpha=0.3, linewidths=0.4, zorder=0.5)
    )
    colors = np.zeros((len(chosen), 4))
    colors[:] = [0x21 / 255, 0x66 / 255, 0xAC / 255, 1.0]
    colors[weights[chosen] > 0] = [0xB2 / 255, 0x18 / 255, 0x2B / 255, 1.0]
    colors[:, 3] = 0.08 + 0.92 * strength[chosen] ** 1.5
    axes.add_collection(
        LineCollection(
            list(segments[chosen]), colors=colors, linewidths=0.3 + 1.2 * strength[chosen], zorder=1
        )
    )
    biases = graph.node_features[:, 0].double().numpy()
    limit = max(np.abs(biases[np.isfinite(biases)]).max(initial=0.0), 1e-12)
    dots = axes.scatter(*positions.T, c=biases, cmap="RdBu_r", vmin=-limit, vmax=limit, zorder=2,
                        s=16 if max(sizes) <= 100 else 4,
                        edgecolors="black", linewidths=0.4 if max(sizes) <= 100 else 0.05)  # fmt: skip
    figure.colorbar(dots, ax=axes, label="bias", shrink=0.7)
    kinds = [
        layer.kind
        if layer.activation == "linear" and layer.kind not in ("hidden", "output")
        else layer.activation
        for layer in graph.structure.layers
    ]
    labels = [f"{size}\n{kind}" for size, kind in zip(sizes, kinds, strict=True)]
    axes.set_xticks(range(len(labels)), labels, fontsize=8 if len(labels) <= 12 else 6)
    if len(labels) > 12:
        axes.tick_params(axis="x", labelrotation=60)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.2, len(labels) - 0.8)
    axes.tick_params(bottom=False)
    return figure


def barrier_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ylabel: str,
    accuracies: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Figure:
    """Draw loss along the line between two networks, one curve per way to join them; accuracy beside it."""
    figure = new_figure(7.2, 3.0)
    panels = [(curves, ylabel)] + ([(accuracies, "accuracy")] if accuracies else [])
    for axes, (drawn, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (name, (positions, values)), color in zip(
            drawn.items(), cycle((RED, BLUE, GREEN, GRAY)), strict=False
        ):
            shown = plain(name) if drawn is curves else None
            axes.plot(positions, values, label=shown, color=color, marker=".", markersize=4)
        axes.set_xlabel("t, from the first network (0) to the second (1)" if len(panels) == 1 else "t")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def curvature_figure(result: PathCurvature) -> Figure:
    """Draw the loss on the line between two networks with the parabolas of its ends, and curvature beneath it."""
    figure = new_figure(7.2, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    upper.plot(result.positions, result.losses, color=RED, marker=".", label="measured")
    fine = np.linspace(0, 1, 101)
    for end, color, name in ((0, BLUE, "first"), (-1, GREEN, "second")):
        parabola = [result.predicted(float(t), end) for t in fine]
        upper.plot(
            fine, parabola, color=color, linestyle="--", linewidth=1.1, label=f"parabola at the {name}"
        )
    low, high = min(result.losses), max(result.losses)
    room = max(high - low, 1e-12)
    upper.set_ylim(low - room, high + room)
    upper.set_ylabel("loss")
    unit = result.length**2
    lower.plot(
        result.positions, [c / unit for c in result.curvatures], color=RED, marker=".", label="along the line"
    )
    for number, values in enumerate(zip(*result.eigenvalues, strict=True)):
        label = "largest eigenvalues" if number == 0 else None
        lower.plot(result.positions, values, color=GRAY, marker=".", linewidth=0.9, label=label)
    lower.axhline(0, color="black", linewidth=0.6)
    lower.set_yscale("symlog", linthresh=1e-3)
    lower.set_xlabel("t, from the first network (0) to the second (1)")
    lower.set_ylabel("curvature")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    return figure
