"""The k largest latents of every sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from interp.autoencoders.latent_activation import SelectingActivation, require
from interp.autoencoders.sparse_codes import Pattern, select_top


@dataclass(frozen=True)
class TopK(SelectingActivation):
    r"""f keeps the k largest entries of $\mathrm{relu}(h)$ of every sample.

    Args:
        k: how many; fewer fire where fewer are positive.
    Source: Makhzani and Frey, k-Sparse autoencoders (2014); Gao et al., Scaling and evaluating sparse autoencoders
        (2024).

    Examples:
        >>> import interp, torch
        >>> codes = interp.SparseAutoencoder(8, 32, interp.TopK(4)).encode(torch.randn(10, 8))
        >>> int((codes != 0).sum(1).max()) <= 4
        True
    """

    k: int

    def __post_init__(self):
        require(self.k >= 1, f"TopK needs k >= 1; it is {self.k}")

    def select(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Pattern]:
        return select_top(x, weight, bias, self.k)
