"""Parameter graphs of many architectures: nothing is lost, and they have the symmetry of the computation."""

import functools
import math

import networkx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.weightspace.architectures import ARCHITECTURES, random_parameters
from weightspace.errors import UnsupportedOperationError
from weightspace.graph import encode
from weightspace.graph.structure import EDGE_KINDS, NODE_KINDS
from weightspace.permutation import permute, random_permutations
from weightspace.symmetry_derivation import derive
from weightspace.tracing import trace

REFUSED = {"weight norm"}
ENCODED = sorted(ARCHITECTURES.keys() - REFUSED)


@functools.cache
def traced(name):
    architecture = ARCHITECTURES[name]
    return trace(architecture.module(), architecture.inputs())


@functools.cache
def encoded(name):
    return encode(traced(name))


def colors(graph):
    """Weisfeiler-Leman colors of the nodes: equal neighborhoods, equal colors (64-bit hashes)."""
    structure = graph.structure
    layers = graph.node_layer.numpy()
    kinds = np.array([NODE_KINDS.index(layer.kind) for layer in structure.layers])[layers]
    names = np.array([hash(layer.activation) & 0xFFFF for layer in structure.layers])[layers]
    node = mixed(structure.node_depth.numpy(), kinds, names, structure.node_position.numpy())
    node = mixed(node, *graph.node_features.numpy().copy().view(np.int64).T)
    edge = mixed(structure.edge_kind.numpy(), *graph.edge_features.numpy().copy().view(np.int64).T)
    source, target = graph.edge_index.numpy()
    for _ in range(len(structure.layers) + 1):
        incoming, outgoing = np.zeros_like(node), np.zeros_like(node)
        np.add.at(incoming, target, mixed(node[source], edge))
        np.add.at(outgoing, source, mixed(node[target], edge))
        node = mixed(node, incoming, outgoing)
        if len(np.unique(node)) == len(node):
            break
    return node


def mixed(*columns):
    """Hash columns of integers to one, by the finalizer of splitmix64."""
    result = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        result = (result ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        result = (result ^ (result >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        result = (result ^ (result >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result ^= result >> np.uint64(31)
    return result


def labeled(graph):
    """Every node and edge with all that is known of it, edges by the nodes' numbers."""
    structure = graph.structure
    nodes = torch.cat([graph.node_features, structure.node_position[:, None], graph.node_layer[:, None]], 1)
    edges = torch.cat([structure.edge_kind[:, None], graph.edge_features], 1)
    return nodes, dict(zip(zip(*graph.edge_index.tolist(), strict=True), edges.tolist(), strict=True))


def are_isomorphic(one, other):
    """Whether some relabeling turns one graph into the other; the one that the colors propose is checked."""
    if one.structure.layers != other.structure.layers:
        return False
    first, second = colors(one), colors(other)
    assert len(np.unique(first)) == len(first), "the test needs graphs whose nodes are told apart by weights"
    if not np.array_equal(np.sort(first), np.sort(second)):
        return False
    renamed = np.empty(len(first), dtype=np.int64)
    renamed[np.argsort(first)] = np.argsort(second)
    (nodes, edges), (moved_nodes, moved_edges) = labeled(one), labeled(other)
    return torch.equal(nodes, moved_nodes[renamed]) and moved_edges == {
        (int(renamed[a]), int(renamed[b])): weight for (a, b), weight in edges.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ENCODED)
def test_every_parameter_can_be_read_off_the_graph(name, dtype):
    net = traced(name).astype(dtype)
    graph = encoded(name).with_parameters(net.parameters)
    structure = graph.structure
    total = sum(math.prod(shape) for _, shape in structure.parameters)
    flat = torch.full((total,), math.nan, dtype=dtype)
    for entries, features in (
        (structure.node_entries, graph.node_features),
        (structure.edge_entries, graph.edge_features),
    ):
        flat[entries[entries >= 0]] = features[entries >= 0]
        assert not features[entries == -1].any()
    sizes = [math.prod(shape) for _, shape in structure.parameters]
    for (key, shape), part in zip(structure.parameters, flat.split(sizes), strict=True):
        assert torch.equal(part.reshape(shape), net.parameters[key])
    used = {name for node in net.nodes for name in node.operation.parameters.values()}
    assert used - net.buffers <= {key for key, _ in structure.parameters}


@pytest.mark.parametrize("name", ENCODED)
def test_edges_lead_forward_and_stand_once(name):
    graph = encoded(name)
    source, target = graph.edge_index
    assert bool((source < target).all())
    assert len(torch.unique(graph.edge_index, dim=1).mT) == graph.structure.edges
    depth = graph.structure.node_depth
    assert bool((depth[source] < depth[target]).all())


@pytest.mark.parametrize("name", ENCODED)
def test_symmetries_of_the_network_relabel_the_graph(name):
    net = traced(name)
    spec = derive(net)
    elements = random_permutations(spec, torch.Generator().manual_seed(1))
    moved = permute(net, spec, elements)
    graph, relabeled = encoded(name), encode(moved)
    assert are_isomorphic(graph, relabeled)
    if elements:
        assert not torch.equal(graph.edge_features, relabeled.edge_features)


FIXED = {  # parameter and axis of network inputs and outputs
    "mlp": (("0.weight", 1), ("4.weight", 0)),
    "resnet": (("0.weight", 1), ("8.weight", 0)),
    "gpt": (("tokens.weight", 0), ("head.weight", 0), ("positions.weight", 0)),
    "flattened convolutions": (("0.weight", 1),),
    "encoder layer": (("enter.weight", 1), ("leave.weight", 0)),
}


@pytest.mark.parametrize("name", FIXED)
def test_inputs_and_outputs_are_told_apart(name):
    net, graph = traced(name), encoded(name)
    for parameter, axis in FIXED[name]:
        moved = net.replace_parameters({parameter: net.parameters[parameter].roll(1, axis)})
        assert not are_isomorphic(graph, encode(moved))


@pytest.mark.parametrize("kind", ["encoder layer", "packed attention", "llama", "einsum attention"])
def test_permuting_queries_without_keys_is_another_graph(kind):
    net, graph = traced(kind), encoded(kind)
    name, axis = {
        "encoder layer": ("layers.0.self_attn.in_proj_weight", 0),
        "packed attention": ("layers.0.attention.packed.weight", 0),
        "llama": ("blocks.0.attention.query.weight", 0),
        "einsum attention": ("layers.0.attention.query", 2),
    }[kind]
    bias = name.replace("weight", "bias")
    changed = {key: net.parameters[key] for key in {name, bias} if key in net.parameters}
    order = torch.arange(net.parameters[name].shape[axis])
    order[:2] = torch.tensor([1, 0])
    moved = {key: t.index_select(min(axis, t.ndim - 1), order) for key, t in changed.items()}
    assert not are_isomorphic(graph, encode(net.replace_parameters(moved)))


def test_cells_and_group_members_are_told_apart():
    """Swapping two cells of a flattened channel is no symmetry, nor is moving one channel out of its group."""
    net = traced("flattened convolutions")
    weight = net.parameters["6.weight"]
    order = torch.arange(weight.shape[1])
    order[[0, 1]] = order[[1, 0]]
    assert not are_isomorphic(encode(net), encode(net.replace_parameters({"6.weight": weight[:, order]})))
    net = traced("group norm")
    order = torch.tensor([0, 2, 1, 3, 4, 5, 6, 7])
    moved = {key: net.parameters[key][order] for key in ("0.weight", "0.bias", "1.weight", "1.bias")} | {
        "3.weight": net.parameters["3.weight"][:, order]
    }
    assert not are_isomorphic(encode(net), encode(net.replace_parameters(moved)))


def test_networkx_agrees():
    """The isomorphism test of another library on a small network."""
    net = trace(
        random_parameters(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))),
        torch.zeros(2, 2).double(),
    )
    spec = derive(net)
    moved = permute(net, spec, {"0": torch.tensor([2, 0, 1])})
    illegal = net.replace_parameters({"0.weight": net.parameters["0.weight"][[2, 0, 1]]})
    match = {
        "node_match": lambda a, b: a == b,
        "edge_match": lambda a, b: a == b,
    }
    drawn = encode(net).to_networkx()
    assert networkx.is_isomorphic(drawn, encode(moved).to_networkx(), **match)
    assert not networkx.is_isomorphic(drawn, encode(illegal).to_networkx(), **match)
    assert are_isomorphic(encode(net), encode(moved))
    assert not are_isomorphic(encode(net), encode(illegal))


class VisionTransformer(nn.Module):
    """Patches, class token, learned positions, one encoder layer, a head on the class token."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 7, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.layer(x)[:, 0])


def test_vision_transformer():
    net = trace(random_parameters(VisionTransformer()), torch.zeros(3, 3, 4, 6).double())
    graph = encode(net)
    kinds = [layer.kind for layer in graph.structure.layers]
    sizes = dict(zip((layer.name for layer in graph.structure.layers), graph.layer_sizes, strict=True))
    assert kinds.count("constant") == 2  # the class token, and the seven positions
    assert 7 in sizes.values()
    assert kinds[-1] == "output"
    used = set(graph.structure.node_entries.unique().tolist()) | set(
        graph.structure.edge_entries.unique().tolist()
    )
    total = sum(t.numel() for key, t in net.parameters.items() if key not in net.buffers)
    assert {entry for entry in used if entry >= 0} == set(range(total))
    spec = derive(net)
    moved = permute(net, spec, random_permutations(spec, torch.Generator().manual_seed(0)))
    assert are_isomorphic(graph, encode(moved))


class Gated(nn.Module):
    """Learned biases of attention scores by relative position, a learned temperature, maxima and padding."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 8) for _ in range(3))
        self.table, self.temperature = nn.Embedding(9, 2), nn.Parameter(torch.ones(2, 1, 1))
        self.leave = nn.Linear(10, 4)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
        place = torch.arange(5)
        bias = self.table(place[None] - place[:, None] + 4).permute(2, 0, 1)
        scores = (
            F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature.exp() + bias
        )
        h = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.leave(F.pad(torch.maximum(h, x.repeat(1, 1, 2)[..., :8]), (1, 1)))


def test_position_biases_temperatures_maxima_and_padding():
    net = trace(random_parameters(Gated()), torch.zeros(3, 5, 6).double())
    graph = encode(net)
    parts = {layer.name: layer.size for layer in graph.structure.layers}
    assert 9 in parts.values()
    source, target = graph.edge_index
    assert bool((source < target).all())
    entries = torch.cat([graph.structure.node_entries.reshape(-1), graph.structure.edge_entries.reshape(-1)])
    total = sum(t.numel() for key, t in net.parameters.items() if key not in net.buffers)
    assert entries[entries >= 0].unique().tolist() == list(range(total))
    spec = derive(net)
    moved = permute(net, spec, random_permutations(spec, torch.Generator().manual_seed(0)))
    assert are_isomorphic(graph, encode(moved))


def test_tied_weights_are_repeated():
    structure = encoded("tied gpt").structure
    (offset,) = [
        sum(math.prod(shape) for _, shape in structure.parameters[:number])
        for number, (name, _) in enumerate(structure.parameters)
        if name == "tokens.weight"
    ]
    uses = structure.edge_entries[structure.edge_entries >= 0].bincount()
    assert uses[offset : offset + 17 * 16].tolist() == [2] * (17 * 16)


def test_grouped_queries_share_keys():
    """Every key unit leads to the products of both query heads that its head serves."""
    graph = encoded("llama")
    kind, (source, _) = graph.structure.edge_kind, graph.edge_index
    assert source[kind == EDGE_KINDS.index("query")].unique(return_counts=True)[1].tolist() == [1] * 16
    assert source[kind == EDGE_KINDS.index("key")].unique(return_counts=True)[1].tolist() == [2] * 8
    assert source[kind == EDGE_KINDS.index("value")].unique(return_counts=True)[1].tolist() == [2] * 8


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused(name):
    with pytest.raises(UnsupportedOperationError, match="cannot be encoded"):
        encode(traced(name))


def test_edge_kinds_of_attention():
    graph = encoded("encoder layer")
    count = dict(
        zip(EDGE_KINDS, graph.structure.edge_kind.bincount(minlength=len(EDGE_KINDS)).tolist(), strict=True)
    )
    assert count["query"] == count["key"] == count["value"] == 16
    assert count["linear"] == sum(
        graph_size for graph_size in (7 * 16, 16 * 48, 16 * 16, 16 * 32, 32 * 16, 16 * 5)
    )
