"""The same programs through cvxpy, with whatever its solver returns repaired."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from certify.structured.interior_point import Solution
from certify.structured.program import Program
from weightspace.errors import MissingDependencyError

# each stricter one is tried only while the repaired bound stays apart from the dual bound
_SETTINGS: dict[str, list[dict[str, Any]]] = {
    "CLARABEL": [{}, {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}],
    "SCS": [
        {"eps": 1e-5, "max_iters": 20_000, "time_limit_secs": 60.0},
        {"eps": 1e-6, "max_iters": 20_000, "time_limit_secs": 60.0},
        {"eps": 1e-8, "max_iters": 100_000, "time_limit_secs": 120.0},
    ],
}
_GAP = 1e-5  # of rho and its dual bound, relative
_BLENDS = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3)


def solve_generic(program: Program, solver: str) -> tuple[Solution | None, str]:
    """Solve by a solver of cvxpy; returns the repaired solution and a note for the user.

    Only multipliers are taken from the solver. Where they admit no rho, they are blended with the start's, or, where
    no feasible start is known, enlarged.
    Raises:
        MissingDependencyError: cvxpy finds no such solver.
    """
    import cvxpy

    if solver not in cvxpy.installed_solvers():
        raise MissingDependencyError(
            f"cvxpy finds no solver {solver!r}; use 'structured' or one of "
            f"{', '.join(sorted(cvxpy.installed_solvers()))}"
        )
    inequality = program.inequality
    size = inequality.size
    linear: Any = inequality.affine_map()
    unknowns: Any = cvxpy.Variable(linear.shape[1], nonneg=True)
    flat = linear @ unknowns + inequality.constant.reshape(-1)
    constraint = cvxpy.reshape(flat, (size, size), order="C") >> 0
    problem: Any = cvxpy.Problem(cvxpy.Minimize(unknowns[0]), [constraint])
    start = program.start() if program.shift == 0 else None
    best, lower, used, rounded = None, 0.0, 0.0, True
    for settings in _SETTINGS.get(solver, [{}]):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Solution may be inaccurate")
                warnings.filterwarnings("ignore", message="Converting A to a CSC")
                problem.solve(solver=solver, warm_start=True, **settings)
        except (cvxpy.SolverError, ArithmeticError):
            continue
        answer: Any = unknowns.value
        dual: Any = constraint.dual_value
        if answer is None or not np.isfinite(answer).all():
            continue
        x = np.concatenate([[0.0], np.maximum(np.asarray(answer, dtype=np.float64)[1:], 0.0)])
        for blend in _BLENDS:
            mixed = (1 + blend) * x if start is None else (1 - blend) * x + blend * start
            mixed[0] = program.tighten(mixed)
            if math.isfinite(mixed[0]) and (best is None or mixed[0] < best[0]):
                best, used = mixed, blend
        if dual is not None and np.isfinite(dual).all():
            found = program.lower_bound(_projected(np.asarray(dual)))
            rounded = found is not None
            lower = max(lower, found or 0.0)
        if best is not None and best[0] <= (1 + _GAP) * lower:
            break
    if start is not None and (best is None or not best[0] <= program.tighten(start)):
        best, used = np.concatenate([[program.tighten(start)], start[1:]]), 1.0
    if best is None:
        return None, ""
    note = f", its multipliers moved by {used:.0e} into the feasible set" if used > 1e-7 else ""
    return Solution(best, lower, rounded, 0, best[0] <= (1 + _GAP) * lower), note


def _projected(dual: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((dual + dual.T) / 2)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T
