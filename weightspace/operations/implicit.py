"""A layer whose output is the solution of an equation."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.equilibrium import implicit
from weightspace.fixed_point import IMPLICIT_ACTIVATIONS
from weightspace.operations.base import Operation, parameter


@dataclass(frozen=True, kw_only=True)
class Implicit(Operation):
    """z = phi(W z + U x + b), z (..., n) from x (..., m); see `layers.implicit`.

    `weight` is W (n, n), `input_weight` U (n, m), `bias` b (n,) or None. `activation` is the kind of phi, one of
    "ReLU", "LeakyReLU", "Tanh", "Sigmoid", "Absolute"; `negative_slope` counts for LeakyReLU only.
    """

    weight: str = parameter()
    input_weight: str = parameter()
    bias: str | None = parameter(optional=True)
    activation: str = "ReLU"
    negative_slope: float = 0.01

    def __post_init__(self):
        if self.activation not in IMPLICIT_ACTIVATIONS:
            raise TypeError(f"Implicit knows {', '.join(IMPLICIT_ACTIVATIONS)}, not {self.activation!r}")

    def evaluate(self, inputs, weights):
        return implicit(
            inputs[0], weights["weight"], weights["input_weight"], weights.get("bias"),
            activation=self.activation, negative_slope=self.negative_slope,
        )  # fmt: skip
