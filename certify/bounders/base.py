"""What every bounder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from certify.certificate import Proof
from certify.signals import System


@dataclass(frozen=True, eq=False)
class Proposal:
    r"""What a bounder offers as proof; it counts only once the rigorous check accepts it.

    Attributes:
        method: which algorithm with which settings, and why.
        proofs: $\rho$ and multipliers of every matrix inequality, one per segment of a chain that is cut, one per
            output row in the l-infinity norm, else one; empty for a product of norms.
        layer_norms: an upper bound of each matrix's norm, or None.
        optimum_lower_bound: no multipliers give a bound below it; None where unknown.
        cuts: after which nonlinearities (from 1) the chain is cut.
    """

    method: str
    proofs: tuple[Proof, ...] = ()
    layer_norms: tuple[float, ...] | None = None
    optimum_lower_bound: float | None = None
    cuts: tuple[int, ...] = ()


class Bounder(ABC):
    """A way to bound the Lipschitz constant of a system from above; subclasses are final frozen dataclasses.

    The law: whatever `propose` returns is only a proposal. `certify.lipschitz` enlarges rho by 1e-7 (more where
    rounding asks for it) and lets `certify/checker.py`, which shares no code with the bounders, prove it; a
    proposal that is wrong ends in a looser bound or in none, never in one below the Lipschitz constant.
    """

    @abstractmethod
    def propose(self, system: System, norm: str) -> Proposal | None:
        """Return a proof for `system` in `norm` ("l2" or "linf"), or None where the algorithm found none.

        Raises:
            UnsupportedOperationError: the system or the norm is outside the algorithm's reach.
        """
