"""ReLU codes with an L1 penalty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from interp.autoencoders.latent_activation import DenseActivation, require

if TYPE_CHECKING:
    from interp.autoencoders.sparse_autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class ReLU(DenseActivation):
    r"""$f = \mathrm{relu}(h)$ with the penalty $\lambda\, E \sum_j f_j |W_{dec,j}|$.

    Args:
        l1: $\lambda$, for squared errors summed over the entries of a sample.
    Source: Bricken et al., Towards monosemanticity (2023); norms of the decoder in the penalty: Conerly et al.,
        Update on how we train SAEs (2024), which makes it blind to the scale of a latent.

    Examples:
        >>> import interp, torch
        >>> codes = interp.SparseAutoencoder(8, 32, interp.ReLU(l1=0.1)).encode(torch.randn(10, 8))
        >>> bool((codes >= 0).all())
        True
    """

    l1: float = 1.0

    def __post_init__(self):
        require(self.l1 >= 0, f"ReLU needs l1 >= 0; it is {self.l1}")

    def codes(self, h: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        return h.relu()

    def penalties(
        self, h: Tensor, codes: Tensor, residual: Tensor, autoencoder: SparseAutoencoder
    ) -> Mapping[str, Tensor]:
        return {"l1": self.l1 * (codes @ autoencoder.feature_norms()).mean()}
