"""Weights that training has left alone between two networks: the most durable trace of common descent."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

import numpy as np
import torch

from weightspace.mapping import map_over
from weightspace.network import Network

BLOCK = 64  # networks whose pairs are counted at once
COORDINATES = 20_000  # weights that are looked at; of more, evenly spaced ones


def untouched_weights(
    networks: Sequence[Network], *, executor: Executor | None = None, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return for all pairs the share of weights that no gradient reached, and their common logarithmic factor.

    A weight without a gradient (dead input, unseen token, frozen layer, update below the precision) keeps its bits, or
    is multiplied by (1 - rate * decay) in every step of decoupled weight decay, as all such weights are. Counted are
    the weights, zeros left out, whose ratio lies within rounding (16 epsilon) of the most frequent one.

    Args:
        networks: of one architecture, in a common neuron order and under common parameter names.
        executor: counts blocks of pairs.
        progress: show a progress bar on a terminal.
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
    starts = range(0, len(weights), BLOCK)
    places = [(row, column) for row in starts for column in starts if column <= row]
    rows = weights.numpy()
    found = map_over(
        partial(_count, window=window),
        [(rows[r : r + BLOCK], None if r == c else rows[c : c + BLOCK]) for r, c in places],
        executor=executor if len(places) > 1 else None,
        describe=lambda block: "a block of pairs of networks",
        one_thread=False,  # comparing and sorting are the same in any number of threads
        progress="counting untouched weights" if progress else None,
    )
    shared, factors = np.zeros((2, len(weights), len(weights)))  # the pairs (a, b) with b < a
    for (r, c), (own, logarithms) in zip(places, found, strict=True):
        shared[r : r + BLOCK, c : c + BLOCK] = own
        factors[r : r + BLOCK, c : c + BLOCK] = logarithms
    return shared + shared.T + np.eye(len(weights)), factors - factors.T


def _count(block: tuple[np.ndarray, np.ndarray | None], *, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Count for all pairs of two blocks of networks, or for the pairs (a, b) with b < a of one."""
    weights = torch.from_numpy(block[0])
    others = weights if block[1] is None else torch.from_numpy(block[1])
    size = weights.shape[1]
    shared, factors = np.zeros((2, len(weights), len(others)))
    logarithms, signs = weights.abs().log(), weights > 0
    other_logarithms, other_signs = others.abs().log(), others > 0
    for first in range(len(weights)):
        equal = ((weights[first] == others) & (weights[first] != 0)).sum(1)
        for second in range(len(others) if block[1] is not None else first):
            most, factor = int(equal[second]), 0.0
            if (
                window < 1e-4 and most < size // 100
            ):  # coarser dtypes have too few ratios to tell them from chance
                ratios = (logarithms[first] - other_logarithms[second])[signs[first] == other_signs[second]]
                ratios = ratios[ratios.isfinite()].sort().values
                inside = torch.searchsorted(ratios, ratios + window) - torch.arange(len(ratios))
                if len(ratios) and int(inside.max()) > max(most, 4 + size // 3000):
                    place = int(inside.argmax())
                    most = int(inside[place])
                    factor = float(ratios[place : place + most].median())
                    factor = factor if abs(factor) > window else 0.0
            shared[first, second], factors[first, second] = most / size, -factor
    return shared, factors


def trained(network: Network) -> list[str]:
    """Names of the floating parameters that an operation uses and training changes."""
    used = dict.fromkeys(name for node in network.nodes for name in node.operation.parameters.values())
    return [
        name for name in used if name not in network.buffers and network.parameters[name].is_floating_point()
    ]
