r"""Multipliers of a large chain by descent along a barrier: a few dozen steps instead of a semidefinite program."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg

from certify.lmi import SlopeChain

Point = tuple[float, np.ndarray]


class ChainBarrier:
    r"""$\eta \log \rho - \log\det C$ of a chain with slopes in $[0, \beta]$, C being M with its diagonal scaled to 1.

    M is block-tridiagonal in (x, v_1 .. v_K) with the diagonal blocks $\rho I$ and $2 \Lambda_k$, less $W_L'W_L$ in
    the last. Every other block, not the last, is eliminated, which costs no factorization:
    $S = D - \sum_e B_e' D_e^{-1} B_e$ with $B_e = -(\Lambda_e W_e, W_{e+1}' \Lambda_{e+1})$. Single precision.

    Args:
        chain: scaled so that rho = 1 and multipliers 1 are feasible.
    """

    def __init__(self, chain: SlopeChain):
        weights = [
            (high[:, None] * weight).astype(np.float32)
            for high, weight in zip(chain.beta, chain.weights, strict=False)
        ]
        last = len(weights)
        self.sizes = chain.widths
        self.kept = [k for k in range(last + 1) if (last - k) % 2 == 0]
        self.parts = []  # of each eliminated block: B / -lambda, and where its columns are kept
        self.places, total = {}, 0
        for k in self.kept:
            self.places[k] = slice(total, total := total + self.sizes[k])
        for k in range(last + 1):
            if k not in self.kept:
                left = weights[k - 1] if k else np.zeros((self.sizes[0], 0), dtype=np.float32)
                self.parts.append((k, left, np.ascontiguousarray(weights[k].T)))
        self.total = total
        self.work = 2.0 * total**3  # floating-point operations of one value, about
        for _, left, right in self.parts:
            self.work += 4.0 * len(right) * (left.shape[1] + right.shape[1]) ** 2
        self.output = (chain.weights[-1].T @ chain.weights[-1]).astype(np.float32)

    def start(self) -> np.ndarray:
        """Return log rho and the logarithms of all multipliers, 0."""
        return np.zeros(1 + sum(self.sizes[1:]))

    def value(self, x: np.ndarray, eta: float) -> Point | None:
        """Return the value and its gradient; None where M is not positive definite."""
        ends = np.cumsum([1, *self.sizes[1:]])
        logs = [np.full(self.sizes[0], x[0])] + [x[a:b] for a, b in itertools.pairwise(ends)]
        diagonal = [np.exp(logs[0])] + [2 * np.exp(log) for log in logs[1:]]
        schur = np.zeros((self.total, self.total), dtype=np.float32)
        blocks = []
        for k, left, right in self.parts:  # of C: coordinates are measured in 1 / sqrt(diagonal)
            b = self._scaled(k, left, right, diagonal)
            columns = self._columns(k)
            schur[columns, columns] -= b.T @ b
            blocks.append((k, columns, left.shape[1], b))
        last = len(self.sizes) - 1
        root = 1 / np.sqrt(diagonal[last]).astype(np.float32)
        here = self.places[last]
        gram = root[:, None] * self.output * root
        schur[here, here] -= gram
        schur[np.diag_indices(self.total)] += 1
        lapack: Any = scipy.linalg.lapack
        factor, failed = lapack.spotrf(schur, lower=1, clean=1, overwrite_a=0)
        if failed or not np.isfinite(factor).all():
            return None
        logdet = 2 * float(np.log(np.diagonal(factor).astype(np.float64)).sum())
        inverse, failed = lapack.spotri(factor, lower=1)
        if failed:
            return None
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        gradient = [np.zeros(size) for size in self.sizes]  # of logdet C with respect to log lambda
        for k, columns, split, b in blocks:
            shares = (b @ inverse[columns, columns]) * b  # (n_k, columns): b P b' entry by entry
            rows = shares.sum(axis=1, dtype=np.float64)
            if k:  # b_ij is sqrt(d_i / d_j) W_ij / 2 on the left, W_ji sqrt(d_j / d_i) / 2 on the right
                left = shares[:, :split].sum(axis=1, dtype=np.float64)
                gradient[k] += rows - 2 * left
                gradient[k - 1] += shares[:, :split].sum(axis=0, dtype=np.float64)
            else:
                gradient[0] += rows
            gradient[k + 1] -= shares[:, split:].sum(axis=0, dtype=np.float64)
        gradient[last] += np.sum(inverse[here, here] * gram, axis=1, dtype=np.float64)
        result = -np.concatenate([[gradient[0].sum()], *gradient[1:]])
        result[0] += eta
        return eta * x[0] - logdet, result

    def shared_value(self, x: np.ndarray, eta: float, owners: np.ndarray) -> Point | None:
        """The same with one multiplier for all neurons of the same owner; owner 0 is rho's."""
        found = self.value(x[owners], eta)
        return found and (found[0], np.bincount(owners, found[1], minlength=len(x)))

    def _columns(self, k: int) -> slice:
        first = self.places[k - 1].start if k else self.places[k + 1].start
        return slice(first, self.places[k + 1].stop)

    def _scaled(
        self, k: int, left: np.ndarray, right: np.ndarray, diagonal: Sequence[np.ndarray]
    ) -> np.ndarray:
        own, after = diagonal[k], diagonal[k + 1]
        parts = []
        if k:  # lambda = d / 2
            before = diagonal[k - 1]
            parts.append(
                (np.sqrt(own) / 2).astype(np.float32)[:, None] * left * (before**-0.5).astype(np.float32)
            )
        parts.append(
            (own**-0.5).astype(np.float32)[:, None] * right * (np.sqrt(after) / 2).astype(np.float32)
        )
        return np.concatenate(parts, axis=1)


def descend(
    function: Callable[[np.ndarray], Point | None], start: np.ndarray, steps: int, *, memory: int = 12
) -> tuple[np.ndarray, int]:
    """Minimize by limited-memory quasi-Newton steps that stay where the function is defined; (point, calls).

    Source: Nocedal, Updating quasi-Newton matrices with limited storage (1980).
    """
    x, pairs = start, deque(maxlen=memory)
    found, calls = function(x), 1
    if found is None:
        return x, calls
    value, gradient = found
    length = 0.1 / max(float(np.linalg.norm(gradient)), 1e-30)
    while calls < steps:
        direction, factors = -gradient, []
        for s, y in reversed(pairs):
            factor = float(s @ direction) / float(s @ y)
            factors.append(factor)
            direction = direction - factor * y
        if pairs:
            s, y = pairs[-1]
            direction = direction * (float(s @ y) / float(y @ y))
            length = 1.0
        for (s, y), factor in zip(pairs, reversed(factors), strict=True):
            direction = direction + (factor - float(y @ direction) / float(s @ y)) * s
        largest = float(np.abs(direction).max(initial=0.0))
        length = min(length, 1.0 / max(largest, 1e-30))
        slope = float(gradient @ direction)
        if not slope < 0:
            return x, calls
        while True:
            moved = function(x + length * direction)
            calls += 1
            if moved is not None and moved[0] <= value + 1e-4 * length * slope:
                break
            length *= 0.5 if moved is not None else 0.3
            if calls >= steps or length < 1e-6:
                return x, calls
        step, change = length * direction, moved[1] - gradient
        x = x + step
        value, gradient = moved
        if float(step @ change) > 1e-10 * float(change @ change):
            pairs.append((step, change))
        length *= 2
    return x, calls
