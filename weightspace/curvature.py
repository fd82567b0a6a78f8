r"""The second-order view of a path between two networks: do they share a basin?

Along the straight line theta(t) = a + t d the loss has the slope $L'(t) = \langle \nabla L, d\rangle$ and the second
derivative $L''(t) = d^\top H d$. In a basin that is nearly quadratic, the parabola that either end knows, from its
own L, L' and L'', predicts the loss in the middle. Where a barrier stands between two basins, neither does.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from kernels import extreme_eigh
from weightspace.errors import NonFiniteError, ShapeError
from weightspace.network import Network
from weightspace.paths import Barrier, Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PathCurvature:
    r"""Loss, slope and curvature at points t of the straight line from a (t = 0) to b (t = 1).

    Attributes:
        positions: the points.
        losses, slopes, curvatures: $L(t)$, $L'(t)$, $L''(t)$; the curvature along the unit direction is
            $L'' / \mathrm{length}^2$.
        eigenvalues: at every point the largest eigenvalues of the Hessian by all trained parameters, descending;
            estimates by Lanczos, empty where none were asked for.
        length: ||b - a|| over all floating tensors.
        tolerance: the barrier up to which the two are said to share a basin.
    """

    positions: tuple[float, ...]
    losses: tuple[float, ...]
    slopes: tuple[float, ...]
    curvatures: tuple[float, ...]
    eigenvalues: tuple[tuple[float, ...], ...]
    length: float
    tolerance: float

    @property
    def path(self) -> Barrier:
        """The losses alone."""
        return Barrier(self.positions, self.losses)

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between its ends."""
        return self.path.barrier

    def predicted(self, t: float, end: int = 0) -> float:
        """The loss at t by the parabola of the first (end = 0) or the last point (end = -1)."""
        step = t - self.positions[end]
        return self.losses[end] + self.slopes[end] * step + self.curvatures[end] * step**2 / 2

    @property
    def middle(self) -> float:
        """The measured loss at t = 1/2."""
        return self.losses[len(self.losses) // 2]

    @property
    def shares_basin(self) -> bool:
        """Whether the barrier is within the tolerance."""
        return self.barrier <= self.tolerance

    @property
    def verdict(self) -> str:
        """What the numbers say, in words."""
        guesses = [self.predicted(0.5, end) for end in (0, -1)]
        numbers = (
            f"the parabolas at the ends predict {guesses[0]:.4g} and {guesses[1]:.4g} in the middle, measured "
            f"{self.middle:.4g} (ends {self.losses[0]:.4g}, {self.losses[-1]:.4g}; barrier {self.barrier:.4g})"
        )
        # A parabola of curvature c rises |c| / 8 above its chord of length 1; a tenth of the tolerance is no bend.
        bent = [t for t, c in zip(self.positions, self.curvatures, strict=True) if c < -0.8 * self.tolerance]
        where = f"; the loss bends down around t = {bent[len(bent) // 2]:.3g}" if bent else ""
        if not self.shares_basin:
            return f"two basins: {numbers}{where}"
        if bent:
            return f"one basin up to a rise of {self.tolerance:.3g}: {numbers}{where}"
        if all(abs(guess - self.middle) <= self.tolerance for guess in guesses):
            return f"one basin, nearly quadratic: {numbers}"
        return f"one basin, not quadratic at this distance: {numbers}"

    def to_table(self) -> str:
        """Return one line per point, then the verdict."""
        rows = self._rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ("  ".join(t.rjust(w) for t, w in zip(row, widths, strict=True)) for row in rows)
        return "\n".join([*lines, self.verdict])

    def figure(self) -> Figure:
        """Draw the loss with the parabolas of both ends (needs matplotlib)."""
        from weightspace.report.figures import curvature_figure

        return curvature_figure(self)

    def __str__(self) -> str:
        return self.to_table()

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in cells) + "</tr>"

        head, *body = self._rows()
        rows = line(head, "th") + "".join(line(row, "td") for row in body)
        return f"<table><caption>{html.escape(self.verdict)}</caption>{rows}</table>"

    def _rows(self) -> list[tuple[str, ...]]:
        count = len(self.eigenvalues[0])
        head = (
            "t",
            "loss",
            "slope",
            "curvature",
            "from a",
            "from b",
            *(f"eigenvalue {i + 1}" for i in range(count)),
        )
        return [
            head,
            *(
                (f"{t:.3g}", *(f"{x:.4g}" for x in (*values, self.predicted(t), self.predicted(t, -1), *top)))
                for t, *values, top in zip(
                    self.positions, self.losses, self.slopes, self.curvatures, self.eigenvalues, strict=True
                )
            ),
        ]


def path_curvature(
    a: Network | nn.Module,
    b: Network | nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    points: int = 9,
    eigenvalues: int = 1,
    tolerance: float = 0.05,
    accuracy: float = 1e-3,
) -> PathCurvature:
    r"""Measure loss, slope, curvature and top Hessian eigenvalues on the line between two networks.

    Along the line all floating tensors move, running statistics included; slope and curvature are derivatives along
    it, $d^\top H d$ from one Hessian-vector product. The eigenvalues are of the Hessian by the trained parameters,
    from `kernels.extreme_eigh` on Hessian-vector products (two backward passes each, about 20 to 60 per point).

    Args:
        a, b: two networks or two modules of equal structure; align b to a first.
        loss: takes a module in inference mode, returns a number as a tensor with gradients: the mean over fixed
            data, say. It is called a few times per point.
        points: equidistant positions, both ends and the middle included: odd, at least 3.
        eigenvalues: how many at every point; 0 for none.
        tolerance: barrier up to which the two share a basin, in units of the loss.
        accuracy: of the eigenvalues, relative to the largest.
    Raises:
        ShapeError: the structures differ, points are even or below 3, more eigenvalues than parameters, a loss without
            gradients, a and b equal.
        NonFiniteError: the loss or a derivative is NaN or infinite; the message says where.
    Source: Yao, Gholami, Keutzer, Mahoney, PyHessian (2020), for the Hessian-vector products.

    Examples:
        >>> import torch, weightspace
        >>> a, b = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> def loss(module):
        ...     return module(torch.eye(2)).square().mean()
        >>> path = weightspace.path_curvature(a, b, loss, points=3)
        >>> path.positions
        (0.0, 0.5, 1.0)
        >>> max(path.curvatures) - min(path.curvatures) < 1e-3  # a quadratic loss
        True
    """
    if points < 3 or points % 2 == 0:
        raise ShapeError(f"path_curvature needs an odd number of points, at least 3; got {points}")
    line = Line(a, b)
    if not line.start:
        raise ShapeError("the two networks are equal; there is no path between them")
    direction = {name: line.end[name] - tensor for name, tensor in line.start.items()}
    length = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in direction.values()))
    positions = tuple(index / (points - 1) for index in range(points))
    rows = []
    for t in positions:
        module = line.module_at(t)
        value, slope, curvature = _along(line, direction, module, loss)
        if not all(map(math.isfinite, (value, slope, curvature))):
            raise NonFiniteError(
                f"the loss at t = {t:.3g} or a derivative of it is NaN or infinite ({value})"
            )
        top = _top_eigenvalues(module, loss, eigenvalues, accuracy) if eigenvalues else ()
        rows.append((value, slope, curvature, top))
    losses, slopes, curvatures, tops = zip(*rows, strict=True)
    return PathCurvature(positions, losses, slopes, curvatures, tops, length, tolerance)


def hessian_operator(
    module: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> tuple[Callable[[Tensor], Tensor], int, torch.dtype]:
    r"""Return X -> H X for the Hessian of the loss by all trained parameters, their number n, and their dtype.

    X has shape (n, m), entries in the order of `module.parameters()`; every column is one Hessian-vector product
    $H v = \nabla \langle \nabla L, v\rangle$. The graph of the gradient is kept and used for all of them.

    Raises:
        ShapeError: the loss has no gradient by any parameter.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = _gradients(_value(module, loss), parameters)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])

    def apply(vectors: Tensor) -> Tensor:
        columns = []
        for vector in vectors.mT:
            if flat.requires_grad:
                second = torch.autograd.grad(
                    flat,
                    parameters,
                    vector.to(flat),
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                columns.append(torch.cat([g.reshape(-1) for g in second]))
            else:
                columns.append(torch.zeros_like(flat))
        return torch.stack(columns, 1)

    return apply, len(flat), flat.dtype


def _top_eigenvalues(
    module: nn.Module, loss: Callable[[nn.Module], Tensor], count: int, accuracy: float
) -> tuple[float, ...]:
    with _differentiable():
        operator, n, dtype = hessian_operator(module, loss)
        if count > n:
            raise ShapeError(f"the Hessian has {n} eigenvalues; {count} were asked for")
        device = next(module.parameters()).device
        found = extreme_eigh(operator, n, count, dtype=dtype, device=device, tolerance=accuracy, verify=False)
    return tuple(float(value) for value in found.values.flip(0))


def _along(
    line: Line, direction: dict[str, Tensor], module: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> tuple[float, float, float]:
    """L, <gradient, d> and <d, H d> for the tensors that move, buffers included."""
    moving = list(line.tensors.values())
    steps = [direction[name] for name in line.tensors]
    buffers = [tensor for name, tensor in line.tensors.items() if name not in line.trained]
    try:
        for tensor in buffers:
            tensor.requires_grad_(True)
        with _differentiable():
            value = _value(module, loss)
            slope = _dot(_gradients(value, moving), steps)
            if not slope.requires_grad:  # the gradient is constant along the line
                return float(value.detach()), float(slope.detach()), 0.0
            second = torch.autograd.grad(slope, moving, allow_unused=True, materialize_grads=True)
        return float(value.detach()), float(slope.detach()), float(_dot(second, steps).detach())
    finally:
        for tensor in buffers:
            tensor.requires_grad_(False)


def _value(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    value: Any = loss(module)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ShapeError(
            "the loss must return one number as a tensor with gradients: no float(), item() or no_grad"
        )
    return value.reshape(())


def _gradients(value: Tensor, tensors: list[Any]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, tensors, create_graph=True, allow_unused=True, materialize_grads=True)


def _dot(a: Any, b: list[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


class _ExplicitBatchNorm(TorchFunctionMode):
    """Spell BatchNorm out in inference mode: torch's own has no derivative by the running statistics."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = (x - running_mean.reshape(shape)) * (running_var.reshape(shape) + eps).rsqrt()
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


@contextmanager
def _differentiable():
    """Make everything twice differentiable: plain attention, explicit BatchNorm, gradients on."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _ExplicitBatchNorm():
        yield
