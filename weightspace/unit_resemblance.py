r"""How near two networks can be in any neuron order, from above and without an assignment.

Pieces of parameters that one family of units carries on a single axis (weights of inputs and outputs, biases) have one
row per unit. Whatever the order p, $\langle A, pB \rangle \le \sum_i \max_j \langle a_i, b_j \rangle$, and so

$\|A - pB\|^2 \ge \|A\|^2 + \|B\|^2 - 2 \sum_i \max_j \langle a_i, b_j \rangle$
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.matching.pieces import Pattern, cut
from weightspace.network import Network
from weightspace.symmetry_spec import SymmetrySpec

BLOCK_ENTRIES = 1 << 22

Rows = dict[tuple[int, Pattern], Tensor]  # family of groups and indices -> (units, weights of one)


def unit_rows(network: Network, spec: SymmetrySpec) -> Rows:
    """Return the weights of every unit that no other group moves, in the dtype that matching uses."""
    moved = {
        name: tensor.detach()
        for name, tensor in network.parameters.items()
        if name in spec.axes and tensor.is_floating_point() and name not in network.buffers
    }
    found: dict[tuple[int, Pattern], list[Tensor]] = {}
    for piece in cut(spec, spec.axes, moved, moved):
        if len(piece.slots) == 1:
            key = piece.slots[0].family, piece.slots[0].pattern
            found.setdefault(key, []).append(piece.rows(piece.b, 0))
    return {key: torch.cat(rows, 1) for key, rows in found.items()}


class Resemblances:
    """The rows of some networks, side by side, to be asked which of them resemble another one most."""

    def __init__(self) -> None:
        self._stacks: dict[tuple[int, Pattern], list[Tensor]] = {}
        self._squares: list[float] = []

    def __len__(self) -> int:
        return len(self._squares)

    def add(self, rows: Rows) -> None:
        """Take in one more network; they are numbered in this order."""
        for key, matrix in rows.items():
            self._stacks.setdefault(key, []).append(matrix)
        self._squares.append(_square(rows))

    def nearest(self, rows: Rows, count: int, places: Sequence[int] | None = None) -> list[int]:
        """Return the places of the networks with the smallest bound of the distance relative to the norms."""
        places = range(len(self)) if places is None else places
        totals = torch.zeros(len(places), dtype=torch.float64)
        for key, matrix in rows.items():
            step = max(1, BLOCK_ENTRIES // max(1, len(matrix) ** 2))
            for start in range(0, len(places), step):
                stack = torch.stack([self._stacks[key][place] for place in places[start : start + step]])
                products = (stack.flatten(0, 1) @ matrix.mT).unflatten(0, stack.shape[:2])
                totals[start : start + step] += products.amax(2).double().sum(1)
        squares = torch.tensor([self._squares[place] for place in places], dtype=torch.float64) + _square(
            rows
        )
        order = (totals / squares.clamp(min=1e-300)).argsort(descending=True, stable=True)
        return [places[number] for number in order[:count].tolist()]


def _square(rows: Rows) -> float:
    return sum(float(matrix.double().square().sum()) for matrix in rows.values())
