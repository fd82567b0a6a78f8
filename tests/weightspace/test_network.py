"""Laws of `Network`: content hash, round trips, immutability, refusal of inconsistent graphs."""

import copy
import dataclasses
import hashlib
import json
import pickle

import pytest
import torch

from weightspace import operations as op
from weightspace.builder import NetworkBuilder
from weightspace.canonical_form import canonical_hash
from weightspace.errors import ArchitectureError, NonFiniteError, ShapeError, UnsupportedOperationError
from weightspace.network import Network, Node, require_finite, tensor_digest
from weightspace.reading import read


def small_network(dtype=torch.float32, prefix="", seed=0, batch=None, bias_apart=False) -> Network:
    generator = torch.Generator().manual_seed(seed)
    builder = NetworkBuilder()
    for name, shape in {"w1": (5, 3), "b1": (5,), "w2": (2, 5), "scale": (2,)}.items():
        builder.parameter(prefix + name, torch.randn(shape, generator=generator, dtype=dtype))
    x = builder.input(prefix + "x", (batch, 3), dtype)
    bias = None if bias_apart else prefix + "b1"
    h = builder.add(op.Linear(weight=prefix + "w1", bias=bias), x)
    if bias_apart:
        h = builder.add(op.Add(), builder.value(prefix + "b1"), h)
    h = builder.add(op.LeakyReLU(negative_slope=0.25), h)
    h = builder.add(op.Linear(weight=prefix + "w2"), h)
    return builder.build([builder.add(op.Multiply(), h, builder.value(prefix + "scale"))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_hash_ignores_names_and_sees_everything_else(dtype):
    network = small_network(dtype)
    assert network.hash == small_network(dtype, prefix="other.").hash
    assert network.hash != small_network(dtype, seed=1).hash
    assert network.hash != small_network(dtype, batch=4).hash
    moved = dict(network.parameters)
    moved["b1"] = moved["b1"].clone()
    moved["b1"][0] += 1
    assert network.hash != network.replace_parameters(moved).hash
    assert network.hash != network.astype(torch.float32 if dtype == torch.float64 else torch.float64).hash
    steeper = tuple(
        dataclasses.replace(node, operation=op.LeakyReLU(negative_slope=0.5))
        if isinstance(node.operation, op.LeakyReLU)
        else node
        for node in network.nodes
    )
    assert network.hash != dataclasses.replace(network, nodes=steeper).hash


def test_hash_tells_swapped_inputs_apart():
    def subtract(swapped: bool) -> Network:
        builder = NetworkBuilder()
        a, b = builder.input("a", (None, 3)), builder.input("b", (None, 3))
        return builder.build([builder.add(op.Subtract(), *((b, a) if swapped else (a, b)))])

    assert subtract(False).hash != subtract(True).hash


def test_hash_counts_inputs_that_nothing_uses():
    def double(inputs: int) -> Network:
        builder = NetworkBuilder()
        values = [builder.input(f"x{i}", (None, 3)) for i in range(inputs)]
        return builder.build([builder.add(op.Scale(factor=2.0), values[0])])

    assert double(1).hash != double(2).hash


def test_hash_is_independent_of_the_order_of_independent_nodes():
    def branches(swapped: bool) -> Network:
        builder = NetworkBuilder()
        builder.parameter("a", torch.eye(3))
        builder.parameter("b", 2 * torch.eye(3))
        x = builder.input("x", (None, 3))
        values = {name: builder.add(op.Linear(weight=name), x) for name in ("ba" if swapped else "ab")}
        return builder.build([builder.add(op.Add(), values["a"], values["b"])])

    assert branches(False).hash == branches(True).hash


def test_tensor_digest_covers_the_bytes():
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    expected = hashlib.sha256(b'["float32",[2,3]]' + tensor.numpy().tobytes()).hexdigest()
    assert tensor_digest(tensor) == expected
    assert tensor_digest(tensor.mT.contiguous().mT) == expected
    assert tensor_digest(torch.tensor(0.0)) != tensor_digest(torch.tensor(-0.0))


def test_single_entries_may_have_any_stride(tmp_path):
    def network(weight: torch.Tensor) -> Network:
        builder = NetworkBuilder()
        builder.parameter("weight", weight)
        return builder.build(
            [builder.add(op.Linear(weight="weight"), builder.input("x", (None, 1), weight.dtype))]
        )

    strided, plain = network(torch.ones(1, 2)[:, ::2]), network(torch.ones(1, 1))
    assert strided.parameters["weight"].stride(-1) == 2
    assert strided.hash == plain.hash
    assert canonical_hash(strided) == canonical_hash(plain)
    strided.save(tmp_path / "n.safetensors")
    assert read(tmp_path / "n.safetensors").hash == plain.hash


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_files_round_trip_exactly(dtype, tmp_path):
    network = small_network(dtype)
    network.save(tmp_path / "n.safetensors")
    network.save_npz(tmp_path / "n.npz")
    for name in ("n.safetensors", "n.npz"):
        again = read(tmp_path / name)
        assert again.hash == network.hash
        assert again.to_json() == dataclasses.replace(network, metadata={"source": name}).to_json()
        assert all(torch.equal(again.parameters[key], network.parameters[key]) for key in network.parameters)


@pytest.mark.parametrize(
    "operation", [op.Clip(upper=float("inf")), op.Pointwise(name="sin"), op.Reduce(name="sum")]
)
def test_attributes_that_json_finds_hard(operation):
    builder = NetworkBuilder()
    network = builder.build([builder.add(operation, builder.input("x", (None, 3)))])
    text = network.to_json()
    assert "Infinity" not in text
    again = Network.from_json(text, {})
    assert again == network
    assert again.nodes == network.nodes


def test_copies_and_pickles():
    network = small_network()
    assert copy.deepcopy(network) == network
    assert pickle.loads(pickle.dumps(network)) == network
    x = torch.randn(2, 3)
    torch.testing.assert_close(copy.deepcopy(network.to_module())(x), network.to_module()(x))


def test_shapes_that_a_file_states_are_worked_out_again():
    data = json.loads(small_network().to_json())
    data["nodes"][2]["shape"] = [None, 7]
    with pytest.raises(ArchitectureError, match=r"gives \(None, 5\) float32, not \(None, 7\) float32"):
        Network.from_json(json.dumps(data), small_network().parameters)
    wrong = {**small_network().parameters, "w1": torch.ones(5, 4)}
    with pytest.raises(ArchitectureError, match="does not fit its inputs"):
        Network.from_json(small_network().to_json(), wrong)


def test_json_and_networkx_round_trip():
    network = small_network()
    assert Network.from_json(network.to_json(), network.parameters) == network
    graph = network.to_networkx()
    assert Network.from_networkx(graph, network.parameters) == network
    assert graph.number_of_nodes() == len(network.nodes)
    assert graph.number_of_edges() == sum(len(node.inputs) for node in network.nodes)


def test_module_runs_and_keeps_names():
    network = small_network()
    module = network.to_module()
    assert set(module.state_dict()) == set(network.parameters)
    x = torch.randn(7, 3)
    p = network.parameters
    expected = torch.nn.functional.leaky_relu(x @ p["w1"].T + p["b1"], 0.25) @ p["w2"].T * p["scale"]
    torch.testing.assert_close(module(x), expected)
    module.state_dict()["w1"].zero_()
    assert bool(network.parameters["w1"].any()), "the module owns copies"


def test_names_that_nn_module_uses_itself():
    builder = NetworkBuilder()
    builder.parameter("forward", torch.ones(2, 2))
    builder.parameter("network.weight", torch.ones(2, 2))
    x = builder.input("x", (None, 2))
    h = builder.add(op.Linear(weight="network.weight"), builder.add(op.Linear(weight="forward"), x))
    assert builder.build([h]).to_module()(torch.ones(1, 2)).tolist() == [[4.0, 4.0]]


def test_separate_bias_joins_its_linear_map():
    together, apart = small_network(), small_network(bias_apart=True)
    assert [node.operation.kind for node in apart.nodes] == [node.operation.kind for node in together.nodes]
    assert apart == together


def test_unused_nodes_go_and_parameters_stay():
    builder = NetworkBuilder()
    builder.parameter("w", torch.eye(2))
    builder.parameter("unused", torch.ones(1))
    x = builder.input("x", (None, 2))
    builder.add(op.Tanh(), x)
    network = builder.build([builder.add(op.Linear(weight="w"), x)])
    assert [node.operation.kind for node in network.nodes] == ["Input", "Linear"]
    assert "unused" in network.parameters


def test_shapes_follow_the_batch():
    builder = NetworkBuilder()
    x = builder.input("x", (None, 2, 3))
    merged = builder.add(op.Flatten(start=0, end=1), x)
    assert builder.shape(merged) == (None, 3)
    assert builder.shape(builder.add(op.Reduce(name="sum", axes=(0,)), x)) == (2, 3)


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([Node("a", op.ReLU(), ("b",), (1,), "float32")], "which no earlier node makes"),
        ([Node("a", op.Input(), (), (1,), "float32")] * 2, "two nodes are named 'a'"),
        ([Node("a", op.Linear(weight="w"), (), (1,), "float32")], "which is no parameter"),
        ([], "output 'a' is made by no node"),
    ],
)
def test_inconsistent_graphs_are_refused(nodes, text):
    with pytest.raises(ArchitectureError, match=text):
        Network(tuple(nodes), ("a",), {})


def test_builder_names_what_does_not_fit():
    builder = NetworkBuilder()
    builder.parameter("w", torch.ones(4, 3))
    x = builder.input("x", (None, 5))
    with pytest.raises(
        ArchitectureError, match=r"Linear .*'w'.* does not fit its inputs \['x'\] of shapes \[\(11, 5\)\]"
    ):
        builder.add(op.Linear(weight="w"), x)
    with pytest.raises(ArchitectureError, match="two parameters are named 'w'"):
        builder.parameter("w", torch.ones(1))


def test_replacing_parameters_checks_names_and_shapes():
    network = small_network()
    with pytest.raises(ShapeError, match="no parameter 'nope'"):
        network.replace_parameters({"nope": torch.ones(1)})
    with pytest.raises(ShapeError, match=r"'b1' has shape \(5,\), not \(4,\)"):
        network.replace_parameters({"b1": torch.ones(4)})
    with pytest.raises(ShapeError, match=r"has dtype torch.float32, not torch.float64"):
        network.replace_parameters({"b1": torch.ones(5, dtype=torch.float64)})


def test_network_is_immutable():
    network = small_network()
    with pytest.raises(TypeError):
        network.parameters["w1"] = torch.ones(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.nodes = ()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "weightspace.network", "version": 99}', '{"format": "x", "version": 1}',
     '{"format": "weightspace.network", "version": 1, "nodes": [{}]}'],
)  # fmt: skip
def test_broken_json_is_refused(text):
    with pytest.raises(ArchitectureError):
        Network.from_json(text, {})


def test_json_with_unknown_operation_is_refused():
    data = json.loads(small_network().to_json())
    data["nodes"][1]["kind"] = "Import"
    with pytest.raises(ArchitectureError, match="unknown operation 'Import'"):
        Network.from_json(json.dumps(data), small_network().parameters)


@pytest.mark.parametrize(
    "name", ["aten.from_file.default", "aten.relu_.default", "aten.nope.default", "os.system"]
)
def test_opaque_operations_run_functions_only(name):
    operation = op.Opaque(name=name, arguments='{"self": {"input": 0}}')
    with pytest.raises(UnsupportedOperationError):
        operation.evaluate((torch.ones(1),), {})


def test_nan_weights_are_named():
    network = small_network()
    broken = network.parameters["w2"].clone()
    broken[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="'w2' has 1 NaN"):
        require_finite(network.replace_parameters({"w2": broken}))
