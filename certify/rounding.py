"""Lower bounds of the semidefinite program, from any positive semidefinite matrix."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from certify.lmi import Inequality, SlopeChain
from kernels import project_psd


def round_dual(
    chain: SlopeChain, second_moments: np.ndarray, *, shared: bool = False, definite: bool = False
) -> float:
    r"""Return a lower bound of the least sqrt(rho) that any multipliers can reach.

    Z is read as second moments of $(x, v_1, .., v_K)$. Layer by layer $u_k = v_k - \alpha y_k$ is shrunk by $\theta$
    and independent noise D is added, so that the new $v'_k$ obeys $E[(v' - \alpha y')(v' - \beta y')] = 0$
    exactly and is feasible in the dual; $\langle W_L' W_L, E v'_K v'_K{}' \rangle / tr Z_{00}$ is its value.
    It bounds the program, not the Lipschitz constant. Exact up to floating-point rounding.

    Args:
        second_moments: Z, (N, N); only its nearest positive semidefinite matrix counts.
        shared: one multiplier per layer, whose dual asks for zero expectation of each layer's sum only.
        definite: Z is known to be symmetric positive definite.
    """
    moments = second_moments if definite else project_psd(torch.from_numpy(second_moments)).numpy()
    blocks = [slice(a, b) for a, b in zip(chain.offsets, chain.offsets[1:], strict=False)]
    power = float(np.trace(moments[blocks[0], blocks[0]]))
    if not (power > 0 and math.isfinite(power)):
        return 0.0
    shifted = moments
    if any(low.any() for low in chain.alpha):
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


def round_dual_of(inequality: Inequality, second_moments: np.ndarray) -> float:
    r"""Return a lower bound of the least rho of a layered inequality in scaled coordinates (s = 1, weight 1).

    The same idea as in `round_dual` for any wiring: $u = z + l y$ is shrunk and noise added block by block; what a
    group leaves unknown is shrunk until $E|v_g|^2 \le E|A_g z'|^2$. The value is $-\langle M_0, E z'z'' \rangle$ over
    the trace of the base block.

    Args:
        second_moments: Z, symmetric positive definite, (N, N).
    """
    base, offsets, owners = inequality.base, inequality.offsets, inequality.owners
    grouped = inequality.grouped
    shift = np.where(grouped, 0.0, inequality.low)
    change = np.eye(inequality.size)
    change[base:] += shift[:, None] * inequality.rows
    noisy = change @ second_moments @ change.T if shift.any() else second_moments
    own = np.zeros_like(noisy)  # E z' z''
    cross = np.zeros_like(noisy)  # E z' u'
    own[:base, :base], cross[:base] = noisy[:base, :base], noisy[:base]
    for first, last in itertools.pairwise(offsets[1:]):
        here, rows = slice(first, last), slice(first - base, last - base)
        if first == last:
            continue
        y = inequality.rows[rows, :first]
        y_cross, y_own = y @ cross[:first], y @ own[:first, :first]
        labels = owners[rows] - owners[rows][0]
        variance = np.bincount(labels, np.diagonal(noisy)[here])
        share = np.divide(
            np.diagonal(noisy)[here], variance[labels], out=np.zeros(last - first), where=variance[labels] > 0
        )
        if grouped[rows][0]:
            room = np.bincount(labels, np.einsum("ij,ij->i", y_own, y))
            theta = np.sqrt(np.divide(room, variance, out=np.zeros_like(room), where=variance > 0).clip(0, 1))
            noise = np.zeros_like(theta)
        else:
            gain = (inequality.low - inequality.high)[rows]
            wanted = np.bincount(labels, gain * np.diagonal(y_cross[:, here]))
            theta = np.divide(wanted, variance, out=np.zeros_like(wanted), where=variance > 0).clip(0, 1)
            noise = np.maximum(theta * wanted - theta**2 * variance, 0.0)
        theta, noise, low = theta[labels][:, None], noise[labels] * share, shift[rows][:, None]
        cross[here] = theta * noisy[here] - low * y_cross
        own[here, :first] = theta * cross[:first, here].T - low * y_own
        own[:first, here] = own[here, :first].T
        mixed = low * y_cross[:, here] * theta.T
        own[here, here] = (
            (low * (y_own @ y.T)) * low.T - mixed - mixed.T + theta * noisy[here, here] * theta.T
        )
        own[range(first, last), range(first, last)] += noise
    power = float(np.trace(own[:base, :base]))
    value = -float(np.sum(inequality.constant * own)) / power if power > 0 else 0.0
    return max(value, 0.0) * (1 - 1e-9) if math.isfinite(value) else 0.0
