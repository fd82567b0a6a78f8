"""Write generic_solver.json, what SCS calls optimal: PYTHONPATH=docs python docs/generate/measure_generic_solver.py

The matrix inequality of LipSDP on normalized, balanced weights, through cvxpy, tolerance 1e-5; minutes.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from importlib.metadata import version

import numpy as np
from generate.break_this_certificate import ANSWER, random_network

SETTINGS = {"eps": 1e-5, "max_iters": 100_000}


def main() -> None:
    """Solve, print and write."""
    import cvxpy

    from certify.lmi import SlopeChain
    from certify.preparation import prepare

    network = random_network()
    weights = [tensor.double().numpy() for tensor in network.parameters.values()]
    slopes = [np.zeros(len(weight)) for weight in weights[:-1]]
    chain = SlopeChain(tuple(weights), tuple(slopes), tuple(side + 1 for side in slopes))
    prepared = prepare(chain, balance=True)
    inequality = prepared.chain.inequality()
    linear, size = inequality.affine_map(), inequality.size
    unknowns = cvxpy.Variable(linear.shape[1], nonneg=True)
    flat = linear @ unknowns + inequality.constant.reshape(-1)
    problem = cvxpy.Problem(cvxpy.Minimize(unknowns[0]), [cvxpy.reshape(flat, (size, size), order="C") >> 0])
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting A to a CSC")
        problem.solve(solver="SCS", **SETTINGS)
    seconds = time.perf_counter() - started
    rho = float(problem.value) * prepared.bound_factor**2
    ends = np.cumsum(prepared.chain.widths[1:])
    found = np.split(np.maximum(unknowns.value[1:], 0.0), ends[:-1])
    multipliers = prepared.restore(found)
    bound = math.nextafter(math.sqrt(rho), math.inf)
    answer = {
        "solver": "SCS",
        "settings": SETTINGS,
        "status": problem.status,
        "bound": bound.hex(),
        "bound_decimal": bound,
        "iterations": problem.solver_stats.num_iters,
        "seconds": seconds,
        "versions": {name: version(name) for name in ("scs", "cvxpy", "numpy")},
        "network_hash": network.hash,
        "rho": rho.hex(),
        "multipliers": [[float(value).hex() for value in layer] for layer in multipliers],
    }
    ANSWER.write_text(json.dumps(answer) + "\n", encoding="utf-8")
    print(f"{problem.status}: {bound:.6g} after {answer['iterations']} iterations, {seconds:.0f} s")


if __name__ == "__main__":
    main()
