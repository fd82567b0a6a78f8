"""Closed forms for a chain: the least rho for given multipliers, and multipliers without any solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from certify.lmi import SlopeChain

_LARGE = 400  # rows or columns up to which a full decomposition is the fastest


def spectral_norm(matrix: np.ndarray) -> float:
    """Return |W|_2 in floating point, of large matrices by the Lanczos method from a fixed start."""
    if min(matrix.shape) <= _LARGE:
        largest = float(np.abs(matrix).max(initial=0.0))
        return float(np.linalg.norm(matrix / largest, 2)) * largest if largest else 0.0
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    largest = float(np.abs(tall).max())
    if not (largest > 0 and math.isfinite(largest)):
        return largest
    tall = tall / largest
    start = np.random.default_rng(0).standard_normal(tall.shape[1])
    gram: Any = scipy.sparse.linalg.aslinearoperator(tall)
    gram = gram.T @ gram
    try:
        values = scipy.sparse.linalg.eigsh(gram, 1, v0=start, ncv=40, return_eigenvectors=False)
    except scipy.sparse.linalg.ArpackError:
        return float(np.linalg.norm(tall, 2)) * largest
    return math.sqrt(max(float(values[0]), 0.0)) * largest


def tighten(chain: SlopeChain, multipliers: Sequence[np.ndarray]) -> float:
    r"""Return the least rho with $M(\rho, \lambda) \succeq 0$ for fixed multipliers; inf where none exists.

    $Y_K = D_K$, $Y_{k-1} = D_{k-1} - C_k' Y_k^{-1} C_k$ with $C_k = -(\alpha + \beta) \Lambda_k W_k$ and $D_k$ the
    diagonal blocks; $\rho = \lambda_{max}(-Y_0)$ with the block of the input. Not rigorous: floating point.
    """
    weights = chain.weights
    if len(weights) == 1:
        return spectral_norm(weights[0]) ** 2
    schur = -weights[-1].T @ weights[-1]
    for k in range(len(multipliers) - 1, -1, -1):
        values, low, high = multipliers[k], chain.alpha[k], chain.beta[k]
        schur[np.diag_indices_from(schur)] += 2 * values
        try:
            factor = np.linalg.cholesky(schur)
        except np.linalg.LinAlgError:
            return math.inf
        coupling = (values * (low + high))[:, None] * weights[k]
        half = scipy.linalg.solve_triangular(factor, coupling, lower=True, check_finite=False)
        if k == 0 and not (low * high).any():
            rho = spectral_norm(half) ** 2
            return rho if math.isfinite(rho) else math.inf
        schur = weights[k].T @ ((2 * values * low * high)[:, None] * weights[k]) - half.T @ half
    rho = float(np.linalg.eigvalsh(-(schur + schur.T) / 2)[-1])
    return max(rho, 0.0) if math.isfinite(rho) else math.inf


def eclipse_fast(chain: SlopeChain, margin: float = 0.0) -> list[float] | None:
    r"""Return one multiplier per layer by the forward recursion, for rho = 1 up to a common factor.

    $K_k = W_k Y_{k-1}^{-1} W_k'$, $l_k = 1 / \sigma_{max}(K_k)$, $Y_k = 2 l_k I - l_k^2 K_k$; with slopes, $W_k$ is
    multiplied by $\alpha + \beta$ and $Y_{k-1}$ grows by $2 l_k W_k' \alpha\beta W_k$. None where some
    $\alpha\beta < 0$ or a layer vanishes. With a margin every $Y_k$ is taken smaller by that share, and the inequality
    holds with room in every block.
    Source: Xu, Sivaranjani, ECLipsE: efficient compositional Lipschitz constant estimation (2024), ECLipsE-Fast.
    """
    schur = np.eye(chain.widths[0])
    values = []
    for weight, low, high in zip(chain.weights, chain.alpha, chain.beta, strict=False):
        if (low * high < 0).any():
            return None
        outer = (low + high)[:, None] * weight
        try:
            size = spectral_norm(_whiten(schur, outer)) ** 2
            if not (math.isfinite(size) and size > 0):
                return None
            value = 1 / size
            if (low * high).any():
                schur = schur + weight.T @ ((2 * value * low * high)[:, None] * weight)
            half = _whiten(schur, outer)
        except np.linalg.LinAlgError:
            return None
        schur = (1 - margin) * (2 * value * np.eye(len(weight)) - value**2 * (half.T @ half))
        values.append(float(value))
    try:
        rho = spectral_norm(_whiten(schur, chain.weights[-1])) ** 2
    except np.linalg.LinAlgError:
        return None
    return [rho * value for value in values]


def _whiten(schur: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return scipy.linalg.solve_triangular(np.linalg.cholesky(schur), weight.T, lower=True, check_finite=False)


def backward_fast(chain: SlopeChain, margin: float = 0.0) -> list[float] | None:
    r"""Return one multiplier per layer by the backward recursion, for any slopes.

    $\lambda_k = c \sigma_{max}(C_k)$, $D = 2 \lambda_k I - C_k$,
    $C_{k-1} = W_k' ((\alpha+\beta) \lambda_k D^{-1} \lambda_k (\alpha+\beta) - 2 \lambda_k \alpha\beta) W_k$ from
    $C_K = W_L' W_L$, with the c > 1/2 that makes $\sigma_{max}(C_{k-1})$ least. Never above the norm product: for
    $C_k = \sigma I$ and one slope interval the best c gives $\max(|\alpha|, |\beta|)^2 \sigma W_k' W_k$.
    """
    current = chain.weights[-1].T @ chain.weights[-1]
    values: list[float] = []
    for k in range(len(chain.alpha) - 1, -1, -1):
        weight, low, high = chain.weights[k], chain.alpha[k], chain.beta[k]
        if not (low * high).any():  # c = 1, without the eigenvectors
            top = spectral_norm(current)
            if not (math.isfinite(top) and top > 0):
                return None
            inner = 2 * top * (1 + 1e-9) * np.eye(len(current)) - current
            try:
                half = _whiten(inner, weight.T * high)
            except np.linalg.LinAlgError:
                return None
            current = top**2 * (half.T @ half)
            values.append(top)
            continue
        found = _backward_step(current, weight, low, high, margin)
        if found is None:
            return None
        value, current = found
        values.append(value)
    return values[::-1]


def _backward_step(
    current: np.ndarray, weight: np.ndarray, low: np.ndarray, high: np.ndarray, margin: float
) -> tuple[float, np.ndarray] | None:
    """Return (lambda_k, C_{k-1}) for slopes of any sign."""
    eigenvalues, vectors = np.linalg.eigh((current + current.T) / 2)
    top = float(eigenvalues[-1])
    if not (math.isfinite(top) and top > 0):
        return None
    rotated = vectors.T @ ((low + high)[:, None] * weight)
    product = weight.T @ ((low * high)[:, None] * weight)

    def following(c: float) -> np.ndarray:
        gain = (c * top) ** 2 / (2 * c * top - eigenvalues)
        return rotated.T @ (gain[:, None] * rotated) - 2 * c * top * product

    best = _minimize(lambda c: float(np.linalg.eigvalsh(following(c))[-1]), 0.5 * (1 + max(margin, 1e-7)))
    return best * top, following(best)


def layer_kernel(chain: SlopeChain, shared: Sequence[np.ndarray]) -> np.ndarray:
    r"""Return $\beta W D^{-1} W' \beta$ of the last layer; $D_0 = I$, $D_k = 2 \Lambda_k - C D_{k-1}^{-1} C'$."""
    half = chain.beta[0][:, None] * chain.weights[0]
    kernel = half @ half.T
    for values, weight, high in zip(shared, chain.weights[1:], chain.beta[1:], strict=False):
        schur = np.diag(2 * values) - values[:, None] * kernel * values
        half = scipy.linalg.solve_triangular(
            np.linalg.cholesky(schur), (high[:, None] * weight).T, lower=True, check_finite=False
        )
        kernel = half.T @ half
    return kernel


def closed_forms(chain: SlopeChain, margin: float = 0.0) -> list[tuple[float, list[float]]]:
    """Return (rho, one multiplier per layer) of each recursion that succeeds, ECLipsE-Fast first.

    Args:
        margin: share of room to be left in every block; 0 for the best bound, which is on the boundary.
    """
    found = []
    for values in (eclipse_fast(chain, margin), backward_fast(chain, margin)):
        if values is None:
            continue
        for factor in (1.0, 1 + 1e-9, 1 + 1e-6):  # the recursions end on the boundary of the feasible set
            scaled = [factor * value for value in values]
            rho = tighten(chain, [np.full(n, v) for n, v in zip(chain.widths[1:], scaled, strict=True)])
            if math.isfinite(rho) and rho > 0:
                found.append(((1 + margin) * rho, scaled))
                break
    return found


def _minimize(function: Callable[[float], float], low: float) -> float:
    """Golden section for a convex function of c in [low, 2]; at 1/2 the inequality would have no room left."""
    high = 2.0
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
