"""Normalizations, in inference mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from weightspace.operations.base import Operation, parameter


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Operation):
    """(x - running_mean) / sqrt(running_var + epsilon) * weight + bias along axis 1: affine in inference."""

    running_mean: str = parameter()
    running_var: str = parameter()
    weight: str | None = parameter(optional=True)
    bias: str | None = parameter(optional=True)
    epsilon: float = 1e-5

    def evaluate(self, inputs, weights):
        return F.batch_norm(
            inputs[0],
            weights["running_mean"],
            weights["running_var"],
            weights.get("weight"),
            weights.get("bias"),
            False,
            0.0,
            self.epsilon,
        )


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Operation):
    """Center and scale the trailing axes `normalized_shape` to mean 0, variance 1; then the affine part."""

    weight: str | None = parameter(optional=True)
    bias: str | None = parameter(optional=True)
    normalized_shape: tuple[int, ...]
    epsilon: float = 1e-5

    def evaluate(self, inputs, weights):
        return F.layer_norm(
            inputs[0], self.normalized_shape, weights.get("weight"), weights.get("bias"), self.epsilon
        )


@dataclass(frozen=True, kw_only=True)
class RMSNorm(Operation):
    """x / sqrt(mean(x^2) + epsilon) * weight over the trailing axes; epsilon None is the dtype's own."""

    weight: str | None = parameter(optional=True)
    normalized_shape: tuple[int, ...]
    epsilon: float | None = None

    def evaluate(self, inputs, weights):
        return F.rms_norm(inputs[0], self.normalized_shape, weights.get("weight"), self.epsilon)


@dataclass(frozen=True, kw_only=True)
class GroupNorm(Operation):
    """Normalize each of `groups` runs of channels (axis 1) over channels and space; InstanceNorm is groups = C."""

    weight: str | None = parameter(optional=True)
    bias: str | None = parameter(optional=True)
    groups: int
    epsilon: float = 1e-5

    def evaluate(self, inputs, weights):
        return F.group_norm(inputs[0], self.groups, weights.get("weight"), weights.get("bias"), self.epsilon)
