"""Paths between two networks, and the loss along them."""

from __future__ import annotations

import copy
import html
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weightspace.errors import NonFiniteError, ShapeError
from weightspace.matching.alignment import corresponding_parameters
from weightspace.module import NetworkModule
from weightspace.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATHS = ("linear", "spherical")


@dataclass(frozen=True)
class Barrier:
    """The loss, and the accuracy where it was asked for, at points t of a path from a (t = 0) to b (t = 1).

    `barrier` is max over t of L(t) - ((1 - t) L(0) + t L(1)): how far the loss rises above the straight line
    between its ends; 0 when it never does, NaN where the loss is NaN at some t. `accuracy_barrier` is how far the
    accuracy falls below its own.
    Source: Frankle et al., Linear mode connectivity and the lottery ticket hypothesis (2020), section 2.

    Examples:
        >>> import weightspace
        >>> path = weightspace.Barrier(positions=(0.0, 0.5, 1.0), losses=(1.0, 3.0, 2.0))
        >>> path.barrier
        1.5
    """

    positions: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] | None = None

    @property
    def barrier(self) -> float:
        return _highest(self._heights(self.losses))

    @property
    def accuracy_barrier(self) -> float | None:
        """None where no accuracy was measured."""
        if self.accuracies is None:
            return None
        return _highest([-height for height in self._heights(self.accuracies)])

    @property
    def worst(self) -> float:
        """The t at which the loss stands highest above the straight line."""
        heights = self._heights(self.losses)
        nan = [math.isnan(height) for height in heights]
        return self.positions[nan.index(True) if any(nan) else heights.index(max(heights))]

    def _heights(self, values: tuple[float, ...]) -> list[float]:
        first, last = values[0], values[-1]
        return [value - ((1 - t) * first + t * last) for t, value in zip(self.positions, values, strict=True)]

    def to_table(self) -> str:
        """Return one line per point, then the barriers."""
        return (
            "\n".join("  ".join(text.rjust(9) for text in row) for row in self._rows())
            + f"\n{self._summary()}"
        )

    def figure(self) -> Figure:
        """Draw the curves (needs matplotlib)."""
        from weightspace.report.figures import barrier_figure

        curves = {"along the path": (self.positions, self.losses)}
        accuracies = (
            None if self.accuracies is None else {"along the path": (self.positions, self.accuracies)}
        )
        return barrier_figure(curves, "loss", accuracies)

    def __str__(self) -> str:
        return self.to_table()

    def _repr_html_(self) -> str:
        head, *body = self._rows()
        lines = [_line(head, "th"), *(_line(row, "td") for row in body)]
        return f"<table><caption>{html.escape(self._summary())}</caption>{''.join(lines)}</table>"

    def _rows(self) -> list[tuple[str, ...]]:
        columns = [("t", *(f"{t:.3g}" for t in self.positions)), ("loss", *(f"{x:.5g}" for x in self.losses))]
        if self.accuracies is not None:
            columns.append(("accuracy", *(f"{x:.5g}" for x in self.accuracies)))
        return list(zip(*columns, strict=True))

    def _summary(self) -> str:
        text = f"barrier {self.barrier:.4g} at t = {self.worst:.3g}"
        return text if self.accuracies is None else f"{text}, in accuracy {self.accuracy_barrier:.4g}"


def _highest(heights: list[float]) -> float:
    """The largest, NaN if one is NaN, which `max` passes over."""
    return math.nan if any(map(math.isnan, heights)) else max(heights)


def barrier(
    a: Network | nn.Module,
    b: Network | nn.Module,
    loss: Callable[[nn.Module], float | Tensor],
    *,
    points: int = 25,
    accuracy: Callable[[nn.Module], float | Tensor] | None = None,
    path: str = "linear",
    repair_data: Tensor | Iterable[Any] | None = None,
) -> Barrier:
    """Measure the loss on the path between two networks of equal structure.

    All floating tensors are interpolated (`interpolate`), running statistics of BatchNorm included. Align b to a
    first (`align`) to see the barrier modulo neuron order.

    Args:
        loss, accuracy: take a module in inference mode, return a number; called `points` times without gradients.
        points: number of equidistant positions, both ends included; at least 2.
        path: "linear" or "spherical".
        repair_data: inputs on which every point between the ends gets the statistics of its units back
            (`repair.restore_statistics`); the functions are then given the traced networks as modules.
    Raises:
        ShapeError: the structures differ, or points < 2.
        NonFiniteError: the loss at one of the ends is NaN or infinite.

    Examples:
        >>> import torch, weightspace
        >>> from weightspace.bundled import digits, load
        >>> _, _, images, labels = digits()
        >>> def loss(module):
        ...     return torch.nn.functional.cross_entropy(module(images), labels)
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> before = weightspace.barrier(a, b, loss, points=5)
        >>> after = weightspace.barrier(a, weightspace.align(a, b).model, loss, points=5)
        >>> after.barrier < before.barrier
        True
    """
    if points < 2:
        raise ShapeError(f"barrier needs at least 2 points; got {points}")
    require_path(path)
    positions = tuple(index / (points - 1) for index in range(points))
    if repair_data is None:
        line = Line(a, b, path)
        visit: Callable[[float], nn.Module] = line.module_at
    else:
        visit = _repaired_line(a, b, path, repair_data)
    losses, accuracies = [], []
    with torch.no_grad():
        for t in positions:
            module = visit(t)
            losses.append(float(loss(module)))
            if accuracy is not None:
                accuracies.append(float(accuracy(module)))
    for end, value in (("first", losses[0]), ("last", losses[-1])):
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss of the {end} network is {value}; the barrier needs finite ends")
    return Barrier(positions, tuple(losses), tuple(accuracies) if accuracy is not None else None)


def interpolate(
    a: Network | nn.Module, b: Network | nn.Module, t: float, *, path: str = "linear"
) -> Network | nn.Module:
    """Return the network at t of the path from a (t = 0) to b (t = 1), of the kind and with the names of a.

    "linear": (1 - t) a + t b. "spherical", for every tensor, with w the angle between a and b as vectors:
    sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b; linear where the angle is 0 or pi, and for running statistics.
    Tensors that are equal at both ends, and those that are not floating, are a's.

    Raises:
        ShapeError: the structures differ; `path` is neither of the two.
    Source: Shoemake, Animating rotation with quaternion curves (1985), for the spherical path.

    Examples:
        >>> import torch, weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> middle = weightspace.interpolate(a, b, 0.5)
        >>> name = next(iter(a.parameters))
        >>> torch.allclose(middle.parameters[name], (a.parameters[name] + b.parameters[name]) / 2)
        True
    """
    require_path(path)
    if isinstance(a, Network) and isinstance(b, Network):
        names = corresponding_parameters(a, b)
        return a.replace_parameters(
            {
                name: between(
                    a.parameters[name], b.parameters[other], t, "linear" if name in a.buffers else path
                )
                for name, other in names.items()
            }
        )
    return Line(a, b, path).module_at(t)


def between(a: Tensor, b: Tensor, t: float, path: str = "linear") -> Tensor:
    """Return the tensor at t of the path from a to b; see `interpolate`."""
    if not a.is_floating_point() or torch.equal(a, b):
        return a
    if path == "spherical" and 0 < t < 1:
        x, y = a.double(), b.double()
        lengths = float(x.norm() * y.norm())
        angle = math.acos(max(-1.0, min(1.0, float((x * y).sum()) / lengths))) if lengths else 0.0
        if math.sin(angle) > 1e-6:
            moved = math.sin((1 - t) * angle) * x + math.sin(t * angle) * y
            return (moved / math.sin(angle)).to(a.dtype)
    return torch.lerp(a, b.to(a.dtype), t)


def require_path(path: str) -> None:
    """Raise ShapeError for a kind of path that does not exist."""
    if path not in PATHS:
        raise ShapeError(f"path {path!r} is unknown; paths are {' and '.join(map(repr, PATHS))}")


class Line:
    """The path between two networks as one module that is moved along it; the ends are left as they are.

    Attributes:
        module: the module, in inference mode.
        start, end: name -> tensor at the two ends, for the floating tensors that differ.
        trained: names of those that are trained parameters.
    Raises:
        ShapeError: the structures differ, or a and b are not two networks or two modules.
    """

    def __init__(self, a: object, b: object, path: str = "linear"):
        self.path = path
        if isinstance(a, Network) and isinstance(b, Network):
            names = corresponding_parameters(a, b)
            module = NetworkModule(a)
            tensors = {name: module.tensor(name) for name in names}
            ends = {name: (a.parameters[name], b.parameters[other]) for name, other in names.items()}
            self.module: nn.Module = module
        elif isinstance(a, nn.Module) and isinstance(b, nn.Module):
            states = [m.state_dict() for m in (a, b)]
            for name, tensor in states[0].items():
                if name not in states[1] or states[1][name].shape != tensor.shape:
                    raise ShapeError(
                        f"barrier needs equal structures; {name!r} {tuple(tensor.shape)} has no equal in b"
                    )
            self.module = copy.deepcopy(a).eval()
            tensors = self.module.state_dict(keep_vars=True)
            ends = {name: (states[0][name].clone(), states[1][name].clone()) for name in tensors}
        else:
            raise ShapeError(
                f"barrier needs two networks or two modules; got {type(a).__name__} and {type(b).__name__}"
            )
        distinct = {id(tensor): name for name, tensor in reversed(tensors.items())}  # tied tensors count once
        moving = [
            name
            for name, (x, y) in ends.items()
            if name in distinct.values() and x.is_floating_point() and not torch.equal(x, y)
        ]
        self.start = {name: ends[name][0] for name in moving}
        self.end = {name: ends[name][1].to(ends[name][0].dtype) for name in moving}
        self.tensors = {name: tensors[name] for name in moving}
        self.trained = frozenset(name for name in moving if isinstance(tensors[name], nn.Parameter))

    def module_at(self, t: float) -> nn.Module:
        """Move the module to t and return it."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                path = self.path if name in self.trained else "linear"
                tensor.data.copy_(between(self.start[name], self.end[name], t, path))
        return self.module


def _repaired_line(
    a: Network | nn.Module, b: Network | nn.Module, path: str, data: Tensor | Iterable[Any]
) -> Callable[[float], nn.Module]:
    from weightspace.repair import Goals
    from weightspace.unit_statistics import Batches, networks_of

    first, second = networks_of((a, b), batches := Batches(data))
    goals = Goals.measured((first, second), batches)

    def visit(t: float) -> nn.Module:
        network = interpolate(first, second, t, path=path)
        assert isinstance(network, Network)
        return (
            network if t in (0.0, 1.0) else goals.restored(network, (1 - t, t), batches).network
        ).to_module()

    return visit


def _line(cells: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in cells) + "</tr>"
