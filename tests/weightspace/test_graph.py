"""The graph of a multilayer perceptron and its exports; what is refused; unions; activations of nodes."""

import functools
import importlib.util
import json

import networkx
import pytest
import torch
from torch import nn

from weightspace.errors import MissingDependencyError, ShapeError, UnsupportedOperationError
from weightspace.graph import batch_graphs, encode
from weightspace.permutation import permute, random_permutations
from weightspace.tracing import trace
from weightspace.verification import symmetry


@functools.cache
def network(dtype=torch.float32):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)
    )
    return trace(module.to(dtype), torch.zeros(2, 3, dtype=dtype))


@functools.cache
def convolutional(dtype=torch.float32, width=4):
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, (1, 2)), nn.Flatten(),
        nn.Linear(3 * 6, 2),
    )  # fmt: skip
    return trace(module.eval().to(dtype), torch.zeros(2, 2, 5, 5, dtype=dtype))


@functools.cache
def transformer(dtype=torch.float32):
    torch.manual_seed(2)
    module = nn.Sequential(
        nn.Linear(3, 8), nn.TransformerEncoderLayer(8, 2, 6, batch_first=True), nn.Linear(8, 2)
    )
    return trace(module.eval().to(dtype), torch.zeros(2, 5, 3, dtype=dtype))


BUILDERS = {"mlp": network, "cnn": convolutional, "transformer": transformer}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_weight_is_one_edge(dtype):
    net = network(dtype)
    graph = encode(net)
    assert graph.layer_sizes == (3, 5, 4, 2)
    assert graph.activations == ("input", "ReLU", "Tanh", "linear")
    assert [layer.kind for layer in graph.structure.layers] == ["input", "hidden", "hidden", "output"]
    assert graph.edge_features.dtype == dtype
    drawn = graph.to_networkx()
    starts = [0, 3, 8, 12]
    for layer, name in enumerate(["0.weight", "2.weight", "4.weight"]):
        for target, row in enumerate(net.parameters[name].tolist()):
            for source, weight in enumerate(row):
                edge = drawn.edges[starts[layer] + source, starts[layer + 1] + target]
                assert edge == {"weight": weight, "kind": "linear"}
    assert drawn.number_of_edges() == graph.edge_features.shape[0] == 15 + 20 + 8
    biases = [drawn.nodes[n]["bias"] for n in drawn]
    assert (
        biases
        == [0.0] * 3 + net.parameters["0.bias"].tolist() + [0.0] * 4 + net.parameters["4.bias"].tolist()
    )
    first = {"layer": 1, "bias": net.parameters["0.bias"][0].item(), "activation": "ReLU"}
    assert drawn.nodes[3] == {**first, "kind": "hidden", "position": 0}
    assert [drawn.nodes[n]["position"] for n in (0, 1, 2, 12, 13)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_are_centered_and_flattened_channels_have_cells(dtype):
    net = convolutional(dtype)
    graph = encode(net)
    assert graph.structure.kernel == (3, 3)
    assert [layer.kind for layer in graph.structure.layers] == [
        "input", "hidden", "normalization", "hidden", "cell", "output",
    ]  # fmt: skip
    drawn = graph.to_networkx()
    kernels = net.parameters["0.weight"]
    assert drawn.edges[1, 2 + 3]["weight"] == tuple(kernels[3, 1].reshape(-1).tolist())
    small = net.parameters["3.weight"]
    expected = torch.zeros(3, 3, dtype=dtype)
    expected[1, 0:2] = small[2, 3, 0]
    assert drawn.edges[6 + 3, 10 + 2]["weight"] == tuple(expected.reshape(-1).tolist())
    center = drawn.edges[2, 6]["weight"]
    assert center[4] == net.parameters["1.weight"][0]
    assert not any(center[:4] + center[5:])
    node = drawn.nodes[6]
    assert (node["bias"], node["mean"], node["variance"]) == (0.0, 0.0, 1.0)
    cells = [n for n in drawn if drawn.nodes[n]["kind"] == "cell"]
    assert len(cells) == 18
    for place, cell in enumerate(cells):
        (channel, _, edge), *others = drawn.in_edges(cell, data=True)
        assert not others
        assert (channel, drawn.nodes[cell]["position"]) == (10 + place // 6, place % 6)
        assert (edge["kind"], edge["weight"][4]) == ("identity", 1.0)
        assert drawn.edges[cell, 10 + 3 + 18]["weight"][4] == net.parameters["5.weight"][0, place]
    assert encode(net, kernel=(5, 3)).structure.kernel == (5, 3)
    with pytest.raises(ShapeError, match="smaller than the largest"):
        encode(net, kernel=(3, 1))


def test_flattened_pixels_are_inputs_themselves():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    graph = encode(trace(module, torch.zeros(2, 1, 4, 3)))
    assert graph.layer_sizes == (12, 4)


def test_units_used_before_and_after_a_nonlinearity_have_two_nodes():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = self.first(x)
            return h + self.second(torch.relu(h))

    graph = encode(trace(Both(), torch.zeros(2, 3)))
    assert graph.layer_sizes == (3, 4, 4, 4, 4)
    assert graph.activations == ("input", "linear", "ReLU", "linear", "linear")


@pytest.mark.parametrize("name", BUILDERS)
def test_zero_weights_keep_their_edges(name):
    net = BUILDERS[name]()
    pruned = net.replace_parameters({key: torch.zeros_like(t) for key, t in net.parameters.items()})
    assert torch.equal(encode(pruned).edge_index, encode(net).edge_index)


def test_permuted_network_gives_a_relabeled_graph():
    net = network()
    spec = symmetry(net)
    elements = random_permutations(spec, torch.Generator().manual_seed(1))
    moved = encode(permute(net, spec, elements)).to_networkx()
    new_name = {n: n for n in range(14)}
    for start, name in ((3, "0"), (8, "2")):
        for new, old in enumerate(elements[name].tolist()):
            new_name[start + old] = start + new
    relabeled = networkx.relabel_nodes(encode(net).to_networkx(), new_name)
    assert set(moved.edges(data="weight")) == set(relabeled.edges(data="weight"))
    assert set(moved.nodes(data="bias")) == set(relabeled.nodes(data="bias"))


# ---- many networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gathering_a_batch_equals_encoding_one_by_one(name, dtype):
    net = BUILDERS[name](dtype)
    generator = torch.Generator().manual_seed(0)
    batch = {
        key: torch.rand((3, 2, *t.shape), generator=generator, dtype=dtype)
        for key, t in net.parameters.items()
        if t.is_floating_point()
    }
    graphs = encode(net).with_parameters(batch)
    assert graphs.node_features.shape[:2] == graphs.edge_features.shape[:2] == (3, 2)
    for place in ((0, 0), (2, 1)):
        one = encode(net.replace_parameters({key: t[place] for key, t in batch.items()}))
        assert torch.equal(graphs.node_features[place], one.node_features)
        assert torch.equal(graphs.edge_features[place], one.edge_features)


def test_features_are_differentiable():
    net = convolutional()
    graph = encode(net)
    leaves = {key: t.clone().requires_grad_() for key, t in net.parameters.items() if t.is_floating_point()}
    features = graph.with_parameters(leaves)
    (features.node_features.square().sum() + features.edge_features.square().sum()).backward()
    for name, _ in graph.structure.parameters:
        gradient = leaves[name].grad
        assert gradient is not None
        assert torch.equal(gradient, 2 * leaves[name])


def test_parameters_that_do_not_fit_are_refused():
    net = network()
    graph = encode(net)
    parameters = dict(net.parameters)
    with pytest.raises(ShapeError, match=r"'0.bias' must have shape .*\(5,\)"):
        graph.with_parameters({**parameters, "0.bias": torch.zeros(4)})
    del parameters["2.weight"]
    with pytest.raises(ShapeError, match=r"'2.weight', which is not among"):
        graph.with_parameters(parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_union_holds_its_parts(dtype):
    nets = [build(dtype) for build in BUILDERS.values()]
    parts = [encode(net, kernel=(3, 3)) for net in nets]
    union = batch_graphs([encode(net) for net in nets])
    structure = union.structure
    assert structure.graphs == 3
    assert structure.kernel == (3, 3)
    nodes = [part.structure.nodes for part in parts]
    assert torch.equal(structure.node_graph.bincount(), torch.tensor(nodes))
    edge_graph = structure.node_graph[union.edge_index[0]]
    assert torch.equal(edge_graph, structure.node_graph[union.edge_index[1]])
    for number, part in enumerate(parts):
        own = structure.node_graph == number
        channels = part.node_features.shape[1]
        assert torch.equal(union.node_features[own][:, :channels], part.node_features)
        assert not union.node_features[own][:, channels:].any()
        assert torch.equal(union.edge_features[edge_graph == number], part.edge_features)
        assert torch.equal(union.edge_index[:, edge_graph == number] - sum(nodes[:number]), part.edge_index)
        assert torch.equal(structure.node_depth[own], part.structure.node_depth)
    everything = {f"{i}.{key}": t for i, net in enumerate(nets) for key, t in net.parameters.items()}
    gathered = union.with_parameters(everything)
    assert torch.equal(gathered.node_features, union.node_features)
    assert torch.equal(gathered.edge_features, union.edge_features)
    nested = batch_graphs([batch_graphs([encode(nets[0]), encode(nets[1])]), encode(nets[2])])
    assert torch.equal(nested.edge_features, union.edge_features)
    assert torch.equal(nested.structure.node_graph, structure.node_graph)


def test_unions_of_unequal_batches_are_refused():
    graph = encode(network())
    several = graph.with_parameters({key: t.expand(2, *t.shape) for key, t in network().parameters.items()})
    assert batch_graphs([several, several]).node_features.shape == (2, 28, 1)
    with pytest.raises(ShapeError, match="same leading axes"):
        batch_graphs([graph, several])
    with pytest.raises(ShapeError, match="at least one"):
        batch_graphs([])


# ---- activations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BUILDERS)
def test_nodes_read_the_values_of_their_units(name, dtype):
    net = BUILDERS[name](dtype)
    structure = encode(net).structure
    shape = (7, *net.inputs[0].shape[1:])
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    values = net.to_module().values(x)
    read = structure.read_values(values)
    assert read.shape == (7, structure.nodes)
    mean = x.mean((2, 3)) if name == "cnn" else x.mean(1) if name == "transformer" else x
    outputs = values[net.outputs[0]]
    outputs = outputs.mean(1) if name == "transformer" else outputs
    torch.testing.assert_close(read[:, : mean.shape[1]], mean)
    torch.testing.assert_close(read[:, -2:], outputs)
    kinds = [layer.kind for layer in structure.layers for _ in range(layer.size)]
    silent = [n for n, kind in enumerate(kinds) if kind in ("product", "head")]
    assert not read[:, silent].any()
    if name == "mlp":
        torch.testing.assert_close(read[:, 3:8], values["1"])  # behind the nonlinearity
    if name == "cnn":
        torch.testing.assert_close(read[:, 6:10], values["2"].mean((2, 3)))
        cells = structure.node_position.new_tensor([n for n, kind in enumerate(kinds) if kind == "cell"])
        torch.testing.assert_close(read[:, cells], values["4"])
    with pytest.raises(ShapeError, match="which is not among those given"):
        structure.read_values({})


# ---- exports ---------------------------------------------------------------------------------------------


def test_json():
    graph = encode(network())
    data = json.loads(graph.to_json())
    assert data["layer_sizes"] == [3, 5, 4, 2]
    assert len(data["edges"]) == len(data["weights"]) == len(data["kinds"]) == 43
    assert data["weights"] == graph.edge_features[:, 0].tolist()
    assert data["biases"] == graph.node_features[:, 0].tolist()
    assert data["layers"][1] == {"name": "0", "kind": "hidden", "size": 5, "activation": "ReLU"}
    images = json.loads(encode(convolutional()).to_json())
    assert images["kernel"] == [3, 3]
    assert {len(weight) for weight in images["weights"]} == {9}
    assert len(images["means"]) == len(images["variances"]) == len(images["positions"])


def test_exports_take_one_network():
    net = network()
    several = encode(net).with_parameters({key: t.expand(2, *t.shape) for key, t in net.parameters.items()})
    assert "(2,) networks" in repr(several)
    for export in (several.to_json, several.to_networkx):
        with pytest.raises(ShapeError, match="one network at a time"):
            export()


@pytest.mark.skipif(importlib.util.find_spec("torch_geometric") is None, reason="torch_geometric is missing")
@pytest.mark.filterwarnings("ignore")
def test_pyg():
    graph = encode(convolutional())
    data = graph.to_pyg()
    data.validate()
    assert data.num_nodes == graph.structure.nodes
    assert torch.equal(data.edge_index, graph.edge_index)
    assert torch.equal(data.edge_attr, graph.edge_features)
    assert torch.equal(data.x, graph.node_features)
    assert data.is_directed()


def test_pyg_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_geometric.data", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        encode(network()).to_pyg()


def test_graphs_change_dtype():
    graph = encode(network()).to(dtype=torch.float64)
    assert graph.node_features.dtype == graph.edge_features.dtype == torch.float64


# ---- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape", "text"),
    [
        (nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten()), (1, 4, 4, 4), "Conv at '0'.*one or two axes"),
        (nn.Sequential(nn.ReLU()), (4,), "no parameters"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), (4,), "at '.*computed from other weights"),
    ],
)
def test_other_operations_are_refused_by_name(module, shape, text):
    with pytest.raises(UnsupportedOperationError, match=text):
        encode(trace(module, torch.zeros(2, *shape)))


def test_too_many_edges_are_refused():
    assert encode(network(), max_edges=43).structure.edges == 43
    with pytest.raises(UnsupportedOperationError, match=r"Linear at '4'.*43 edges, more than 42"):
        encode(network(), max_edges=42)
