"""Many small programs of the same shape at once, every step vectorized over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from certify.lmi import Inequality
from certify.rounding import round_dual_of
from certify.structured.interior_point import Solution
from certify.structured.scaling import backward_start, change_variables
from kernels import eigvalsh

LARGEST = 80
"""Coordinates up to which a batch is faster than one program after another."""


def minimize_batch(
    inequalities: Sequence[Inequality], *, tolerance: float = 1e-6, limit: int = 50
) -> list[tuple[np.ndarray, Solution] | None]:
    """Solve `minimize` for programs that agree in all but numbers; layered, feasible starts only.

    The method is that of `certify.structured.interior_point` with exact steps to the boundary.

    Args:
        inequalities: of one shape (`batch_key`), none of them implicit.
    Returns:
        for each (start, solution in the variables scaled by it), or None where it did not converge.
    """
    results: list[tuple[np.ndarray, Solution] | None] = [None] * len(inequalities)
    first = inequalities[0]
    stacked = replace(
        first,
        **{
            name: np.stack([getattr(inequality, name) for inequality in inequalities])
            for name in ("constant", "rows", "low", "high")
        },
    )
    with np.errstate(all="ignore"):
        start = backward_start(stacked)
        if start is None:
            return results
        batch = _Batch(change_variables(stacked, start), start, tolerance)
        batch.run(limit, results)
    return results


def batch_key(inequality: Inequality) -> tuple:
    """What programs must share to be solved together."""
    return (
        tuple(inequality.offsets), inequality.weight, tuple(inequality.owners), tuple(inequality.grouped),
        inequality.implicit,
    )  # fmt: skip


class _Batch:
    def __init__(self, inequality: Inequality, start: np.ndarray, tolerance: float):
        self.template, self.tolerance = inequality, tolerance
        self.base, self.size = inequality.base, inequality.constant.shape[-1]
        self.count = inequality.count
        self.owners = inequality.owners
        self.starts = (
            None if self.count == len(self.owners) else np.searchsorted(self.owners, np.arange(self.count))
        )
        own = np.eye(len(self.owners), self.size, self.base)
        self.state = {
            "place": np.arange(len(start)),
            "start": start,
            "constant": inequality.constant,
            "p": own + inequality.low[..., None] * inequality.rows,
            "q": own + inequality.high[..., None] * inequality.rows,
        }

    def __getattr__(self, name: str) -> np.ndarray:
        return self.state[name]

    def keep(self, members: np.ndarray) -> None:
        self.state = {name: values[members] for name, values in self.state.items()}

    def run(self, limit: int, results: list) -> None:
        state = self.state
        state["x"] = np.full((len(self.place), 1 + self.count), 1.05)
        self.factorize()
        inverse = state["inverse"]
        left = self.forms(inverse)
        schur = self.schur(left, left)
        goal = np.zeros_like(state["x"])
        goal[:, 0] = 1.0
        towards = _solve(schur, self.adjoint(left))[:, 0] / _solve(schur, goal)[:, 0]
        mu = np.where(towards > 0, 1 / towards, state["x"][:, 0] / self.size)
        state["dual"] = mu[:, None, None] * inverse
        for iteration in range(limit):
            done = self.advance()
            if done.any():
                self.finish(done, iteration, results)
            bad = done | ~np.isfinite(self.x).all(axis=1)
            if bad.any():
                self.keep(~bad)
            if not len(self.place):
                return

    def factorize(self) -> np.ndarray:
        """Factorize M(x); returns which members succeeded."""
        matrix = self.linear(self.x) + self.constant
        factor, info = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
        identity = torch.eye(self.size, dtype=torch.float64)
        self.state["whitener"] = torch.linalg.solve_triangular(factor, identity, upper=False).numpy()
        self.state["inverse"] = self.whitener.swapaxes(1, 2) @ self.whitener
        return info.numpy() == 0

    def linear(self, x: np.ndarray) -> np.ndarray:
        half = self.p.swapaxes(1, 2) @ (x[:, 1:][:, self.owners, None] * self.q)
        matrix = half + half.swapaxes(1, 2)
        matrix[:, range(self.base), range(self.base)] += x[:, :1]
        return matrix

    def forms(self, matrix: np.ndarray) -> tuple[np.ndarray, ...]:
        p, q = self.p, self.q
        px, qx = p @ matrix, q @ matrix
        right = p.swapaxes(1, 2)
        return px @ right, qx @ right, qx @ q.swapaxes(1, 2), px, qx, matrix

    def collect(self, values: np.ndarray, axis: int = 1) -> np.ndarray:
        return values if self.starts is None else np.add.reduceat(values, self.starts, axis=axis)

    def adjoint(self, forms: tuple[np.ndarray, ...]) -> np.ndarray:
        trace = np.trace(forms[5][:, : self.base, : self.base], axis1=1, axis2=2)
        return np.concatenate(
            [trace[:, None], self.collect(2 * np.diagonal(forms[1], axis1=1, axis2=2))], axis=1
        )

    def schur(self, left: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> np.ndarray:
        mixed = left[1] * right[1].swapaxes(1, 2)
        inner = mixed + mixed.swapaxes(1, 2) + left[2] * right[0] + left[0] * right[2]
        inner = self.collect(self.collect(inner), 2)
        base = slice(0, self.base)
        cross = (left[4][..., base] * right[3][..., base] + left[3][..., base] * right[4][..., base]).sum(2)
        full = np.empty((len(inner), self.count + 1, self.count + 1))
        full[:, 1:, 1:] = inner
        full[:, 0, 1:] = full[:, 1:, 0] = self.collect(cross)
        full[:, 0, 0] = (left[5][:, base, base] * right[5][:, base, base]).sum((1, 2))
        return full

    def newton(self, dx: np.ndarray, px: np.ndarray, qx: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Return sym(S dM(dx) X)."""
        weights = dx[:, 1:][:, self.owners, None]
        image = self.p.swapaxes(1, 2) @ (weights * qx) + self.q.swapaxes(1, 2) @ (weights * px)
        image[:, : self.base] += dx[:, :1, None] * matrix[:, : self.base]
        return _symmetric(self.inverse @ image)

    def advance(self) -> np.ndarray:
        """Take one step; returns which members have converged, and drops those that fail."""
        left, right = self.forms(self.inverse), self.forms(self.dual)
        schur = self.schur(left, right)
        op_inverse, op_dual = self.adjoint(left), self.adjoint(right)
        constant = (self.constant * self.dual).sum((1, 2))
        product = (self.x * op_dual).sum(1) + constant
        mu = product / self.size
        gap = np.maximum(product, np.abs(op_dual[:, 0] - 1) * self.x[:, 0]) / self.x[:, 0]
        goal = np.zeros_like(self.x)
        goal[:, 0] = 1.0

        dx = _solve(schur, -goal)
        d_dual = -self.dual - self.newton(dx, right[3], right[4], self.dual)
        try:
            dual_factor, info = torch.linalg.cholesky_ex(torch.from_numpy(self.dual))
        except RuntimeError:
            return np.zeros(len(self.place), dtype=bool)
        identity = torch.eye(self.size, dtype=torch.float64)
        dual_whitener = torch.linalg.solve_triangular(dual_factor, identity, upper=False).numpy()
        primal = _step(self.whitener, self.linear(dx))
        dual = _step(dual_whitener, d_dual)
        px, qx = self.p @ d_dual, self.q @ d_dual
        trace = np.trace(d_dual[:, : self.base, : self.base], axis1=1, axis2=2)
        op_change = np.concatenate(
            [trace[:, None], self.collect(2 * np.einsum("bij,bij->bi", qx, self.p))], axis=1
        )
        after = ((self.x + primal[:, None] * dx) * (op_dual + dual[:, None] * op_change)).sum(1)
        after += constant + dual * (self.constant * d_dual).sum((1, 2))
        ratio = np.maximum(after / product, 0.0)
        short = np.minimum(primal, dual)
        sigma = np.clip(np.where(short >= 0.1, ratio**3, ratio**2), np.where(short < 0.2, 0.3, 1e-3), 1.0)
        correction = self.newton(dx, px, qx, d_dual)
        op_correction = self.adjoint_only(correction)
        weight = (sigma * mu)[:, None]
        dx = _solve(schur, weight * op_inverse - op_correction - goal)
        d_dual = weight[..., None] * self.inverse - self.dual - correction
        d_dual -= self.newton(dx, right[3], right[4], self.dual)
        primal = np.minimum(1.0, 0.9 * _step(self.whitener, self.linear(dx)))
        dual = np.minimum(1.0, 0.9 * _step(dual_whitener, d_dual))
        self.state["x"] = self.x + primal[:, None] * dx
        self.state["dual"] = self.dual + dual[:, None, None] * d_dual
        alive = self.factorize() & (info.numpy() == 0) & (mu > 0)
        self.x[~alive] = np.nan
        return alive & (gap < self.tolerance)

    def adjoint_only(self, matrix: np.ndarray) -> np.ndarray:
        trace = np.trace(matrix[:, : self.base, : self.base], axis1=1, axis2=2)
        diagonal = np.einsum("bij,bij->bi", self.q @ matrix, self.p)
        return np.concatenate([trace[:, None], self.collect(2 * diagonal)], axis=1)

    def finish(self, done: np.ndarray, iteration: int, results: list) -> None:
        """Tighten rho, bound it from below, and store the members that have converged."""
        x, base = self.x[done].copy(), self.base
        zero = x.copy()
        zero[:, 0] = 0.0
        matrix = self.linear(self.x)[done] + self.constant[done]
        matrix[:, range(base), range(base)] -= x[:, :1]
        inner = np.linalg.solve(matrix[:, base:, base:], matrix[:, base:, :base])
        least = matrix[:, :base, base:] @ inner - matrix[:, :base, :base]
        rho = np.linalg.eigvalsh(_symmetric(least))[:, -1]
        x[:, 0] = np.minimum(x[:, 0], np.maximum(rho, 0.0))
        template = self.template
        for row, member in enumerate(np.flatnonzero(done)):
            place = int(self.place[member])
            single = replace(
                template,
                **{name: getattr(template, name)[place] for name in ("constant", "rows", "low", "high")},
            )
            lower = round_dual_of(single, self.dual[member])
            converged = x[row, 0] - lower <= 10 * self.tolerance * x[row, 0]
            if converged:
                results[place] = self.start[member], Solution(x[row], lower, True, iteration + 1, True)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.swapaxes(1, 2)) / 2


def _step(whitener: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The largest a <= 1 with I + a W change W' >= 0."""
    whitened = _symmetric(whitener @ change @ whitener.swapaxes(1, 2))
    smallest = eigvalsh(torch.from_numpy(whitened)).numpy()[:, 0]
    return np.where(smallest < -1.0, -1 / np.minimum(smallest, -1.0), 1.0)


def _solve(schur: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve with the diagonal scaled to 1, a ridge of 1e-14 and one refinement."""
    diagonal = np.diagonal(schur, axis1=1, axis2=2)
    scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scaled = schur * scale[:, :, None] * scale[:, None, :]
    places = range(schur.shape[1])
    scaled[:, places, places] = 1 + 1e-14
    factor, _ = torch.linalg.cholesky_ex(torch.from_numpy(scaled))

    def once(values: np.ndarray) -> np.ndarray:
        solution = torch.cholesky_solve(torch.from_numpy((scale * values)[..., None]), factor)
        return scale * solution[..., 0].numpy()

    solution = once(right)
    return solution + once(right - (schur @ solution[..., None])[..., 0])
