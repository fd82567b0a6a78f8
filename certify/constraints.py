"""What is known of a nonlinearity between two inputs: the constraints a bound may use.

Slopes enclose every difference quotient; each was verified numerically on [-60, 60] and rounded outward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from torch import Tensor

from certify.convolution import Matrix, dense
from weightspace.errors import UnsupportedOperationError
from weightspace.operations import (
    ELU,
    GELU,
    Absolute,
    Clip,
    GroupSort,
    Householder,
    Implicit,
    LeakyReLU,
    Operation,
    Pointwise,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
    operation_from_json,
)


@dataclass(frozen=True, eq=False)
class SlopeRestricted:
    r"""Scalar functions with $\alpha \le (\phi(a) - \phi(b)) / (a - b) \le \beta$, neuron by neuron.

    Attributes:
        alpha, beta: shape (neurons,), float64.
    Source: Fazlyab, Robey, Hassani, Morari, Pappas, LipSDP (2019), definition 1.
    """

    alpha: np.ndarray
    beta: np.ndarray

    @property
    def lipschitz(self) -> float:
        """The largest |slope| over all neurons."""
        return float(max(np.abs(self.alpha).max(initial=0.0), np.abs(self.beta).max(initial=0.0)))


class GroupRestricted(ABC):
    r"""Functions of groups of n neurons that pass $\Pi x$ through and shrink what is left.

    $\Pi \Delta\phi = \Pi \Delta x$ and $|\Delta\phi| \le |\Delta x|$, so that the complement coordinates
    $v = R_c \Delta\phi$ obey $|v| \le |R_c \Delta x|$. The published quadratic constraints, with
    $T = \lambda I + \gamma J$, $P = \nu J$, $S = \tau J$ and $\gamma, \nu, \tau$ free, equal this one multiplier
    per group after elimination.

    Attributes:
        linf: the l-infinity constant, None without a rule.
    Source: Pauli, Havens, Araujo, et al., Novel quadratic constraints for extending LipSDP (2024), section 3.
    """

    linf: float | None

    @property
    def counts(self) -> tuple[int, int]:
        """Number of groups, and of coordinates v of each."""
        groups, r, _ = self.complement.shape
        return groups, r

    @property
    @abstractmethod
    def complement(self) -> np.ndarray:
        """R_c, orthonormal rows, shape (groups, r, n)."""

    @property
    @abstractmethod
    def preserved(self) -> np.ndarray:
        r"""J with $J \Delta\phi = J \Delta x$ of the published form, shape (groups, n, n)."""

    def through(self, rows: Matrix) -> Matrix:
        r"""Return $\Pi Y = Y - R_c' R_c Y$ group by group; `rows` is (groups n, N)."""
        rows = dense(rows)
        return rows - self.lift(self.reduce(rows))

    def reduce(self, rows: Matrix) -> np.ndarray:
        """Return $R_c Y$, (groups r, N)."""
        basis = self.complement
        groups, r, n = basis.shape
        return (basis @ dense(rows).reshape(groups, n, -1)).reshape(groups * r, -1)

    def lift(self, rows: np.ndarray) -> np.ndarray:
        """Return $R_c' v$, (groups n, N)."""
        basis = self.complement
        groups, r, n = basis.shape
        return (basis.swapaxes(1, 2) @ rows.reshape(groups, r, -1)).reshape(groups * n, -1)


def _helmert(n: int) -> np.ndarray:
    """Return orthonormal rows of sum 0: row j has 1/sqrt(j (j + 1)) in its first j places and -j times that after."""
    rows = np.tril(np.ones((n - 1, n))) - np.diag(np.arange(1.0, n), 1)[: n - 1]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@dataclass(frozen=True)
class GroupSortConstraint(GroupRestricted):
    r"""Sorted runs of `group_size` neurons: $\Pi = 11'/n$, $J = 11'$; MaxMin is group_size 2."""

    group_size: int
    groups: int
    linf: float | None = 1.0

    @property
    def complement(self) -> np.ndarray:
        n = self.group_size
        return np.broadcast_to(_helmert(n), (self.groups, n - 1, n))

    @property
    def preserved(self) -> np.ndarray:
        n = self.group_size
        return np.ones((self.groups, n, n))


@dataclass(frozen=True, eq=False)
class HouseholderConstraint(GroupRestricted):
    r"""Reflected groups: $\Pi = J = I - ww'/(w'w)$. Attributes: directions: w, (groups, n)."""

    directions: np.ndarray
    linf: float | None = None

    @property
    def complement(self) -> np.ndarray:
        return (self.directions / np.linalg.norm(self.directions, axis=1, keepdims=True))[:, None, :]

    @property
    def preserved(self) -> np.ndarray:
        w = self.complement
        return np.eye(w.shape[2]) - w.swapaxes(1, 2) @ w


@dataclass(frozen=True, eq=False)
class WindowMaximum:
    r"""Maxima of windows of entries, which may overlap.

    An increment of a maximum is a convex combination $p' \Delta x$ of those in its window, of n entries; as
    $|p - 1/n|^2 \le 1 - 1/n$, it is their mean and a remainder v with $|v| \le \sqrt{1 - 1/n} |c \Delta x|$,
    $c = I - 11'/n$. To have one coordinate per row, v gets n - 2 companions that nothing depends on.

    Attributes:
        windows: (maxima, n), positions of entries; -1 is none.
        width: number of entries.
    """

    windows: np.ndarray
    width: int

    @property
    def counts(self) -> tuple[int, int]:
        """Number of maxima, and of coordinates of each."""
        return len(self.windows), max(self.windows.shape[1] - 1, 1)

    @property
    def lipschitz(self) -> float:
        """The l2 constant: the root of the number of windows that an entry belongs to."""
        return float(np.sqrt(np.bincount(self.windows[self.windows >= 0]).max()))

    def through(self, rows: Matrix) -> Matrix:
        """Return the mean of every window, (maxima, N)."""
        inside = self.windows >= 0
        places = np.broadcast_to(np.arange(len(inside))[:, None], inside.shape)[inside]
        each = 1 / inside.sum(axis=1)
        means = scipy.sparse.coo_array(
            (each[places], (places, self.windows[inside])), (len(inside), self.width)
        )
        return scipy.sparse.csr_array(means) @ rows

    def reduce(self, rows: Matrix) -> np.ndarray:
        r"""Return $\sqrt{1 - 1/n} R_c Y$ of every window, R_c orthonormal rows of the range of c."""
        maxima, r = self.counts
        sizes = (self.windows >= 0).sum(axis=1)
        order = np.argsort(self.windows < 0, axis=1, kind="stable")
        entries = np.take_along_axis(self.windows, order, axis=1)  # those that count first
        basis = np.zeros((maxima, r, entries.shape[1]))
        for size in np.unique(sizes[sizes > 1]):
            basis[sizes == size, : size - 1, :size] = np.sqrt(1 - 1 / size) * _helmert(int(size))
        places = np.broadcast_to(np.arange(maxima * r).reshape(maxima, r, 1), basis.shape)
        taken = np.broadcast_to(entries[:, None, :], basis.shape)
        used = basis != 0
        matrix = scipy.sparse.coo_array((basis[used], (places[used], taken[used])), (maxima * r, self.width))
        return dense(scipy.sparse.csr_array(matrix) @ rows)

    def lift(self, rows: Matrix) -> Matrix:
        """Return v itself of every maximum, the first of its coordinates."""
        return rows[:: self.counts[1]]


Constraint = SlopeRestricted | GroupRestricted | WindowMaximum

_FIXED: dict[type[Operation], tuple[float, float]] = {
    ReLU: (0.0, 1.0),
    Tanh: (0.0, 1.0),
    Clip: (0.0, 1.0),
    Sigmoid: (0.0, 0.25),
    SiLU: (-0.09984, 1.09984),
    Absolute: (-1.0, 1.0),
}
_POINTWISE = {
    "atan": (0.0, 1.0),
    "softsign": (0.0, 1.0),
    "log_sigmoid": (0.0, 1.0),
    "erf": (0.0, 1.12838),
    "hardsigmoid": (0.0, 0.16666668),  # torch takes 1/6 in single precision
    "hardswish": (-0.5000001, 1.5000001),
    "mish": (-0.11253, 1.0885),
    "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
    # over a region only: `refuse_unbounded_slopes`
    "square": (-np.inf, np.inf),
    "exp": (0.0, np.inf),
    "expm1": (0.0, np.inf),
}
_GELU = {"none": (-0.12891, 1.12891), "tanh": (-0.129, 1.129)}


def constraint_of(operation: Operation, weights: Mapping[str, Tensor], width: int, place: str) -> Constraint:
    """Return the constraint an activation obeys for all inputs.

    Args:
        weights: role -> tensor of the operation's parameters.
        width: number of neurons it acts on.
        place: node name, for the message.
    Raises:
        UnsupportedOperationError: the operation has no global Lipschitz constant, or none the library knows.
    """
    match operation:
        case GroupSort():
            return GroupSortConstraint(operation.group_size, width // operation.group_size)
        case Householder():
            directions = weights["weight"].double().numpy()
            largest = np.abs(directions).max(axis=1, keepdims=True)
            if not largest.all():
                raise UnsupportedOperationError(f"Householder at node {place!r} has a direction that is zero")
            return HouseholderConstraint(directions / largest)
        case Implicit():
            slope = (
                {"negative_slope": operation.negative_slope} if operation.activation == "LeakyReLU" else {}
            )
            attributes: dict[str, object] = {
                "kind": operation.activation,
                "attributes": slope,
                "parameters": {},
            }
            return constraint_of(operation_from_json(attributes), {}, width, place)
        case LeakyReLU():
            return _slopes(
                np.minimum(operation.negative_slope, 1.0), np.maximum(operation.negative_slope, 1.0), width
            )
        case PReLU():
            slope = weights["weight"].double().numpy()
            return _slopes(np.minimum(slope, 1.0), np.maximum(slope, 1.0), width)
        case GELU():
            return _slopes(*_GELU[operation.approximate], width)
        case ELU() if operation.input_scale > 0:
            # the derivative left of 0 lies between 0 and this; widened for the two roundings
            left = operation.scale * operation.alpha * operation.input_scale * (1 + 2.0**-50)
            return _slopes(min(0.0, operation.scale, left), max(0.0, operation.scale, left), width)
        case Softplus() if operation.beta > 0 and operation.threshold >= 20:
            return _slopes(0.0, 1.0, width)
        case Softplus():
            raise UnsupportedOperationError(
                f"Softplus at node {place!r} (beta {operation.beta}, threshold {operation.threshold}) jumps at its "
                "threshold and has no useful Lipschitz bound; use beta > 0 and the default threshold 20"
            )
        case Pointwise() if operation.name in _POINTWISE:
            return _slopes(*_POINTWISE[operation.name], width)
        case _ if type(operation) in _FIXED:
            return _slopes(*_FIXED[type(operation)], width)
    name = operation.name if isinstance(operation, Pointwise) else operation.kind
    raise UnsupportedOperationError(
        f"{name} at node {place!r} has no global Lipschitz bound that this version knows; certify the network "
        "without it (for a final softmax: its logits), or use an activation with bounded slopes"
    )


def _slopes(low: float | np.ndarray, high: float | np.ndarray, width: int) -> SlopeRestricted:
    return SlopeRestricted(np.full(width, low, dtype=np.float64), np.full(width, high, dtype=np.float64))
