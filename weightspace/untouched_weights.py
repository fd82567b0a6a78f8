"""Weights that training has left alone between two networks: the most durable trace of common descent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from weightspace.network import Network

COORDINATES = 20_000  # weights that are looked at; of more, evenly spaced ones


def untouched_weights(networks: Sequence[Network]) -> tuple[np.ndarray, np.ndarray]:
    """Return for all pairs the share of weights that no gradient reached, and their common logarithmic factor.

    A weight without a gradient (dead input, unseen token, frozen layer, update below the precision) keeps its bits, or
    is multiplied by (1 - rate * decay) in every step of decoupled weight decay, as all such weights are. Counted are
    the weights, zeros left out, whose ratio lies within rounding (16 epsilon) of the most frequent one.

    Args:
        networks: of one architecture, in a common neuron order and under common parameter names.
    Returns:
        The share (n, n), symmetric, 1 on the diagonal; and log(b / a) (n, n), antisymmetric, 0 for pairs that share
        bits or no more weights than chance would have.
    """
    names = trained(networks[0])
    total = sum(networks[0].parameters[name].numel() for name in names)
    stride = max(1, total // COORDINATES)
    weights = torch.stack(
        [
            torch.cat([net.parameters[name].reshape(-1)[::stride].double() for name in names])
            for net in networks
        ]
    )
    # What was computed in float32 and is stored in float64 is no more exact than float32.
    precisions = [torch.float32, *(networks[0].parameters[name].dtype for name in names)]
    window = 16 * max(torch.finfo(dtype).eps for dtype in precisions)
    count, size = weights.shape
    shared, factors = np.eye(count), np.zeros((count, count))
    logarithms = weights.abs().log()
    signs = weights > 0
    for first in range(count):
        equal = ((weights[first] == weights[:first]) & (weights[first] != 0)).sum(1)
        for second in range(first):
            most, factor = int(equal[second]), 0.0
            if (
                window < 1e-4 and most < size // 100
            ):  # coarser dtypes have too few ratios to tell them from chance
                ratios = (logarithms[first] - logarithms[second])[signs[first] == signs[second]]
                ratios = ratios[ratios.isfinite()].sort().values
                inside = torch.searchsorted(ratios, ratios + window) - torch.arange(len(ratios))
                if len(ratios) and int(inside.max()) > max(most, 4 + size // 3000):
                    place = int(inside.argmax())
                    most = int(inside[place])
                    factor = float(ratios[place : place + most].median())
                    factor = factor if abs(factor) > window else 0.0
            shared[first, second] = shared[second, first] = most / size
            factors[second, first], factors[first, second] = factor, -factor
    return shared, factors


def trained(network: Network) -> list[str]:
    """Names of the floating parameters that an operation uses and training changes."""
    used = dict.fromkeys(name for node in network.nodes for name in node.operation.parameters.values())
    return [
        name for name in used if name not in network.buffers and network.parameters[name].is_floating_point()
    ]
