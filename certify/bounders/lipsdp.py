"""LipSDP through cvxpy: the best multipliers of the matrix inequality."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.bounders.base import Bounder, Proposal
from certify.bounders.closed_form import is_constant, start, to_stored_units
from certify.lmi import Chain, SlopeChain
from certify.preparation import normalize, prepare, rescale
from certify.recursion import tighten
from certify.rounding import round_dual
from weightspace.errors import MissingDependencyError, UnsupportedOperationError

# each stricter one is tried only while the repaired bound stays apart from the dual bound
_SETTINGS: dict[str, list[dict[str, Any]]] = {
    "CLARABEL": [{}, {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}],
    "SCS": [
        {"eps": 1e-5, "max_iters": 20_000, "time_limit_secs": 60.0},
        {"eps": 1e-6, "max_iters": 20_000, "time_limit_secs": 60.0},
        {"eps": 1e-8, "max_iters": 100_000, "time_limit_secs": 120.0},
    ],
}
_GAP = 1e-5  # of bound and dual bound, relative
_BLENDS = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class LipSDP(Bounder):
    """Bound by semidefinite programming with any solver that cvxpy finds.

    The solver's own value is never used: SCS calls values "optimal" that are below the optimum. Only its
    multipliers are kept, rho is computed from them, and where they allow none they are blended with those
    of the closed form, which is strictly feasible.

    Attributes:
        solver: "CLARABEL" (accurate, up to about 60 neurons and inputs), "SCS" (larger) or another SDP solver.
        multipliers: "neuron", one each, or "layer", one per layer: smaller and looser.
    Raises:
        UnsupportedOperationError: unknown settings, when made.
    Source: Fazlyab, Robey, Hassani, Morari, Pappas, LipSDP (2019). Its unsound Network variant is not offered.
    """

    solver: str = "CLARABEL"
    multipliers: str = "neuron"

    def __post_init__(self):
        if self.solver == "structured":
            raise UnsupportedOperationError(
                "solver='structured' is not available in this version; use solver='CLARABEL' or, above about 60 "
                "neurons and inputs, solver='SCS'"
            )
        if self.multipliers not in ("neuron", "layer"):
            raise UnsupportedOperationError(
                f"multipliers={self.multipliers!r} is not 'neuron' or 'layer' (LipSDP-Network is unsound)"
            )

    def propose(self, chain: Chain, norm: str) -> Proposal | None:
        if norm != "l2":
            raise UnsupportedOperationError(
                f"LipSDP bounds the l2 norm, not {norm}; use bounder=NormProduct()"
            )
        scaled, exponents = normalize(chain.require_slopes("LipSDP"))
        method = f"LipSDP with one multiplier per {self.multipliers}, solved by {self.solver}"
        prepared = prepare(scaled, balance=self.multipliers == "neuron")
        if is_constant(prepared.chain):
            zeros = [np.zeros(n) for n in scaled.widths[1:]]
            return Proposal(
                f"{method}: the function is constant", *to_stored_units(0.0, zeros, exponents), None, 0.0
            )
        first = start(prepared)
        if first is None:
            return None
        if not scaled.alpha:  # one matrix: its norm, nothing to solve
            exact = tighten(scaled, [])
            lower = float(np.ldexp(math.sqrt(exact) * (1 - 1e-9), sum(exponents)))
            return Proposal(f"{method}: one matrix", *to_stored_units(exact, [], exponents), None, lower)
        prepared = rescale(prepared, first[1], first[0])
        if not all(np.isfinite(weight).all() for weight in prepared.chain.weights):
            return None
        multipliers, rho, lower, blend = self._solve(prepared.chain)
        factor = float(np.ldexp(prepared.bound_factor, sum(exponents)))
        if blend > 1e-7:
            method += f", its multipliers blended with {blend:.0e} of the closed form's"
        restored = prepared.restore(multipliers)
        rho = min(tighten(scaled, restored), rho * prepared.bound_factor**2 * (1 + 1e-6))
        return Proposal(method, *to_stored_units(rho, restored, exponents), None, lower * factor)

    def _solve(self, chain: SlopeChain) -> tuple[list[np.ndarray], float, float, float]:
        """Return (multipliers, rho, lower bound, share of the closed form), the closed form being (1, 1)."""
        best: tuple[float, list[np.ndarray], float] = (math.inf, [], 1.0)
        lower = 0.0
        for values, dual in _answers(chain, self.solver, self.multipliers):
            lower = max(lower, round_dual(chain, dual, shared=self.multipliers == "layer"))
            for blend in _BLENDS:
                mixed = [(1 - blend) * value + blend * 1.05 for value in values]
                rho = tighten(chain, mixed)
                if rho < best[0]:
                    best = rho, mixed, blend
            if best[0] < (1 + _GAP) ** 2 * lower**2:
                break
        ones = [np.full(n, 1 + 1e-6) for n in chain.widths[1:]]
        rho = tighten(chain, ones)
        if not best[0] <= rho:
            best = rho, ones, 1.0
        return best[1], best[0], lower, best[2]


def _answers(
    chain: SlopeChain, solver: str, multipliers: str
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Solve min rho s.t. M >= 0 as one sparse affine map, more and more strictly, each from the last answer.

    Yields (multipliers, dual matrix) for every answer that has finite numbers.
    """
    import cvxpy

    if solver not in cvxpy.installed_solvers():
        raise MissingDependencyError(
            f"cvxpy finds no solver {solver!r}; installed are {', '.join(sorted(cvxpy.installed_solvers()))}"
        )
    size = int(chain.offsets[-1])
    linear: Any = chain.affine_map(multipliers)
    unknowns: Any = cvxpy.Variable(linear.shape[1], nonneg=True)
    flat = linear @ unknowns + chain.constant_matrix().reshape(-1)
    constraint = cvxpy.reshape(flat, (size, size), order="C") >> 0
    problem: Any = cvxpy.Problem(cvxpy.Minimize(unknowns[0]), [constraint])
    for settings in _SETTINGS.get(solver, [{}]):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Solution may be inaccurate")
                warnings.filterwarnings("ignore", message="Converting A to a CSC")
                problem.solve(solver=solver, warm_start=True, **settings)
        except cvxpy.SolverError:
            continue
        answer: Any = unknowns.value
        dual: Any = constraint.dual_value
        if answer is None or dual is None or not (np.isfinite(answer).all() and np.isfinite(dual).all()):
            continue
        values = np.maximum(np.asarray(answer, dtype=np.float64)[1:], 0.0)
        widths = chain.widths[1:]
        if multipliers == "layer":
            each = [np.full(n, value) for n, value in zip(widths, values, strict=True)]
        else:
            each = list(np.split(values, np.cumsum(widths)[:-1]))
        yield each, np.asarray(dual)
