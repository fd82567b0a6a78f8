r"""What the interior-point method needs to know of a program $M_0 + \rho E + \sum \lambda_i A_i \succeq 0$."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from certify.lmi import Inequality

_TILE = 128  # rows and columns of what is worked on at a time: it stays in cache


@dataclass(frozen=True, eq=False)
class Forms:
    """What the Schur matrix needs of a symmetric X: X and YX on the inner coordinates, YXY', and the base columns."""

    own: np.ndarray
    mixed: np.ndarray
    both: np.ndarray
    base: np.ndarray
    own_base: np.ndarray
    mixed_base: np.ndarray

    def tile(
        self, rows: slice, columns: slice, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return P'XP, Q'XP, (Q'XP)' = P'XQ and Q'XQ on a tile."""
        x, right = self.own[rows, columns], high[columns]
        signal, mirrored = self.mixed[rows, columns], self.mixed[columns, rows].T
        left = high[rows, None] * signal
        below = mirrored * right
        both = self.both[rows, columns]
        pp, qp, pq = x, x + left, x + below
        qq = qp + below
        qq += high[rows, None] * both * right
        if low.any():
            near, far = low[rows, None] * signal, mirrored * low[columns]
            pp = x + near + far + low[rows, None] * both * low[columns]
            qp += far + high[rows, None] * both * low[columns]
            pq += near + low[rows, None] * both * right
        return pp, qp, pq, qq


class Factor(ABC):
    """A Cholesky factorization M = LL'."""

    @abstractmethod
    def inverse(self) -> np.ndarray:
        """Return M^-1, (N, N)."""

    @abstractmethod
    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return M^-1 R for R of shape (N, N), which may be overwritten."""

    @abstractmethod
    def whiten(self, v: np.ndarray) -> np.ndarray:
        """Return L^-1 v."""

    @abstractmethod
    def unwhiten(self, v: np.ndarray) -> np.ndarray:
        """Return L^-T v."""


class Program(ABC):
    r"""A program over x = (rho, lambda), scaled so that $p_i = e_i + l_i y_i$, $q_i = e_i + h_i y_i$ and E is the
    identity on the base block, the first coordinates; row i belongs to coordinate base + i.

    In what follows X is any symmetric matrix and its `signal` YX, (m, N), with the rows y_i.
    Laws: M(x) is affine in x, `image` is its linear part and `adjoint` the adjoint of that; `schur(forms(S),
    forms(Z))` dx = `adjoint` of sym(S dM(dx) Z).
    """

    low: np.ndarray
    """l, (m,)."""
    high: np.ndarray
    """h, (m,)."""
    size: int
    """N."""
    base: int
    """Size of the base block, N - m."""
    starts: np.ndarray | None
    """First row of each multiplier; None where every row has its own."""
    shift: float = 0.0
    """M(start) + shift I is positive definite; 0 where the start is feasible."""
    signed: bool = True
    """M(x) >= 0 alone forces lambda >= 0; otherwise the method imposes it."""

    # ---- what a program defines ---------------------------------------------------------------------------

    inequality: Inequality
    """The same program with dense rows."""

    @abstractmethod
    def factor(self, x: np.ndarray, shift: float) -> Factor | None:
        """Factorize M(x) + shift I; None where it is not positive definite."""

    @abstractmethod
    def signal(self, matrix: np.ndarray) -> np.ndarray:
        """Return Y X, (m, ...), for X with N rows."""

    @abstractmethod
    def signal_right(self, rows: np.ndarray) -> np.ndarray:
        """Return R Y' for R of shape (m, N), (m, m)."""

    @abstractmethod
    def signal_back(self, rows: np.ndarray) -> np.ndarray:
        """Return Y' R for R with m rows, (N, ...)."""

    @abstractmethod
    def constant_product(self, matrix: np.ndarray) -> float:
        """Return <M_0, X>."""

    @abstractmethod
    def tighten(self, x: np.ndarray) -> float:
        """Return the least rho for the multipliers of x, inf where none."""

    @abstractmethod
    def lower_bound(self, dual: np.ndarray) -> float | None:
        """Return a lower bound of the optimal rho from a positive semidefinite matrix; None where there is no rule."""

    # ---- what follows from it -----------------------------------------------------------------------------

    def start(self) -> np.ndarray | None:
        """Return x = (1, .., 1), or a multiple, with M(x) + shift I positive definite; None where none is."""
        for factor in (1.0, 1.1, 1.5, 2.0):
            x = np.full(1 + self.count, factor)
            if self.factor(x, self.shift) is not None:
                return x
        return None

    @property
    def count(self) -> int:
        """Number of multipliers."""
        return len(self.low) if self.starts is None else len(self.starts)

    def spread(self, x: np.ndarray) -> np.ndarray:
        """Return one multiplier per row."""
        if self.starts is None:
            return x[1:]
        return np.repeat(x[1:], np.diff(np.append(self.starts, len(self.low))))

    def collect(self, values: np.ndarray) -> np.ndarray:
        """Sum (m,) values over the rows of each multiplier."""
        return values if self.starts is None else np.add.reduceat(values, self.starts)

    def forms(self, matrix: np.ndarray, signal: np.ndarray) -> Forms:
        """Collect the products of X with Y from both sides."""
        base, inner = slice(0, self.base), slice(self.base, None)
        return Forms(
            matrix[inner, inner], signal[:, inner], self.signal_right(signal), matrix[base, base],
            matrix[inner, base], signal[:, base],
        )  # fmt: skip

    def image(self, dx: np.ndarray, matrix: np.ndarray, signal: np.ndarray) -> np.ndarray:
        r"""Return dM(dx) X, (N, ...): dr E X + P dL Q'X + Q dL P'X.

        With w = dL the own rows get 2 w X + w (l + h) YX, and Y' is applied to w (l + h) X + 2 w l h YX.
        """
        column = (slice(None),) + (None,) * (matrix.ndim - 1)
        weights = self.spread(dx)
        mixed, product = (
            (weights * (self.low + self.high))[column],
            (2 * weights * self.low * self.high)[column],
        )
        double, own = (2 * weights)[column], matrix[self.base :]
        back = mixed * own
        if product.any():
            back += product * signal
        result = self.signal_back(back)
        result[: self.base] += dx[0] * matrix[: self.base]
        inner = result[self.base :]
        for rows in _tiles(len(own)):
            inner[rows] += double[rows] * own[rows]
            inner[rows] += mixed[rows] * signal[rows]
        return result

    def direction(self, dx: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return v -> dM(dx) v for vectors."""
        return lambda v: self.image(dx, v, self.signal(v))

    def adjoint(self, matrix: np.ndarray, signal: np.ndarray) -> np.ndarray:
        """Return op(X) = (tr X_base, 2 diag(Q'XP) summed over each multiplier), (1 + count,)."""
        values = np.diagonal(matrix)[self.base :] + (self.low + self.high) * np.diagonal(
            signal[:, self.base :]
        )
        product = self.low * self.high
        if product.any():
            values = values + product * self.signal_diagonal(signal)
        trace = np.trace(matrix[: self.base, : self.base])
        return np.concatenate([[trace], self.collect(2 * values)])

    def adjoint_of_product(self, left: np.ndarray, signal: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return op(sym(X G)) for symmetric X with its signal and any G, without forming X G."""
        transposed = right.T
        right_signal = self.signal(transposed)
        values = np.empty(len(self.low))
        for rows in _tiles(len(values)):
            inner = slice(self.base + rows.start, self.base + rows.stop)
            low, high = self.low[rows, None], self.high[rows, None]
            first, second = transposed[inner], right_signal[rows]
            values[rows] = np.einsum("ij,ij->i", left[inner] + high * signal[rows], first + low * second)
            values[rows] += np.einsum("ij,ij->i", left[inner] + low * signal[rows], first + high * second)
        trace = float(np.sum(left[: self.base] * transposed[: self.base]))
        return np.concatenate([[trace], self.collect(values)])

    def signal_diagonal(self, signal: np.ndarray) -> np.ndarray:
        """Return diag(YXY') from YX."""
        return np.diagonal(self.signal_right(signal))

    def schur(self, left: Forms, right: Forms) -> np.ndarray:
        r"""Return H with $H_{ij} = tr(A_i S A_j Z)$, (1 + count, 1 + count), from the forms of S and Z.

        $H_{\lambda\lambda} = Q_s \circ Q_z' + Q_s' \circ Q_z + R_s \circ P_z + P_s \circ R_z$ with
        $Q_x = Q'XP$, $P_x = P'XP$, $R_x = Q'XQ$.
        """
        low, high, m = self.low, self.high, len(self.low)
        full = np.empty((m + 1, m + 1))
        inner = full[1:, 1:]
        for rows in _tiles(m):
            for columns in _tiles(rows.stop):
                pp, qp, pq, qq = left.tile(rows, columns, low, high)
                pp_right, qp_right, pq_right, qq_right = right.tile(rows, columns, low, high)
                tile = qp * pq_right
                tile += pq * qp_right
                tile += qq * pp_right
                tile += pp * qq_right
                inner[rows, columns] = tile
                inner[columns, rows] = tile.T
        if self.starts is not None:
            inner = np.add.reduceat(np.add.reduceat(inner, self.starts, axis=0), self.starts, axis=1)
            full = np.empty((self.count + 1, self.count + 1))
            full[1:, 1:] = inner
        cross = np.zeros(m)
        for near, far in ((left, right), (right, left)):
            p_base = near.own_base + low[:, None] * near.mixed_base
            q_base = far.own_base + high[:, None] * far.mixed_base
            cross += np.einsum("ij,ij->i", p_base, q_base)
        full[0, 1:] = full[1:, 0] = self.collect(cross)
        full[0, 0] = float(np.sum(left.base * right.base))
        return full


def symmetrize(matrix: np.ndarray) -> np.ndarray:
    """Replace X by (X + X') / 2, in place."""
    for rows in _tiles(len(matrix)):
        for columns in _tiles(rows.stop):
            tile = matrix[rows, columns] + matrix[columns, rows].T
            tile *= 0.5
            matrix[rows, columns] = tile
            matrix[columns, rows] = tile.T
    return matrix


def _tiles(size: int) -> list[slice]:
    return [slice(k, min(k + _TILE, size)) for k in range(0, size, _TILE)]
