"""How good an autoencoder is, by the names the field uses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from interp.autoencoders.autoencoder import Autoencoder, Comparison
from interp.autoencoders.loss_recovered import LossRecovered, measure_loss_recovered
from interp.autoencoders.recording import in_inference_mode
from interp.autoencoders.sources import ActivationSource, as_source, require_finite
from weightspace.errors import NonFiniteError, ShapeError

COSINES_AT_A_TIME = 2**24
RAREST, BINS = -8.0, 32  # of the histogram: log10 of the density from 1e-8 to 1, four bins per decade


@dataclass(frozen=True, eq=False, repr=False)
class Metrics:
    r"""Result of `evaluate`: x a target, $\hat x$ its reconstruction, $e = x - \hat x$ and codes f, over n samples.

    Where codes are functions, (n, latents, points), every sum over latents is a mean over points too, and a density is
    the share of samples and points. A number without a value (a latent has no other to compare with, all activations
    are the same) is NaN.

    Attributes:
        samples: n.
        l0, l1: mean number of active latents, mean $\sum_j |f_j|$.
        mse: mean $|e|^2$, summed over the entries of a sample.
        fvu: fraction of variance unexplained, $\sum |e|^2 / \sum |x - \bar x|^2$ over the whole stream.
        explained_variance: 1 - fvu.
        explained_variance_legacy: mean of $1 - |e|^2 / |x - \bar x|^2$ with $\bar x$ the mean of the batch, so it
            depends on the batch size; None where the loss lives in another space than the activations (bilinear).
        cossim, l2_ratio: mean cosine of x and $\hat x$, mean $|\hat x| / |x|$; samples x = 0 are left out.
        relative_reconstruction_bias: mean $|\hat x|^2$ / mean $x \cdot \hat x$; 1 without shrinkage.
        frac_alive, freq_over_1_percent, freq_over_10_percent: share of latents with density above 0, .01, .1.
        average_max_encoder_cosine_sim, average_max_decoder_cosine_sim: mean over features of the largest cosine with
            another one.
        densities: share of samples in which a latent is active, (latents,).
        histogram, histogram_edges: number of living latents by log10 of their density; rarer ones are in the first bin.
        loss_recovered: of the model the activations are from; None if none was given.
    Source: Karvonen et al., SAEBench: A comprehensive benchmark for sparse autoencoders (2025), names of the metrics.

    Examples:
        >>> import interp, torch
        >>> metrics = interp.evaluate(interp.SparseAutoencoder(8, 32, interp.TopK(4)), torch.randn(100, 8))
        >>> 0 < metrics.frac_alive <= 1, round(metrics.fvu + metrics.explained_variance, 6)
        (True, 1.0)
    """

    samples: int
    l0: float
    l1: float
    mse: float
    fvu: float
    explained_variance: float
    explained_variance_legacy: float | None
    cossim: float
    l2_ratio: float
    relative_reconstruction_bias: float
    frac_alive: float
    freq_over_1_percent: float
    freq_over_10_percent: float
    average_max_encoder_cosine_sim: float
    average_max_decoder_cosine_sim: float
    densities: Tensor
    histogram: Tensor
    histogram_edges: Tensor
    loss_recovered: LossRecovered | None = field(default=None)

    @property
    def ce_loss_score(self) -> float | None:
        """Share of the model's loss that the reconstruction keeps: 1 is all, 0 is as bad as zeros."""
        return self.loss_recovered and self.loss_recovered.ce_loss_score

    @property
    def kl_div_score(self) -> float | None:
        """The same for the divergence of the model's predictions."""
        return self.loss_recovered and self.loss_recovered.kl_div_score

    def summary(self) -> dict[str, float | None]:
        """Return every single number by its name."""
        numbers = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name not in ("densities", "histogram", "histogram_edges", "loss_recovered")
        }
        return {**numbers, **(asdict(self.loss_recovered) if self.loss_recovered else {})}

    def to_json(self) -> str:
        """Return strict JSON of all numbers; NaN becomes null."""
        arrays = {
            name: getattr(self, name).tolist() for name in ("densities", "histogram", "histogram_edges")
        }
        numbers = {
            name: None if value is None or not math.isfinite(value) else value
            for name, value in self.summary().items()
        }
        return json.dumps({**numbers, **arrays}, allow_nan=False)

    def __repr__(self) -> str:
        text = (
            f"Metrics(fvu {self.fvu:.4g}, l0 {self.l0:.4g} of {len(self.densities)} latents, "
            f"{self.frac_alive:.1%} alive, cossim {self.cossim:.4g}, {self.samples:,} samples"
        )
        return text + (
            f", ce_loss_score {self.ce_loss_score:.4g})" if self.ce_loss_score is not None else ")"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{'none' if value is None else f'{value:.4g}'}</td></tr>"
            for name, value in self.summary().items()
        )
        return f"<table><caption>{escape(repr(self))}</caption>{rows}</table>"


def evaluate(
    autoencoder: Autoencoder,
    activations: Tensor | ActivationSource,
    *,
    targets: Tensor | None = None,
    batch_size: int = 4096,
    model: nn.Module | None = None,
    hook: str | None = None,
    loader: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    axis: int = -1,
) -> Metrics:
    r"""Measure an autoencoder on activations, in one pass over them, with sums in float64.

    Args:
        autoencoder: any `Autoencoder`; it is evaluated in inference mode.
        activations: (n, *sample_shape), or a source such as `interp.activations` returns.
        targets: what is to be reconstructed where that is not the activations (transcoders), (n, ...).
        batch_size: samples encoded at a time.
        model, hook, loader, loss, axis: measure also how much of the loss of the model is recovered when the activation
            `hook` in it is replaced; arguments of `measure_loss_recovered`.
    Raises:
        NonFiniteError: NaN or infinite activations; the message names the first sample.
        ShapeError: no activations, or of another shape than the autoencoder takes.
    Source: SAEBench (2025); FVU as defined there in words, not by the difference of mean squares that its version
        0.6.0 computes, which depends on the scale of the activations.

    Examples:
        >>> import interp, torch
        >>> metrics = interp.evaluate(interp.SparseAutoencoder(8, 32, interp.TopK(4)), torch.randn(100, 8))
        >>> metrics.samples, metrics.l0 <= 4
        (100, True)
    """
    if batch_size < 1:
        raise ShapeError(f"evaluate needs a batch_size of at least 1; it is {batch_size}")
    if model is not None and (hook is None or loader is None):
        raise ShapeError(
            "evaluate with a model needs the name of its module (hook) and batches of data (loader) too"
        )
    totals = _Totals()
    transcodes = False
    with torch.no_grad(), in_inference_mode(autoencoder):
        for x, target in batches(autoencoder, activations, batch_size, targets=targets):
            transcodes = target is not None
            totals.add(autoencoder.compare(x, target), x if target is None else target)
        recovered = None
        if model is not None and hook is not None and loader is not None:
            recovered = measure_loss_recovered(
                autoencoder, model, loader, hook=hook, loss=loss, axis=axis, transcodes=transcodes
            )
        encoder, decoder = (
            average_max_cosine(cosines, autoencoder.latents)
            for cosines in (autoencoder.encoder_cosines, autoencoder.decoder_cosines)
        )
    return totals.metrics(encoder, decoder, recovered)


def batches(
    autoencoder: Autoencoder,
    activations: Tensor | ActivationSource,
    batch_size: int,
    *,
    targets: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield activations and their targets in order, in dtype and on device of the autoencoder.

    Raises:
        NonFiniteError: NaN or infinite activations.
        ShapeError: there are none, or not one target for each.
    """
    place, start = next(autoencoder.parameters()), 0
    for rows in as_source(activations, targets).in_order(batch_size):
        moved = [part.detach().to(place) for part in rows]
        for part, name in zip(moved, ("activations", "targets"), strict=False):
            require_finite(part, name, start)
        start += len(moved[0])
        yield moved[0], moved[1] if len(moved) > 1 else None
    if not start:
        raise ShapeError("there are no activations: the source has 0 samples; check what it reads")


def average_max_cosine(cosines: Callable[[slice], Tensor], latents: int) -> float:
    """Return the mean over features of the largest cosine with another one, NaN of a single feature.

    Args:
        cosines: rows of the matrix of cosines, slice -> (rows, latents).
    """
    if latents < 2:
        return math.nan
    total, height = 0.0, max(1, COSINES_AT_A_TIME // latents)
    for start in range(0, latents, height):
        block = cosines(slice(start, start + height)).clone()
        block.diagonal(start).fill_(-torch.inf)
        total += float(block.amax(1).double().sum())
    return total / latents


class _Totals:
    """Sums over a stream, in float64."""

    def __init__(self) -> None:
        self.samples = 0
        self.numbers: dict[str, Tensor | float] = {}

    def add(self, batch: Comparison, target: Tensor) -> None:
        count, codes = len(batch.codes), batch.codes
        axes = (0, *range(2, codes.ndim))
        points = codes.shape[2:].numel()
        norms = (batch.target * batch.reconstruction).sqrt()
        nonzero = batch.target > 0
        sums: dict[str, Tensor | float] = {
            "active": (codes != 0).sum(axes).double() / points,
            "l1": torch.linalg.vector_norm(codes, 1, dtype=torch.float64) / points,
            "error": batch.error.double().sum(),
            "target": batch.target.double().sum(),
            "target_sum": batch.target_sum.double(),
            "cross": batch.cross.double().sum(),
            "reconstruction": batch.reconstruction.double().sum(),
            "cosines": torch.where(norms > 0, batch.cross / norms, 0.0)[nonzero].double().sum(),
            "ratios": (batch.reconstruction / batch.target)[nonzero].sqrt().double().sum(),
            "nonzero": nonzero.double().sum(),
            **self._legacy(batch, target),
        }
        if not bool(torch.as_tensor(sums["error"]).isfinite()):
            raise NonFiniteError(
                f"reconstructions of activations {self.samples} to {self.samples + count - 1} are NaN or infinite; "
                "the autoencoder's weights are broken or too large"
            )
        for name, value in sums.items():
            self.numbers[name] = self.numbers.get(name, 0.0) + value
        self.samples += count

    @staticmethod
    def _legacy(batch: Comparison, target: Tensor) -> dict[str, Tensor]:
        flat = target.flatten(1).double()
        if batch.target_sum.numel() != flat.shape[1]:
            return {}
        units = batch.target.double().sum() / flat.square().sum().clamp_min(torch.finfo(flat.dtype).tiny)
        spread = (flat - flat.mean(0)).square().sum(1) * units
        varied = spread > 0
        return {
            "legacy": (1 - batch.error.double() / spread)[varied].sum(),
            "legacy_count": varied.double().sum(),
        }

    def metrics(self, encoder: float, decoder: float, recovered: LossRecovered | None) -> Metrics:
        n = self.samples
        numbers = {name: torch.as_tensor(value).cpu() for name, value in self.numbers.items()}
        variance = numbers["target"] - numbers["target_sum"].square().sum() / n
        # What rounding alone leaves of identical activations is no variance.
        variance = variance if variance > 1e-13 * numbers["target"] else torch.zeros(())
        densities = numbers["active"] / n
        edges = torch.linspace(RAREST, 0.0, BINS + 1, dtype=torch.float64)
        exponents = densities[densities > 0].log10().clamp(RAREST, 0.0)
        fvu = float(numbers["error"] / variance) if variance > 0 else math.nan
        legacy = float(numbers["legacy"] / numbers["legacy_count"]) if "legacy" in numbers else None
        return Metrics(
            samples=n,
            l0=float(numbers["active"].sum() / n),
            l1=float(numbers["l1"] / n),
            mse=float(numbers["error"] / n),
            fvu=fvu,
            explained_variance=1 - fvu,
            explained_variance_legacy=legacy,
            cossim=float(numbers["cosines"] / numbers["nonzero"]),
            l2_ratio=float(numbers["ratios"] / numbers["nonzero"]),
            relative_reconstruction_bias=float(numbers["reconstruction"] / numbers["cross"]),
            frac_alive=float((densities > 0).double().mean()),
            freq_over_1_percent=float((densities > 0.01).double().mean()),
            freq_over_10_percent=float((densities > 0.1).double().mean()),
            average_max_encoder_cosine_sim=encoder,
            average_max_decoder_cosine_sim=decoder,
            densities=densities,
            histogram=torch.histogram(exponents, edges).hist.long(),
            histogram_edges=edges,
            loss_recovered=recovered,
        )
