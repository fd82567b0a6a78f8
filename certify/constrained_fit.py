"""Least squares under linear constraints at single inputs: the program that repairs solve again and again."""

from __future__ import annotations

import warnings

import numpy as np

from certify.repairs import Constraint
from weightspace.errors import ConvergenceError


class ConstrainedFit:
    r"""$\min_\theta \tfrac{1}{n} \sum_i \|\theta h_i - t_i\|^2 + \rho \|\theta - \theta_0\|^2$ under constraints.

    Args:
        features: h, (n, k).
        targets: t, (n, outputs).
        start: theta_0, (outputs, k), and rest: rho.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray, start: np.ndarray, rest: float):
        count, width = features.shape
        tall = np.concatenate([features / np.sqrt(count), np.sqrt(rest) * np.eye(width)])
        orthogonal, factor = np.linalg.qr(tall)
        sizes = np.linalg.norm(factor, axis=0)
        self.sizes = np.where(sizes > 0, sizes, 1.0)  # the solver sees features of unit size
        self.factor = factor / self.sizes
        self.goal = orthogonal.T @ np.concatenate([targets / np.sqrt(count), np.sqrt(rest) * start.T])
        self.unit = max(float(np.abs(self.goal).max()), np.finfo(float).tiny)  # and targets of unit size

    def free(self) -> np.ndarray:
        """Return the minimizer without constraints, (outputs, k)."""
        return (np.linalg.lstsq(self.factor, self.goal)[0] / self.sizes[:, None]).T

    def solve(self, constraints: list[Constraint], features: np.ndarray, margin: float) -> np.ndarray | None:
        r"""Return the minimizer with $a_j \theta h_j \ge b_j + m$ for all constraints; None where there is none.

        Args:
            features: h_j of the constraints' inputs, (constraints, k).
        Raises:
            ConvergenceError: the solver failed.
        """
        import cvxpy

        if not constraints:
            return self.free()
        rows = np.array([one.row for one in constraints])
        limits = np.array([one.bound for one in constraints]) + margin
        theta = cvxpy.Variable(self.goal.shape)
        values = cvxpy.sum(cvxpy.multiply((features / self.sizes) @ theta, rows), axis=1)
        obeyed = cvxpy.NonNeg(values - limits / self.unit)
        problem = cvxpy.Problem(
            cvxpy.Minimize(cvxpy.sum_squares(self.factor @ theta - self.goal / self.unit)),
            [obeyed],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "solution may be inaccurate": what becomes of it is checked
            try:
                problem.solve(solver=cvxpy.CLARABEL)
            except cvxpy.SolverError as error:
                raise ConvergenceError(f"{self._failed(len(constraints))}: {error}") from error
        if problem.status in (cvxpy.INFEASIBLE, cvxpy.INFEASIBLE_INACCURATE):
            return None
        if theta.value is None:
            raise ConvergenceError(f"{self._failed(len(constraints))}: {problem.status}")
        return self.unit * (theta.value / self.sizes[:, None]).T

    def _failed(self, count: int) -> str:
        return f"the quadratic program over {count} constraints was not solved; scale inputs and outputs to about 1"
