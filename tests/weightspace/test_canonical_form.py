"""The canonical form is one for a whole orbit, another for another network, whatever ties the weights hold."""

import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import weightspace.canonical_form as searching
from weightspace.canonical_form import canonical_hash, canonicalize
from weightspace.errors import NonFiniteError, SymmetryError
from weightspace.permutation import permute, random_permutations
from weightspace.tracing import trace
from weightspace.verification import function_change, symmetry

sys.path.insert(0, str(Path(__file__).parent))
from architectures import ARCHITECTURES, ZOO

BOTH = [torch.float32, torch.float64]


@cache
def traced(name, dtype=torch.float64):
    if dtype != torch.float64:
        network, spec = traced(name)
        return network.astype(dtype), spec
    architecture = ARCHITECTURES[name]
    network = trace(architecture.module(), architecture.inputs())
    return network, symmetry(network)


def refilled(name, fill, dtype=torch.float64):
    """The network of an architecture with every parameter and running statistic made by `fill`."""
    network, spec = traced(name, dtype)
    generator = torch.Generator().manual_seed(5)
    return network.replace_parameters(
        {
            key: fill(tensor, generator).to(dtype)
            for key, tensor in network.parameters.items()
            if tensor.is_floating_point() and key in spec.axes
        }
    ), spec


def perceptron(*sizes, dtype=torch.float64, value=None):
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b, dtype=dtype), nn.ReLU())]
    module = nn.Sequential(*layers[:-1])
    if value is not None:
        for parameter in module.parameters():
            nn.init.constant_(parameter, value)
    return module


def assert_one_form(network, spec, elements):
    generator = torch.Generator().manual_seed(3)
    form = canonicalize(network, spec=spec)
    assert canonicalize(form, spec=spec).hash == form.hash
    for _ in range(elements):
        moved = permute(network, spec, random_permutations(spec, generator))
        assert canonicalize(moved, spec=spec).hash == form.hash


@pytest.mark.parametrize(
    ("name", "dtype"), [*((n, torch.float64) for n in ARCHITECTURES), *((n, torch.float32) for n in ZOO)]
)
def test_every_group_element_has_the_same_form(name, dtype):
    network, spec = traced(name, dtype)
    often = name in ("mlp", "resnet", "llama") and dtype == torch.float64
    assert_one_form(network, spec, 100 if often else 2)


@pytest.mark.parametrize("name", ["mlp", "resnet", "llama", "lstm", "grouped convolutions"])
def test_the_form_is_a_reordering_of_the_network(name):
    network, spec = traced(name)
    form = canonicalize(network)
    assert function_change(network, form, torch.Generator().manual_seed(0)) < 1e-9
    for key, tensor in network.parameters.items():
        assert torch.equal(tensor.flatten().sort().values, form.parameters[key].flatten().sort().values)
    assert canonical_hash(network) == canonical_hash(network, spec=spec) == form.hash


FILLS = {
    "zero": lambda tensor, generator: torch.zeros_like(tensor),
    "constant": lambda tensor, generator: torch.ones_like(tensor),
    "coarse": lambda tensor, generator: (tensor * 1.2).round(),
    "signs": lambda tensor, generator: torch.randint(0, 2, tensor.shape, generator=generator) * 2.0 - 1,
    "pruned": lambda tensor, generator: tensor * (torch.rand(tensor.shape, generator=generator) > 0.9),
}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(
    "name",
    ["mlp", "resnet", "llama", "gpt", "lstm", "grouped convolutions", "flattened convolutions", "head norms"],
)
def test_ties_change_nothing(name, fill):
    assert_one_form(*refilled(name, FILLS[fill]), 2)


def test_duplicated_neurons():
    module = perceptron(6, 12, 12, 3)
    with torch.no_grad():
        module[0].weight[6:], module[0].bias[6:] = module[0].weight[:6], module[0].bias[:6]
        module[2].weight[:, 6:] = module[2].weight[:, :6]
    network = trace(module, torch.zeros(2, 6, dtype=torch.float64))
    assert_one_form(network, symmetry(network), 20)
    with torch.no_grad():
        module[2].weight[:, 6:] = module[2].weight[:, :6].roll(1, 1)  # equal inputs, exchanged outputs
    network = trace(module, torch.zeros(2, 6, dtype=torch.float64))
    assert_one_form(network, symmetry(network), 20)


def test_a_network_beside_its_copy():
    """Two equal, unconnected halves: units tie in every layer, and only whole halves can be exchanged."""
    half, module = perceptron(6, 5, 5, 3), perceptron(6, 10, 10, 3, value=0.0)
    with torch.no_grad():
        for number in (0, 2, 4):
            module[number].bias.copy_(
                half[number].bias if number == 4 else torch.cat([half[number].bias] * 2)
            )
        module[0].weight.copy_(torch.cat([half[0].weight] * 2))
        module[2].weight.copy_(torch.block_diag(half[2].weight, half[2].weight))
        module[4].weight.copy_(torch.cat([half[4].weight] * 2, 1))
    network = trace(module, torch.zeros(2, 6, dtype=torch.float64))
    assert_one_form(network, symmetry(network), 10)


def tied(matrix):
    """A perceptron that is constant but for the matrix between its hidden layers."""
    module = perceptron(2, *reversed(matrix.shape), 2, value=1.0)
    with torch.no_grad():
        module[2].weight.copy_(matrix)
    network = trace(module, torch.zeros(2, 2, dtype=torch.float64))
    return network, symmetry(network)


def ring(size):
    """Joins `size` units to as many others in one circle: no refinement tells them apart."""
    return torch.eye(size) + torch.eye(size).roll(1, 0)


def test_ties_that_refinement_cannot_break_are_searched():
    for matrix in (ring(7), torch.block_diag(ring(3), ring(4), ring(3))):
        assert_one_form(*tied(matrix), 2)
    # One ring of six and two of three: no multiset differs, but no reordering makes one of the other.
    first, second = tied(ring(6)), tied(torch.block_diag(ring(3), ring(3)))
    assert_one_form(*second, 2)
    assert canonical_hash(first[0]) != canonical_hash(second[0])


def test_a_search_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(searching, "SEARCH_LIMIT", 10)
    with pytest.raises(SymmetryError, match=r"too symmetric .* 10 refinements .* S_12"):
        canonical_hash(tied(ring(12))[0])


def changed(tensor, place, value):
    copy = tensor.clone()
    copy[place] = value
    return copy


@pytest.mark.parametrize("dtype", BOTH)
def test_other_networks_have_another_hash(dtype):
    network = trace(perceptron(6, 12, 8, 3, dtype=dtype), torch.zeros(2, 6, dtype=dtype))
    weight, bias = network.parameters["2.weight"], network.parameters["0.bias"]
    row = torch.arange(12).roll(1)
    others = {
        "one weight": {"2.weight": changed(weight, (3, 4), torch.nextafter(weight[3, 4], weight[3, 4] + 1))},
        "one sign": {"2.weight": changed(weight, (3, 4), -weight[3, 4])},
        "a bias": {"0.bias": changed(bias, 5, 0.0)},
        "the sign of a zero": {"0.bias": changed(bias, 5, -0.0)},
        "rows without columns": {"0.weight": network.parameters["0.weight"][row]},
        "columns without rows": {"2.weight": weight[:, row]},
        "two entries exchanged": {
            "2.weight": changed(changed(weight, (0, 0), weight[0, 1]), (0, 1), weight[0, 0])
        },
        "inputs reordered": {"0.weight": network.parameters["0.weight"].flip(1)},
    }
    hashes = {name: canonical_hash(network.replace_parameters(change)) for name, change in others.items()}
    hashes["as it is"] = canonical_hash(network)
    hashes["another precision"] = canonical_hash(network.astype(torch.bfloat16))
    assert len(set(hashes.values())) == len(hashes), hashes


@pytest.mark.parametrize("name", ["flattened convolutions", "llama", "lstm"])
def test_every_tensor_counts(name):
    network, spec = traced(name)
    own = canonical_hash(network, spec=spec)
    for key in {key for node in network.nodes for key in node.operation.parameters.values()}:
        tensor = network.parameters[key]
        if tensor.is_floating_point():
            other = network.replace_parameters({key: changed(tensor, (0,) * tensor.ndim, 3.5)})
            assert canonical_hash(other, spec=spec) != own, key


def test_names_and_metadata_do_not_count():
    first = perceptron(6, 12, 8, 3)

    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.z, self.y, self.a = first[0], first[2], first[4]

        def forward(self, x):
            return self.a(torch.relu(self.y(torch.relu(self.z(x)))))

    x = torch.zeros(2, 6, dtype=torch.float64)
    network = trace(first, x)
    assert canonical_hash(trace(Renamed(), x)) == canonical_hash(network)
    assert canonical_hash(replace(network, metadata={"source": "elsewhere"})) == canonical_hash(network)


def test_without_hidden_units_the_form_is_the_network():
    network = trace(nn.Linear(3, 2), torch.zeros(2, 3))
    assert canonical_hash(network) == network.hash


def test_not_finite_weights_need_a_spec():
    network, spec = traced("mlp")
    broken = network.replace_parameters({"0.bias": changed(network.parameters["0.bias"], 0, torch.nan)})
    with pytest.raises(NonFiniteError, match=r"0\.bias"):
        canonical_hash(broken)
    assert_one_form(broken, spec, 5)
