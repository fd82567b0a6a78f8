r"""One output of a network whose last hidden layer alone is left to be solved for: pairs of logits.

For the output $w v$ of neurons $v$ with slopes in $[0, \beta]$ the program of `certify.lmi` is, with $m = 1 / \lambda$,
the minimum of $h = (m \circ w)' S^{-1} (m \circ w)$ over m with $S = 2 diag(m) - K \succ 0$, where
$K = \beta W D^{-1} W' \beta$ holds all that comes before the layer. In l2 rho = h; for a first layer in l-infinity
$K = \beta W diag(\nu) W' \beta$ and $\rho = \sqrt{h \sum_j 1/\nu_j}$, the $1/\nu_j$ being the inputs' multipliers. Both
are convex, as matrix-fractional functions are: a matrix of one layer's size is factorized instead of one of the whole
network's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg

_FIRST, _FALL = 0.3, 0.1  # barrier weight times neurons over the value: at the start, and from stage to stage
_STEPS = 40  # of Newton's method in a stage
_ROOM = 1e-5


@dataclass(frozen=True, eq=False)
class SingleOutput:
    """A feasible point of the program.

    Attributes:
        rho: the square of the bound in l2, the bound itself in l-infinity.
        multipliers: of the neurons, (n,).
        input_multipliers: of the inputs in l-infinity, (p,); None in l2.
    """

    rho: float
    multipliers: np.ndarray
    input_multipliers: np.ndarray | None = None


def minimize_l2(kernel: np.ndarray, row: np.ndarray, *, tolerance: float = 5e-3) -> SingleOutput | None:
    """Return multipliers of the layer for rho and multipliers before it in the ratio that `kernel` was made with.

    Args:
        kernel: K, (n, n), positive semidefinite, for rho = 1.
        row: w, (n,).
        tolerance: of the weight of the barrier; rho ends within a few of it above the optimum.
    Returns:
        None where rounding left no feasible point.
    """
    return _Search(row, kernel, None).run(tolerance)


def minimize_linf(weight: np.ndarray, row: np.ndarray, *, tolerance: float = 5e-3) -> SingleOutput | None:
    """Return multipliers of one hidden layer and of the inputs in the l-infinity norm.

    Args:
        weight: beta W, (n, p).
        row, tolerance: as in `minimize_l2`.
    """
    return _Search(row, weight @ weight.T, weight).run(tolerance)


@dataclass(frozen=True, eq=False)
class _Point:
    """A feasible point (m, nu) and what was factorized there."""

    m: np.ndarray
    nu: np.ndarray
    factor: np.ndarray
    z: np.ndarray
    value: float
    barrier: float


class _Search:
    """Newton's method along the central path of h (+ sum 1/nu) with the barrier -log det S."""

    def __init__(self, row: np.ndarray, kernel: np.ndarray, weight: np.ndarray | None):
        self.used = row != 0  # neurons that the output does not see have multiplier 0
        kept = kernel[np.ix_(self.used, self.used)]
        self.size = float(np.abs(kept).sum(axis=1).max(initial=0.0)) or 1.0
        self.stretch = float(np.abs(row).max(initial=0.0)) or 1.0
        self.row, self.kernel = row[self.used] / self.stretch, kept / self.size
        self.weight = None if weight is None else weight[self.used] / math.sqrt(self.size)

    def run(self, tolerance: float) -> SingleOutput | None:
        """Follow the path until the barrier weighs little."""
        n = len(self.row)
        ones = np.ones(0 if self.weight is None else self.weight.shape[1])
        start = self.at(np.abs(self.kernel).sum(axis=1) + 1e-3, ones) if n else None
        if start is not None and self.weight is not None:  # equal halves h and sum 1/nu
            ratio = math.sqrt(len(ones) / (start.value - len(ones)))
            start = self.at(ratio * start.m, ratio * ones)
        if start is None:
            return None
        point, tau = start, _FIRST * start.value / n
        while True:
            point = self.center(point, tau)
            if tau * n <= tolerance * point.value:
                # where S is nearly singular without a price, room for the rigorous check costs next to nothing
                roomy = self.at((1 + _ROOM) * point.m, point.nu)
                return None if roomy is None else self.result(roomy)
            tau *= _FALL

    def at(self, m: np.ndarray, nu: np.ndarray) -> _Point | None:
        """Factorize S; None outside the domain."""
        if not ((m > 0).all() and (nu > 0).all()):
            return None
        kernel = self.kernel if self.weight is None else (self.weight * nu) @ self.weight.T
        try:
            factor = np.linalg.cholesky(np.diag(2 * m) - kernel)
        except np.linalg.LinAlgError:
            return None
        z = scipy.linalg.cho_solve((factor, True), m * self.row, check_finite=False)
        value = float((m * self.row) @ z + (1 / nu).sum())
        point = _Point(m, nu, factor, z, value, -2 * float(np.log(np.diagonal(factor)).sum()))
        return point if math.isfinite(value) and value > 0 else None

    def center(self, point: _Point, tau: float) -> _Point:
        """Move a point towards the minimum for a barrier of weight tau."""
        scale = tau * len(self.row)
        for _ in range(_STEPS):
            gradient, barrier, hessian = self.derivatives(point, tau)
            step = -_solve(hessian, gradient + tau * barrier)
            gain = -float((gradient + tau * barrier) @ step)
            if not (gain > 0 and math.isfinite(gain)):
                break
            # where outputs hardly see a neuron the barrier drives it on and on, which changes no value
            if abs(float(gradient @ step)) < 0.05 * scale and gain < 0.03 * scale:
                break
            moved = self.line_search(point, step, tau, gain)
            if moved is None:
                break
            point = moved
        return point

    def line_search(self, point: _Point, step: np.ndarray, tau: float, gain: float) -> _Point | None:
        """Return the point after the longest of the halved steps that keeps a tenth of its promise, None without."""
        before, share, n = point.value + tau * point.barrier, 1.0, len(self.row)
        while share > 1e-6:
            moved = self.at(point.m + share * step[:n], point.nu + share * step[n:])
            if moved is not None and moved.value + tau * moved.barrier <= before - 0.1 * share * gain:
                return moved
            share /= 2
        return None

    def derivatives(self, point: _Point, tau: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the gradients of the value and of the barrier, and the Hessian of both together."""
        inverse = scipy.linalg.cho_solve((point.factor, True), np.eye(len(point.z)), check_finite=False)
        z, slope = point.z, self.row - 2 * point.z
        gradient, barrier = 2 * z * (self.row - z), -2 * np.diagonal(inverse)
        hessian = 2 * inverse * (slope[:, None] * slope) + 4 * tau * inverse**2
        if self.weight is None:
            return gradient, barrier, hessian
        seen, mixed = self.weight.T @ z, inverse @ self.weight
        both = self.weight.T @ mixed
        gradient = np.concatenate([gradient, seen**2 - point.nu**-2])
        barrier = np.concatenate([barrier, np.diagonal(both)])
        cross = 2 * slope[:, None] * mixed * seen - 2 * tau * mixed**2
        inner = 2 * both * (seen[:, None] * seen) + tau * both**2 + np.diag(2 * point.nu**-3)
        return gradient, barrier, np.block([[hessian, cross], [cross.T, inner]])

    def result(self, point: _Point) -> SingleOutput:
        """Undo the scaling: with K = size K' and w = stretch w', m = size m' and h = size stretch^2 h'."""
        multipliers = np.zeros(len(self.used))
        inputs = 1 / point.nu
        h = (point.value - float(inputs.sum())) * self.size * self.stretch**2
        if self.weight is None:
            multipliers[self.used] = h / (self.size * point.m)
            return SingleOutput(h, multipliers)
        total = float(inputs.sum())
        common = math.sqrt(h / total)
        multipliers[self.used] = common / (self.size * point.m)
        return SingleOutput(math.sqrt(h * total), multipliers, common * inputs)


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve with the diagonal scaled to 1 and a ridge where rounding asks for it."""
    scale = 1 / np.sqrt(np.diagonal(matrix))
    scaled, ridge = matrix * scale[:, None] * scale, 1e-13
    while ridge < 1:
        scaled[np.diag_indices_from(scaled)] = 1 + ridge
        try:
            factor = scipy.linalg.cho_factor(scaled, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            ridge *= 100
            continue
        return scale * scipy.linalg.cho_solve(factor, scale * right, check_finite=False)
    return np.full_like(right, np.nan)
