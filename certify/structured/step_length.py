"""How far one may go from a positive definite matrix before it is singular."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from certify.structured.lapack import stev


def step_to_boundary(
    whitened: Callable[[np.ndarray], np.ndarray], size: int, start: np.ndarray, steps: int = 25
) -> float:
    r"""Return a safe estimate of the largest a <= 1 with $I + a A \succeq 0$.

    Lanczos with full reorthogonalization on A; the smallest Ritz value minus its residual is taken for the smallest
    eigenvalue, and the search ends where the residual is 3 % of it. An estimate: the caller confirms the step.

    Args:
        whitened: v -> A v, A symmetric, (N,) -> (N,).
        start: any vector that is not orthogonal to what matters.
        steps: of Lanczos, at most.
    Source: Toh, A note on the calculation of step-lengths in interior-point methods for SDP (2002).
    """
    steps = min(steps, size)
    basis = np.zeros((steps + 1, size))
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    basis[0] = start / math.sqrt(start @ start)
    smallest, residual = 0.0, 0.0
    for j in range(steps):
        image = whitened(basis[j])
        diagonal[j] = basis[j] @ image
        known = basis[: j + 1]
        image = image - known.T @ (known @ image)
        image -= known.T @ (known @ image)
        beside[j] = math.sqrt(image @ image)
        if not math.isfinite(beside[j]):
            return 0.0
        done = beside[j] <= 1e-12 * max(abs(diagonal[j]), abs(diagonal[0]), 1e-300)
        if done or j == steps - 1 or (j >= 4 and j % 3 == 1):
            values, vectors, _ = stev(diagonal[: j + 1], beside[: max(j, 1)])
            smallest, residual = values[0], 0.0 if done else beside[j] * abs(vectors[-1, 0])
            if done or residual <= 0.03 * abs(smallest) or (smallest + residual > -0.3 and residual < 0.3):
                break
        basis[j + 1] = image / beside[j]
    edge = smallest - residual
    return 1.0 if edge >= -1.0 else -1.0 / edge
