"""The product of the layers' norms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from certify import checker
from certify.bounders.base import Bounder, Proposal
from certify.checking import network_arrays
from certify.constraints import GroupRestricted
from certify.signals import System
from weightspace.errors import UnsupportedOperationError


@dataclass(frozen=True)
class NormProduct(Bounder):
    r"""Bound by $\prod_k \|W_k\| \prod_k c_k$, c the activations' own constants.

    l2: spectral norms, each proven by a Cholesky factorization of $s^2 I - W'W$; l-infinity: largest absolute row
    sums. Sums of values add their bounds. Loose, but it applies to all but implicit networks (Householder: l2 only).
    """

    def propose(self, system: System, norm: str) -> Proposal | None:
        for layer in system.layers:
            constraint = layer.constraint
            if layer.operation.kind == "Implicit":
                raise UnsupportedOperationError(
                    f"Implicit at node {layer.name!r} has no product of norms; use bounder=LipSDP()"
                )
            if norm == "linf" and isinstance(constraint, GroupRestricted) and constraint.linf is None:
                raise UnsupportedOperationError(
                    f"Householder at node {layer.name!r} has no rule in the l-infinity norm; use bounder=LipSDP()"
                )
        model = checker.rebuild(*network_arrays(system.network))
        matrices = [matrix for _, matrix in model.linears]
        if system.selection is not None and matrices:
            matrices[-1] = checker.select_rows(matrices[-1], system.selection)
        bound = _spectral_norm if norm == "l2" else checker.row_sum_bound
        return Proposal("product of layer norms", layer_norms=tuple(bound(matrix) for matrix in matrices))


def _spectral_norm(weight: np.ndarray) -> float:
    """Return the computed spectral norm, enlarged by far more than its rounding; the check proves it."""
    largest = float(np.abs(weight).max(initial=0.0))
    if largest == 0:
        return 0.0
    return float(np.linalg.norm(weight / largest, 2)) * largest * (1 + 1e-9)
