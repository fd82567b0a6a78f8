r"""The linear matrix inequality that bounds the Lipschitz constant of a system.

One description drives every solver: $\rho$ is minimized subject to
$M(\rho, \lambda) = M_0 + \rho E + \sum_i \lambda_i (p_i q_i' + q_i p_i') \succeq 0$, $\lambda \ge 0$. The independent
check, `certify/checker.py`, rebuilds all of it itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse

from certify.constraints import Constraint, SlopeRestricted
from certify.convolution import dense
from certify.signals import Signal, System, require_unrolled, seen
from weightspace.errors import UnsupportedOperationError


@dataclass(frozen=True, eq=False)
class Inequality:
    r"""$M(\rho, \lambda)$ with one row (p, q) per scalar constraint.

    Coordinates come in blocks: the base (the input, or in the l-infinity norm the number t that bounds it), in the
    l-infinity norm the input, then one block per nonlinearity; row i of (p, q) belongs to coordinate `base` + i.

    Attributes:
        offsets: where each block starts, and N.
        constant: $M_0$, (N, N).
        weight: E = weight times the identity on the base block; 1, or 2 in the l-infinity norm.
        rows: $y_i$, (N - base, N); $p_i = s_i (e_i + l_i y_i)$, $q_i = s_i (e_i + h_i y_i)$.
        low, high: $l_i$ and $h_i$, (N - base,); minus the slopes, or -1 and 1 in groups.
        scale: $s_i$, (N - base,); 1 for slopes, $1/\sqrt2$ in groups.
        owners: which multiplier each row belongs to, ascending from 0.
        grouped: which rows count only in the sum over their multiplier.
        implicit: some y_i depends on coordinates that are not before it.
    """

    offsets: np.ndarray
    constant: np.ndarray
    weight: float
    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray
    owners: np.ndarray
    grouped: np.ndarray
    implicit: bool

    @property
    def base(self) -> int:
        """Size of the base block."""
        return int(self.offsets[1])

    @property
    def size(self) -> int:
        """N."""
        return len(self.constant)

    @property
    def count(self) -> int:
        """Number of multipliers."""
        return int(self.owners[-1]) + 1 if len(self.owners) else 0

    @property
    def p(self) -> np.ndarray:
        """Rows p_i, (N - base, N)."""
        return self._with_own(self.low)

    @property
    def q(self) -> np.ndarray:
        """Rows q_i, (N - base, N)."""
        return self._with_own(self.high)

    def _with_own(self, factors: np.ndarray) -> np.ndarray:
        full = factors[:, None] * self.rows
        full[np.arange(len(full)), self.base + np.arange(len(full))] += 1.0
        return full * self.scale[:, None]

    def matrix(self, rho: float, multipliers: np.ndarray) -> np.ndarray:
        """Return M(rho, multipliers), (N, N)."""
        half = self.p.T @ (multipliers[self.owners][:, None] * self.q)
        matrix = self.constant + half + half.T
        inputs = np.arange(self.base)
        matrix[inputs, inputs] += rho * self.weight
        return matrix

    def affine_map(self) -> scipy.sparse.csc_array:
        """Return the columns vec(E), vec(sum of p q' + q p') of every multiplier, sparse (N^2, 1 + multipliers)."""
        size = self.size
        inputs = np.arange(self.base) * (size + 1)
        shape = (size**2, 1)
        weights = np.full(len(inputs), self.weight)
        columns = [scipy.sparse.coo_array((weights, (inputs, np.zeros_like(inputs))), shape)]
        starts = np.searchsorted(self.owners, np.arange(self.count + 1))
        left, right = scipy.sparse.csr_array(self.p), scipy.sparse.csr_array(self.q)
        for first, last in itertools.pairwise(starts):
            p, q = left[first:last], right[first:last]
            total = (p.T @ q + q.T @ p).tocoo()
            columns.append(total.reshape(shape))
        return scipy.sparse.csc_array(scipy.sparse.hstack(columns))


def inequality_of(system: System, norm: str = "l2", multipliers: str = "neuron") -> Inequality:
    r"""Write the matrix inequality of a system; `System.select` one output first in the l-infinity norm.

    l2: base x, $M_0 = -F'F$, E = I, Lip $\le \sqrt\rho$. l-infinity to a scalar output w: base t,
    $M_0 = -(e_t w' + w e_t')$, $E = 2 e_t e_t'$, Lip $\le \rho$, and multipliers of $x_i^2 \le t^2$.

    Args:
        multipliers: "neuron" (one per neuron or group) or "layer" (one per nonlinearity).
    Source: Fazlyab et al., LipSDP (2019), theorem 2; Pauli et al. (2024), section 3; Wang, Prakriya, Bequette,
    et al., A quantitative geometric approach to neural-network smoothness (2022), for l-infinity.
    """
    require_unrolled(system)
    layers = [(layer.constraint, layer.signal) for layer in system.layers]
    return _assemble(system.widths, layers, system.output, norm == "linf", multipliers == "layer")


def _assemble(
    widths: Sequence[int],
    layers: Sequence[tuple[Constraint, Signal]],
    selected: Signal,
    linf: bool,
    shared: bool,
) -> Inequality:
    offsets = np.cumsum([0, *([1] if linf else []), *widths])
    size, shift = int(offsets[-1]), int(linf)

    def spread(signal: Signal) -> np.ndarray:
        rows = np.zeros((next(iter(signal.values())).shape[0], size))
        for k, matrix in signal.items():
            rows[:, offsets[k + shift] : offsets[k + shift + 1]] = dense(matrix)
        return rows

    output = spread(selected)
    parts: list[tuple[np.ndarray, ...]] = [(np.zeros((0, size)), *[np.zeros(0)] * 4)]
    first = 0  # multiplier
    constant = -output.T @ output
    if linf:
        if len(output) != 1:
            raise UnsupportedOperationError("the l-infinity inequality is that of one output; select it")
        constant = np.zeros((size, size))
        constant[0] -= output[0]
        constant[:, 0] -= output[0]
        ones, half = np.ones(widths[0]), np.full(widths[0], np.sqrt(0.5))
        parts.append((ones[:, None] * np.eye(1, size), -ones, ones, half, np.arange(widths[0])))
    for constraint, signal in layers:
        rows = spread(signal)
        if isinstance(constraint, SlopeRestricted):
            parts.append(
                (rows, -constraint.alpha, -constraint.beta, np.ones(len(rows)), np.arange(len(rows)))
            )
        else:
            rows = constraint.reduce(rows)
            ones, half = np.ones(len(rows)), np.full(len(rows), np.sqrt(0.5))
            parts.append((rows, -ones, ones, half, np.arange(len(rows)) // constraint.counts[1]))
    owners = []
    for *_, own in parts:
        own = np.zeros_like(own, int) if shared else own.astype(int)
        owners.append(first + own)
        first += int(own[-1]) + 1 if len(own) else 0
    rows, low, high, scale = (np.concatenate(columns) for columns in list(zip(*parts, strict=True))[:4])
    weight, after = 2.0 if linf else 1.0, np.arange(len(rows)) + offsets[1]
    blocks = np.searchsorted(offsets, after, side="right")
    implicit = any(rows[blocks == k][:, offsets[k - 1] :].any() for k in range(2, len(offsets)))
    return Inequality(
        offsets, constant, weight, rows, low, high, scale, np.concatenate(owners), scale < 1, implicit
    )


@dataclass(frozen=True, eq=False)
class SlopeChain:
    r"""The data of LipSDP for a chain: $W_1 .. W_L$ and slopes $[\alpha_k, \beta_k]$ of each hidden layer.

    $M(\rho, \lambda) = \rho E - F'F + \sum_i \lambda_i (p_i q_i' + q_i p_i') \succeq 0$ with
    $p_i = e_i - \alpha_i y_i$, $q_i = e_i - \beta_i y_i$ on $z = (x, v_1, .., v_K)$, $y_k = W_k v_{k-1}$,
    $F z = W_L v_K$, gives Lip <= sqrt(rho).
    Source: Fazlyab et al., LipSDP (2019), theorem 2.
    """

    weights: tuple[np.ndarray, ...]
    alpha: tuple[np.ndarray, ...]
    beta: tuple[np.ndarray, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """n_0 (inputs), n_1 .. n_K (hidden neurons)."""
        return tuple(weight.shape[1] for weight in self.weights)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each block of z starts, and the size N of z."""
        return np.cumsum([0, *self.widths])

    def inequality(self, multipliers: str = "neuron") -> Inequality:
        """Return the matrix inequality with dense rows."""
        layers = [
            (SlopeRestricted(low, high), {k: weight})
            for k, (low, high, weight) in enumerate(zip(self.alpha, self.beta, self.weights, strict=False))
        ]
        return _assemble(self.widths, layers, {len(layers): self.weights[-1]}, False, multipliers == "layer")


def chain_of(system: System) -> SlopeChain:
    """Return the matrices and slopes of a system that is a chain.

    Raises:
        UnsupportedOperationError: it is not.
    """
    slopes = []
    for k, layer in enumerate(system.layers):
        if not isinstance(layer.constraint, SlopeRestricted) or seen(layer.signal) - {k}:
            raise UnsupportedOperationError(
                f"{layer.operation.kind} at node {layer.name!r} is no scalar activation in a feedforward chain, which "
                "this method needs; use bounder=LipSDP()"
            )
        slopes.append(layer.constraint)
    if seen(system.output) - {len(slopes)}:
        raise UnsupportedOperationError(
            "the output is not a linear map of the last layer alone, which this method needs; use bounder=LipSDP()"
        )
    widths = system.widths
    require_unrolled(system)
    missing = np.zeros((system.outputs, widths[-1]))
    weights = [
        dense(layer.signal.get(k, np.zeros((widths[k + 1], widths[k]))))
        for k, layer in enumerate(system.layers)
    ]
    weights.append(dense(system.output.get(len(slopes), missing)))
    return SlopeChain(tuple(weights), tuple(s.alpha for s in slopes), tuple(s.beta for s in slopes))
