"""The dual rounding gives a lower bound of the program from any positive semidefinite matrix."""

import numpy as np
import pytest

import certify
from certify.bounders.lipsdp import _answers
from certify.lmi import chain_of
from certify.rounding import round_dual
from weightspace.operations import Absolute, LeakyReLU, ReLU, SiLU


@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(negative_slope=0.3), SiLU(), Absolute()], ids=repr)
def test_random_matrices_stay_below_the_optimum(build, he, activation, multipliers):
    rng = np.random.default_rng(0)
    network = build(he([3, 4, 4, 2], 11), activation)
    chain = chain_of(network).require_slopes("test")
    _, dual = next(_answers(chain, "CLARABEL", multipliers))
    optimum = certify.lipschitz(network, bounder=certify.LipSDP(multipliers=multipliers)).upper_bound
    size = len(dual)
    assert round_dual(chain, dual, shared=multipliers == "layer") == pytest.approx(optimum, rel=1e-3)
    best = 0.0
    for trial in range(300):
        factor = rng.normal(size=(size, int(rng.integers(1, size + 1))))
        matrix = factor @ factor.T * 10.0 ** rng.uniform(-3, 3)
        if trial % 3 == 0:  # near the optimal one
            matrix = dual + 10.0 ** rng.uniform(-6, -1) * matrix / np.trace(matrix)
        best = max(best, round_dual(chain, matrix, shared=multipliers == "layer"))
    assert 0 < best <= optimum * (1 + 1e-6)


def test_useless_matrices_give_zero(build, he):
    chain = chain_of(build(he([2, 3, 2]))).require_slopes("test")
    assert round_dual(chain, np.zeros((5, 5))) == 0
    assert round_dual(chain, -np.eye(5)) == 0
