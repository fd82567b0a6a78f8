r"""A primal-dual interior-point method for the programs of `certify.structured.program`.

Source: Helmberg, Rendl, Vanderbei, Wolkowicz, An interior-point method for semidefinite programming (1996); Kojima,
Shindoh, Hara (1997); Monteiro (1997): the HKM direction, with Mehrotra's predictor and corrector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from certify.structured.lapack import trsv
from certify.structured.program import Program, symmetrize
from certify.structured.step_length import step_to_boundary

_STEP = 0.9  # of the way to the boundary; 0.98 up to triples the iterations of deep chains


@dataclass(frozen=True, eq=False)
class Solution:
    """The best feasible point found, and how good it is.

    Attributes:
        x: (rho, lambda), feasible up to rounding; rho is the least for its multipliers.
        lower_bound: of the optimal rho.
        rounded: `lower_bound` comes from a feasible dual point; otherwise it is numerical only.
        iterations: number of steps.
        converged: the relative gap reached the tolerance.
    """

    x: np.ndarray
    lower_bound: float
    rounded: bool
    iterations: int
    converged: bool


def minimize(program: Program, *, tolerance: float = 1e-6, limit: int = 100) -> Solution | None:
    r"""Minimize rho subject to $M(\rho, \lambda) \succeq 0$.

    Every iterate is feasible (once the shift of an infeasible start is used up), so that the best one is returned
    whatever ends the search: a relative gap of `tolerance` between rho and the dual bound, the limit, or rounding.

    Returns:
        None where no feasible point was found.
    """
    return _Search(program, tolerance).run(limit)


class _Search:
    """State of one search: x, M(x) + shift I = LL', its inverse S, the dual Z = GG' and zeta."""

    def __init__(self, program: Program, tolerance: float):
        self.program, self.tolerance = program, tolerance
        self.goal = np.zeros(1 + program.count)
        self.goal[0] = 1.0
        self.random = np.random.default_rng(0)
        self.best: np.ndarray | None = None
        self.lower, self.rounded = 0.0, False
        self.failures = 0

    def run(self, limit: int) -> Solution | None:
        iterations, alive = 0, self.begin()
        with np.errstate(all="ignore"):  # a step that overflows is refused by its Cholesky factorization
            while alive and iterations < limit and not self.finished():
                step = self.direction()
                alive = step is not None and self.move(*step)
                iterations += 1
        if alive or iterations:
            self.measure(final=True)
        if self.best is None:
            return None
        return Solution(self.best, self.lower, self.rounded, iterations, self.converged())

    def begin(self) -> bool:
        program = self.program
        x = program.start()
        factor = None if x is None else program.factor(x, program.shift)
        if x is None or factor is None:
            return False
        self.x, self.factor, self.shift = x, factor, program.shift
        self.inverse = factor.inverse()
        signal = program.signal(self.inverse)
        forms = program.forms(self.inverse, signal)
        schur = _Schur(program.schur(forms, forms))
        towards = schur.solve(program.adjoint(self.inverse, signal))
        ratio = float(towards[0] / schur.solve(self.goal)[0])
        mu = 1 / ratio if math.isfinite(ratio) and ratio > 0 else abs(x[0]) / program.size
        self.dual = mu * self.inverse
        try:
            self.dual_factor = np.linalg.cholesky(self.dual)
        except np.linalg.LinAlgError:
            return False
        self.zeta = np.zeros(program.count) if program.signed else mu / np.maximum(x[1:], 1e-300)
        self.gap = math.inf
        return True

    def finished(self) -> bool:
        self.measure(final=False)
        return self.converged()

    def converged(self) -> bool:
        return self.best is not None and self.best[0] - self.lower <= self.tolerance * self.best[0]

    def measure(self, final: bool) -> None:
        """Update the best point and the lower bound; dear, hence only near the end."""
        if self.shift == 0 and (self.best is None or final or self.gap < 100 * self.tolerance):
            rho = min(self.program.tighten(self.x), self.x[0])
            if self.best is None or rho < self.best[0]:
                self.best = np.concatenate([[rho], self.x[1:]])
        if final or self.gap < 10 * self.tolerance:
            lower = self.program.lower_bound(self.dual)
            self.rounded = lower is not None
            if lower is None:  # the dual value, less what its infeasibility may be worth
                residual = self.adjoint(self.dual) - self.goal
                residual[1:] += self.zeta
                allowance = 10 * float(np.abs(residual) @ np.abs(self.x))
                lower = -self.program.constant_product(self.dual) - allowance
            self.lower = max(self.lower, lower)

    def direction(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return the changes of x, Z and zeta; None where rounding allows none."""
        program, x, dual, zeta = self.program, self.x, self.dual, self.zeta
        inverse_signal, signal = program.signal(self.inverse), program.signal(dual)
        schur_matrix = program.schur(program.forms(self.inverse, inverse_signal), program.forms(dual, signal))
        adjoint_inverse = program.adjoint(self.inverse, inverse_signal)
        adjoint = program.adjoint(dual, signal)
        cone = not program.signed
        if cone:
            schur_matrix[range(1, len(x)), range(1, len(x))] += zeta / x[1:]
        schur = _Schur(schur_matrix)
        constant = program.constant_product(dual)
        product = float(x @ adjoint) + constant + self.shift * float(np.trace(dual)) + float(x[1:] @ zeta)
        mu = product / (program.size + (program.count if cone else 0))
        if not (mu > 0 and math.isfinite(mu)):
            return None
        moved = 0.0  # op(sym(S shift Z)): what removing the shift does to the dual
        if self.shift:
            moved = program.adjoint_of_product(self.inverse, inverse_signal, self.shift * dual)

        dx = schur.solve(moved - self.goal)
        d_dual = symmetrize(self.factor.solve(self.image(dx, dual, signal)))
        d_dual += dual
        np.negative(d_dual, out=d_dual)
        d_zeta = -zeta - zeta * dx[1:] / x[1:]
        primal_step = self.primal_step(dx, steps=8)  # it only sets sigma
        dual_step = self.dual_step(d_dual, d_zeta, steps=8)
        d_signal = program.signal(d_dual)
        d_adjoint = program.adjoint(d_dual, d_signal)
        shift = self.shift * (1 - primal_step)
        after = (
            float((x + primal_step * dx) @ (adjoint + dual_step * d_adjoint))
            + constant
            + dual_step * program.constant_product(d_dual)
            + shift * float(np.trace(dual) + dual_step * np.trace(d_dual))
            + float((x[1:] + primal_step * dx[1:]) @ (zeta + dual_step * d_zeta))
        )
        ratio = max(after / product, 0.0)
        short = min(primal_step, dual_step)
        sigma = float(np.clip(ratio**3 if short >= 0.1 else ratio**2, 0.3 if short < 0.2 else 1e-3, 1.0))

        image = self.image(dx, d_dual, d_signal)  # C = sym(S image), of which only op(C) is needed yet
        del d_signal
        correction = program.adjoint_of_product(self.inverse, inverse_signal, image)
        del inverse_signal
        right = sigma * mu * adjoint_inverse - correction - self.goal + moved
        second = dx[1:] * d_zeta / x[1:] if cone else 0.0
        if cone:
            right[1:] += sigma * mu / x[1:] - second
        dx = schur.solve(right)
        image += self.image(dx, dual, signal)
        np.multiply(self.inverse, sigma * mu, out=d_dual)
        d_dual -= dual
        d_dual -= symmetrize(self.factor.solve(image))
        del image
        d_zeta = (sigma * mu / x[1:] - zeta - zeta * dx[1:] / x[1:] - second) if cone else zeta
        self.gap = max(mu * program.size, abs(adjoint[0] - 1) * x[0]) / x[0]
        return dx, d_dual, d_zeta

    def image(self, dx: np.ndarray, matrix: np.ndarray, signal: np.ndarray) -> np.ndarray:
        """Return (dM(dx) - shift I) X."""
        image = self.program.image(dx, matrix, signal)
        if self.shift:
            image -= self.shift * matrix
        return image

    def adjoint(self, matrix: np.ndarray) -> np.ndarray:
        return self.program.adjoint(matrix, self.program.signal(matrix))

    def primal_step(self, dx: np.ndarray, steps: int = 25) -> float:
        program, factor, direction = self.program, self.factor, self.program.direction(dx)

        def whitened(v: np.ndarray) -> np.ndarray:
            u = factor.unwhiten(v)
            return factor.whiten(direction(u) - self.shift * u if self.shift else direction(u))

        step = step_to_boundary(whitened, program.size, self.random.normal(size=program.size), steps)
        if not program.signed:
            step = min(step, _ratio(self.x[1:], dx[1:]))
        return step

    def dual_step(self, d_dual: np.ndarray, d_zeta: np.ndarray, steps: int = 25) -> float:
        upper = self.dual_factor.T  # in Fortran order: no copy in BLAS

        def whitened(v: np.ndarray) -> np.ndarray:
            return trsv(upper, d_dual @ trsv(upper, v), trans=1)

        step = step_to_boundary(whitened, len(d_dual), self.random.normal(size=len(d_dual)), steps)
        return step if self.program.signed else min(step, _ratio(self.zeta, d_zeta))

    def move(self, dx: np.ndarray, d_dual: np.ndarray, d_zeta: np.ndarray) -> bool:
        step = self.primal_step(dx)
        step = 1.0 if step >= 1.0 and not self.program.signed and self.shift else min(1.0, _STEP * step)
        dual_step = min(1.0, _STEP * self.dual_step(d_dual, d_zeta))
        for _ in range(30):
            shift = self.shift * (1 - step)
            factor = self.program.factor(self.x + step * dx, shift)
            if factor is not None:
                break
            step *= 0.8
        else:
            return False
        dual_factor = None
        for _ in range(30):
            candidate = dual_step * d_dual
            candidate += self.dual
            try:
                dual_factor = np.linalg.cholesky(candidate)
                break
            except np.linalg.LinAlgError:
                dual_step *= 0.8
        if dual_factor is None:
            return False
        self.dual, self.dual_factor = candidate, dual_factor
        self.x, self.factor, self.shift = self.x + step * dx, factor, shift
        self.inverse = factor.inverse()
        self.zeta = self.zeta + dual_step * d_zeta if not self.program.signed else self.zeta
        self.failures = self.failures + 1 if max(step, dual_step) < 1e-3 else 0
        return self.failures < 3


class _Schur:
    """H factorized after scaling its diagonal to 1, with a ridge where rounding asks for it."""

    def __init__(self, matrix: np.ndarray):
        self.matrix = matrix
        diagonal = np.diagonal(matrix)
        self.scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        scaled = matrix * self.scale[:, None]
        scaled *= self.scale
        ridge = 1e-14
        self.factor: np.ndarray | None = None
        while self.factor is None and ridge < 1e-2 and np.isfinite(diagonal).all():
            scaled[np.diag_indices_from(scaled)] = 1 + ridge
            try:
                self.factor = np.linalg.cholesky(scaled)
            except np.linalg.LinAlgError:
                ridge *= 100

    def solve(self, right: np.ndarray) -> np.ndarray:
        if self.factor is None:
            return np.full_like(right, np.nan)
        solution = self._solve(right)
        for _ in range(2):
            solution += self._solve(right - self.matrix @ solution)
        return solution

    def _solve(self, right: np.ndarray) -> np.ndarray:
        upper = self.factor.T  # pyright: ignore[reportOptionalMemberAccess]
        half = trsv(upper, self.scale * right, trans=1)
        return self.scale * trsv(upper, half)


def _ratio(values: np.ndarray, steps: np.ndarray) -> float:
    """The largest a <= 1 with values + a steps >= 0."""
    falling = steps < 0
    return float(min(1.0, (-values[falling] / steps[falling]).min(initial=1.0)))
