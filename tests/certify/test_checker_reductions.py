"""What the check simplifies before it builds an inequality: differences of outputs, rows of features."""

import numpy as np
import pytest
import torch

from certify import checker
from certify.checking import network_arrays
from weightspace.builder import NetworkBuilder
from weightspace.operations import (
    Add,
    Flatten,
    GroupSort,
    LeakyReLU,
    Linear,
    PReLU,
    ReLU,
    Reshape,
    Scale,
    Tanh,
)


def linear(builder, node, matrix):
    weight = builder.parameter(
        f"weight_{len(builder.parameters)}", torch.as_tensor(matrix, dtype=torch.float64)
    )
    return builder.add(Linear(weight=weight), node)


def rebuilt(make, shape):
    builder = NetworkBuilder()
    network = builder.build([make(builder, builder.input("x", shape, torch.float64))])
    return network, checker.rebuild(*network_arrays(network))


def proof(rho, multipliers, output=None, inputs=None):
    return {"rho": rho, "multipliers": multipliers, "output": output, "input_multipliers": inputs}


@pytest.mark.parametrize(
    ("last", "bounds"), [([[1, 2], [1, 3]], (25.1**0.5, 7.1)), ([[1, 2], [1, 2]], (0, 0))]
)
def test_equal_entries_of_two_outputs_are_zeros_of_their_difference(last, bounds):
    _, model = rebuilt(lambda b, x: linear(b, b.add(ReLU(), linear(b, x, [[1, 2], [3, 4]])), last), (None, 2))
    bound, _ = checker.check_proofs(model, "l2", (0, 1), [], [proof(25.1, [[0.0, 1.0]], (0, 1))])
    assert bound == pytest.approx(bounds[0])
    bound, _ = checker.check_proofs(
        model, "linf", (0, 1), [], [proof(7.1, [[0.0, 1 / 7]], (0, 1), [3.0, 4.0])]
    )
    assert bound == bounds[1]
    with pytest.raises(checker.Refused):
        checker.check_proofs(model, "l2", None, [], [proof(1e6, [[0.0, 1.0]])])


def test_rows_of_features_share_one_function():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(4, 3)), generator.normal(size=(2, 4))

    def layers(b, x):
        return linear(b, b.add(LeakyReLU(negative_slope=0.1), linear(b, x, first)), second)

    _, flat = rebuilt(layers, (None, 3))
    chains = [
        rebuilt(layers, (None, 5, 3)),
        rebuilt(lambda b, x: layers(b, b.add(Reshape(shape=(-1, 5, 3)), x)), (None, 15)),
        rebuilt(
            lambda b, x: b.add(Scale(factor=1, shift=1.0), layers(b, b.add(Flatten(start=1, end=2), x))),
            (None, 1, 5, 3),
        ),
    ]
    norms = [np.linalg.norm(first, 2) * 1.001, np.linalg.norm(second, 2) * 1.001]
    values = proof((norms[0] * norms[1]) ** 2, [[norms[1] ** 2] * 4])
    expected = checker.check_proofs(flat, "l2", None, [], [values])
    for network, model in chains:
        assert model.tokens == 5
        assert checker.check_proofs(model, "l2", None, [], [values]) == expected
        bound, _ = checker.check_norms(model, "l2", None, norms)
        assert bound >= norms[0] * norms[1]
        module = network.to_module()
        x = torch.randn(2, *network.inputs[0].shape[1:], dtype=torch.float64)
        y = module(x)
        assert (y[0] - y[1]).norm() <= expected[0] * (x[0] - x[1]).norm()
        with pytest.raises(checker.Refused, match="features"):
            checker.float32_delta(model, np.zeros(15), np.ones(15), "l2", None)
        with pytest.raises(checker.Refused, match="15 inputs"):
            checker.float32_delta(model, np.zeros(3), np.ones(3), "l2", None)


@pytest.mark.parametrize(
    "make",
    [
        lambda b, x: b.add(GroupSort(group_size=2, axis=2), linear(b, x, np.ones((4, 3)))),
        lambda b, x: b.add(
            PReLU(weight=b.parameter("slope", torch.ones(5).double())), linear(b, x, np.ones((4, 3)))
        ),
        lambda b, x: b.add(Add(), x, linear(b, x, np.ones((3, 3)))),
        lambda b, x: linear(
            b, b.add(Flatten(), b.add(Tanh(), linear(b, x, np.ones((3, 3))))), np.ones((1, 15))
        ),
        lambda b, x: linear(b, b.add(Reshape(shape=(-1, 3)), x), np.ones((2, 3))),
    ],
    ids=["GroupSort", "PReLU", "Add", "Flatten", "Reshape"],
)
def test_whatever_mixes_rows_is_refused(make):
    with pytest.raises(checker.Refused):
        rebuilt(make, (None, 5, 3))
