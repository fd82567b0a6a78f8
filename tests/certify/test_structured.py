"""Laws of the structured solver: agreement with Clarabel, feasibility, lower bounds, degenerate chains, batches."""

import itertools
import math

import numpy as np
import pytest

from certify.lmi import SlopeChain
from certify.preparation import normalize, prepare, rescale_to_start
from certify.rounding import round_dual, round_dual_of
from certify.structured.batch import batch_key, minimize_batch
from certify.structured.chain_program import ChainProgram, chain_program
from certify.structured.dense_program import DenseProgram
from certify.structured.interior_point import minimize
from certify.structured.program import symmetrize
from certify.structured.scaling import ScaledInequality, prune, scale, tighten
from certify.structured.step_length import step_to_boundary


def chain_for(matrices, low=0.0, high=1.0):
    hidden = matrices[:-1]
    return SlopeChain(
        tuple(matrices),
        tuple(np.full(len(w), low) for w in hidden),
        tuple(np.full(len(w), high) for w in hidden),
    )


def prepared_chain(matrices, low=0.0, high=1.0):
    return rescale_to_start(prepare(normalize(chain_for(matrices, low, high))[0], balance=True)).chain


def dense(chain, multipliers="neuron"):
    inequality = chain.inequality(multipliers)
    ones = np.ones(1 + inequality.count)
    return DenseProgram(ScaledInequality(inequality, ones, np.ones(inequality.count, dtype=bool), True))


def random_symmetric(size, seed):
    return symmetrize(np.random.default_rng(seed).normal(size=(size, size)))


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0), (-0.3, 1.1)])
@pytest.mark.parametrize("shared", [False, True])
def test_programs_obey_the_laws_of_their_class(he, slopes, shared):
    chain = prepared_chain(he([4, 6, 5, 3, 2], 1), *slopes)
    structured = ChainProgram(chain, shared=shared)
    full = dense(chain, "layer" if shared else "neuron")
    rng = np.random.default_rng(0)
    dx = rng.normal(size=1 + structured.count)
    size = structured.size
    left, right = random_symmetric(size, 1), random_symmetric(size, 2)
    change = full.matrix(dx) - full.inequality.constant
    for program in (structured, full):
        signal = program.signal(left)
        np.testing.assert_allclose(program.image(dx, left, signal), change @ left, atol=1e-11)
        np.testing.assert_allclose(program.direction(dx)(left[0]), change @ left[0], atol=1e-11)
        adjoint = program.adjoint(left, signal)
        assert adjoint @ dx == pytest.approx(float(np.sum(change * left)), rel=1e-10)
        schur = program.schur(program.forms(left, signal), program.forms(right, program.signal(right)))
        product = left @ change @ right
        middle = (product + product.T) / 2
        np.testing.assert_allclose(
            schur @ dx, program.adjoint(middle, program.signal(middle)), rtol=1e-9, atol=1e-9
        )
        product = left @ right @ left  # any matrix, made unsymmetric below
        product[0] += 1.0
        middle = left @ product
        middle = (middle + middle.T) / 2
        np.testing.assert_allclose(
            program.adjoint_of_product(left, signal, product),
            program.adjoint(middle, program.signal(middle)),
            rtol=1e-9,
            atol=1e-8,
        )
        assert program.constant_product(left) == pytest.approx(float(np.sum(full.inequality.constant * left)))
    x = structured.start()
    assert x is not None
    matrix = full.matrix(x)
    factor, other = structured.factor(x, 0.0), full.factor(x, 0.0)
    for one in (factor, other):
        inverse = one.inverse()
        np.testing.assert_allclose(inverse @ matrix, np.eye(size), atol=1e-8)
        np.testing.assert_allclose(one.solve(left.copy()), inverse @ left, atol=1e-8)
        v = rng.normal(size=size)
        np.testing.assert_allclose(one.unwhiten(one.whiten(v)), inverse @ v, atol=1e-8)
    assert structured.tighten(x) == pytest.approx(full.tighten(x), rel=1e-9)
    assert structured.factor(0.01 * x, 0.0) is None
    assert full.factor(0.01 * x, 0.0) is None


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_steps_end_at_the_boundary(size):
    rng = np.random.default_rng(size)
    matrix = 3 * random_symmetric(size, size)
    exact = min(1.0, -1 / min(np.linalg.eigvalsh(matrix)[0], -1e-9))
    step = step_to_boundary(lambda v: matrix @ v, size, rng.normal(size=size))
    assert 0.9 * exact <= step <= exact * (1 + 1e-9)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0), (-0.3, 1.1), (-1.0, 1.0)])
@pytest.mark.parametrize("widths", [[3, 5, 2], [8, 40, 30, 40, 5], [2, 3, 4, 3, 4, 1]])
def test_both_forms_reach_the_same_optimum(he, widths, slopes):
    chain = prepared_chain(he(widths, 3), *slopes)
    found = [minimize(program, tolerance=1e-7) for program in (ChainProgram(chain), dense(chain))]
    for solution in found:
        assert solution.converged
        assert solution.rounded
        assert solution.lower_bound <= solution.x[0] * (1 + 1e-12)
    assert found[0].x[0] == pytest.approx(found[1].x[0], rel=1e-6)
    matrix = dense(chain).matrix(found[0].x * (1 + 1e-8))
    assert np.linalg.eigvalsh(matrix)[0] > -1e-12


def test_a_random_dual_matrix_never_exceeds_the_optimum(he):
    for slopes in [(0.0, 1.0), (0.3, 1.0), (-0.3, 1.1)]:
        chain = prepared_chain(he([3, 4, 4, 2], 5), *slopes)
        inequality = chain.inequality()
        optimum = minimize(ChainProgram(chain), tolerance=1e-8).x[0]
        rng = np.random.default_rng(1)
        for trial in range(200):
            factor = rng.normal(size=(inequality.size, int(rng.integers(1, inequality.size + 1))))
            moments = factor @ factor.T + 10.0 ** -rng.integers(2, 9) * np.eye(inequality.size)
            general = round_dual_of(inequality, moments)
            assert general <= optimum * (1 + 1e-9), trial
            assert general == pytest.approx(round_dual(chain, moments) ** 2, rel=1e-6, abs=1e-12)


def test_what_the_solver_reports_is_the_gap(he):
    for tolerance in (1e-2, 1e-4, 1e-8):
        solution = minimize(ChainProgram(prepared_chain(he([5, 30, 30, 30, 4], 2))), tolerance=tolerance)
        assert solution.converged
        assert solution.x[0] - solution.lower_bound <= tolerance * solution.x[0]


def test_the_iteration_limit_still_returns_a_feasible_point(he):
    chain = prepared_chain(he([5, 30, 30, 30, 4], 2))
    for limit in (0, 1, 3):
        solution = minimize(ChainProgram(chain), tolerance=1e-8, limit=limit)
        assert solution is not None
        assert not solution.converged
        assert solution.iterations == limit
        assert np.linalg.eigvalsh(dense(chain).matrix(solution.x * (1 + 1e-9)))[0] > -1e-12


@pytest.mark.parametrize(
    "name", ["rank one", "duplicates", "scales", "thin", "bottleneck", "deep", "identities", "mixed"]
)
def test_degenerate_chains_converge(he, name):
    rng = np.random.default_rng(0)
    cases = {
        "rank one": [np.outer(rng.normal(size=6), rng.normal(size=n)) for n in (4, 6, 6)]
        + [rng.normal(size=(3, 6))],
        "duplicates": [np.repeat(w, 2, axis=0) for w in [rng.normal(size=(3, 4))]]
        + [np.repeat(np.repeat(rng.normal(size=(3, 3)), 2, axis=0), 2, axis=1), rng.normal(size=(2, 6))],
        "scales": [1e-20 * rng.normal(size=(5, 4)), 1e15 * rng.normal(size=(5, 5)), rng.normal(size=(2, 5))],
        "thin": [np.array([[v]]) for v in (2.0, -3.0, 0.5, 1.5, 4.0)],
        "bottleneck": he([8, 12, 1, 12, 3], 1),
        "deep": he([8] * 101 + [2], 2),
        "identities": [np.eye(6)] * 8,
        "mixed": [w * np.exp(3 * rng.normal(size=(len(w), 1))) for w in he([5, 9, 9, 9, 3], 4)],
    }
    chain = prepared_chain(cases[name])
    solution = minimize(chain_program(chain), tolerance=1e-5)
    assert solution is not None
    assert solution.converged, (solution.x[0], solution.lower_bound, solution.iterations)


def test_pruned_coordinates_do_not_change_the_optimum(he):
    matrices = he([3, 6, 6, 2], 7)
    matrices[0][1] = 0
    matrices[2][:, 4] = 0
    matrices[1][4] = 0
    inequality = chain_for(matrices).inequality()
    pruned, kept = prune(inequality)
    assert kept.sum() == 12 - 2
    assert not kept[1]
    assert not kept[6 + 4]
    scaled = scale(inequality)
    rho, multipliers = scaled.restore(minimize(DenseProgram(scaled), tolerance=1e-7).x)
    assert (multipliers[~kept] == 0).all()
    small = [
        np.delete(matrices[0], 1, 0),
        np.delete(np.delete(matrices[1], 1, 1), 4, 0),
        np.delete(matrices[2], 4, 1),
    ]
    scaled, exponents = normalize(chain_for(small))
    prepared = rescale_to_start(prepare(scaled, balance=True))
    reference = minimize(ChainProgram(prepared.chain), tolerance=1e-7)
    expected = reference.x[0] * prepared.bound_factor**2 * 4.0 ** sum(exponents)
    assert rho == pytest.approx(expected, rel=1e-5)
    assert tighten(pruned, multipliers[kept]) == pytest.approx(rho, rel=1e-6)


@pytest.mark.parametrize("widths", [[4, 8, 8, 2], [2, 5, 1], [6, 10, 12, 10, 3]])
def test_a_batch_equals_one_after_another(he, widths):
    slopes = [(0.0, 1.0), (0.1, 1.0), (-0.2, 1.0)]
    inequalities = [chain_for(he(widths, seed), *slopes[seed % 3]).inequality() for seed in range(24)]
    assert len({batch_key(inequality) for inequality in inequalities}) == 1
    together = minimize_batch(inequalities, tolerance=1e-7)
    for inequality, found in zip(inequalities, together, strict=True):
        scaled = scale(inequality)
        alone = minimize(DenseProgram(scaled), tolerance=1e-7)
        assert found is not None
        start, solution = found
        assert start[0] * solution.x[0] == pytest.approx(scaled.start[0] * alone.x[0], rel=2e-6)
        assert solution.lower_bound <= solution.x[0]


def test_a_member_that_fails_does_not_harm_the_batch(he):
    inequalities = [chain_for(he([4, 6, 6, 2], seed)).inequality() for seed in range(6)]
    broken = he([4, 6, 6, 2], 2)
    broken[1][:] = 0.0
    inequalities[2] = chain_for(broken).inequality()
    found = minimize_batch(inequalities, tolerance=1e-6)
    good = minimize_batch(inequalities[:2] + inequalities[3:], tolerance=1e-6)
    for one, other in zip(itertools.chain(found[:2], found[3:]), good, strict=True):
        assert one[0][0] * one[1].x[0] == pytest.approx(other[0][0] * other[1].x[0], rel=1e-6)
    assert found[2] is None or math.isfinite(found[2][1].x[0])
