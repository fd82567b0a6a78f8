"""Codes whose detection and magnitude are trained apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.autoencoders.latent_activation import DenseActivation, require

if TYPE_CHECKING:
    from interp.autoencoders.sparse_autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Gated(DenseActivation):
    r"""$f = 1[\pi > 0]\,\mathrm{relu}(e^r \odot p W_{enc} + b_{mag})$ with the gate $\pi = p W_{enc} + b_{gate}$.

    Added to the loss: $\lambda E \sum_j \mathrm{relu}(\pi_j) |W_{dec,j}|$ and the error of the reconstruction from
    $\mathrm{relu}(\pi)$ with a detached decoder, which trains the gate. `encoder_bias` is $b_{gate}$, `gate_scale` r
    and `magnitude_bias` $b_{mag}$.

    Args:
        l1: $\lambda$, for squared errors summed over the entries of a sample.
    Source: Rajamanoharan et al., Improving dictionary learning with gated sparse autoencoders (2024), section 3. The
        norms of the decoder in the penalty are 1 while it is normalized, as there.

    Examples:
        >>> import interp, torch
        >>> codes = interp.SparseAutoencoder(8, 32, interp.Gated(l1=0.1)).encode(torch.randn(10, 8))
        >>> bool((codes >= 0).all())
        True
    """

    l1: float = 1.0

    def __post_init__(self):
        require(self.l1 >= 0, f"Gated needs l1 >= 0; it is {self.l1}")

    def parameters(self, latents: int) -> dict[str, Tensor]:
        return {"gate_scale": torch.zeros(latents), "magnitude_bias": torch.zeros(latents)}

    def codes(self, h: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        scale, bias = (autoencoder.get_parameter(name) for name in ("gate_scale", "magnitude_bias"))
        magnitude = (h - autoencoder.encoder_bias) * scale.exp() + bias
        return torch.where(h > 0, magnitude.relu(), 0.0)

    def penalties(
        self, h: Tensor, codes: Tensor, residual: Tensor, autoencoder: SparseAutoencoder
    ) -> Mapping[str, Tensor]:
        gate = h.relu()
        seen = gate @ autoencoder.decoder_weight.detach()
        return {
            "l1": self.l1 * (gate @ autoencoder.feature_norms()).mean(),
            "gate": (residual - seen).square().sum(1).mean(),
        }
