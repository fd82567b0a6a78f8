"""Gradient-norm-preserving nonlinearities on groups of channels."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.layers import group_sort, householder
from weightspace.operations.base import Operation, parameter


@dataclass(frozen=True, kw_only=True)
class GroupSort(Operation):
    """Sort each run of `group_size` channels ascending along `axis`; group_size 2 is MaxMin."""

    group_size: int = 2
    axis: int = 1

    def evaluate(self, inputs, weights):
        return group_sort(inputs[0], self.group_size, self.axis)


@dataclass(frozen=True, kw_only=True)
class Householder(Operation):
    """Reflect each run of n channels at the hyperplane of its w when w'x > 0... see `layers.householder`.

    `weight` is (channels / n, n), one direction per group, normalized when evaluated.
    """

    weight: str = parameter()
    axis: int = 1

    def evaluate(self, inputs, weights):
        return householder(inputs[0], weights["weight"], self.axis)
