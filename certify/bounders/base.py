"""What every bounder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from certify.lmi import Chain


@dataclass(frozen=True, eq=False)
class Proposal:
    r"""What a bounder offers as proof; it counts only once the rigorous check accepts it.

    Attributes:
        method: which algorithm with which settings, and why.
        multipliers, rho: $\lambda_k$ (n_k,) per hidden layer and rho of the matrix inequality, or None.
        layer_norms: an upper bound of each matrix's norm, or None.
        optimum_lower_bound: no multipliers give a bound below it; None where unknown.
    """

    method: str
    multipliers: tuple[np.ndarray, ...] | None = None
    rho: float | None = None
    layer_norms: tuple[float, ...] | None = None
    optimum_lower_bound: float | None = None


class Bounder(ABC):
    """A way to bound the Lipschitz constant of a chain from above; subclasses are final frozen dataclasses.

    The law: whatever `propose` returns is only a proposal. `certify.lipschitz` enlarges rho by 1e-7 (more where
    rounding asks for it) and lets `certify/checker.py`, which shares no code with the bounders, prove it; a
    proposal that is wrong ends in a looser bound or in none, never in one below the Lipschitz constant.
    """

    @abstractmethod
    def propose(self, chain: Chain, norm: str) -> Proposal | None:
        """Return a proof for `chain` in `norm` ("l2" or "linf"), or None where the algorithm found none.

        Raises:
            UnsupportedOperationError: the chain or the norm is outside the algorithm's reach.
        """
