"""The dual rounding gives a lower bound of the program from any positive semidefinite matrix."""

import cvxpy
import numpy as np
import pytest

from certify.lmi import chain_of, inequality_of
from certify.rounding import round_dual, round_dual_of
from certify.signals import system_of
from certify.structured.scaling import scale
from weightspace.operations import Absolute, GroupSort, LeakyReLU, ReLU, SiLU


def solved(inequality):
    """Return (optimal rho, dual matrix) by Clarabel."""
    size = inequality.size
    unknowns = cvxpy.Variable(1 + inequality.count, nonneg=True)
    flat = inequality.affine_map() @ unknowns + inequality.constant.reshape(-1)
    constraint = cvxpy.reshape(flat, (size, size), order="C") >> 0
    problem = cvxpy.Problem(cvxpy.Minimize(unknowns[0]), [constraint])
    problem.solve(solver="CLARABEL")
    return float(problem.value), np.asarray(constraint.dual_value)


@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(negative_slope=0.3), SiLU(), Absolute()], ids=repr)
def test_random_matrices_stay_below_the_optimum(build, he, activation, multipliers):
    rng = np.random.default_rng(0)
    system = system_of(build(he([3, 4, 4, 2], 11), activation))
    chain, shared = chain_of(system), multipliers == "layer"
    rho, dual = solved(inequality_of(system, multipliers=multipliers))
    optimum, size = np.sqrt(rho), len(dual)
    assert round_dual(chain, dual, shared=shared) == pytest.approx(optimum, rel=1e-3)
    best = 0.0
    for trial in range(300):
        factor = rng.normal(size=(size, int(rng.integers(1, size + 1))))
        matrix = factor @ factor.T * 10.0 ** rng.uniform(-3, 3)
        if trial % 3 == 0:  # near the optimal one
            matrix = dual + 10.0 ** rng.uniform(-6, -1) * matrix / np.trace(matrix)
        best = max(best, round_dual(chain, matrix, shared=shared))
    assert 0 < best <= optimum * (1 + 1e-6)


@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    "activation", [ReLU(), SiLU(), GroupSort(group_size=2), GroupSort(group_size=3)], ids=repr
)
def test_the_general_rounding_stays_below_the_optimum(build, he, activation, norm, multipliers):
    rng = np.random.default_rng(1)
    inequality = scale(
        inequality_of(system_of(build(he([3, 6, 6, 2], 4), activation), 0), norm, multipliers)
    ).inequality
    optimum, dual = solved(inequality)
    dual = dual + 1e-9 * np.trace(dual) * np.eye(len(dual))
    assert round_dual_of(inequality, dual) == pytest.approx(optimum, rel=1e-3)
    best = 0.0
    for trial in range(200):
        factor = rng.normal(size=(len(dual), int(rng.integers(1, len(dual) + 1))))
        matrix = factor @ factor.T + 1e-9 * np.eye(len(dual))
        if trial % 2 == 0:
            matrix = dual + 10.0 ** rng.uniform(-6, -1) * matrix / np.trace(matrix)
        best = max(best, round_dual_of(inequality, matrix))
    assert 0 < best <= optimum * (1 + 1e-6)


def test_useless_matrices_give_zero(build, he):
    chain = chain_of(system_of(build(he([2, 3, 2]))))
    assert round_dual(chain, np.zeros((5, 5))) == 0
    assert round_dual(chain, -np.eye(5)) == 0
