"""The largest latent of every group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.autoencoders.latent_activation import SelectingActivation, require
from interp.autoencoders.sparse_codes import Pattern


@dataclass(frozen=True)
class GroupMax(SelectingActivation):
    r"""f keeps the largest entry of $\mathrm{relu}(h)$ in each of k equal groups of latents that follow each other.

    Args:
        k: how many groups, a divisor of the number of latents; fewer latents fire where a group has no positive one.
    Source: the activation "groupmax" of sparsify (EleutherAI), cheaper than TopK on a GPU.
    """

    k: int

    def __post_init__(self):
        require(self.k >= 1, f"GroupMax needs k >= 1; it is {self.k}")

    def parameters(self, latents: int) -> dict[str, Tensor]:
        require(latents % self.k == 0, f"GroupMax cannot make {self.k} equal groups of {latents} latents")
        return {}

    def select(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Pattern]:
        values, places = F.linear(x, weight, bias).unflatten(1, (self.k, -1)).max(2)
        columns = places + torch.arange(0, len(weight), len(weight) // self.k, device=places.device)
        starts = torch.arange(0, columns.numel() + 1, self.k, dtype=torch.int32, device=places.device)
        return values.relu().flatten(), Pattern(starts, columns.flatten().to(torch.int32), len(weight))
