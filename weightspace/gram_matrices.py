"""Inner products and distances of the weights of many networks, a block of one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.network import Network
from weightspace.untouched_weights import trained

BLOCK_ENTRIES = 1 << 18


def gram(networks: Sequence[Network], *, centered: bool = False) -> np.ndarray:
    """Inner products (n, n) of the trained weights, or of their differences to the first, in float64."""
    total = torch.zeros(len(networks), len(networks), dtype=torch.float64)
    for (block,) in _blocks(networks):
        if centered:
            block = block - block[0].clone()
        total.addmm_(block, block.mT)
    return total.numpy()


def distances_between(networks: Sequence[Network], others: Sequence[Network]) -> np.ndarray:
    """Frobenius distances (n, m) of the trained weights as they stand; rounding is relative to the first network's."""
    total = torch.zeros(len(networks), len(others), dtype=torch.float64)
    for a, b in _blocks(networks, others):
        a, b = a - a[0].clone(), b - a[0]
        total += a.square().sum(1)[:, None] + b.square().sum(1)
        total.addmm_(a, b.mT, alpha=-2)
    return total.clamp_(min=0.0).sqrt_().numpy()


def _blocks(*sets: Sequence[Network]) -> Iterator[tuple[Tensor, ...]]:
    """Entries of all networks of each set in float64, one row per network."""
    for name in trained(sets[0][0]):
        flat = [[network.parameters[name].reshape(-1) for network in networks] for networks in sets]
        for start in range(0, flat[0][0].numel(), BLOCK_ENTRIES):
            block = slice(start, start + BLOCK_ENTRIES)
            yield tuple(torch.stack([tensor[block].double() for tensor in rows]) for rows in flat)
