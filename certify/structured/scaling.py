"""Exact rewritings of a matrix inequality: what cannot matter is left out, and a known point becomes (1, .., 1)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from certify.lmi import Inequality


@dataclass(frozen=True, eq=False)
class ScaledInequality:
    """An inequality in coordinates in which s = 1, the weight of E is 1 and `start` is (1, .., 1).

    Attributes:
        inequality: what a solver sees.
        start: (rho, multipliers) of the inequality before scaling.
        kept: which multipliers of the original are left.
        feasible: the start is strictly feasible.
    """

    inequality: Inequality
    start: np.ndarray
    kept: np.ndarray
    feasible: bool

    def restore(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the original (rho, multipliers); those left out are 0."""
        full = np.zeros(len(self.kept))
        full[self.kept] = x[1:] * self.start[1:]
        return float(x[0] * self.start[0]), full


def prune(inequality: Inequality) -> tuple[Inequality, np.ndarray]:
    """Leave out coordinates that are always zero or never used; returns which multipliers are left.

    Not in implicit systems, whose well-posedness rests on all of them.
    """
    count = inequality.count
    kept = np.ones(len(inequality.rows), dtype=bool)
    base, changed = inequality.base, not inequality.implicit
    rows, constant = inequality.rows, inequality.constant
    while changed:
        columns = np.concatenate([np.ones(base, dtype=bool), kept])
        heard = (rows[:, columns] != 0).any(axis=1)
        used = (constant[columns][:, base:] != 0).any(axis=0) | (rows[kept][:, base:] != 0).any(axis=0)
        for counts in (heard, used):  # a group counts as a whole
            whole = np.bincount(inequality.owners, counts, minlength=count)[inequality.owners] > 0
            counts[inequality.grouped] = whole[inequality.grouped]
        alive = kept & heard & used
        changed = bool((alive != kept).any())
        kept = alive
    owners = inequality.owners[kept]
    left = np.zeros(count, dtype=bool)
    left[owners] = True
    columns = np.concatenate([np.ones(base, dtype=bool), kept])
    inside = np.concatenate([[0], np.cumsum(columns)])
    pruned = replace(
        inequality,
        offsets=inside[inequality.offsets],
        constant=constant[np.ix_(columns, columns)],
        rows=rows[np.ix_(kept, columns)],
        low=inequality.low[kept],
        high=inequality.high[kept],
        scale=inequality.scale[kept],
        owners=(np.cumsum(left) - 1)[owners],
        grouped=inequality.grouped[kept],
    )
    return pruned, left


def scale(inequality: Inequality) -> ScaledInequality | None:
    """Prune, find a start and change variables; None where no finite one is found."""
    inequality, kept = prune(inequality)
    with np.errstate(all="ignore"):
        start = implicit_start(inequality) if inequality.implicit else backward_start(inequality)
        if start is None or not (np.isfinite(start).all() and (start > 0).all()):
            return None
        feasible = not inequality.implicit or math.isfinite(tighten(inequality, start[1:]))
        scaled = change_variables(inequality, start)
    if not (np.isfinite(scaled.constant).all() and np.isfinite(scaled.rows).all()):
        return None
    return ScaledInequality(scaled, start, kept, feasible)


def change_variables(inequality: Inequality, start: np.ndarray) -> Inequality:
    """Divide x by `start` and scale the coordinates; arrays may have a batch axis in front."""
    factors = np.sqrt(start[..., 1:])[..., inequality.owners] * inequality.scale
    first = 1 / np.sqrt(start[..., :1] * inequality.weight)
    change = np.concatenate([np.repeat(first, inequality.base, axis=-1), 1 / factors], axis=-1)
    return replace(
        inequality,
        constant=change[..., :, None] * inequality.constant * change[..., None, :],
        weight=1.0,
        rows=factors[..., :, None] * inequality.rows * change[..., None, :],
        scale=np.ones_like(inequality.scale),
    )


def tighten(inequality: Inequality, multipliers: np.ndarray) -> float:
    r"""Return the least rho with $M(\rho, \lambda) \succeq 0$ by the Schur complement onto the base; inf where none."""
    base = inequality.base
    matrix = inequality.matrix(0.0, multipliers)
    try:
        factor = np.linalg.cholesky(matrix[base:, base:])
    except np.linalg.LinAlgError:
        return math.inf
    half = scipy.linalg.solve_triangular(factor, matrix[base:, :base], lower=True, check_finite=False)
    rho = float(np.linalg.eigvalsh(half.T @ half - matrix[:base, :base])[-1]) / inequality.weight
    return max(rho, 0.0) if math.isfinite(rho) else math.inf


def backward_start(inequality: Inequality) -> np.ndarray | None:
    r"""Return a strictly feasible (rho, multipliers) of a layered system, one multiplier per block.

    From the last block to the first, with $C = -M_0$: $w_k$ above the largest eigenvalue of $C_{kk}$ makes
    $D = w_k I - C_{kk}$ positive definite, and eliminating the block leaves
    $C - w_k \sum l_i h_i y_i y_i' + X' D^{-1} X$ with $X = w_k (l + h) y / 2 - C_{k,rest}$ on the blocks before.
    In the l-infinity norm C starts from $2 t w z \le \kappa t^2 + (wz)^2 / \kappa$ with the best $\kappa$.
    Arrays may have a batch axis in front.
    """
    if inequality.weight == 2.0:  # l-infinity
        output = inequality.constant[..., 0, :]
        found = _eliminate(inequality, output[..., :, None] * output[..., None, :])
        if found is None:
            return None
        kappa = np.sqrt(np.maximum(found[0], np.finfo(float).tiny))[..., None]
        return np.concatenate([1.5 * kappa, found[1] / kappa], axis=-1)
    found = _eliminate(inequality, -inequality.constant)
    return None if found is None else np.concatenate([1.5 * found[0][..., None], found[1]], axis=-1)


def _eliminate(inequality: Inequality, total: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (largest eigenvalue left on the base, multipliers); arrays may have a batch axis in front."""
    base, offsets = inequality.base, inequality.offsets
    multipliers = np.ones((*total.shape[:-2], inequality.count))
    floor = 1e-8 * np.trace(total, axis1=-2, axis2=-1) / total.shape[-1]
    for first, last in list(itertools.pairwise(offsets))[:0:-1]:
        if first == last:
            continue
        own, rest, here = slice(first, last), slice(0, first), slice(first - base, last - base)
        rows = inequality.rows[..., here, :first]
        low, high = inequality.low[..., here], inequality.high[..., here]
        grouped = inequality.grouped[first - base]
        top = np.maximum(np.linalg.eigvalsh(total[..., own, own])[..., -1], floor)
        weight = (1.2 if grouped else 3.0) * top
        factor = weight[..., None, None]
        inner = factor * np.eye(last - first) - total[..., own, own]
        cross = (factor / 2 * (low + high)[..., None]) * rows - total[..., own, rest]
        try:
            back = cross.swapaxes(-1, -2) @ np.linalg.solve(inner, cross)
        except np.linalg.LinAlgError:
            return None
        through = rows.swapaxes(-1, -2) @ ((low * high)[..., None] * rows)
        total = total[..., rest, rest] - factor * through + back
        total = (total + total.swapaxes(-1, -2)) / 2
        multipliers[..., inequality.owners[here]] = (weight if grouped else weight / 2)[..., None]
        if not np.isfinite(total).all():
            return None
    return np.linalg.eigvalsh(total)[..., -1], multipliers


def implicit_start(inequality: Inequality) -> np.ndarray | None:
    """Return (rho, multipliers) with equal multipliers of all nonlinearities, feasible if any of a few sizes is.

    In the l-infinity norm as in `backward_start`: first $(wz)^2$, then the input's multipliers, then kappa.
    """
    linf = inequality.weight == 2.0
    first = int(inequality.offsets[2]) if linf else inequality.base  # of the nonlinearities
    constant = inequality.constant
    if linf:
        constant = -np.outer(constant[0], constant[0])
    size = float(np.abs(constant).sum(axis=1).max())
    if not size > 0:
        return None
    trial = replace(inequality, constant=constant)
    owner = inequality.owners[first - inequality.base]
    multipliers = np.full(inequality.count, size)
    for factor in (0.5, 1.0, 2.0, 8.0, 64.0, 1e4):
        multipliers[owner:] = 1.1 * factor * size
        matrix = trial.matrix(0.0, np.where(np.arange(inequality.count) < owner, 0.0, multipliers))
        try:
            factors = np.linalg.cholesky(matrix[first:, first:])
        except np.linalg.LinAlgError:
            continue
        half = scipy.linalg.solve_triangular(factors, matrix[first:, :first], lower=True)
        top = float(np.linalg.eigvalsh(half.T @ half - matrix[:first, :first])[-1])
        if not (math.isfinite(top) and top > 0):
            continue
        if not linf:
            return np.concatenate([[1.5 * top], multipliers])
        multipliers[:owner] = 1.5 * top
        kappa = math.sqrt(float(inequality.offsets[2] - 1) * 1.5 * top)
        return np.concatenate([[1.5 * kappa], multipliers / kappa])
    return np.concatenate([[size], multipliers])
