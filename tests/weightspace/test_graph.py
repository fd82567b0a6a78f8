"""The parameter graph holds every weight once, and permuting neurons relabels its nodes."""

import json

import networkx
import pytest
import torch
from torch import nn

from weightspace.errors import UnsupportedOperationError
from weightspace.graph import encode
from weightspace.permutation import permute, random_permutations
from weightspace.tracing import trace
from weightspace.verification import symmetry


def network(dtype=torch.float32):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)
    )
    return trace(module.to(dtype), torch.zeros(2, 3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_weight_is_one_edge(dtype):
    net = network(dtype)
    graph = encode(net)
    assert graph.layer_sizes == (3, 5, 4, 2)
    assert graph.activations == ("input", "ReLU", "Tanh", "linear")
    drawn = graph.to_networkx()
    starts = [0, 3, 8, 12]
    for layer, name in enumerate(["0.weight", "2.weight", "4.weight"]):
        for target, row in enumerate(net.parameters[name].tolist()):
            for source, weight in enumerate(row):
                assert drawn.edges[starts[layer] + source, starts[layer + 1] + target]["weight"] == weight
    assert drawn.number_of_edges() == graph.edge_features.shape[0] == 15 + 20 + 8
    biases = [drawn.nodes[n]["bias"] for n in drawn]
    assert (
        biases
        == [0.0] * 3 + net.parameters["0.bias"].tolist() + [0.0] * 4 + net.parameters["4.bias"].tolist()
    )
    assert drawn.nodes[3] == {"layer": 1, "bias": net.parameters["0.bias"][0].item(), "activation": "ReLU"}


def test_zero_weights_keep_their_edges():
    net = network()
    pruned = net.replace_parameters({"2.weight": torch.zeros(4, 5)})
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
    assert dict(moved.nodes(data="bias")) == dict(relabeled.nodes(data="bias"))


def test_json():
    data = json.loads(encode(network()).to_json())
    assert data["layer_sizes"] == [3, 5, 4, 2]
    assert len(data["edges"]) == len(data["weights"]) == 43


@pytest.mark.parametrize(
    ("module", "shape", "text"),
    [
        (nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 2)), (1, 4), "Conv at '0'"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), (4,), "Softmax at '1'"),
        (nn.Sequential(nn.ReLU()), (4,), "ReLU at '0'"),
    ],
)
def test_other_operations_are_refused_by_name(module, shape, text):
    with pytest.raises(UnsupportedOperationError, match=text):
        encode(trace(module, torch.zeros(2, *shape)))
