"""The product of the layers' norms."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from certify import checker
from certify.bounders.base import Bounder, Proposal
from certify.checking import network_arrays
from certify.constraints import GroupRestricted
from certify.recursion import spectral_norm
from certify.signals import System
from weightspace.errors import UnsupportedOperationError


@dataclass(frozen=True)
class NormProduct(Bounder):
    r"""Bound by $\prod_k \|W_k\| \prod_k c_k$, c the activations' own constants.

    l2: spectral norms, each proven by a Cholesky factorization of $s^2 I - W'W$, or, of convolutions whose matrix is
    too large for that, bounded from the kernel; l-infinity: largest absolute row sums. Sums of values add their bounds.
    Loose, but it applies to all but implicit networks (Householder: l2 only).

    Args:
        model: the network as the check sees it, where it is known, so that it need not be built again.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> round(certify.lipschitz(load("digits_mlp_a"), bounder=certify.NormProduct()).upper_bound, 1)
        29.1
    """

    model: checker.Model | None = field(default=None, repr=False)

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
        model = self.model or checker.rebuild(*network_arrays(system.network))
        matrices = [matrix for _, matrix in model.linears]
        if system.selection is not None and matrices and not isinstance(matrices[-1], checker.Kernel):
            matrices[-1] = checker.select_rows(matrices[-1], system.selection)
        norms = tuple(_norm(matrix, norm) for matrix in matrices)
        return Proposal("product of layer norms", layer_norms=norms)


def _norm(weight: np.ndarray | checker.Kernel, norm: str) -> float:
    """Return the computed norm of a layer, enlarged by far more than its rounding; the check proves it."""
    if isinstance(weight, checker.Kernel):
        return checker.kernel_norm_bound(weight, norm) * (1 + 1e-9)
    if norm == "linf":
        return checker.row_sum_bound(weight)
    return spectral_norm(weight) * (1 + 1e-9)
