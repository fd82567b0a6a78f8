"""Hoyer density: how evenly a latent is active over the samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.autoencoders.autoencoder import Autoencoder
from weightspace.errors import ShapeError


@dataclass(frozen=True, eq=False, repr=False)
class HoyerDensities:
    """Hoyer densities of the latents of an autoencoder over a sample.

    Attributes:
        values: of every latent, (latents,), float64, from 0 (active on one sample) to 1 (equally on all); 0 of a
            latent that is never active.
        samples: over how many samples.
    """

    values: Tensor
    samples: int

    @property
    def mean(self) -> float:
        """Mean over the latents."""
        return float(self.values.mean())

    def __repr__(self) -> str:
        low, middle, high = (self.values.quantile(share).item() for share in (0.1, 0.5, 0.9))
        return (
            f"HoyerDensities({len(self.values)} latents over {self.samples} samples: mean {self.mean:.3f}, "
            f"deciles {low:.3f} to {high:.3f}, median {middle:.3f})"
        )


def hoyer_density(codes: Tensor) -> Tensor:
    r"""Return the Hoyer density of every column of codes (n, latents), (latents,).

    $\rho = \dfrac{\|f\|_1 / \|f\|_2 - 1}{\sqrt n - 1}$ over the n samples: 0 if one sample alone is not zero, 1 if all
    have the same magnitude, about 0.80 of Gaussian codes and 0.63 of products of two Gaussians. Independent of the
    scale of f. A column of zeros has density 0.

    Raises:
        ShapeError: fewer than two samples, of which no density is defined.
    Source: Hoyer, Non-negative matrix factorization with sparseness constraints (2004), section 3.1: one minus its
        sparseness.
    """
    return _density(codes.abs().sum(0), codes.square().sum(0), len(codes))


def measure_density(autoencoder: Autoencoder, x: Tensor, *, batch_size: int = 4096) -> HoyerDensities:
    """Measure the Hoyer density of every latent over samples (n, *sample_shape), in the units of the data.

    Raises:
        ShapeError: fewer than two samples, samples of another shape, or codes that are functions.
    """
    absolute = squares = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for batch in x.split(batch_size):
            codes = autoencoder.encode(batch).double()
            if codes.ndim != 2:
                raise ShapeError(
                    f"a Hoyer density needs one code per latent and sample; those of {type(autoencoder).__name__} "
                    f"have shape {tuple(codes.shape)}"
                )
            absolute = absolute.to(codes.device) + codes.abs().sum(0)
            squares = squares.to(codes.device) + codes.square().sum(0)
    return HoyerDensities(_density(absolute, squares, len(x)), len(x))


def _density(absolute: Tensor, squares: Tensor, samples: int) -> Tensor:
    if samples < 2:
        raise ShapeError(f"a Hoyer density needs at least two samples; there are {samples}")
    active = squares > 0
    ratio = absolute / torch.where(active, squares, 1.0).sqrt()
    return torch.where(active, (ratio - 1) / (samples**0.5 - 1), 0.0)
