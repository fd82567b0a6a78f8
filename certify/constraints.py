"""What is known of a nonlinearity between two inputs: the constraints a bound may use.

Slopes enclose every difference quotient; each was verified numerically on [-60, 60] and rounded outward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from weightspace.errors import UnsupportedOperationError
from weightspace.operations import (
    ELU,
    GELU,
    Absolute,
    Clip,
    GroupSort,
    Householder,
    LeakyReLU,
    Operation,
    Pointwise,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
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
        return float(max(np.abs(self.alpha).max(), np.abs(self.beta).max()))


@dataclass(frozen=True)
class GroupRestricted:
    """Functions of groups of neurons that are 1-Lipschitz in l2.

    `linf` is their l-infinity constant, None without a rule.

    Source: Pauli, Havens, Araujo, et al., Novel quadratic constraints for extending LipSDP (2024), section 3.
    """

    group_size: int
    linf: float | None


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
}
_GELU = {"none": (-0.12891, 1.12891), "tanh": (-0.129, 1.129)}


def constraint_of(
    operation: Operation, weights: Mapping[str, Tensor], width: int, place: str
) -> SlopeRestricted | GroupRestricted:
    """Return the constraint an activation obeys for all inputs.

    Args:
        weights: role -> tensor of the operation's parameters.
        width: number of neurons it acts on (last axis).
        place: node name, for the message.
    Raises:
        UnsupportedOperationError: the operation has no global Lipschitz constant, or none the library knows.
    """
    match operation:
        case GroupSort():
            return GroupRestricted(operation.group_size, 1.0)
        case Householder():
            return GroupRestricted(weights["weight"].shape[-1], None)
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
