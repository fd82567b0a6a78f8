"""Exact rewritings of a chain that make its semidefinite program small and well scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from certify.lmi import SlopeChain
from certify.recursion import closed_forms, spectral_norm


@dataclass(frozen=True, eq=False)
class Prepared:
    r"""An equivalent chain $W'_k = S_k W_k S_{k-1}^{-1}$ on the neurons that matter.

    Attributes:
        chain: what a solver sees.
        kept: per hidden layer, which neurons of the original are left.
        log_scales: natural logarithms of the diagonals of S_1 .. S_K, and of the number S_L.
    """

    chain: SlopeChain
    kept: tuple[np.ndarray, ...]
    log_scales: tuple[np.ndarray, ...]

    def restore(self, multipliers: Sequence[np.ndarray]) -> list[np.ndarray]:
        r"""Return the original chain's multipliers $\lambda_i = \lambda'_i S_i^2 / S_L^2$; dead neurons 0."""
        restored = []
        for kept, scale, values in zip(self.kept, self.log_scales, multipliers, strict=False):
            full = np.zeros(len(kept))
            full[kept] = values * np.exp(2 * (scale - self.log_scales[-1]))
            restored.append(full)
        return restored

    @property
    def bound_factor(self) -> float:
        """What turns a Lipschitz bound of `chain` into one of the original."""
        return float(np.exp(-self.log_scales[-1]))


def is_constant(chain: SlopeChain) -> bool:
    """True where a matrix of a pruned chain is empty or zero: the function is constant."""
    return any(weight.size == 0 or not weight.any() for weight in chain.weights)


def normalize(chain: SlopeChain) -> tuple[SlopeChain, list[int]]:
    """Divide each matrix by a power of two near its norm; returns the exponents."""
    weights, exponents = [], []
    for weight in chain.weights:
        largest = np.abs(weight).max(initial=0.0)
        exponent = int(np.frexp(largest)[1]) if largest > 0 else 0
        scaled = np.ldexp(weight, -exponent)
        extra = int(np.frexp(spectral_norm(scaled))[1]) if largest > 0 else 0
        weights.append(np.ldexp(scaled, -extra))
        exponents.append(exponent + extra)
    return SlopeChain(tuple(weights), chain.alpha, chain.beta), exponents


def prune(chain: SlopeChain) -> tuple[SlopeChain, tuple[np.ndarray, ...]]:
    """Drop neurons whose incoming row or outgoing column is zero; returns the masks of those kept."""
    weights = list(chain.weights)
    kept = [np.ones(len(weight), dtype=bool) for weight in weights[:-1]]
    changed = True
    while changed:
        changed = False
        for k, mask in enumerate(kept):
            alive = mask & weights[k].any(axis=1) & weights[k + 1].any(axis=0)
            if (alive != mask).any():
                weights[k], weights[k + 1] = weights[k] * alive[:, None], weights[k + 1] * alive
                kept[k], changed = alive, True
    masks = [np.ones(weights[0].shape[1], dtype=bool), *kept, np.ones(len(weights[-1]), dtype=bool)]
    cut = tuple(w[np.ix_(masks[k + 1], masks[k])] for k, w in enumerate(weights))
    alpha = tuple(side[mask] for side, mask in zip(chain.alpha, kept, strict=True))
    beta = tuple(side[mask] for side, mask in zip(chain.beta, kept, strict=True))
    return SlopeChain(cut, alpha, beta), tuple(kept)


def prepare(chain: SlopeChain, *, balance: bool) -> Prepared:
    """Prune, replace the outer matrices by triangular factors, normalize and balance.

    Args:
        balance: rescale single neurons (not for multipliers shared by a layer, which it would change).
    """
    chain, kept = prune(chain)
    weights = list(chain.weights)
    if min(weight.size for weight in weights) == 0 or not all(weight.any() for weight in weights):
        return Prepared(chain, kept, (*tuple(np.zeros(n) for n in chain.widths[1:]), np.zeros(())))
    if weights[0].shape[1] > weights[0].shape[0]:
        weights[0] = np.linalg.qr(weights[0].T)[1].T
    if weights[-1].shape[0] > weights[-1].shape[1]:
        weights[-1] = np.linalg.qr(weights[-1])[1]
    logs = [np.zeros(len(weight)) for weight in weights[:-1]]
    total = 0.0
    for k, weight in enumerate(weights):
        norm = spectral_norm(weight)
        total -= np.log(norm)
        weights[k] = weight / norm
        if k < len(logs):
            logs[k] += total
    for _ in range(5 if balance else 0):
        for k, log in enumerate(logs):
            factor = np.sqrt(np.linalg.norm(weights[k + 1], axis=0) / np.linalg.norm(weights[k], axis=1))
            factor /= np.exp(np.log(factor).mean())
            weights[k] = factor[:, None] * weights[k]
            weights[k + 1] = weights[k + 1] / factor
            log += np.log(factor)
    return Prepared(SlopeChain(tuple(weights), chain.alpha, chain.beta), kept, (*logs, np.array(total)))


def rescale_to_start(prepared: Prepared) -> Prepared | None:
    """Change variables so that (1, (1, .., 1)) is feasible with room in every block; None where no start is found."""
    found = closed_forms(prepared.chain, margin=0.1 / (len(prepared.chain.alpha) + 1))
    if not found:
        return None
    rescaled = rescale(prepared, found[0][1], found[0][0])
    return rescaled if all(np.isfinite(weight).all() for weight in rescaled.chain.weights) else None


def rescale(prepared: Prepared, multipliers: Sequence[float], rho: float) -> Prepared:
    r"""Change variables so that a feasible point with one multiplier per layer becomes (1, (1, .., 1))."""
    steps = [0.5 * np.log(value / rho) for value in multipliers] + [-0.5 * np.log(rho)]
    weights = []
    for k, weight in enumerate(prepared.chain.weights):
        weights.append(weight * np.exp(steps[k] - (steps[k - 1] if k else 0.0)))
    # lambda' = lambda S_L^2 / S_k^2: S_k = sqrt(lambda_k / rho), S_L = 1 / sqrt(rho)
    logs = tuple(old + step for old, step in zip(prepared.log_scales, steps, strict=True))
    return Prepared(
        SlopeChain(tuple(weights), prepared.chain.alpha, prepared.chain.beta), prepared.kept, logs
    )
