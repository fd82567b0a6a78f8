"""Lower bounds of the semidefinite program, from any positive semidefinite matrix."""

from __future__ import annotations

import math

import numpy as np

from certify.lmi import SlopeChain


def round_dual(chain: SlopeChain, second_moments: np.ndarray, *, shared: bool = False) -> float:
    r"""Return a lower bound of the least sqrt(rho) that any multipliers can reach.

    Z is read as second moments of $(x, v_1, .., v_K)$. Layer by layer $u_k = v_k - \alpha y_k$ is shrunk by $\theta$
    and independent noise D is added, so that the new $v'_k$ obeys $E[(v' - \alpha y')(v' - \beta y')] = 0$
    exactly and is feasible in the dual; $\langle W_L' W_L, E v'_K v'_K{}' \rangle / tr Z_{00}$ is its value.
    It bounds the program, not the Lipschitz constant. Exact up to floating-point rounding.

    Args:
        second_moments: Z, (N, N); only its nearest positive semidefinite matrix counts.
        shared: one multiplier per layer, whose dual asks for zero expectation of each layer's sum only.
    """
    values, vectors = np.linalg.eigh((second_moments + second_moments.T) / 2)
    moments = (vectors * np.maximum(values, 0.0)) @ vectors.T
    blocks = [slice(a, b) for a, b in zip(chain.offsets, chain.offsets[1:], strict=False)]
    power = float(np.trace(moments[blocks[0], blocks[0]]))
    if not (power > 0 and math.isfinite(power)):
        return 0.0
    change = np.eye(len(moments))
    for k, (weight, low) in enumerate(zip(chain.weights, chain.alpha, strict=False)):
        change[blocks[k + 1], blocks[k]] = -low[:, None] * weight
    shifted = change @ moments @ change.T  # second moments of (x, u_1, .., u_K)
    cross, own = shifted[blocks[0]], shifted[blocks[0], blocks[0]]  # E v' u', E v' v''
    for k, (weight, low, high) in enumerate(zip(chain.weights, chain.alpha, chain.beta, strict=False)):
        here = blocks[k + 1]
        linear = low[:, None] * weight
        wanted = (high - low) * np.einsum("ij,ji->i", weight, cross[:, here])
        variance = np.diagonal(shifted[here, here])
        if shared:  # the layer's sum, spread over its neurons
            share = variance / max(variance.sum(), np.finfo(float).tiny)
            wanted, variance = np.full_like(wanted, wanted.sum()), np.full_like(variance, variance.sum())
        theta = np.clip(np.divide(wanted, variance, out=np.zeros_like(wanted), where=variance > 0), 0.0, 1.0)
        noise = np.maximum(theta * wanted - theta**2 * variance, 0.0)
        if shared:
            noise = noise * share
        mixed = (linear @ cross[:, here]) * theta
        own = linear @ own @ linear.T + mixed + mixed.T + theta[:, None] * shifted[here, here] * theta
        own = own + np.diag(noise)
        cross = linear @ cross + theta[:, None] * shifted[here]
    value = float(np.sum((chain.weights[-1] @ own) * chain.weights[-1])) / power
    return math.sqrt(max(value, 0.0)) * (1 - 1e-9)
