"""Features of an autoencoder, each on a card: how often it is active, on what, and what is like it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from interp.autoencoders.autoencoder import Autoencoder
from interp.autoencoders.bilinear_autoencoder import BilinearAutoencoder
from interp.autoencoders.metrics import Metrics, batches, evaluate
from interp.autoencoders.recording import in_inference_mode
from interp.autoencoders.sources import ActivationSource
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.decomposition import decompose_form
from weightspace.errors import ShapeError
from weightspace.result import check_writable, write_text

SHOWN = 24
BINS = 24
IMPULSES_AT_A_TIME = 256


@dataclass(frozen=True, eq=False)
class FeatureCard:
    r"""What one feature does on samples.

    Of a code that is a function the entry of largest magnitude is its activation. Tensors are on the CPU.

    Attributes:
        index: of the latent.
        density: share of the samples in which it is active.
        importance: its share of $\sum_j E[f_j^2] \|d_j\|^2$, d what the decoder makes of the code 1 in scaled units.
        counts, edges: histogram of its activations other than 0, (bins,) and (bins + 1,); all 0 of a dead feature.
        top: the samples of largest magnitude of activation, descending, (t,); `activations` theirs, (t,), `samples`
            they themselves, (t, *sample_shape).
        neighbors, cosines: the features of the largest cosine of the decoder with it, descending.
        direction: what the decoder makes of the code 1 (of a function: of an impulse in its middle), in scaled units,
            of the shape of a sample of the target; None of a quadratic latent.
        spectrum: eigenvalues of a quadratic latent, by magnitude, descending; else None.
    """

    index: int
    density: float
    importance: float
    counts: Tensor
    edges: Tensor
    top: Tensor
    activations: Tensor
    samples: Tensor = field(repr=False)
    neighbors: Tensor
    cosines: Tensor
    direction: Tensor | None = field(repr=False)
    spectrum: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class FeatureCards:
    """Result of `describe_features`.

    Attributes:
        metrics: of the whole autoencoder.
        cards: of the features described.
        importance: of every latent, as on its card, (latents,).
        functions: whether codes, samples and directions are functions of points.
    """

    metrics: Metrics
    cards: tuple[FeatureCard, ...]
    importance: Tensor
    functions: bool

    def __repr__(self) -> str:
        shown = sum(card.importance for card in self.cards)
        return f"FeatureCards({len(self.cards)} of {len(self.importance)} features, {shown:.1%} of the importance)"


def describe_features(
    autoencoder: Autoencoder,
    activations: Tensor | ActivationSource,
    *,
    features: Sequence[int] | None = None,
    targets: Tensor | None = None,
    top: int = 8,
    neighbors: int = 5,
    batch_size: int = 4096,
) -> FeatureCards:
    """Describe features by what they do on samples; the data is read three times.

    Args:
        activations, targets: as for `evaluate`.
        features: indices of latents; default the 24 most important ones.
        top: number of samples of each that are kept.
        neighbors: number of similar features of each that are named.
    Raises:
        ShapeError: a feature that does not exist, or activations that `evaluate` refuses.

    Examples:
        >>> import interp, torch
        >>> autoencoder = interp.SparseAutoencoder(8, 16, interp.TopK(4))
        >>> cards = interp.describe_features(autoencoder, torch.randn(100, 8)).cards
        >>> cards[0].direction.shape, 0 <= cards[0].density <= 1
        (torch.Size([8]), True)
    """
    if top < 1 or neighbors < 0:
        raise ShapeError(
            f"a card has at least one sample and no negative number of neighbors: {top}, {neighbors}"
        )
    chosen = None if features is None else list(features)
    outside = [index for index in chosen or () if not 0 <= index < autoencoder.latents]
    if outside:
        raise ShapeError(
            f"the autoencoder has features 0 to {autoencoder.latents - 1}; there is no {outside[0]}"
        )
    metrics = evaluate(autoencoder, activations, targets=targets, batch_size=batch_size)
    with torch.no_grad(), in_inference_mode(autoencoder):
        squares, low, high, shape = _ranges(autoencoder, activations, batch_size)
        importance = squares * _squared_norms(autoencoder, shape)
        importance = importance / importance.sum().clamp_min(torch.finfo(torch.float64).tiny)
        if chosen is None:
            chosen = importance.argsort(descending=True, stable=True)[:SHOWN].tolist()
        index = torch.tensor(chosen, dtype=torch.int64)
        seen = _Seen(index, low[index], high[index], top)
        for x, _ in batches(autoencoder, activations, batch_size):
            seen.add(x, _strengths(autoencoder.encode(x)))
        cards = [
            _card(autoencoder, seen, place, metrics, importance, shape, neighbors)
            for place in range(len(chosen))
        ]
    return FeatureCards(metrics, tuple(cards), importance, len(shape) > 1)


def write_feature_cards(
    autoencoder: Autoencoder,
    activations: Tensor | ActivationSource,
    path: str | Path,
    *,
    features: Sequence[int] | None = None,
    targets: Tensor | None = None,
    images: Tensor | None = None,
    texts: Sequence[str] | None = None,
    direction_shape: tuple[int, int] | None = None,
    top: int = 8,
    title: str = "Features",
    batch_size: int = 4096,
) -> FeatureCards:
    """Write the cards of features as one HTML page that needs no other file and no network.

    Args:
        activations, targets, features, top, batch_size: as for `describe_features`.
        path: of the HTML file, written whole or not at all.
        images: pictures of the samples, (n, h, w), or (n, h, w, 3) with entries from 0 to 1 or bytes.
        direction_shape: (h, w), where the entries of a sample are pixels: decoder features are drawn as pictures.
        texts: what to print for every sample: its words, its class; shown as they are, never read as HTML.
        title: of the page.
    Raises:
        OutputError: the file cannot be written; found before any work.
        MissingDependencyError: the extra `report` is not installed.
        ShapeError: not one image or text for every sample, or what `describe_features` refuses.
    """
    from interp.autoencoders.feature_plots import TEMPLATE, load_template, render_cards

    entries = math.prod(autoencoder.sample_shape)
    if direction_shape is not None and math.prod(direction_shape) != entries:
        raise ShapeError(f"direction_shape {direction_shape} does not hold the {entries} entries of a sample")
    check_writable(path)
    load_template(TEMPLATE, "feature cards")  # found missing now rather than after minutes of work
    described = describe_features(
        autoencoder, activations, features=features, targets=targets, top=top, batch_size=batch_size
    )
    count = described.metrics.samples
    if images is not None and (len(images) != count or not (images.ndim == 3 or images.shape[3:] == (3,))):
        raise ShapeError(f"images are ({count}, h, w) or ({count}, h, w, 3); these are {tuple(images.shape)}")
    if texts is not None and len(texts) != count:
        raise ShapeError(f"there are {count} samples and {len(texts)} texts; give one for each")
    drawn = {"images": images, "texts": texts, "direction_shape": direction_shape}
    write_text(path, render_cards(described, autoencoder, title=title, **drawn))
    return described


class _Seen:
    """Histograms and leading samples of chosen features over a stream."""

    def __init__(self, index: Tensor, low: Tensor, high: Tensor, top: int):
        self.index, self.top = index, top
        self.edges = torch.stack(
            [
                torch.linspace(*ends, BINS + 1, dtype=torch.float64)
                for ends in zip(low.tolist(), high.tolist(), strict=True)
            ]
        )
        self.counts = torch.zeros(len(index), BINS, dtype=torch.int64)
        self.places = torch.zeros(len(index), 0, dtype=torch.int64)
        self.values = torch.zeros(len(index), 0)
        self.samples: Tensor | None = None
        self.start = 0

    def add(self, x: Tensor, strengths: Tensor) -> None:
        values = strengths[:, self.index.to(strengths.device)].mT.contiguous().cpu()
        for row, (counts, edges) in enumerate(zip(self.counts, self.edges, strict=True)):
            active = values[row][values[row] != 0].double()
            bins = torch.searchsorted(edges, active, right=True) - 1
            counts += bins.clamp(0, BINS - 1).bincount(minlength=BINS)
        best = values.abs().topk(min(self.top, values.shape[1])).indices
        candidates = x.cpu()[best]
        if self.samples is not None:
            candidates = torch.cat([self.samples, candidates], 1)
        found = torch.cat([self.values.to(values), values.gather(1, best)], 1)
        places = torch.cat([self.places, best + self.start], 1)
        order = found.abs().argsort(dim=1, descending=True, stable=True)[:, : self.top]
        self.values, self.places = found.gather(1, order), places.gather(1, order)
        self.samples = candidates[torch.arange(len(order))[:, None], order]
        self.start += len(x)


def _strengths(codes: Tensor) -> Tensor:
    """Codes as one number per latent: (n, latents) from (n, latents, ...)."""
    if codes.ndim == 2:
        return codes
    flat = codes.flatten(2)
    return flat.gather(2, flat.abs().argmax(2, keepdim=True))[..., 0]


def _ranges(
    autoencoder: Autoencoder, activations: Tensor | ActivationSource, batch_size: int
) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
    """Return mean squares, least and largest activation (0 among them), and the shape of a sample's codes."""
    squares = torch.zeros(autoencoder.latents, dtype=torch.float64)
    low, high, shape = torch.zeros_like(squares), torch.zeros_like(squares), torch.Size()
    for x, _ in batches(autoencoder, activations, batch_size):
        codes = autoencoder.encode(x)
        shape, axes = codes.shape[1:], (0, *range(2, codes.ndim))
        squares += torch.linalg.vector_norm(codes, dim=axes, dtype=torch.float64).square().cpu()
        low = torch.minimum(low, codes.amin(axes).double().cpu())
        high = torch.maximum(high, codes.amax(axes).double().cpu())
    return squares, low, high, shape


def _impulses(autoencoder: Autoencoder, shape: torch.Size, latents: range) -> Tensor:
    """What the decoder makes of the code 1 of each latent, in its middle if it is a function, (latents, ...)."""
    if isinstance(
        autoencoder, SparseAutoencoder
    ):  # also where codes alone do not decode, for want of the skip
        return autoencoder.decoder_weight[latents.start : latents.stop].detach().cpu()
    place = next(autoencoder.parameters())
    codes = torch.zeros(len(latents), *shape, dtype=place.dtype, device=place.device)
    middle = tuple(size // 2 for size in shape[1:])
    for row, latent in enumerate(latents):
        codes[(row, latent, *middle)] = 1.0
    return (autoencoder.decode_scaled(codes) - autoencoder.decode_scaled(torch.zeros_like(codes[:1]))).cpu()


def _squared_norms(autoencoder: Autoencoder, shape: torch.Size) -> Tensor:
    if isinstance(autoencoder, BilinearAutoencoder):
        return autoencoder.importance().double().cpu()
    starts = range(0, autoencoder.latents, IMPULSES_AT_A_TIME)
    parts = [range(i, min(i + IMPULSES_AT_A_TIME, autoencoder.latents)) for i in starts]
    return torch.cat(
        [_impulses(autoencoder, shape, part).double().flatten(1).square().sum(1) for part in parts]
    )


def _card(
    autoencoder: Autoencoder,
    seen: _Seen,
    place: int,
    metrics: Metrics,
    importance: Tensor,
    shape: torch.Size,
    neighbors: int,
) -> FeatureCard:
    latent = int(seen.index[place])
    cosines = autoencoder.decoder_cosines(slice(latent, latent + 1))[0].cpu().clone()
    cosines[latent] = -torch.inf
    near = cosines.topk(min(neighbors, autoencoder.latents - 1))
    spectrum = direction = None
    if isinstance(autoencoder, BilinearAutoencoder):
        form = autoencoder.form(slice(latent, latent + 1))
        one = torch.ones(1, 1, dtype=torch.float64)
        spectrum = decompose_form(form, one, padded=not form.is_homogeneous).values[0]
    else:
        direction = _impulses(autoencoder, shape, range(latent, latent + 1))[0]
    active = seen.values[place] != 0
    assert seen.samples is not None
    return FeatureCard(
        latent,
        float(metrics.densities[latent]),
        float(importance[latent]),
        seen.counts[place],
        seen.edges[place],
        seen.places[place][active],
        seen.values[place][active],
        seen.samples[place][active],
        near.indices,
        near.values,
        direction,
        spectrum,
    )
