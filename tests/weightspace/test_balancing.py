"""Balancing keeps the function, forgets every positive scaling and finds the least norm."""

import json
import math
import sys
from functools import cache

import pytest
import torch
from torch import nn

from tests.weightspace.architectures import ARCHITECTURES
from weightspace.balancing import balance_units
from weightspace.checkpoint import write_safetensors
from weightspace.cli import main
from weightspace.errors import ArchitectureError, NonFiniteError, ShapeError
from weightspace.group_action import act, random_elements
from weightspace.merging import merge
from weightspace.network import Network
from weightspace.permutation import permute, random_permutations
from weightspace.reading import read
from weightspace.state_dicts import perceptron
from weightspace.symmetry_spec import Factor, Group, Segment, SymmetrySpec, plain
from weightspace.tracing import trace
from weightspace.universe import Average
from weightspace.verification import function_change, symmetry

SCALED = ["mlp", "resnet", "flattened convolutions", "group norm", "prelu", "bilinear form"]
DTYPES = [torch.float32, torch.float64]
SLACK = {torch.float32: 2e-5, torch.float64: 1e-10}


@cache
def traced(name, seed=0):
    return trace(ARCHITECTURES[name].module(seed), ARCHITECTURES[name].inputs())


@cache
def scalings(name):
    return symmetry(traced(name), continuous=True).only(["positive"])


def balanced(network, name):
    return balance_units(network, spec=scalings(name))


def scaled_norm(network, spec):
    return math.sqrt(sum(float(network.parameters[name].double().square().sum()) for name in spec.axes))


def assert_near(a, b, slack):
    for name, tensor in a.parameters.items():
        torch.testing.assert_close(tensor, b.parameters[name], rtol=slack, atol=slack)


def scaled_copy(network, spec, seed):
    return act(network, spec, random_elements(spec, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCALED)
def test_the_function_stays_and_scalings_are_forgotten(name, dtype):
    network = traced(name).astype(dtype)
    result = balanced(network, name)
    generator = torch.Generator().manual_seed(0)
    assert function_change(network, result.network, generator) < SLACK[dtype]
    assert result.residual <= 1e-12
    assert result.norm < result.norm_before
    assert result.norm_before == pytest.approx(scaled_norm(network, result.spec), rel=1e-12)
    assert result.norm == pytest.approx(scaled_norm(result.network, result.spec), rel=1e-6)
    again = balanced(scaled_copy(network, result.spec, 1), name)
    assert_near(result.network, again.network, SLACK[dtype])


@pytest.mark.parametrize("name", SCALED)
def test_no_scaling_has_less_norm(name):
    """The function of log s is convex, so that what no small step lowers is the least."""
    result = balanced(traced(name), name)
    for seed in range(5):
        elements = random_elements(result.spec, torch.Generator().manual_seed(seed))
        for power in (1.0, 1e-2, -1e-2):
            near = act(result.network, result.spec, {n: e**power for n, e in elements.items()})
            assert scaled_norm(near, result.spec) > result.norm


def test_weights_in_and_out_of_a_unit_have_one_norm():
    """For a perceptron: (weights, bias) of every hidden unit against the column that reads it."""
    network = balanced(traced("mlp"), "mlp").network
    p = network.parameters
    for first, second in (("0", "2"), ("2", "4")):
        made = p[f"{first}.weight"].square().sum(1) + p[f"{first}.bias"].square()
        torch.testing.assert_close(made, p[f"{second}.weight"].square().sum(0))


def test_running_statistics_stay():
    network = traced("resnet")
    result = balanced(network, "resnet").network
    assert all(torch.equal(result.parameters[name], network.parameters[name]) for name in network.buffers)
    assert not torch.equal(result.parameters["3.norm1.weight"], network.parameters["3.norm1.weight"])


@pytest.mark.parametrize("name", ["gpt", "lstm", "residual mlp"])
def test_networks_without_such_units_stay_as_they_are(name):
    network = traced(name)
    result = balance_units(network)
    assert result.network == network
    assert result.scales == result.idle == {}
    assert result.norm == result.norm_before == result.residual == 0


def test_idle_units_rest():
    network = perceptron({"0.weight": torch.eye(3), "0.bias": torch.zeros(3), "1.weight": torch.ones(2, 3)})
    with torch.no_grad():
        network.parameters["0.weight"][0] = 0  # nothing comes in
        network.parameters["1.weight"][:, 1] = 0  # nothing goes out
    result = balance_units(network)
    (scale,) = result.scales.values()
    assert list(result.idle.values()) == [2]
    torch.testing.assert_close(scale, torch.tensor([1, 1, 2**0.25], dtype=torch.float64))


class Fed(nn.Module):
    """relu(a(x) + c(relu(a(x) + b(relu(a(x)))))): one stream, on which b and c read what they write."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        start = self.a(x)
        h = torch.relu(start)
        h = torch.relu(start + self.b(h))
        return self.head(torch.relu(start + self.c(h)))


def test_a_group_on_both_axes_of_a_tensor():
    """Units that feed themselves: the steps of the units are not independent, yet the least norm is found."""
    torch.manual_seed(0)
    network = trace(Fed().double(), torch.randn(3, 4, dtype=torch.float64))
    result = balance_units(network)
    (group,) = result.spec.groups
    assert len(result.spec.carriers[group.name]) > len(result.spec.axes)
    assert result.residual <= 1e-12
    assert function_change(network, result.network, torch.Generator().manual_seed(0)) < 1e-12
    p = result.network.parameters
    rows = ["a.weight", "b.weight", "c.weight", "a.bias", "b.bias", "c.bias"]
    made = sum(p[name].reshape(6, -1).square().sum(1) for name in rows)
    read = sum(p[name].square().sum(0) for name in ("b.weight", "c.weight", "head.weight"))
    torch.testing.assert_close(made, read)  # the slope of a convex function is zero at its least value alone


def test_copies_of_a_group_have_their_own_scales():
    """A scaling for every combination of a head and a unit inside, one of them on the other axis of a tensor."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    second = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    network = perceptron({"0.weight": first, "1.weight": second})
    heads = (Factor("head", 2, 3), Factor("inside", 3, 1, False, "scale"))
    read = (Factor("head", 2, 3), Factor("inside", 3, 1, True, "scale"))
    group = Group("scale", 3, "positive", ("head",), (2,), "inside")
    spec = SymmetrySpec((group,), {"0.weight": ((Segment(heads),), ()), "1.weight": ((), (Segment(read),))})
    result = balance_units(network, spec=spec)
    expected = (second.square().sum(0) / first.square().sum(1)) ** 0.25
    torch.testing.assert_close(result.scales["scale"], expected.reshape(2, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_modules_stay_modules_and_untouched(dtype):
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )
    module = nn.Sequential(*layers).to(dtype)  # fmt: skip
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(10, 1, 8, 8, dtype=dtype)
    result = balance_units(module, x)
    assert isinstance(result.model, nn.Sequential)
    assert isinstance(result.network, Network)
    torch.testing.assert_close(result.model(x), module(x), rtol=SLACK[dtype], atol=SLACK[dtype])
    assert not torch.equal(result.model[0].weight, module[0].weight)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_refusals():
    first, second = torch.arange(1.0, 7).reshape(3, 2), torch.ones(2, 3)
    network = perceptron({"0.weight": first, "1.weight": second})
    ends = SymmetrySpec(
        (Group("ends", 2, "positive"),),
        {"0.weight": ((), plain("ends", 2)), "1.weight": ((Segment((Factor("ends", 2, 1, True),)),), ())},
    )
    with pytest.raises(ArchitectureError, match="these scalings change the function by"):
        balance_units(network, spec=ends)
    with pytest.raises(ShapeError, match=r"on axis 1 of '0\.weight'"):
        balance_units(perceptron({"0.weight": first[:, :1], "1.weight": second}), spec=ends)
    with pytest.raises(NonFiniteError, match=r"'0\.weight' has 6 NaN"):
        balance_units(perceptron({"0.weight": first * torch.nan, "1.weight": second}))


# ---- in merge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mlp", "flattened convolutions"])
def test_scaled_and_reordered_copies_merge_to_the_network(name, dtype):
    network = traced(name).astype(dtype)
    spec = symmetry(network)
    copies = [
        permute(
            scaled_copy(network, scalings(name), seed), spec,
            random_permutations(spec, torch.Generator().manual_seed(seed)),
        )
        for seed in range(3)
    ]  # fmt: skip
    merged = merge([network, *copies], balance=True)
    assert function_change(network, merged.model, torch.Generator().manual_seed(0)) < SLACK[dtype]
    assert_near(balanced(network, name).network, merged.model, SLACK[dtype])
    assert max(merged.distances) < SLACK[dtype] * max(merged.distances_before)
    plainly = merge([network, *copies]).model
    assert function_change(network, plainly, torch.Generator().manual_seed(0)) > 1e-3


def test_merging_balances_first():
    models = [traced("mlp", seed) for seed in range(3)]
    merged = merge(models, balance=True)
    first = [balanced(model, "mlp").network for model in models]
    assert_near(merge(first).model, merged.model, 1e-12)
    deferred = merge(models, balance=True, deferred=True)
    assert_near(deferred.model, merged.model, 1e-12)


def test_merging_without_such_units_says_so():
    models = [traced("gpt", seed) for seed in range(2)]
    merged = merge(models, method=Average(), balance=True)
    assert merged.model == merge(models, method=Average()).model
    assert "balancing changed nothing" in merged.notes[0]


def test_the_command_balances(tmp_path, monkeypatch, capsys):
    files = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, file in enumerate(files):
        write_safetensors(file, dict(traced("mlp", seed).parameters))
    output = tmp_path / "merged.safetensors"
    command = ["weightspace", "merge", *map(str, files), "--balance", "-o", str(output), "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    merged = merge([read(file) for file in files], balance=True)
    assert json.loads(capsys.readouterr().out)["objective"] == merged.objective
    assert read(output) == merged.model
