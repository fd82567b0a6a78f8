"""Loss along the straight line between two networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.matching.alignment import corresponding_parameters
from weightspace.module import NetworkModule
from weightspace.network import Network


@dataclass(frozen=True)
class Barrier:
    """The loss at points t of the line (1 - t) a + t b.

    `barrier` is max over t of L(t) - ((1 - t) L(0) + t L(1)): how far the loss rises above the straight line
    between its ends; 0 when the line never rises above it.
    Source: Frankle et al., Linear mode connectivity and the lottery ticket hypothesis (2020), section 2.
    """

    positions: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def barrier(self) -> float:
        first, last = self.losses[0], self.losses[-1]
        return max(
            loss - ((1 - t) * first + t * last) for t, loss in zip(self.positions, self.losses, strict=True)
        )


def barrier(
    a: Network | nn.Module, b: Network | nn.Module, loss: Callable[[nn.Module], float], *, points: int = 25
) -> Barrier:
    """Measure the loss on the line between two networks of equal structure.

    All floating tensors are interpolated, running statistics of BatchNorm included; other tensors are a's.

    Args:
        loss: takes a module in inference mode, returns a number; called `points` times without gradients.
        points: number of equidistant positions, both ends included; at least 2.
    Raises:
        ShapeError: the structures differ, or points < 2.
    """
    if points < 2:
        raise ShapeError(f"barrier needs at least 2 points; got {points}")
    module, tensors, start, end = _ends(a, b)
    positions = tuple(index / (points - 1) for index in range(points))
    losses = []
    with torch.no_grad():
        for t in positions:
            for name, tensor in start.items():
                if tensor.is_floating_point():
                    tensors[name].copy_(torch.lerp(tensor, end[name], t))
            losses.append(float(loss(module)))
    return Barrier(positions, tuple(losses))


_Tensors = dict[str, Tensor]


def _ends(a: object, b: object) -> tuple[nn.Module, _Tensors, _Tensors, _Tensors]:
    """Return a module to move along the line, its own tensors, and the tensors at both ends."""
    if isinstance(a, Network) and isinstance(b, Network):
        names = corresponding_parameters(a, b)
        module = NetworkModule(a)
        start = {name: a.parameters[name] for name in names}
        end = {name: b.parameters[other] for name, other in names.items()}
        return module, {name: module.tensor(name).data for name in names}, start, end
    if isinstance(a, nn.Module) and isinstance(b, nn.Module):
        start, end = ({name: tensor.clone() for name, tensor in m.state_dict().items()} for m in (a, b))
        for name, tensor in start.items():
            if name not in end or end[name].shape != tensor.shape:
                raise ShapeError(
                    f"barrier needs equal structures; {name!r} {tuple(tensor.shape)} has no equal in b"
                )
        module = copy.deepcopy(a).eval()
        return module, dict(module.state_dict()), start, end
    raise ShapeError(
        f"barrier needs two networks or two modules; got {type(a).__name__} and {type(b).__name__}"
    )
