"""Fixed points z = phi(W z + c) of implicit layers, solved for a whole batch at once.

Semismooth Newton with backtracking, started from averaged Picard steps; samples for which it stalls at a kink are led
to their solution along the path on which the residual shrinks in proportion. That path exists and ends at the solution
wherever the layer is well-posed in the sense that I - D W is nonsingular, and its determinant of one sign, for all
diagonal D of slopes: contractions, monotone operators, P-matrices I - W.
Sources: El Ghaoui, Gu, Travacca, Askari, Tsai, Implicit deep learning (2021), section 2; Winston, Kolter, Monotone
operator equilibrium networks (2020); Katzenelson, An algorithm for solving nonlinear resistor networks (1965).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.errors import ConvergenceError

IMPLICIT_ACTIVATIONS = ("ReLU", "LeakyReLU", "Tanh", "Sigmoid", "Absolute")

_NEWTON_STEPS = 30
_HALVINGS = 14
_PATH_STEPS = 1000  # and ten for every unit
_SHORTEST = 2.0**-40
_LARGEST_BATCH = 2**24  # entries of the Jacobians that are formed at once


def activation_value(activation: str, negative_slope: float, a: Tensor) -> Tensor:
    """Apply phi, named as the operation is (one of `IMPLICIT_ACTIVATIONS`), elementwise."""
    functions: dict[str, Callable[[], Tensor]] = {
        "ReLU": lambda: F.relu(a),
        "LeakyReLU": lambda: F.leaky_relu(a, negative_slope),
        "Tanh": lambda: torch.tanh(a),
        "Sigmoid": lambda: torch.sigmoid(a),
        "Absolute": lambda: a.abs(),
    }
    return functions[activation]()


def activation_slope(activation: str, negative_slope: float, a: Tensor) -> Tensor:
    """phi'(a), itself differentiable; at a kink the slope autograd takes."""
    match activation:
        case "ReLU":
            return (a > 0).to(a.dtype)
        case "LeakyReLU":
            return torch.where(a > 0, 1.0, negative_slope).to(a.dtype)
        case "Tanh":
            return 1 - torch.tanh(a).square()
        case "Sigmoid":
            return torch.sigmoid(a) * torch.sigmoid(-a)
        case _:
            return torch.sign(a)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Find z (batch, n) with z = phi(W z + c), W (n, n), c (batch, n); `size` (batch,) bounds the terms of c."""

    weight: Tensor
    drive: Tensor
    size: Tensor
    activation: str
    negative_slope: float

    def take(self, which: Tensor) -> _Problem:
        return _Problem(
            self.weight, self.drive[which], self.size[which], self.activation, self.negative_slope
        )

    def step(self, z: Tensor) -> Tensor:
        """phi(W z + c) - z: the residual, and the direction of a Picard step."""
        return activation_value(self.activation, self.negative_slope, z @ self.weight.T + self.drive) - z

    def rounding(self, z: Tensor) -> Tensor:
        """Size of the rounding errors in `step`, (batch,)."""
        terms = z.abs() + z.abs() @ self.weight.abs().T
        return torch.finfo(z.dtype).eps * (terms.amax(-1) + self.size)

    def is_solved(self, z: Tensor) -> Tensor:
        """Whether the residual is within rounding of zero, (batch,); False where it is NaN."""
        return self.step(z).abs().amax(-1) <= (8 + z.shape[-1] ** 0.5) * self.rounding(z)

    def newton_direction(self, z: Tensor, step: Tensor) -> Tensor:
        """Solve (I - diag(phi') W) d = step; the Picard step where the matrix is singular."""
        slope = activation_slope(self.activation, self.negative_slope, z @ self.weight.T + self.drive)
        matrix = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device) - slope[..., None] * self.weight
        direction = torch.linalg.solve_ex(matrix, step).result
        return torch.where(direction.isfinite().all(-1, keepdim=True), direction, step)


def solve_fixed_point(
    weight: Tensor, drive: Tensor, size: Tensor, *, activation: str, negative_slope: float
) -> Tensor:
    r"""Return $z = \varphi(W z + c)$ to rounding precision, sample by sample; no gradients.

    Args:
        weight: W, (n, n), in float64: ill-conditioned layers leave no digits of float32.
        drive: c, (batch, n); a sample that is not finite gets NaN.
        size: (batch,), a bound of the terms that c is the sum of: what rounding is measured against.
        activation: one of `IMPLICIT_ACTIVATIONS`; `negative_slope` is LeakyReLU's.
    Raises:
        ConvergenceError: no fixed point was found.
    """
    result = torch.full_like(drive, torch.nan)
    solvable = drive.isfinite().all(-1) & size.isfinite() & weight.isfinite().all()
    chosen = solvable.nonzero()[:, 0]
    problem = _Problem(weight, drive, size, activation, negative_slope)
    width = max(weight.shape[-1], 1)
    for which in chosen.split(max(1, _LARGEST_BATCH // width**2)):
        result[which] = _solve(problem.take(which))
    return result


def _solve(problem: _Problem) -> Tensor:
    z = _newton(problem, _picard(problem))
    pending = (~problem.is_solved(z)).nonzero()[:, 0]
    if len(pending):
        part = problem.take(pending)
        z[pending] = _newton(part, _follow(part, z[pending]))
    pending = ~problem.is_solved(z)
    if pending.any():
        worst = float(problem.step(z)[pending].abs().max())
        raise ConvergenceError(
            f"the fixed point of the implicit layer did not converge: the layer may not be well-posed "
            f"({int(pending.sum())} of {len(z)} samples, largest residual {worst:.3g}); "
            "with a weight of spectral norm below 1 it is"
        )
    return z


def _picard(problem: _Problem) -> Tensor:
    """A few steps z <- (z + phi(W z + c)) / 2, shortened where W pulls back strongly."""
    length = 0.5 / (1 + problem.weight.diagonal().clamp(max=0).abs().amax())
    start = z = torch.zeros_like(problem.drive)
    for _ in range(6):
        z = z + length * problem.step(z)
    closer = problem.step(z).norm(dim=-1) < problem.step(start).norm(dim=-1)
    return torch.where(closer[:, None], z, start)


def _newton(problem: _Problem, z: Tensor) -> Tensor:
    """Newton steps, each shortened until the residual shrinks, until rounding or a kink stops them."""
    z = z.clone()
    active = torch.arange(len(z), device=z.device)
    for _ in range(_NEWTON_STEPS):
        part, start = problem.take(active), z[active]
        step = part.step(start)
        kept = step.abs().amax(-1) > part.rounding(start)
        if not kept.any():
            break
        active, start, step, part = active[kept], start[kept], step[kept], part.take(kept)
        direction, merit = part.newton_direction(start, step), step.norm(dim=-1)
        length = torch.ones_like(merit)
        for _ in range(_HALVINGS):
            trial = start + length[:, None] * direction
            accepted = part.step(trial).norm(dim=-1) <= (1 - 1e-4 * length) * merit
            if accepted.all():
                break
            length = torch.where(accepted, length, length / 2)
        trial = start + length[:, None] * direction
        accepted = part.step(trial).norm(dim=-1) < merit
        active = active[accepted]
        z[active] = trial[accepted]
    return z


def _follow(problem: _Problem, z: Tensor) -> Tensor:
    """Follow z(t) with residual (1 - t) times the first one from t = 0 to 1, in steps that Newton can correct."""
    z = z.clone()
    whole = problem.step(z)
    done, length = torch.zeros_like(whole[:, 0]), torch.ones_like(whole[:, 0])
    active = torch.arange(len(z), device=z.device)
    for _ in range(_PATH_STEPS + 10 * z.shape[-1]):
        part, trial = problem.take(active), z[active]
        reached = (done[active] + length[active]).clamp(max=1)
        target = (1 - reached)[:, None] * whole[active]
        error = part.step(trial) - target
        for _ in range(6):
            trial = trial + part.newton_direction(trial, error)
            error = part.step(trial) - target
        near = torch.maximum(1e-11 * whole[active].abs().amax(-1), 8 * part.rounding(trial))
        accepted = error.abs().amax(-1) <= near
        z[active] = torch.where(accepted[:, None], trial, z[active])
        done[active] = torch.where(accepted, reached, done[active])
        length[active] *= torch.where(accepted, 2.0, 0.5)
        active = active[(done[active] < 1) & (length[active] > _SHORTEST)]
        if not len(active):
            break
    return z


def solve_adjoint(weight: Tensor, slope: Tensor, gradient: Tensor) -> Tensor:
    r"""Return $v = D (I - W^\top D)^{-1} g$ for every sample, D = diag(slope): dL/da from g = dL/dz; differentiable.

    Args:
        weight: (n, n); slope, gradient: (batch, n).
    """
    return slope * _solve_linear(weight.T, slope, gradient, columns=True)


def solve_tangent(weight: Tensor, slope: Tensor, change: Tensor) -> Tensor:
    r"""Return $dz = (I - D W)^{-1} D\,c$ for every sample, D = diag(slope), c the change of b; differentiable.

    Args:
        weight: (n, n); slope, change: (batch, n).
    """
    return _solve_linear(weight, slope, slope * change, columns=False)


def _solve_linear(matrix: Tensor, slope: Tensor, right: Tensor, *, columns: bool) -> Tensor:
    """Solve with I - M D (`columns`) or I - D M, part of the batch after part."""
    identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    size = max(1, _LARGEST_BATCH // max(matrix.shape[0], 1) ** 2)
    parts = [
        torch.linalg.solve_ex(identity - matrix * (d[:, None, :] if columns else d[:, :, None]), g).result
        for d, g in zip(slope.split(size), right.split(size), strict=True)
    ]
    return torch.cat(parts)
