"""Bare state dicts: shapes decide, ambiguity is refused with the flag that settles it; architectures are run."""

import itertools
import json

import pytest
import torch
from torch import nn

from weightspace.checkpoint import write_safetensors
from weightspace.errors import ArchitectureError, CheckpointError, WeightspaceError
from weightspace.network import Network
from weightspace.reading import read
from weightspace.state_dicts import ACTIVATIONS, natural_order, perceptron


def mlp(*sizes, bias=True, dtype=torch.float32) -> nn.Sequential:
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NAMINGS = {
    "sequential": lambda k, m: {f"{2 * k}.weight": m.weight, f"{2 * k}.bias": m.bias},
    "attributes": lambda k, m: {f"fc{k + 1}.weight": m.weight, f"fc{k + 1}.bias": m.bias},
    "prefixed": lambda k, m: {f"module.net.{k}.weight": m.weight, f"module.net.{k}.bias": m.bias},
    "plain letters": lambda k, m: {f"W{k}": m.weight, f"b{k}": m.bias},
    "words": lambda k, m: {f"weights_{k}": m.weight, f"biases_{k}": m.bias},
    "in-out": lambda k, m: {f"layers.{k}.W": m.weight.mT, f"layers.{k}.b": m.bias},
    "kernel": lambda k, m: {f"dense_{k}.kernel": m.weight.mT, f"dense_{k}.bias": m.bias},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("naming", NAMINGS)
def test_perceptron_computes_the_same_whatever_its_names(naming, dtype, tmp_path):
    torch.manual_seed(0)
    module = mlp(3, *range(5, 16), 2, dtype=dtype)  # twelve layers: 10 must come after 9, not after 1
    tensors = {}
    for k, layer in enumerate(m for m in module if isinstance(m, nn.Linear)):
        tensors |= NAMINGS[naming](k, layer)
    write_safetensors(tmp_path / "n.safetensors", {name: t.detach() for name, t in tensors.items()})
    network = read(tmp_path / "n.safetensors")
    x = torch.randn(4, 3, dtype=dtype)
    torch.testing.assert_close(network.to_module()(x), module(x))
    assert set(network.parameters) == set(tensors)
    assert "relu" in network.metadata["assumed"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_the_named_one(activation):
    network = perceptron({"a": torch.eye(4), "c": torch.eye(4)}, activation=activation, layout="out-in")
    assert network.nodes[2].operation == ACTIVATIONS[activation]
    assert not network.metadata.get("assumed")


def test_square_matrices_are_ambiguous_unless_named_as_torch_does():
    square = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    with pytest.raises(ArchitectureError, match=r"'W1' may be stored .* --layout out-in or --layout in-out"):
        perceptron({"W1": square, "W2": square})
    x = torch.tensor([[1.0, 2.0]])
    assert perceptron({"W1": square}, layout="out-in").to_module()(x).tolist() == [[2.0, 0.0]]
    assert perceptron({"W1": square}, layout="in-out").to_module()(x).tolist() == [[0.0, 1.0]]
    named = perceptron({"1.weight": square})
    assert named.to_module()(x).tolist() == [[2.0, 0.0]]
    assert named.metadata["assumed"] == "matrices stored (out, in)"


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"c.weight": (4, 1, 3, 3), "f.weight": (2, 4)}, "'c.weight' .*convolution strides.*--architecture"),
        ({"a.weight": (4, 3), "b.weight": (2, 5)}, "'b.weight' .* cannot follow 'a.weight'.*--architecture"),
        ({"a.weight": (4, 3), "a.bias": (5,)}, "bias 'a.bias' has 5 entries"),
        ({"a.weight": (4, 3), "n.running_mean": (4,)}, "'n.running_mean'.*--architecture"),
        ({"a.weight": (4, 3), "lonely": (7,)}, "'lonely'.*--architecture"),
        ({"b": (4,)}, "--architecture"),
        ({}, "no matrix at all"),
    ],
)
def test_what_is_no_perceptron_is_refused(tensors, text):
    with pytest.raises(ArchitectureError, match=text):
        perceptron({name: torch.randn(shape) for name, shape in tensors.items()})


def test_unknown_activation_and_layout_list_the_choices():
    with pytest.raises(ArchitectureError, match="'swoosh' is not known; choose from relu"):
        perceptron({"a.weight": torch.eye(2)}, activation="swoosh")
    with pytest.raises(ArchitectureError, match="choose from out-in, in-out"):
        perceptron({"a.weight": torch.eye(2)}, layout="oi")


def test_natural_order():
    assert sorted(["fc10", "fc2", "a1b10", "a1b9"], key=natural_order) == ["a1b9", "a1b10", "fc2", "fc10"]


ARCHITECTURE = """
import torch
from torch import nn

def cnn():
    module = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    return module, torch.zeros(1, 1, 8, 8)

def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

def number():
    return 3

broken = 1
"""


@pytest.fixture
def architecture(tmp_path):
    (tmp_path / "models.py").write_text(ARCHITECTURE)
    return lambda name: f"{tmp_path / 'models.py'}:{name}"


def saved(module: nn.Module, path) -> str:
    torch.save(module.state_dict(), path)
    return str(path)


def test_convolutional_state_dict_with_its_architecture(architecture, tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    path = saved(module, tmp_path / "cnn.pt")
    with pytest.raises(ArchitectureError, match=r"cnn\.pt: .*--architecture"):
        read(path)
    x = torch.randn(3, 1, 8, 8)
    for given in (architecture("cnn"), read(path, architecture=architecture("cnn"))):
        torch.testing.assert_close(read(path, architecture=given).to_module()(x), module(x))
    with pytest.raises(ArchitectureError, match="input shape of Sequential cannot be told"):
        read(path, architecture=module)
    torch.testing.assert_close(read(path, architecture=module, example_inputs=x).to_module()(x), module(x))


def test_architecture_of_a_perceptron_needs_no_example(architecture, tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    network = read(saved(module, tmp_path / "m.pt"), architecture=architecture("mlp"))
    assert [node.operation.kind for node in network.nodes] == ["Input", "Linear", "Tanh", "Linear"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("number", "returned int"), ("broken", "has no function 'broken'"), ("nope", "has no function 'nope'"),
     ("cnn", "does not fit Sequential: Missing key")],
)  # fmt: skip
def test_wrong_architectures_are_refused(architecture, tmp_path, name, text):
    path = saved(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=text):
        read(path, architecture=architecture(name))


def test_architecture_strings_that_name_nothing(tmp_path):
    path = saved(nn.Linear(3, 4), tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match="is not of the form"):
        read(path, architecture="resnet18")
    with pytest.raises(ArchitectureError, match="does not exist"):
        read(path, architecture="nowhere.py:f")
    with pytest.raises(CheckpointError, match="No such file"):
        read(path, architecture="nowhere.json")
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(ArchitectureError, match="cannot be run: ZeroDivisionError"):
        read(path, architecture=f"{tmp_path / 'bad.py'}:f")


def test_architecture_as_json(tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    network = perceptron(module.state_dict(), activation="tanh")
    (tmp_path / "n.json").write_text(network.to_json())
    path = saved(module, tmp_path / "m.pt")
    assert read(path, architecture=str(tmp_path / "n.json")).hash == network.hash
    assert read(path, architecture=network.to_json()).hash == network.hash


def test_embedded_architecture_is_checked(tmp_path):
    description = json.loads(perceptron({"a.weight": torch.eye(3)}).to_json())
    description["nodes"][1]["parameters"]["weight"] = "elsewhere"
    write_safetensors(
        tmp_path / "n.safetensors",
        {"a.weight": torch.eye(3)},
        {"weightspace.network": json.dumps(description)},
    )
    with pytest.raises(WeightspaceError, match="'elsewhere', which is no parameter"):
        read(tmp_path / "n.safetensors")


def test_read_returns_networks_that_write_and_read_alike(tmp_path):
    path = saved(mlp(3, 4, 2), tmp_path / "m.pt")
    network = read(path)
    network.save(tmp_path / "again.safetensors")
    again = read(tmp_path / "again.safetensors")
    assert isinstance(again, Network)
    assert again.hash == network.hash
    assert again.metadata["assumed"] == network.metadata["assumed"]
