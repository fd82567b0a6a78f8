"""The structured solver against the generic ones that cvxpy reaches, on the same scaled matrix inequality.

    OMP_NUM_THREADS=1 python benchmarks/lipsdp.py [--seeds 5] [--only 2x128] | [--largest]

Every pair (ours, other) runs interleaved in a process of its own, one thread, CPU seconds. Both must reach a bound
rho within 1e-4 of the optimum, verified by the least rho of their multipliers; a generic solver is given the loosest
of its tolerances that does. `--largest` looks for the largest network each solves in 60 s and 2 GB instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings

import numpy as np

NETWORKS = {
    "2x32": [32, 32, 32, 10],
    "10x32": [32, *[32] * 10, 10],
    "2x128": [32, 128, 128, 10],
}
SOLVERS = {
    "CVXOPT": [{"abstol": tol, "reltol": tol, "feastol": tol} for tol in (1e-4, 1e-6, 1e-8)],
    "SDPA": [{"epsilonStar": tol, "epsilonDash": tol, "numThreads": 1} for tol in (1e-4, 1e-6, 1e-8)],
    "CLARABEL": [{"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": tol} for tol in (1e-4, 1e-6, 1e-8)],
    "SCS": [{"eps": tol, "max_iters": 200_000} for tol in (1e-4, 1e-5, 1e-6, 1e-7)],
}
LIMIT = 150  # seconds per pair
GAP = 1e-4


def he(widths: list[int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(b, a)) * np.sqrt(2 / a) for a, b in itertools.pairwise(widths)]


def prepared_chain(widths: list[int], seed: int):
    from certify.lmi import SlopeChain
    from certify.preparation import normalize, prepare, rescale_to_start

    weights = he(widths, seed)
    slopes = [(np.zeros(len(w)), np.ones(len(w))) for w in weights[:-1]]
    chain = SlopeChain(tuple(weights), *(tuple(side) for side in zip(*slopes, strict=True)))
    return rescale_to_start(prepare(normalize(chain)[0], balance=True)).chain


def ours(widths: list[int], seed: int, tolerance: float = GAP) -> tuple[float, float]:
    """Return (CPU seconds with the preparation, rho)."""
    from certify.structured.chain_program import chain_program
    from certify.structured.interior_point import minimize

    started = time.process_time()
    solution = minimize(chain_program(prepared_chain(widths, seed)), tolerance=tolerance)
    assert solution is not None
    assert solution.converged
    return time.process_time() - started, float(solution.x[0])


def generic(widths: list[int], seed: int, solver: str, settings: dict) -> tuple[float, float]:
    """Return (CPU seconds of cvxpy and the solver, least rho of its multipliers)."""
    import cvxpy

    from certify.structured.chain_program import chain_program

    chain = prepared_chain(widths, seed)
    inequality, program = chain.inequality(), chain_program(chain)
    linear, size = inequality.affine_map(), inequality.size
    started = time.process_time()
    unknowns = cvxpy.Variable(linear.shape[1], nonneg=True)
    flat = linear @ unknowns + inequality.constant.reshape(-1)
    problem = cvxpy.Problem(cvxpy.Minimize(unknowns[0]), [cvxpy.reshape(flat, (size, size), order="C") >> 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            problem.solve(solver=solver, **settings)
        except cvxpy.SolverError:
            return time.process_time() - started, float("inf")
    seconds = time.process_time() - started
    if unknowns.value is None:
        return seconds, float("inf")
    best = float("inf")
    start = program.start()
    for blend in (0.0, 1e-7, 1e-6, 1e-5, 3e-5):  # as little of a feasible point as makes the answer feasible
        x = (1 - blend) * np.maximum(unknowns.value, 0.0) + blend * start
        best = min(best, program.tighten(x))
    return seconds, best


def pair(widths: list[int], seed: int, solver: str) -> dict:
    """Run ours and one solver in turn; returns medians and what was reached."""
    optimum = ours(widths, seed, 1e-8)[1]
    mine, others, reached, used = [], [], float("inf"), None
    for settings in SOLVERS[solver]:
        mine.append(ours(widths, seed)[0])
        seconds, rho = generic(widths, seed, solver, settings)
        mine.append(ours(widths, seed)[0])
        reached, used = rho / optimum - 1, settings
        if reached <= GAP:
            others.append(seconds)
            if seconds < 10:  # once more, warm
                others.append(generic(widths, seed, solver, settings)[0])
            break
    other = min(others) if others else None
    our = statistics.median(mine)
    return {
        "ours_s": our,
        "other_s": other,
        "ratio": other and other / our,
        "gap": reached,
        "settings": str(used),
    }


def in_child(arguments: list, limit: float, memory: float | None = None) -> dict | None:
    """Run this file on JSON arguments in a process of its own; None where it ran out of time or memory."""

    def bounded() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))

    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(arguments)],
            capture_output=True, text=True, timeout=limit, preexec_fn=bounded,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def largest(solver: str) -> int:
    """Return the largest n for which 2xn is solved to the gap in 60 s and 2 GB."""
    best = 0
    for n in (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280):
        result = in_child(["solve", [32, n, n, 10], 0, solver], 75, 2e9)
        if result is None or result["seconds"] > 60 or not result["gap"] <= GAP:
            break
        best = n
    return best


def solve(widths: list[int], seed: int, solver: str) -> dict:
    if solver == "structured":
        from certify.structured.chain_program import chain_program
        from certify.structured.interior_point import minimize

        started = time.process_time()
        solution = minimize(chain_program(prepared_chain(widths, seed)), tolerance=GAP)
        assert solution is not None
        return {"seconds": time.process_time() - started, "gap": 1 - solution.lower_bound / solution.x[0]}
    optimum = ours(widths, seed, 1e-6)[1]
    for settings in SOLVERS[solver]:
        seconds, rho = generic(widths, seed, solver, settings)
        if rho / optimum - 1 <= GAP:
            return {"seconds": seconds, "gap": rho / optimum - 1}
    return {"seconds": float("inf"), "gap": float("inf")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--only", choices=NETWORKS, help="measure one network, keep the other rows")
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        what, *rest = json.loads(arguments.child)
        print(json.dumps({"pair": pair, "solve": solve}[what](*rest)))
        return
    import measure

    packages = ("numpy", "scipy", "cvxpy", "clarabel", "scs", "cvxopt", "sdpa-python")
    if arguments.largest:
        sizes = [
            {"network": "2xn", "solver": solver, "largest_n_in_60s_2GB": largest(solver)}
            for solver in ("structured", *SOLVERS)
        ]
        measure.write("lipsdp_largest", sizes, *packages)
        return
    rows = []
    if arguments.only:
        known = json.loads((measure.RESULTS / "lipsdp.json").read_text())["rows"]
        rows = [row for row in known if row["network"] != arguments.only]
    for name, widths in NETWORKS.items():
        if arguments.only not in (None, name):
            continue
        for solver in SOLVERS:
            results = []
            for seed in range(arguments.seeds):
                found = in_child(["pair", widths, seed, solver], LIMIT)
                if found is None or found["ratio"] is None:
                    break
                results.append(found)
            row: dict = {"network": name, "solver": solver, "seeds": len(results)}
            if results:
                row["ours_s"] = statistics.median(r["ours_s"] for r in results)
                row["other_s"] = statistics.median(r["other_s"] for r in results)
                row["ratio"] = statistics.median(r["ratio"] for r in results)
                row["settings"] = results[0]["settings"]
            else:
                row["note"] = (
                    f"no bound within {GAP} in {LIMIT} s" if found is None else f"gap {found['gap']:.1e}"
                )
            rows.append(row)
            print(row, flush=True)
    measure.write("lipsdp", rows, *packages)


if __name__ == "__main__":
    main()
