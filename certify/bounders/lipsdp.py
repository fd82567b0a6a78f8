"""LipSDP: the best multipliers of the matrix inequality, by our own solver or any that cvxpy finds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from certify.bounders.base import Bounder, Proposal
from certify.bounders.closed_form import closed_form, proof, to_stored_units
from certify.bounders.generic_solvers import solve_generic
from certify.certificate import Proof
from certify.constraints import SlopeRestricted
from certify.lmi import SlopeChain, chain_of, inequality_of
from certify.preparation import is_constant, normalize, prepare, rescale_to_start
from certify.recursion import tighten
from certify.signals import System
from certify.structured.chain_program import chain_program
from certify.structured.dense_program import DenseProgram
from certify.structured.interior_point import Solution, minimize
from certify.structured.program import Program
from certify.structured.scaling import scale
from weightspace.errors import UnsupportedOperationError


@dataclass(frozen=True)
class LipSDP(Bounder):
    r"""Bound by semidefinite programming, in the l2 norm or from l-infinity to the absolute value of outputs.

    Any network that `certify.signals` follows: feedforward, residual, implicit; scalar and group activations.
    In the l-infinity norm one program per output row is solved, and the largest bound counts.

    Args:
        solver: "structured", our own primal-dual method, or a solver that cvxpy finds ("CLARABEL", "SCS", "CVXOPT",
            "SDPA", ...), whose value is never used: SCS calls values "optimal" that are below the optimum. Only its
            multipliers are kept, rho is computed from them, and where they allow none they are blended with
            feasible ones.
        multipliers: "neuron" (one per neuron or group) or "layer" (one per nonlinearity; looser).
        tolerance: relative gap of rho at which the structured solver stops.
        cuts: after which nonlinearities (1 is the first) a chain is cut into parts whose constants multiply;
            looser, for chains too large to be solved whole.
    Raises:
        UnsupportedOperationError: unknown settings, when made.
    Source: Fazlyab, Robey, Hassani, Morari, Pappas, LipSDP (2019), whose Network variant is unsound and not offered;
    Pauli, Havens, Araujo, et al., Novel quadratic constraints for extending LipSDP (2024), for groups and residual
    networks; `certify.structured` for the method.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> network = load("digits_mlp_a")
        >>> round(certify.lipschitz(network, bounder=certify.LipSDP()).upper_bound, 1)
        24.8
        >>> round(certify.lipschitz(network, bounder=certify.LipSDP(multipliers="layer")).upper_bound, 1)
        26.0
    """

    solver: str = "structured"
    multipliers: str = "neuron"
    tolerance: float = 1e-6
    cuts: tuple[int, ...] = ()

    def __post_init__(self):
        if self.multipliers not in ("neuron", "layer"):
            raise UnsupportedOperationError(
                f"multipliers={self.multipliers!r} is not 'neuron' or 'layer' (LipSDP-Network is unsound)"
            )
        if not 0 < self.tolerance < 1:
            raise UnsupportedOperationError(f"tolerance={self.tolerance!r} is not between 0 and 1")

    @property
    def method(self) -> str:
        return f"LipSDP with one multiplier per {self.multipliers}, {self.solver} solver"

    def propose(self, system: System, norm: str) -> Proposal | None:
        if self.cuts:
            return self._propose_cut(system, norm)
        if norm == "l2":
            return self._propose_one(system, norm)
        if system.selection is not None or system.outputs == 1:
            return self._propose_one(system if system.selection is not None else system.select(0), norm)
        parts = [self._propose_one(system.select(row), norm) for row in range(system.outputs)]
        found = [part for part in parts if part is not None]
        if not found or len(found) < len(parts):
            return None
        lowers = [part.optimum_lower_bound for part in found]
        return Proposal(
            found[0].method,
            tuple(part.proofs[0] for part in found),
            None,
            None if None in lowers else max(value for value in lowers if value is not None),
        )

    def _propose_cut(self, system: System, norm: str) -> Proposal | None:
        count = len(system.layers)
        if norm != "l2" or not system.is_chain or system.moving is not None:
            raise UnsupportedOperationError(
                "cuts apply to feedforward chains of scalar activations in the l2 norm, over all inputs; leave them out"
            )
        if list(self.cuts) != sorted(set(self.cuts)) or not set(self.cuts) <= set(range(1, count + 1)):
            raise UnsupportedOperationError(f"cuts={self.cuts} must ascend from 1 to at most {count}")
        chain, whole = chain_of(system), replace(self, cuts=())
        proofs = []
        for first, last in zip((0, *self.cuts), (*self.cuts, count + 1), strict=True):
            slopes = slice(first, last - 1)
            part = SlopeChain(chain.weights[first:last], chain.alpha[slopes], chain.beta[slopes])
            found = whole._solve_chain(part)
            if found is None:
                return None
            selection = system.selection if last == count + 1 else None
            lists = tuple(tuple(values.tolist()) for values in found[1])
            proofs.append(Proof(found[0], lists, None, selection))
        return Proposal(f"{self.method}, cut after {self.cuts}", tuple(proofs), None, None, self.cuts)

    def _propose_one(self, system: System, norm: str) -> Proposal | None:
        if norm == "l2" and system.is_chain:
            found = self._solve_chain(chain_of(system))
            if found is None:
                return None
            rho, multipliers, lower, note = found
            return Proposal(self.method + note, (proof(rho, multipliers, system),), None, lower)
        return self._solve_any(system, norm)

    def _solve_chain(self, chain: SlopeChain) -> tuple[float, list[np.ndarray], float | None, str] | None:
        """Return (rho, multipliers, lower bound of the Lipschitz bound, note)."""
        scaled, exponents = normalize(chain)
        prepared = prepare(scaled, balance=self.multipliers == "neuron")
        if is_constant(prepared.chain):
            zeros = [np.zeros(n) for n in scaled.widths[1:]]
            return *to_stored_units(0.0, zeros, exponents), 0.0, ": the function is constant"
        if not scaled.alpha:  # one matrix: its norm, nothing to solve
            exact = tighten(scaled, [])
            lower = float(np.ldexp(math.sqrt(exact) * (1 - 1e-9), sum(exponents)))
            return *to_stored_units(exact, [], exponents), lower, ": one matrix"
        prepared = rescale_to_start(prepared)
        if prepared is None:
            return None
        program = chain_program(prepared.chain, self.multipliers)
        solution, note = self._minimize(program)
        if solution is None:
            return None
        factor = float(np.ldexp(prepared.bound_factor, sum(exponents)))
        ends = np.cumsum(prepared.chain.widths[1:])
        restored = prepared.restore(np.split(program.spread(solution.x), ends[:-1]))
        rho = min(tighten(scaled, restored), solution.x[0] * prepared.bound_factor**2)
        if not solution.converged:
            known = closed_form(scaled)
            if known is not None and known[0] < rho:
                rho, restored = known
        lower = math.sqrt(max(solution.lower_bound, 0.0)) * factor
        return *to_stored_units(rho, restored, exponents), lower, note

    def _solve_any(self, system: System, norm: str) -> Proposal | None:
        inequality = inequality_of(system, norm, self.multipliers)
        if not inequality.constant.any():
            zero = proof_of(0.0, np.zeros(inequality.count), system, norm, self.multipliers)
            return Proposal(f"{self.method}: the function is constant", (zero,), None, 0.0)
        scaled = scale(inequality)
        if scaled is None:
            return None
        solution, note = self._minimize(DenseProgram(scaled))
        if solution is None:
            return None
        rho, multipliers = scaled.restore(solution.x)
        lower = max(solution.lower_bound, 0.0) * scaled.start[0]
        if not solution.rounded:
            note += "; the lower bound of the optimum is numerical"
        found = proof_of(rho, multipliers, system, norm, self.multipliers)
        return Proposal(self.method + note, (found,), None, lower if norm == "linf" else math.sqrt(lower))

    def _minimize(self, program: Program) -> tuple[Solution | None, str]:
        if self.solver == "structured":
            solution = minimize(program, tolerance=self.tolerance)
            if solution is None or solution.converged:
                return solution, ""
            return solution, f"; stopped after {solution.iterations} steps"
        return solve_generic(program, self.solver)


def proof_of(rho: float, values: np.ndarray, system: System, norm: str, multipliers: str) -> Proof:
    """Return the proof that gives each nonlinearity its part of the multipliers of an inequality."""
    sizes = [system.widths[0]] if norm == "linf" else []
    for layer in system.layers:
        constraint = layer.constraint
        single = isinstance(constraint, SlopeRestricted)
        sizes.append(len(constraint.alpha) if single else constraint.counts[0])
    if multipliers == "layer":
        parts = [np.full(size, value) for size, value in zip(sizes, values, strict=True)]
    else:
        parts = np.split(values, np.cumsum(sizes)[:-1])
    if norm == "l2":
        return Proof(rho, system.spread(parts), None, system.selection)
    inputs = parts.pop(0)
    if system.moving is not None:
        inputs = np.zeros(len(system.moving))
        inputs[system.moving] = values[: system.widths[0]]
    return Proof(rho, system.spread(parts), tuple(inputs.tolist()), system.selection)


def estimate_cost(system: System, norm: str) -> tuple[float, float]:
    """Estimate seconds and bytes of the structured solver on one core of 2025."""
    hidden = system.widths[1:]
    first = system.widths[0]
    if norm == "l2" and system.is_chain and hidden:
        first = min(first, hidden[0])
        size, width = first + sum(hidden), max(first, *hidden)
    else:
        size = width = first + sum(hidden)
    rows = system.outputs if norm == "linf" else 1
    iterations = 10 + 0.4 * len(hidden)
    return rows * iterations * (24 * size**2 * width + 2 * size**3) / 3e10 + 1e-2, 14 * 8.0 * size**2
