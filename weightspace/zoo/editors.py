"""`WeightEditor`: networks that change the weights of networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from weightspace.zoo.standardization import Standardization


class WeightEditor(nn.Module):
    r"""Adds a learned change to the weights of networks.

    $$ w_p' = w_p + s_p \sigma_p \, \Delta_p\bigl( (w - \mu) / \sigma \bigr) $$

    for every parameter p, with one learned $s_p > 0$ each. Where $\Delta$ commutes with the permutations of hidden
    units, so does the editor: what it makes of a network does not depend on the order of the network's neurons.

    Args:
        net: $\Delta$, from name -> (networks, *shape) to name -> (networks, 1, *shape): a `DeepWeightSpaceNet` with
            the equivariant head, or a `GraphParameterMap`.
        standardization: $\mu$ and $\sigma$ of the weights that are edited.
        scale: $s_p$ at first; small, so that training starts near the networks as they are.
    Raises:
        ShapeError: in a call, a parameter that was not standardized, or that the net does not know.
    Source: Navon, Shamsian, Achituve, Fetaya, Chechik, Maron, Equivariant architectures for learning in deep weight
        spaces (2023), section 7.
    """

    def __init__(
        self,
        net: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
        standardization: Standardization,
        scale: float = 1e-2,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.net, self.standardization = net, standardization
        self.names = tuple(standardization.mean)
        self.log_scales = nn.Parameter(
            torch.full((len(self.names),), math.log(scale), dtype=dtype, device=device)
        )

    def forward(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the edited parameters, name -> (networks, *shape)."""
        changes = self.net(self.standardization.apply(parameters))
        scales = dict(zip(self.names, self.log_scales.exp(), strict=True))
        return {
            name: tensor
            + scales[name] * self.standardization.deviation[name].to(tensor) * changes[name].squeeze(1)
            for name, tensor in parameters.items()
        }
