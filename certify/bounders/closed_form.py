"""ECLipsE-Fast: multipliers from a recursion, no solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from certify.bounders.base import Bounder, Proposal
from certify.certificate import Proof
from certify.lmi import SlopeChain, chain_of
from certify.preparation import is_constant, normalize, prepare
from certify.recursion import closed_forms, tighten
from certify.signals import System
from weightspace.errors import UnsupportedOperationError

Point = tuple[float, list[np.ndarray]]  # rho and the multipliers of every nonlinearity


@dataclass(frozen=True)
class ClosedForm(Bounder):
    """Bound by the best of ECLipsE-Fast, with and without balanced neurons, and a backward recursion.

    Never above the product of norms, in O(L n^3), and for a pair of outputs never above sqrt(2) times the bound of all.
    Feedforward chains of scalar activations, l2.
    Source: Xu, Sivaranjani, ECLipsE (2024), ECLipsE-Fast; the backward recursion for any slopes is added.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> round(certify.lipschitz(load("digits_mlp_a"), bounder=certify.ClosedForm()).upper_bound, 1)
        25.1
    """

    def propose(self, system: System, norm: str) -> Proposal | None:
        if norm != "l2":
            raise UnsupportedOperationError(
                f"ClosedForm bounds the l2 norm, not {norm}; use bounder=LipSDP()"
            )
        scaled, exponents = normalize(chain_of(system))
        found = closed_form(scaled)
        if system.whole is not None:
            whole, others = normalize(chain_of(system.whole))
            known = closed_form(whole)
            if known is not None:
                found = better(found, inherit(known, system, sum(others) - sum(exponents)), scaled)
        if found is None:
            return None
        rho, multipliers = to_stored_units(*found, exponents)
        return Proposal("closed form (ECLipsE-Fast)", (proof(rho, multipliers, system),))


def proof(rho: float, multipliers: list[np.ndarray], system: System) -> Proof:
    """Return the proof of one matrix inequality in the l2 norm."""
    return Proof(rho, system.spread(multipliers), None, system.selection)


def closed_form(scaled: SlopeChain) -> Point | None:
    """Return (rho, multipliers) of a normalized chain."""
    best = None
    for balance in (False, True):
        prepared = prepare(scaled, balance=balance)
        if is_constant(prepared.chain):
            return 0.0, [np.zeros(n) for n in scaled.widths[1:]]
        for rho, values in closed_forms(prepared.chain):
            each = [np.full(n, v) for n, v in zip(prepared.chain.widths[1:], values, strict=True)]
            rho *= prepared.bound_factor**2
            if best is None or rho < best[0]:
                best = rho, prepared.restore(each)
    return best


def inherit(found: Point, system: System, exponent: int = 0) -> Point:
    r"""Return a feasible point of a pair (j, k) from one of all outputs: twice it, as $d'd \le 2 W'W$, $d = w_j - w_k$.

    Args:
        system: of the pair; one output takes the point as it is.
        exponent: of the power of 2 by which the normalization of all outputs scales more than that of the pair.
    """
    shift = int(isinstance(system.selection, tuple)) + 2 * exponent
    return float(np.ldexp(found[0], shift)), [np.ldexp(values, shift) for values in found[1]]


def better(best: Point | None, other: Point, scaled: SlopeChain) -> Point | None:
    """Return the point of less rho; that of `other` is first made the least for its multipliers."""
    rho = min(other[0], tighten(scaled, other[1]))
    return (rho, other[1]) if math.isfinite(rho) and (best is None or rho < best[0]) else best


def to_stored_units(
    rho: float, multipliers: list[np.ndarray], exponents: list[int]
) -> tuple[float, list[np.ndarray]]:
    """Undo `normalize`: exact, or 0 or infinite out of range (which the check then refuses)."""
    total, passed, result = sum(exponents), 0, []
    with np.errstate(over="ignore", under="ignore"):
        for values, exponent in zip(multipliers, exponents, strict=False):
            passed += exponent
            result.append(np.ldexp(values, 2 * (total - passed)))
        return float(np.ldexp(rho, 2 * total)), result
