"""Any matrix inequality with dense rows: residual and implicit systems, groups, the l-infinity norm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from certify.rounding import round_dual_of
from certify.structured.lapack import potri, trsv
from certify.structured.program import Factor, Program
from certify.structured.scaling import ScaledInequality, tighten


class DenseProgram(Program):
    """`ScaledInequality` as a program; it starts from (1, .., 1)."""

    def __init__(self, scaled: ScaledInequality):
        inequality = scaled.inequality
        self.inequality = inequality
        self.low, self.high = inequality.low, inequality.high
        self.size, self.base = inequality.size, inequality.base
        single = inequality.count == len(inequality.rows)
        self.starts = None if single else np.searchsorted(inequality.owners, np.arange(inequality.count))
        self.signed = not inequality.implicit
        self.p, self.q = inequality.p, inequality.q
        if not scaled.feasible:
            smallest = float(np.linalg.eigvalsh(self.matrix(np.ones(1 + self.count)))[0])
            self.shift = 0.1 - 1.5 * min(smallest, 0.0)

    def matrix(self, x: np.ndarray) -> np.ndarray:
        half = self.p.T @ (self.spread(x)[:, None] * self.q)
        matrix = half + half.T
        matrix += self.inequality.constant
        matrix[range(self.base), range(self.base)] += x[0]
        return matrix

    def direction(self, dx: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        if self.size > 200:
            return super().direction(dx)
        change = self.matrix(dx) - self.inequality.constant  # one product instead of three per vector
        return lambda v: change @ v

    def factor(self, x: np.ndarray, shift: float) -> Factor | None:
        if not (np.isfinite(x).all() and (x > 0).all()):
            return None
        matrix = self.matrix(x)
        matrix[np.diag_indices_from(matrix)] += shift
        try:
            return _DenseFactor(np.linalg.cholesky(matrix))
        except np.linalg.LinAlgError:
            return None

    def signal(self, matrix: np.ndarray) -> np.ndarray:
        return self.inequality.rows @ matrix

    def signal_right(self, rows: np.ndarray) -> np.ndarray:
        return rows @ self.inequality.rows.T

    def signal_back(self, rows: np.ndarray) -> np.ndarray:
        return self.inequality.rows.T @ rows

    def signal_diagonal(self, signal: np.ndarray) -> np.ndarray:
        return np.einsum("ij,ij->i", signal, self.inequality.rows)

    def constant_product(self, matrix: np.ndarray) -> float:
        return float(np.sum(self.inequality.constant * matrix))

    def tighten(self, x: np.ndarray) -> float:
        return tighten(self.inequality, x[1:])

    def lower_bound(self, dual: np.ndarray) -> float | None:
        return None if self.inequality.implicit else round_dual_of(self.inequality, dual)


class _DenseFactor(Factor):
    def __init__(self, lower: np.ndarray):
        self.upper = lower.T  # Fortran order: no copy in BLAS
        self._inverse: np.ndarray | None = None

    def inverse(self) -> np.ndarray:
        if self._inverse is None:
            upper, _ = potri(self.upper, lower=0)
            self._inverse = np.asarray(np.triu(upper) + np.triu(upper, 1).T)
        return self._inverse

    def solve(self, right: np.ndarray) -> np.ndarray:
        return self.inverse() @ right

    def whiten(self, v: np.ndarray) -> np.ndarray:
        return trsv(self.upper, v, trans=1)

    def unwhiten(self, v: np.ndarray) -> np.ndarray:
        return trsv(self.upper, v)
