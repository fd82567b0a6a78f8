"""ECLipsE-Fast: multipliers from a recursion, no solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from certify.bounders.base import Bounder, Proposal
from certify.lmi import Chain, SlopeChain
from certify.preparation import Prepared, normalize, prepare
from certify.recursion import backward_fast, eclipse_fast, tighten
from weightspace.errors import UnsupportedOperationError


@dataclass(frozen=True)
class ClosedForm(Bounder):
    """Bound by the best of ECLipsE-Fast, with and without balanced neurons, and a backward recursion.

    Never above the product of norms, in O(L n^3). Scalar activations, l2.
    Source: Xu, Sivaranjani, ECLipsE (2024), ECLipsE-Fast; the backward recursion for any slopes is added.
    """

    def propose(self, chain: Chain, norm: str) -> Proposal | None:
        if norm != "l2":
            raise UnsupportedOperationError(
                f"ClosedForm bounds the l2 norm, not {norm}; use bounder=NormProduct()"
            )
        scaled, exponents = normalize(chain.require_slopes("ClosedForm"))
        found = closed_form(scaled)
        if found is None:
            return None
        return Proposal("closed form (ECLipsE-Fast)", *to_stored_units(*found, exponents))


def start(prepared: Prepared) -> tuple[float, list[float]] | None:
    """Return (rho, one multiplier per layer) of a prepared chain, the best of the recursions; None if all fail."""
    chain, best = prepared.chain, None
    for values in (eclipse_fast(chain), backward_fast(chain)):
        if values is None:
            continue
        for factor in (1.0, 1 + 1e-9, 1 + 1e-6):  # the recursion ends on the boundary of the feasible set
            scaled = [factor * value for value in values]
            rho = tighten(chain, [np.full(n, v) for n, v in zip(chain.widths[1:], scaled, strict=True)])
            if math.isfinite(rho) and rho > 0 and (best is None or rho < best[0]):
                best = rho, scaled
    return best


def closed_form(scaled: SlopeChain) -> tuple[float, list[np.ndarray]] | None:
    """Return (rho, multipliers) of a normalized chain."""
    best = None
    for balance in (False, True):
        prepared = prepare(scaled, balance=balance)
        if is_constant(prepared.chain):
            return 0.0, [np.zeros(n) for n in scaled.widths[1:]]
        found = start(prepared)
        if found is None:
            continue
        each = [np.full(n, v) for n, v in zip(prepared.chain.widths[1:], found[1], strict=True)]
        rho = found[0] * prepared.bound_factor**2
        if best is None or rho < best[0]:
            best = rho, prepared.restore(each)
    return best


def is_constant(chain: SlopeChain) -> bool:
    """True where a matrix of a pruned chain is empty or zero: the function is constant."""
    return any(weight.size == 0 or not weight.any() for weight in chain.weights)


def to_stored_units(
    rho: float, multipliers: list[np.ndarray], exponents: list[int]
) -> tuple[tuple[np.ndarray, ...], float]:
    """Undo `normalize`: exact, or 0 or infinite out of range (which the check then refuses)."""
    total, passed, result = sum(exponents), 0, []
    with np.errstate(over="ignore", under="ignore"):
        for values, exponent in zip(multipliers, exponents, strict=False):
            passed += exponent
            result.append(np.ldexp(values, 2 * (total - passed)))
        return tuple(result), float(np.ldexp(rho, 2 * total))
