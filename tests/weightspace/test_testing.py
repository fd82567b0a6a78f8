"""The shipped assertions accept what holds and refuse what does not."""

import pytest
import torch
from torch import nn

from weightspace.equivariant import EquivariantLinear, InvariantLinear, describe_perceptron
from weightspace.symmetry_spec import Group, SymmetrySpec, plain
from weightspace.testing import assert_equivariant, assert_function_preserved
from weightspace.tracing import trace
from weightspace.verification import symmetry


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(1, 3))


def test_functions_are_preserved_by_symmetries(network):
    assert_function_preserved(network, symmetry(network))
    assert_function_preserved(network, symmetry(network, continuous=True))


def test_a_wrong_group_is_blamed(network):
    wrong = SymmetrySpec(
        (Group("right", 5), Group("wrong", 2)),
        {
            "0.weight": (plain("right", 5), ()),
            "0.bias": (plain("right", 5),),
            "2.weight": (plain("wrong", 2), plain("right", 5)),
        },
    )
    elements = {"right": torch.tensor([1, 2, 3, 4, 0]), "wrong": torch.tensor([1, 0])}
    with pytest.raises(AssertionError, match=r"alone: wrong \("):
        assert_function_preserved(network, wrong, elements=elements)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equivariant_and_invariant_layers_pass(dtype):
    spec = describe_perceptron((2, 4, 3))
    assert_equivariant(EquivariantLinear(spec, 2, 3, dtype=dtype), spec, channels=2, dtype=dtype)
    assert_equivariant(InvariantLinear(spec, 1, 3, dtype=dtype), spec, dtype=dtype)


def test_other_layers_fail():
    spec = describe_perceptron((2, 4, 3))
    with pytest.raises(AssertionError, match="differ by"):
        assert_equivariant(lambda x: x["layers.0.bias"][..., 0], spec)
    with pytest.raises(AssertionError, match="differ by"):
        assert_equivariant(lambda x: {name: value.cumsum(2) for name, value in x.items()}, spec)
    with pytest.raises(AssertionError, match="cannot be told"):
        assert_equivariant(lambda x: {name: 0 * value for name, value in x.items()}, spec)
