"""How cards of features look: numbers, small pictures and curves for `feature_cards.html.j2`."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

import weightspace
from interp.autoencoders.autoencoder import Autoencoder
from interp.autoencoders.feature_cards import FeatureCard, FeatureCards
from interp.autoencoders.metrics import Metrics
from weightspace.report.templates import load_template

TEMPLATE = Path(__file__).parent / "feature_cards.html.j2"
SPECTRUM_SHOWN = 24
LETTERS_SHOWN = 400


@dataclass(frozen=True)
class Bars:
    """A bar chart: heights from -1 to 1, what it shows in words, and what stands at its two ends."""

    heights: Sequence[float]
    text: str
    low: str
    high: str

    @property
    def signed(self) -> bool:
        """Whether bars go down from a line in the middle, not only up from the bottom."""
        return any(height < 0 for height in self.heights)

    @property
    def rectangles(self) -> list[tuple[float, float, str]]:
        """Top, height and sign of every bar on a canvas of height 100; what is not zero is seen."""
        base = 50 if self.signed else 100
        lengths = [max(1.5, base * abs(height)) if height else 0.0 for height in self.heights]
        return [
            (base if height < 0 else base - length, length, "negative" if height < 0 else "positive")
            for height, length in zip(self.heights, lengths, strict=True)
        ]


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, or curves as points of polylines in a square of side 100; `text` says what it shows."""

    text: str
    source: str = ""
    curves: Sequence[str] = ()


@dataclass(frozen=True)
class Example:
    """A sample that activates a feature."""

    index: int
    activation: str
    text: str
    picture: Picture | None


def render_cards(
    described: FeatureCards,
    autoencoder: Autoencoder,
    *,
    title: str,
    images: Tensor | None,
    texts: Sequence[str] | None,
    direction_shape: tuple[int, int] | None,
) -> str:
    """Return the page as HTML; arguments as of `write_feature_cards`."""
    cards = [
        {
            "card": card,
            "activations": _activations(card),
            "spectrum": _spectrum(card),
            "direction": _direction(card, direction_shape, described.functions),
            "examples": [
                _example(card, place, images, texts, described.functions) for place in range(len(card.top))
            ],
        }
        for card in described.cards
    ]
    return load_template(TEMPLATE, "feature cards").render(
        title=title,
        kind=type(autoencoder).__name__,
        latents=autoencoder.latents,
        metrics=described.metrics,
        numbers=_numbers(described.metrics),
        densities=_densities(described.metrics),
        shown=sum(card.importance for card in described.cards),
        cards=cards,
        here={card.index for card in described.cards},
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=weightspace.__version__,
    )


def _numbers(metrics: Metrics) -> list[tuple[str, str]]:
    return [
        (name, "none" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
        for name, value in metrics.summary().items()
    ]


def _densities(metrics: Metrics) -> Bars:
    if not metrics.frac_alive:
        return Bars([], "All features are dead.", "", "")
    # From the least density that so many samples can show.
    rarest = torch.tensor(-math.log10(metrics.samples), dtype=torch.float64)
    first = (
        int(torch.searchsorted(metrics.histogram_edges, rarest, right=True).clamp(1, len(metrics.histogram)))
        - 1
    )
    counts = metrics.histogram[first:].double()
    low = float(metrics.histogram_edges[first])
    dead = round((1 - metrics.frac_alive) * len(metrics.densities))
    text = (
        f"Histogram of the logarithm of the density of {int(metrics.histogram.sum())} living features, from "
        f"{10**low:.2g} to 1; {dead} features are dead."
    )
    return Bars((counts / counts.max()).tolist(), text, f"{10**low:.2g}", "1")


def _activations(card: FeatureCard) -> Bars | None:
    total = int(card.counts.sum())
    if not total:
        return None
    low, high = float(card.edges[0]), float(card.edges[-1])
    text = f"Histogram of {total:,} activations of feature {card.index}, from {low:.3g} to {high:.3g}."
    counts = card.counts.double()
    return Bars((counts / counts.max()).tolist(), text, f"{low:.3g}", f"{high:.3g}")


def _spectrum(card: FeatureCard) -> Bars | None:
    if card.spectrum is None:
        return None
    values = card.spectrum.double()[:SPECTRUM_SHOWN]
    largest = float(values.abs().max()) or 1.0
    # One product has two eigenvalues that are not zero: the rest of the spectrum is no news.
    values = values[: max(2, int((values.abs() > 1e-6 * largest).sum()))]
    leading = ", ".join(f"{value:+.3g}" for value in values[:4].tolist())
    text = f"The {len(values)} largest eigenvalues of feature {card.index}: {leading}" + (
        ", and so on." if len(values) > 4 else "."
    )
    return Bars((values / largest).tolist(), text, leading, "")


def _direction(card: FeatureCard, shape: tuple[int, int] | None, functions: bool) -> Picture | None:
    if card.direction is None:
        return None
    text = f"Decoder direction of feature {card.index}"
    if functions:
        return Picture(f"{text} as a curve", curves=_curves(card.direction))
    if shape is None:
        return None
    grid = card.direction.reshape(shape)
    limit = float(grid.abs().max()) or 1.0
    return Picture(f"{text}: positive red, negative blue", _png(grid, -limit, limit, "RdBu_r"))


def _example(
    card: FeatureCard, place: int, images: Tensor | None, texts: Sequence[str] | None, functions: bool
) -> Example:
    index = int(card.top[place])
    words = "" if texts is None else str(texts[index])
    if len(words) > LETTERS_SHOWN:
        words = words[:LETTERS_SHOWN] + " …"
    picture = None
    if images is not None:
        low, high = (0.0, 1.0) if images.ndim == 4 else (float(images.min()), float(images.max()))
        picture = Picture(f"Sample {index}", _png(images[index], low, high, "gray"))
    elif functions:
        picture = Picture(f"Sample {index} as a curve", curves=_curves(card.samples[place]))
    return Example(index, f"{float(card.activations[place]):+.3g}", words, picture)


def _png(image: Tensor, low: float, high: float, colors: str) -> str:
    from matplotlib.image import imsave

    stream = io.BytesIO()
    pixels = image.detach().cpu()
    pixels = (pixels.clamp(0, 1) if image.ndim == 3 and image.is_floating_point() else pixels).numpy()
    imsave(stream, pixels, format="png", vmin=low, vmax=max(high, math.nextafter(low, math.inf)), cmap=colors)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _curves(values: Tensor) -> list[str]:
    """Channels (channels, points) as polylines in a square of side 100."""
    heights = values.detach().double().cpu()
    low, high = float(heights.min()), float(heights.max())
    vertical = 96 - 92 * (heights - low) / ((high - low) or 1.0)
    horizontal = torch.linspace(2, 98, heights.shape[1])
    return [
        " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(horizontal.tolist(), channel.tolist(), strict=True))
        for channel in vertical
    ]
