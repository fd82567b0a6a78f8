"""The check against rational arithmetic, over every structure it has a rule for."""

import importlib.util
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from certify import checker
from certify.exact import inequality

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
    for seed in range(4):
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


def scaled(matrix, program, values):
    """A rational matrix in the checker's coordinates: powers of two that make its diagonal about 1."""
    proof = program.proof(values)
    strengths = [[2 * proof["rho"], *proof["input_multipliers"]]] if program.norm == "linf" else []
    strengths += [] if program.norm == "linf" else [[proof["rho"]] * program.model.steps[0].width]
    for step, numbers in zip(program.model.nonlinear, proof["multipliers"]):
        strengths.append(
            np.repeat(numbers, step.basis.shape[2]) if step.rule == "groups" else 2 * np.array(numbers)
        )
    units = [Fraction(2) ** -int(power) for power in np.frexp(np.concatenate(strengths))[1] // 2]
    return [[a * units[i] * units[j] for j, a in enumerate(row)] for i, row in enumerate(matrix)]


def distance(matrix, rational):
    """|matrix - rational| in the 2-norm, the difference taken exactly."""
    rows = [[float(Fraction(a) - b) for a, b in zip(*pair)] for pair in zip(matrix.tolist(), rational)]
    return np.linalg.norm(np.array(rows), 2)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("structure", [name for name in structures.STRUCTURES if name != "pruned"])
def test_the_computed_matrix_is_within_its_error_bound(structure, norm):
    rng = np.random.default_rng(3)
    for seed in range(3):
        output = (0, 1)
        if structure == "concat":  # its last output alone depends on some neurons
            output = None if norm == "l2" else (0, 2)
        program = structures.Program(structures.draw_network(structure, seed), norm, output)
        values = np.exp(3 * rng.normal(size=len(program.columns)))
        proof = program.proof(values)
        if not all(mask is None or mask.all() for mask in checker.structure(program.model, output)):
            continue
        numbers = proof["rho"], proof["multipliers"], proof["input_multipliers"]
        matrix, error = checker.inequality(program.model, norm, output, *numbers)
        found = distance(matrix, scaled(program.exact_matrix(values), program, values))
        assert found <= error <= 1e-9 * np.abs(matrix).max()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("name", "network"), [pytest.param(*c, id=c[0]) for c in structures.inexact_networks()]
)
def test_errors_are_carried_along(name, network, norm):
    """A factor that is known up to 1e-4 moves the matrix by no more than the bound, which is not much larger."""
    rng, output = np.random.default_rng(4), None if norm == "l2" else (0, 1)
    program = structures.Program(network, norm, output)
    values = np.exp(rng.normal(size=len(program.columns)))
    proof = program.proof(values)
    numbers = proof["rho"], proof["multipliers"], proof["input_multipliers"]
    relative, largest = 1e-4, 0.0
    steps = [checker.replace(s, relative=relative) if s.relative else s for s in program.model.steps]
    matrix, error = checker.inequality(checker.Model(tuple(steps)), norm, output, *numbers)
    for signs in itertools.product([-1, 1], repeat=4):
        moved = [
            checker.replace(
                s, matrix=np.array([f * (1 + sign * Fraction(relative)) for f, sign in zip(s.matrix, signs)])
            )
            if s.rule == "scale" and s.kind == "BatchNorm"
            else s
            for s in program.exact.steps
        ]
        exact = inequality(checker.Model(tuple(moved)), norm, output, *numbers)
        largest = max(largest, distance(matrix, scaled(exact, program, values)))
    assert largest <= error <= 40 * largest, error / largest


@pytest.mark.parametrize("structure", ["GroupSort 2", "GroupSort 3", "Householder 3"])
def test_units_do_not_matter(structure):
    """Layers multiplied by 10^-30 .. 10^30: rho and the multipliers follow, and so does the verdict."""
    rng = np.random.default_rng(5)
    for norm, output in (("l2", None), ("linf", 1)):
        network = structures.draw_network(structure, 2)
        program = structures.Program(network, norm, output)
        values = program.solve()
        proof, rho = program.proof(values), program.boundary(values)
        linear = [n.operation.weight for n in network.nodes if n.operation.kind == "Linear"]
        factors = 10.0 ** rng.uniform(-30, 30, size=len(linear))
        moved = network.replace_parameters({n: network.parameters[n] * f for n, f in zip(linear, factors)})
        reached, power = np.cumprod(factors), 2 if norm == "l2" else 1
        total = reached[-1] ** power
        lists = [
            [v * total / reached[k] ** 2 for v in numbers] for k, numbers in enumerate(proof["multipliers"])
        ]
        inputs = None if norm == "l2" else [v * total for v in proof["input_multipliers"]]
        for factor, holds in ((1 + 1e-8, True), (1 - 1e-8, False)):
            changed = {"output": output, "rho": rho * factor * total}
            changed |= {"multipliers": lists, "input_multipliers": inputs}
            model = structures.model_of(moved)
            if holds:
                assert checker.check_proofs(model, norm, output, [], [changed])[1] > 0
                continue
            with pytest.raises(checker.Refused):
                checker.check_proofs(model, norm, output, [], [changed])
