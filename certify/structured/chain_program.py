"""LipSDP of a feedforward chain: M is block-tridiagonal, and the rows y are never written out."""

from __future__ import annotations

import numpy as np
import torch

from certify.lmi import Inequality, SlopeChain
from certify.recursion import tighten
from certify.rounding import round_dual
from certify.structured.dense_program import DenseProgram
from certify.structured.program import Factor, Program
from certify.structured.scaling import ScaledInequality
from kernels import BlockCholesky, BlockTridiagonal, factorize

_DENSE = 100  # coordinates up to which the calls for single blocks cost more than dense matrices


def chain_program(chain: SlopeChain, multipliers: str = "neuron") -> Program:
    """Return the program of a rescaled chain in the form that is solved fastest."""
    if chain.offsets[-1] > _DENSE:
        return ChainProgram(chain, shared=multipliers == "layer")
    inequality = chain.inequality(multipliers)
    ones, kept = np.ones(1 + inequality.count), np.ones(inequality.count, dtype=bool)
    return DenseProgram(ScaledInequality(inequality, ones, kept, feasible=True))


class ChainProgram(Program):
    r"""$p_i = e_i - \alpha_i y_i$, $q_i = e_i - \beta_i y_i$, $y_k = W_k v_{k-1}$, $M_0 = -W_L'W_L$ on the last block.

    Args:
        chain: prepared so that (1, (1, .., 1)) is feasible: `certify.preparation.rescale_to_start`.
        shared: one multiplier per layer.
    """

    def __init__(self, chain: SlopeChain, *, shared: bool = False):
        self.chain, self.shared = chain, shared
        self.size, self.base = int(chain.offsets[-1]), chain.widths[0]
        self.blocks = [slice(a, b) for a, b in zip(chain.offsets, chain.offsets[1:], strict=False)]
        self.rows = [slice(b.start - self.base, b.stop - self.base) for b in self.blocks[1:]]
        self.low, self.high = -np.concatenate(chain.alpha), -np.concatenate(chain.beta)
        self.starts = np.array([rows.start for rows in self.rows]) if shared else None
        self.gram = chain.weights[-1].T @ chain.weights[-1]

    @property
    def inequality(self) -> Inequality:
        return self.chain.inequality("layer" if self.shared else "neuron")

    def factor(self, x: np.ndarray, shift: float) -> Factor | None:
        if not (np.isfinite(x).all() and (x > 0).all()):
            return None
        multipliers = self.spread(x)
        diagonal, lower = [np.eye(self.base) * x[0]], []
        for k, rows in enumerate(self.rows):
            values, weight = multipliers[rows], self.chain.weights[k]
            low, high = self.low[rows], self.high[rows]
            if (low * high).any():
                diagonal[-1] = diagonal[-1] + weight.T @ ((2 * values * low * high)[:, None] * weight)
            lower.append((values * (low + high))[:, None] * weight)
            diagonal.append(np.diag(2 * values))
        diagonal[-1] -= self.gram
        tensors = [
            [torch.from_numpy(np.ascontiguousarray(b)) for b in blocks] for blocks in (diagonal, lower)
        ]
        cholesky = factorize(BlockTridiagonal(*tensors))
        return _ChainFactor(cholesky, self.blocks) if int(cholesky.info) == 0 else None

    def signal(self, matrix: np.ndarray) -> np.ndarray:
        signal = np.empty((len(self.low), *matrix.shape[1:]))
        for weight, block, rows in zip(self.chain.weights, self.blocks, self.rows, strict=False):
            np.matmul(weight, matrix[block], out=signal[rows])
        return signal

    def signal_right(self, rows: np.ndarray) -> np.ndarray:
        signal = np.empty((len(rows), len(self.low)))
        for weight, block, columns in zip(self.chain.weights, self.blocks, self.rows, strict=False):
            np.matmul(rows[:, block], weight.T, out=signal[:, columns])
        return signal

    def signal_back(self, rows: np.ndarray) -> np.ndarray:
        result = np.empty((self.size, *rows.shape[1:]))
        for weight, block, own in zip(self.chain.weights, self.blocks, self.rows, strict=False):
            np.matmul(weight.T, rows[own], out=result[block])
        result[self.blocks[-1]] = 0.0
        return result

    def signal_diagonal(self, signal: np.ndarray) -> np.ndarray:
        pairs = zip(self.chain.weights, self.blocks, self.rows, strict=False)
        return np.concatenate([np.einsum("ij,ij->i", signal[rows, block], w) for w, block, rows in pairs])

    def constant_product(self, matrix: np.ndarray) -> float:
        return -float(np.sum(self.gram * matrix[self.blocks[-1], self.blocks[-1]]))

    def tighten(self, x: np.ndarray) -> float:
        multipliers = self.spread(x)
        return tighten(self.chain, [multipliers[rows] for rows in self.rows])

    def lower_bound(self, dual: np.ndarray) -> float | None:
        return round_dual(self.chain, dual, shared=self.shared, definite=True) ** 2


class _ChainFactor(Factor):
    r"""M = (I + G) D (I + G)' with $G_{k+1,k}$ = `steps[k]` below the diagonal."""

    def __init__(self, cholesky: BlockCholesky, blocks: list[slice]):
        self.blocks = blocks
        self.diagonal = [factor.numpy() for factor in cholesky.inverse_factors]
        self.below = [coupling.numpy() for coupling in cholesky.couplings]
        self.steps = [below @ inverse for below, inverse in zip(self.below, self.diagonal, strict=False)]
        self.inverse_blocks = [inverse.T @ inverse for inverse in self.diagonal]
        self._inverse: np.ndarray | None = None

    def inverse(self) -> np.ndarray:
        if self._inverse is not None:
            return self._inverse
        blocks, size = self.blocks, self.blocks[-1].stop
        self._inverse = inverse = np.empty((size, size))
        inverse[blocks[-1], blocks[-1]] = self.inverse_blocks[-1]
        for k in reversed(range(len(self.steps))):  # S_jk = -S_j,k+1 G_k for j > k
            block, after = blocks[k], slice(blocks[k].stop, size)
            column = inverse[after, blocks[k + 1]] @ self.steps[k]
            np.negative(column, out=column)
            corner = self.inverse_blocks[k] - self.steps[k].T @ column[: len(self.steps[k])]
            inverse[after, block], inverse[block, after] = column, column.T
            inverse[block, block] = (corner + corner.T) / 2
        return inverse

    def solve(self, right: np.ndarray) -> np.ndarray:
        if len(self.blocks) <= 4:  # fewer operations than substitution
            return self.inverse() @ right
        blocks = self.blocks
        for k, step in enumerate(self.steps):
            right[blocks[k + 1]] -= step @ right[blocks[k]]
        for block, inverse in zip(blocks, self.inverse_blocks, strict=True):
            right[block] = inverse @ right[block]
        for k in reversed(range(len(self.steps))):
            right[blocks[k]] -= self.steps[k].T @ right[blocks[k + 1]]
        return right

    def whiten(self, v: np.ndarray) -> np.ndarray:
        parts: list[np.ndarray] = []
        for k, block in enumerate(self.blocks):
            part = v[block] if not k else v[block] - self.below[k - 1] @ parts[-1]
            parts.append(self.diagonal[k] @ part)
        return np.concatenate(parts)

    def unwhiten(self, v: np.ndarray) -> np.ndarray:
        parts: list[np.ndarray] = []
        for k in reversed(range(len(self.blocks))):
            part = v[self.blocks[k]]
            if parts:
                part = part - self.below[k].T @ parts[-1]
            parts.append(self.diagonal[k].T @ part)
        return np.concatenate(parts[::-1])
