"""The check against rational arithmetic, over every structure it has a rule for."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from certify import checker

_SPEC = importlib.util.spec_from_file_location(
    "certify_structures", Path(__file__).with_name("structures.py")
)
structures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(structures)

OUTPUTS = {"l2": (None, 1, (0, 1)), "linf": (0, (1, 0))}


def accepted(program, values):
    try:
        checker.check_proofs(program.model, program.norm, program.output, [], [program.proof(values)])
    except checker.Refused:
        return False
    return True


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("structure", structures.STRUCTURES)
def test_nothing_is_accepted_that_exact_arithmetic_refutes(structure, norm):
    rng, solved, counts = np.random.default_rng(0), 0, {"accepted": 0, "refuted": 0, "refused though true": 0}
    for seed in range(5):
        network = structures.draw_network(structure, seed)
        output = OUTPUTS[norm][seed % len(OUTPUTS[norm])]
        program = structures.Program(network, norm, output)
        values = program.solve()
        if values is None:
            continue
        rho = program.boundary(values)
        if rho is None or rho < 1e-9:  # a constant output
            continue
        solved += 1
        values[0] = rho * (1 + 1e-6)
        assert accepted(program, values), (seed, rho)
        assert program.holds(values)
        cases = [(1 + 1e-9, 0), (1 - 1e-9, 0), (1 + 1e-13, 0), (1 - 1e-13, 0), (0.99, 0)]
        cases += [(1 + 1e-6, 1e-3), (1 + 1e-9, 1e-6), (1 + 1e-4, 1e-2)]
        for factor, spread in cases:
            changed = values * (1 + spread * rng.choice([-1, 0, 1], size=len(values)))
            changed[0] = rho * factor
            truth, found = program.holds(changed), accepted(program, changed)
            assert truth or not found, (seed, factor, spread)
            counts["accepted"] += found
            counts["refuted"] += not truth
            counts["refused though true"] += truth and not found
    assert solved >= 3, solved
    assert counts["accepted"] >= solved, counts
    assert counts["refuted"] >= solved, counts
