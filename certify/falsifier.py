"""Many inputs at once at which a network comes too near to its unsafe outputs, by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from certify.evaluation import flat_function
from certify.properties import Polyhedron, Property
from certify.repairs import Constraint
from certify.signed_descent import descend
from weightspace.network import Network

_POINTS, _STEPS = 4096, 60
_TOGETHER = 16  # constraints returned per polyhedron


def falsify(
    network: Network,
    properties: Sequence[Property],
    known: Collection[Constraint],
    *,
    limit: float,
    generator: torch.Generator,
) -> list[Constraint]:
    r"""Return constraints at inputs of the boxes with $\max_k (A f(x) - b)_k$ below `limit`.

    Signed gradient steps that shrink descend the maximum from the best of many random points, and from the inputs of
    the known constraints, whose neighbors fail next. Finding none proves nothing.
    """
    function, found = flat_function(network), []
    for property in properties:
        ends = (property.region.lower, property.region.upper)
        lower, upper = (torch.tensor(end, dtype=torch.float64) for end in ends)
        shares = torch.rand(_POINTS, len(lower), dtype=torch.float64, generator=generator)
        points = lower + (upper - lower) * shares
        inputs = [one.input for one in known if one.property is property]
        before = torch.tensor(inputs, dtype=torch.float64).reshape(-1, len(lower))
        for polyhedron in property.unsafe:
            matrix = torch.tensor(polyhedron.matrix, dtype=torch.float64)
            bounds = torch.tensor(polyhedron.bounds, dtype=torch.float64)

            def excess(x: Tensor, matrix: Tensor = matrix, bounds: Tensor = bounds) -> Tensor:
                return (function(x) @ matrix.T - bounds).amax(1)

            with torch.no_grad():
                start = points[excess(points).argsort()[: _POINTS // 16]]
            x = torch.cat([start, before])
            best, least = x, torch.full((len(x),), math.inf, dtype=torch.float64)
            for point, now in descend(excess, x, lower, upper, steps=_STEPS):
                better = now < least
                best, least = torch.where(better[:, None], point, best), torch.where(better, now, least)
            with torch.no_grad():
                values = function(best).numpy()
            found += constraints_at(best.numpy(), values, polyhedron, property=property, limit=limit)
    return found


def constraints_at(
    points: np.ndarray, values: np.ndarray, polyhedron: Polyhedron, *, property: Property, limit: float
) -> list[Constraint]:
    """Return constraints at points with an excess of at most `limit`: the worst, and others spread over the order.

    Each has the row that is largest there, the one that asks for the least change.

    Args:
        points: (n, inputs) of the property's box.
        values: (n, outputs) of the network there.
    """
    excess = values @ np.array(polyhedron.matrix).T - np.array(polyhedron.bounds)
    rows, worst = excess.argmax(axis=1), excess.max(axis=1)
    order = np.argsort(worst)[: int((worst <= limit).sum())]
    if len(order) > _TOGETHER:
        order = order[np.linspace(0, len(order) - 1, _TOGETHER).astype(int)]
    return [
        Constraint(
            tuple(points[i].tolist()), polyhedron.matrix[rows[i]], polyhedron.bounds[rows[i]], property
        )
        for i in order
    ]
