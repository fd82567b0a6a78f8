"""Inputs of a box whose outputs are unsafe: found by gradient descent, confirmed in outward-rounded arithmetic."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from certify import checker
from certify.evaluation import flat_function
from certify.properties import Property
from certify.signed_descent import descend
from certify.verdicts import Counterexample
from weightspace.network import Network

_LARGEST = 2**24  # entries of the batch of points


def search_counterexample(
    network: Network,
    model: checker.Model,
    property: Property,
    generator: torch.Generator,
    *,
    points: int = 2048,
    steps: int = 60,
) -> Counterexample | None:
    r"""Minimize $\max_i (A f(x) - b)_i$ over the box by signed gradient steps from random points.

    Steps shrink from a quarter of the box to nothing. The best points of every polyhedron are confirmed by `violates`.

    Args:
        model: the same network as `checker.rebuild` gives it.
        points: random points, of which the best eighth of each polyhedron go on.
    Returns:
        None where none was found.
    """
    lower, upper = (
        torch.tensor(end, dtype=torch.float64) for end in (property.region.lower, property.region.upper)
    )
    function = flat_function(network)
    count = max(8, min(points, _LARGEST // max(1, len(lower))))
    shares = torch.rand(count, len(lower), dtype=torch.float64, generator=generator)
    start = lower + (upper - lower) * shares
    with torch.no_grad():
        values = function(start)
    for polyhedron in property.unsafe:
        matrix, bounds = (
            torch.tensor(one, dtype=torch.float64) for one in (polyhedron.matrix, polyhedron.bounds)
        )
        order = (values @ matrix.T - bounds).amax(1).argsort()[: max(8, count // 8)]

        def excess(x: Tensor, matrix: Tensor = matrix, bounds: Tensor = bounds) -> Tensor:
            return (function(x) @ matrix.T - bounds).amax(1)

        for x, now in descend(excess, start[order], lower, upper, steps=steps):
            if bool((now <= 0).any()):
                found = violates(network, model, property, x[now.argsort()[:64]].numpy())
                if found is not None:
                    return found
    return None


def violates(
    network: Network, model: checker.Model, property: Property, points: np.ndarray
) -> Counterexample | None:
    """Return the first of the points (n, inputs) whose output is unsafe beyond rounding.

    Points of single-precision networks are rounded to that precision where this leaves them in the box.
    """
    lower, upper = np.array(property.region.lower), np.array(property.region.upper)
    kept = np.clip(points, lower, upper)
    dtype = network.inputs[0].dtype
    if dtype == "float32":
        rounded = kept.astype(np.float32).astype(np.float64)
        kept = np.where((rounded >= lower) & (rounded <= upper), rounded, kept)
    with torch.no_grad():
        values = flat_function(network)(torch.from_numpy(kept)).numpy()
    for polyhedron in property.unsafe:
        matrix, bounds = np.array(polyhedron.matrix), np.array(polyhedron.bounds)
        excess = (values @ matrix.T - bounds).max(axis=1)
        for place in np.argsort(excess)[:4]:
            if not excess[place] <= 0:
                break
            point = kept[place][None]
            with np.errstate(all="ignore"):
                least, _ = checker.Bounds(model, checker.boxes(point, point)).minimum(-matrix)
            if (-least[0] <= bounds).all():
                return Counterexample(tuple(kept[place].tolist()), tuple(values[place].tolist()))
    return None
