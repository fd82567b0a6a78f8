"""A lower bound of the Lipschitz constant by search: what no upper bound may be below."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from certify.evaluation import flat_function
from certify.regions import Ball, Region
from certify.signals import System
from weightspace.network import Network, Node
from weightspace.operations import Clip, Pointwise, Scale

Function = Callable[[Tensor], Tensor]


def sample_lower_bound(
    system: System,
    norm: str = "l2",
    *,
    region: Region | None = None,
    samples: int | None = None,
    rounds: int = 8,
    generator: torch.Generator | None = None,
) -> float:
    r"""Return the largest stretching $\|f(x + tv) - f(x)\| / \|tv\|$ found by sampling and local search.

    Directions v come from power iteration with the Jacobian (l2) or from the signs of its rows (l-infinity); each
    round continues from perturbations of the best points. The smaller of the Jacobian's stretching and the secant's
    counts, so that conventions at kinks cannot inflate it; up to rounding (1e-9 is taken off) it is attained.

    Args:
        samples: None takes 64, of networks with more than 1,500 coordinates 16.
        region: both ends of every secant belong to it; None for the whole space.
        generator: source of randomness; seeded with 0 when None.
    """
    known = system.network.inputs[0].shape
    shape = [size or 1 for size in (known[1:] if len(known) > 1 else known)]
    width = math.prod(shape)
    if not (width and system.outputs and all(system.widths)):
        return 0.0
    samples = samples or (64 if sum(system.widths) <= 1500 else 16)
    generator = generator or torch.Generator().manual_seed(0)
    function = _function(system)
    best, centers = 0.0, None
    for round_ in range(rounds):
        noise = torch.randn(samples, width, dtype=torch.float64, generator=generator)
        if centers is None and region is not None:
            center, reach = _extent(region)
            points = project(center + reach * noise / 2, region)
        elif centers is None:
            points = noise * torch.logspace(-1, 1, samples, dtype=torch.float64)[:, None]
        else:
            spread = centers.norm(dim=1, keepdim=True) / width**0.5 if region is None else _extent(region)[1]
            spread = (2.0**-round_ * spread).expand(len(centers), -1)
            points = centers.repeat(samples // len(centers), 1)
            points = points + noise[: len(points)] * spread.repeat(samples // len(centers), 1)
            points = points if region is None else project(points, region)
        directions = torch.randn(points.shape, dtype=torch.float64, generator=generator)
        values = _stretchings(function, len(system.layers) + 1, norm, points, directions, region)
        order = values.argsort(descending=True)
        centers = points[order[: samples // 8]]
        best = max(best, float(values[order[0]]))
    return best * (1 - 1e-9)


def _function(system: System) -> Function:
    """The network in float64 on flat inputs; of values with several rows of features, the first row."""
    function, selection = flat_function(_twice_differentiable(system.network)), system.selection

    def run(x: Tensor) -> Tensor:
        values = function(x)
        if selection is None:
            return values
        first, *second = selection if isinstance(selection, tuple) else (selection,)
        row = values[:, first]
        return (row - values[:, second[0]] if second else row)[:, None]

    return run


def _twice_differentiable(network: Network) -> Network:
    """Write hardsigmoid, of which torch has no second derivative, as a clipped line."""
    nodes: list[Node] = []
    for node in network.nodes:
        if node.operation == Pointwise(name="hardsigmoid"):
            line = replace(
                node, name=f"{node.name} before clipping", operation=Scale(factor=1 / 6, shift=0.5)
            )
            nodes += [line, replace(node, operation=Clip(lower=0.0, upper=1.0), inputs=(line.name,))]
        else:
            nodes.append(node)
    return replace(network, nodes=tuple(nodes))


def _size(x: Tensor, norm: str) -> Tensor:
    return x.abs().amax(1) if norm == "linf" else x.norm(dim=1)


def _extent(region: Region) -> tuple[Tensor, Tensor]:
    """Return the center of a region and how far it reaches in every entry."""
    if isinstance(region, Ball):
        center = torch.tensor(region.center, dtype=torch.float64)
        return center, torch.full_like(center, region.radius)
    lower, upper = (torch.tensor(end, dtype=torch.float64) for end in (region.lower, region.upper))
    return (lower + upper) / 2, (upper - lower) / 2


def project(points: Tensor, region: Region) -> Tensor:
    """Return the points (batch, n) moved into the region; of a ball 1e-12 of the radius is left out for rounding."""
    if isinstance(region, Ball):
        center = torch.tensor(region.center, dtype=points.dtype)
        away = points - center
        size = away.norm(dim=1, keepdim=True)
        return torch.where(size > region.radius, center + away * (region.radius * (1 - 1e-12) / size), points)
    lower, upper = (torch.tensor(end, dtype=points.dtype) for end in (region.lower, region.upper))
    return points.clamp(lower, upper)


def _stretchings(
    function: Function,
    depth: int,
    norm: str,
    points: Tensor,
    directions: Tensor,
    region: Region | None = None,
) -> Tensor:
    points = points.detach().requires_grad_()
    values = function(points)
    slack = torch.finfo(torch.float64).tiny
    for step in range(4 if norm == "l2" else 2):
        if norm == "l2" or step == 0:
            directions = directions / _size(directions, norm).clamp_min(slack)[:, None]
            images = _push(function, points, directions)
            back = (
                images
                if norm == "l2"
                else torch.nn.functional.one_hot(images.abs().argmax(1), images.shape[1])
            )
            (directions,) = torch.autograd.grad(values, points, back.to(values.dtype), retain_graph=True)
        if norm == "linf":
            directions = directions.sign()
    sizes = _size(directions, norm)
    alive = sizes > 0
    directions = torch.where(alive[:, None], directions / sizes.clamp_min(slack)[:, None], directions)
    slopes = _size(_push(function, points, directions), norm)
    with torch.no_grad():
        step_size = 1e-4 * (_size(points, norm) + 1e-3)
        if region is None:
            ends = points + step_size[:, None] * directions
        else:  # inward where the outer end would leave the region
            reach = float(_size(_extent(region)[1][None], norm))
            step_size = step_size.clamp(max=1e-3 * reach)[:, None]
            sides = [project(points + sign * step_size * directions, region) for sign in (1, -1)]
            moved = [_size(side - points, norm)[:, None] for side in sides]
            ends = torch.where(moved[0] >= moved[1], *sides)
        moved = _size(ends - points, norm).clamp_min(slack)
        secants = _size(function(ends) - values, norm) / moved
        # rounding of the two values, amplified by the division; generous
        noise = 1e-14 * depth * (_size(values, norm) + _size(points, norm) * slopes) / moved
        result = torch.minimum(slopes, secants - noise)
    return torch.where(alive & torch.isfinite(result), result, torch.zeros_like(result)).clamp_min(0)


def _push(function: Function, points: Tensor, directions: Tensor) -> Tensor:
    """Return the Jacobian at each point times its direction, as the derivative of the adjoint."""
    points = points.detach().requires_grad_()
    values = function(points)
    dual = torch.zeros_like(values, requires_grad=True)
    (adjoint,) = torch.autograd.grad(values, points, dual, create_graph=True)
    (image,) = torch.autograd.grad(adjoint, dual, directions)
    return image.detach()
