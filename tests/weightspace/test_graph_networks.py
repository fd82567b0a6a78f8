"""Networks on parameter graphs: symmetry, unions and batches, aggregation, gradients, gauges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.weightspace.architectures import ARCHITECTURES, Architecture, random_parameters
from weightspace.errors import ShapeError, UnsupportedOperationError
from weightspace.graph.aggregation import AGGREGATORS, VARIANCE_FLOOR, Neighborhoods, aggregate
from weightspace.graph.encoding import describe_structure, encode
from weightspace.graph.gauge import choose_gauge, free_units
from weightspace.graph.neural_graph_net import NeuralGraphNet
from weightspace.graph.neural_graph_transformer import NeuralGraphTransformer
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.probe_features import ProbeFeatures
from weightspace.graph.structure import EDGE_KINDS, GraphStructure, NodeLayer
from weightspace.graph.union import batch_graphs
from weightspace.graph.vocabulary import describe_graphs
from weightspace.permutation import permute, random_permutations
from weightspace.tracing import trace
from weightspace.verification import symmetry

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def structure_of(layers: list[NodeLayer], blocks: list[tuple[int, int, str]]) -> GraphStructure:
    """Layers joined by complete blocks (from layer, to layer, kind); "identity" joins equal layers one to one."""
    sizes = [layer.size for layer in layers]
    starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    index, kinds = [], []
    for source, target, kind in blocks:
        rows, columns = torch.arange(sizes[target]), torch.arange(sizes[source])
        if kind == "identity":
            pairs = torch.stack([columns, rows])
        else:
            pairs = torch.stack([columns.repeat(sizes[target]), rows.repeat_interleave(sizes[source])])
        index.append(pairs + torch.tensor([[starts[source]], [starts[target]]]))
        kinds += [EDGE_KINDS.index(kind)] * pairs.shape[1]
    edge_index = torch.cat(index, 1)
    positions = [
        torch.arange(layer.size)
        if layer.kind in ("input", "output", "cell")
        else torch.zeros(layer.size).long()
        for layer in layers
    ]
    nodes, edges = sum(sizes), edge_index.shape[1]
    return GraphStructure(
        layers=tuple(layers),
        edge_index=edge_index,
        edge_kind=torch.tensor(kinds),
        node_position=torch.cat(positions),
        node_depth=torch.arange(len(layers)).repeat_interleave(torch.tensor(sizes)),
        node_graph=torch.zeros(nodes, dtype=torch.int64),
        node_entries=torch.zeros(nodes, 1, dtype=torch.int64),
        edge_entries=torch.zeros(edges, 1, dtype=torch.int64),
        kernel=(1, 1),
        parameters=(),
    )


def mlp(*sizes: int, activation: str = "ReLU") -> GraphStructure:
    last = len(sizes) - 1
    kinds = ["input", *["hidden"] * (last - 1), "output"]
    names = ["input", *[activation] * (last - 1), "linear"]
    layers = [NodeLayer(f"l{i}", *entry) for i, entry in enumerate(zip(kinds, sizes, names))]
    return structure_of(layers, [(i, i + 1, "linear") for i in range(last)])


def residual_cnn() -> GraphStructure:
    """Convolutions with a residual connection; channels of the edges as for 3x3 kernels."""
    layers = [
        NodeLayer("x", "input", 2, "input"), NodeLayer("a", "hidden", 4, "ReLU"), NodeLayer("b", "hidden", 4, "ReLU"),
        NodeLayer("s", "residual", 4, "ReLU"), NodeLayer("y", "output", 3),
    ]  # fmt: skip
    blocks = [
        (0, 1, "convolution"), (1, 2, "convolution"), (1, 3, "identity"), (2, 3, "identity"), (3, 4, "linear"),
    ]  # fmt: skip
    return structure_of(layers, blocks)


def transformer() -> GraphStructure:
    layers = [
        NodeLayer("t", "input", 5, "input"), NodeLayer("h", "hidden", 4), NodeLayer("q", "head", 4),
        NodeLayer("k", "head", 4), NodeLayer("p", "product", 2), NodeLayer("v", "hidden", 4),
        NodeLayer("r", "residual", 4), NodeLayer("n", "normalization", 4), NodeLayer("y", "output", 5, "Softmax"),
    ]  # fmt: skip
    blocks = [
        (0, 1, "embedding"), (1, 2, "query"), (1, 3, "key"), (2, 4, "linear"), (3, 4, "linear"), (1, 5, "value"),
        (4, 5, "linear"), (5, 6, "linear"), (1, 6, "identity"), (6, 7, "gain"), (7, 8, "linear"),
    ]  # fmt: skip
    return structure_of(layers, blocks)


def draw(structure: GraphStructure, dtype=torch.float64, *, batch=(), channels=1, seed=0) -> ParameterGraph:
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.randn(*batch, structure.nodes, 1, generator=generator, dtype=dtype)
    edges = torch.randn(*batch, structure.edges, channels, generator=generator, dtype=dtype)
    return ParameterGraph(structure, nodes, edges)


def union(*graphs: ParameterGraph) -> ParameterGraph:
    """The disjoint union."""
    structures = [graph.structure for graph in graphs]
    starts = [0, *torch.tensor([s.nodes for s in structures]).cumsum(0).tolist()]
    structure = GraphStructure(
        layers=tuple(layer for s in structures for layer in s.layers),
        edge_index=torch.cat([s.edge_index + start for s, start in zip(structures, starts)], 1),
        edge_kind=torch.cat([s.edge_kind for s in structures]),
        node_position=torch.cat([s.node_position for s in structures]),
        node_depth=torch.cat([s.node_depth for s in structures]),
        node_graph=torch.cat([s.node_graph + i for i, s in enumerate(structures)]),
        node_entries=torch.cat([s.node_entries for s in structures]),
        edge_entries=torch.cat([s.edge_entries for s in structures]),
        kernel=(1, 1),
        parameters=(),
    )
    return ParameterGraph(
        structure,
        torch.cat([g.node_features for g in graphs], -2),
        torch.cat([g.edge_features for g in graphs], -2),
    )


def relabel(graph: ParameterGraph, layer: int, order: Tensor) -> tuple[ParameterGraph, Tensor, Tensor]:
    """The units of a layer in another order; also where each node and each edge came from."""
    structure = graph.structure
    starts = [0, *torch.tensor([entry.size for entry in structure.layers]).cumsum(0).tolist()]
    came_from = torch.arange(structure.nodes)
    came_from[starts[layer] : starts[layer + 1]] = starts[layer] + order
    number = {pair: edge for edge, pair in enumerate(zip(*structure.edge_index.tolist()))}
    edges = torch.tensor([number[pair] for pair in zip(*came_from[structure.edge_index].tolist())])
    moved = ParameterGraph(
        structure, graph.node_features[..., came_from, :], graph.edge_features[..., edges, :]
    )
    return moved, came_from, edges


def build(cls, graphs, dtype=torch.float64, seed=0, **options):
    options.setdefault("out_features", 3)
    generator = torch.Generator().manual_seed(seed)
    return cls(describe_graphs(graphs), dtype=dtype, generator=generator, **options).eval()


def close(a: Tensor, b: Tensor, factor: float = 1.0) -> bool:
    a, b = a.detach(), b.detach()
    return bool((a - b).abs().max() <= factor * TOLERANCE[a.dtype] * max(1.0, float(b.abs().max())))


SMALL = {
    NeuralGraphNet: {"width": 8, "layers": 2},
    NeuralGraphTransformer: {"width": 8, "edge_width": 4, "heads": 2, "layers": 2},
}
EVERY = pytest.mark.parametrize("cls", list(SMALL))


@EVERY
@BOTH
@pytest.mark.parametrize("layer", [1, 2])
def test_hidden_units_have_no_order(cls, dtype, layer):
    graph = draw(mlp(3, 5, 4, 2), dtype, batch=(2,))
    order = torch.randperm(graph.structure.layers[layer].size, generator=torch.Generator().manual_seed(layer))
    moved, nodes, edges = relabel(graph, layer, order)
    for readout in ("outputs", "all"):
        network = build(cls, [graph], dtype, readout=readout, **SMALL[cls])
        assert close(network(moved), network(graph))
    on_nodes = build(cls, [graph], dtype, level="node", **SMALL[cls])
    assert close(on_nodes(moved), on_nodes(graph)[:, nodes])
    assert on_nodes(graph).shape == (2, 14, 3)
    assert not close(on_nodes(moved), on_nodes(graph), 1e3)
    on_edges = build(cls, [graph], dtype, level="edge", **SMALL[cls])
    assert close(on_edges(moved), on_edges(graph)[:, edges])
    assert on_edges(graph).shape == (2, 43, 3)


@EVERY
@pytest.mark.parametrize("layer", [0, 3])
def test_inputs_and_outputs_have_an_order_unless_positions_are_dropped(cls, layer):
    graph = draw(mlp(3, 5, 4, 3))
    moved, _, _ = relabel(graph, layer, torch.tensor([1, 2, 0]))
    options = {**SMALL[cls], "layers": 3}  # so that what stands at the inputs reaches the outputs
    for readout in ("outputs", "all"):
        placed = build(cls, [graph], readout=readout, **options)
        assert (placed(moved) - placed(graph)).abs().max() > 1e-3
        unplaced = build(cls, [graph], readout=readout, positions=False, **options)
        assert close(unplaced(moved), unplaced(graph))


@EVERY
@BOTH
def test_union_of_architectures_gives_what_each_gives_alone(cls, dtype):
    graphs = [
        draw(s, dtype, channels=9, seed=i)
        for i, s in enumerate([residual_cnn(), transformer(), mlp(2, 5, 3)])
    ]
    together = union(*graphs)
    for level in ("graph", "node", "edge"):
        network = build(cls, graphs, dtype, level=level, readout="all", **SMALL[cls])
        alone = [network(graph) for graph in graphs]
        expected = torch.stack(alone) if level == "graph" else torch.cat(alone)
        assert close(network(together), expected)
    other = union(*graphs[::-1])
    network = build(cls, graphs, dtype, **SMALL[cls])
    assert close(network(other), network(together).flip(0))


@EVERY
@pytest.mark.parametrize("name", ["resnet", "flattened convolutions", "encoder layer"])
def test_permuted_networks_give_the_same_result(cls, name):
    architecture = ARCHITECTURES[name]
    inputs = architecture.inputs()
    network = trace(architecture.module(), inputs)
    spec = symmetry(network)
    moved = permute(network, spec, random_permutations(spec, torch.Generator().manual_seed(1)))
    graph, other = encode(network), encode(moved)
    assert not torch.equal(graph.edge_features, other.edge_features)
    reader = build(cls, [graph], readout="all", **SMALL[cls])
    assert close(reader(other), reader(graph))


@EVERY
def test_a_convolutional_network_and_a_transformer_in_one_batch(cls):
    graphs = []
    for name in ("flattened convolutions", "encoder layer"):
        inputs = ARCHITECTURES[name].inputs()
        graphs.append(encode(trace(ARCHITECTURES[name].module(), inputs), kernel=(3, 3)))
    reader = build(cls, graphs, readout="all", **SMALL[cls])
    with torch.no_grad():
        assert close(reader(batch_graphs(graphs)), torch.stack([reader(graph) for graph in graphs]))


@EVERY
def test_leading_axes_are_independent_networks(cls):
    graph = draw(mlp(2, 4, 3), batch=(2, 3))
    network = build(cls, [graph], **SMALL[cls])
    result = network(graph)
    assert result.shape == (2, 3, 3)
    for i in range(2):
        for j in range(3):
            one = ParameterGraph(graph.structure, graph.node_features[i, j], graph.edge_features[i, j])
            assert close(network(one), result[i, j])
    pair = union(graph, graph)
    assert network(pair).shape == (2, 3, 2, 3)


@BOTH
def test_aggregation_agrees_with_a_walk_over_the_graph(dtype):
    import networkx

    structure = transformer()
    messages = torch.randn(structure.edges, 2, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(range(structure.nodes))
    for number, (source, target) in enumerate(zip(*structure.edge_index.tolist())):
        graph.add_edge(source, target, message=messages[number])
    for buckets, edges_at in (
        (structure.incoming, lambda node: graph.in_edges(node, data="message")),
        (structure.outgoing, lambda node: graph.out_edges(node, data="message")),
    ):
        results = aggregate(messages, Neighborhoods.of(buckets), AGGREGATORS).unflatten(-1, (4, 3))
        for node in range(structure.nodes):
            found = [message for _, _, message in edges_at(node)]
            if not found:
                assert (results[node] == 0).all()
                continue
            mean = sum(found) / len(found)
            deviation = (sum((m - mean) ** 2 for m in found) / len(found) + VARIANCE_FLOOR).sqrt()
            low, high = found[0], found[0]
            for message in found:
                low, high = torch.minimum(low, message), torch.maximum(high, message)
            assert close(results[node], torch.stack([mean, low, high, deviation], 1))


@pytest.mark.parametrize("aggregators", [("mean",), ("max",), ("std",), ("min", "std"), AGGREGATORS])
def test_derivatives_of_aggregation(aggregators):
    neighborhoods = Neighborhoods.of(residual_cnn().outgoing)
    messages = torch.randn(
        residual_cnn().edges, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )

    def function(x):
        return aggregate(x, neighborhoods, aggregators)

    assert torch.autograd.gradcheck(function, messages.requires_grad_())
    assert torch.autograd.gradgradcheck(function, messages)


def test_equal_messages_share_the_gradient_of_extremes():
    messages = torch.ones(4, 1, 1, dtype=torch.float64, requires_grad=True)
    neighborhoods = Neighborhoods(order=None, shapes=((1, 4),), restore=None)
    aggregate(messages, neighborhoods, ("min", "max")).sum().backward()
    assert torch.equal(messages.grad, torch.full((4, 1, 1), 0.5, dtype=torch.float64))


@EVERY
@BOTH
def test_constant_networks_have_finite_gradients(cls, dtype):
    structure = transformer()
    for value in (0.0, 1.0):
        nodes = torch.full((structure.nodes, 1), value, dtype=dtype, requires_grad=True)
        edges = torch.full((structure.edges, 1), value, dtype=dtype, requires_grad=True)
        network = build(cls, [draw(structure, dtype)], dtype, readout="all", **SMALL[cls])
        network(ParameterGraph(structure, nodes, edges)).square().sum().backward()
        for tensor in (nodes, edges, *network.parameters()):
            assert tensor.grad is not None
            assert torch.isfinite(tensor.grad).all()


@EVERY
def test_zero_weights_keep_their_edges(cls):
    """Of two sparse networks with the same nonzero weights, the one with more edges gives another result."""
    dense = draw(mlp(2, 4, 2))
    weights = dense.edge_features.clone()
    weights[3] = 0
    keep = torch.arange(dense.structure.edges) != 3
    sparse = replace(
        dense.structure,
        edge_index=dense.structure.edge_index[:, keep],
        edge_kind=dense.structure.edge_kind[keep],
        edge_entries=dense.structure.edge_entries[keep],
    )
    network = build(cls, [dense], **SMALL[cls])
    with_edge = network(ParameterGraph(dense.structure, dense.node_features, weights))
    without = network(ParameterGraph(sparse, dense.node_features, weights[keep]))
    assert (with_edge - without).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("cls", "hidden"),
    [(NeuralGraphNet, 8), (NeuralGraphNet, 512), (NeuralGraphTransformer, 8), (NeuralGraphTransformer, 128)],
)
def test_activations_start_at_unit_scale(cls, hidden):
    graph = draw(mlp(2, hidden, 1), torch.float32)
    for width in (8, 512 if hidden == 8 else 32):
        options = {**SMALL[cls], "width": width}
        states = build(cls, [graph], torch.float32, level="node", out_features=None, **options)(graph)
        result = build(cls, [graph], torch.float32, out_features=64, **options)(graph)
        assert 0.5 < states.square().mean().sqrt() < 2
        assert 0.2 < result.square().mean().sqrt() < 3


@EVERY
def test_state_goes_through_a_dictionary_and_nothing_is_random(cls):
    graph = draw(mlp(2, 4, 3, 1), batch=(2,))
    options = {**SMALL[cls], "fourier": 6}
    first, second = build(cls, [graph], seed=0, **options), build(cls, [graph], seed=1, **options)
    assert not torch.equal(first(graph), second(graph))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(graph), second(graph))
    assert torch.equal(build(cls, [graph], seed=0, **options)(graph), first(graph))
    dropping = build(cls, [graph], dropout=0.5, **options)
    assert torch.equal(dropping(graph), first(graph))
    assert not torch.equal(dropping.train()(graph), first(graph))


def test_masked_attention_goes_along_edges_alone():
    graph = draw(mlp(3, 4, 2))
    options = {**SMALL[NeuralGraphTransformer], "level": "node", "masked": True, "layers": 1}
    network = build(NeuralGraphTransformer, [graph], **options)
    features = graph.node_features.clone()
    features[0] += 1  # the first input
    changed = (network(replace(graph, node_features=features)) - network(graph)).abs().amax(-1) > 1e-9
    assert changed.tolist() == [True, False, False, True, True, True, True, False, False]
    everywhere = build(NeuralGraphTransformer, [graph], **{**options, "masked": False})
    assert (
        (everywhere(replace(graph, node_features=features)) - everywhere(graph)).abs().amax(-1) > 1e-9
    ).all()


def test_memory_is_linear_in_the_edges():
    """Bytes that autograd keeps, for four times the edges and twice the nodes."""

    def kept(structure: GraphStructure) -> float:
        graph = draw(structure, batch=(2,))
        network = build(NeuralGraphNet, [graph], readout="all")
        tensors: dict[int, Tensor] = {}  # by storage; held, so that no storage is used twice

        def keep(tensor: Tensor) -> Tensor:
            tensors[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(graph)
        parameters = {parameter.data_ptr() for parameter in network.parameters()}
        return sum(t.untyped_storage().nbytes() for p, t in tensors.items() if p not in parameters)

    small, large = mlp(2, 32, 32, 1), mlp(2, 64, 64, 1)
    assert kept(large) / kept(small) < 1.05 * large.edges / small.edges


@pytest.mark.parametrize("direction", ["reverse", "edge_updates"])
def test_parts_can_be_left_out(direction):
    graph = draw(mlp(2, 4, 3, 1))
    whole, part = (build(NeuralGraphNet, [graph], **{direction: v}) for v in (True, False))
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in whole.parameters())
    assert part(graph).shape == whole(graph).shape


@EVERY
def test_what_the_vocabulary_lacks_is_refused_by_name(cls):
    graph = draw(mlp(2, 4, 1))
    network = build(cls, [graph], **SMALL[cls])
    for other, text in (
        (draw(mlp(2, 4, 1, activation="GELU")), "layer 'l1' has activation 'GELU'"),
        (draw(mlp(3, 4, 1)), r"node 2 of layer 'l0' \(input\) has position 2"),
        (draw(mlp(2, 4, 2)), r"layer 'l2' \(output\) has position 1"),
        (draw(mlp(2, 4, 4, 1)), r"layer 'l3' \(output\) has depth 3"),
        (draw(mlp(2, 4, 1), channels=2), "1 edge channels and the graph 2"),
    ):
        with pytest.raises(ShapeError, match=text):
            network(other)
    with pytest.raises(ShapeError, match="probes=0; got 4"):
        network(graph, torch.zeros(7, 4, dtype=torch.float64))
    with pytest.raises(ShapeError, match="level must be among"):
        build(cls, [graph], level="vertex")
    with pytest.raises(ShapeError, match="at least one graph"):
        describe_graphs([])


def test_vocabulary_covers_all_graphs():
    vocabulary = describe_graphs(
        [draw(mlp(2, 4, 1, activation="sin")), draw(transformer()), draw(residual_cnn())]
    )
    assert (vocabulary.inputs, vocabulary.outputs, vocabulary.depth, vocabulary.cells) == (5, 5, 9, 0)
    assert vocabulary.activations == ("ReLU", "Softmax", "input", "linear", "sin")
    chain = describe_graphs([draw(mlp(1, 1, 1))])
    assert math.isclose(chain.log_degree, math.log(2))


def transformed(graph: ParameterGraph, group: str) -> tuple[ParameterGraph, Tensor, Tensor]:
    """Hidden units rescaled or flipped, and the factors of nodes and edges."""
    generator = torch.Generator().manual_seed(5)
    sizes = torch.tensor([layer.size for layer in graph.structure.layers])
    hidden = torch.tensor([layer.kind == "hidden" for layer in graph.structure.layers]).repeat_interleave(
        sizes
    )
    drawn = torch.randn(graph.node_features.shape[:-1], generator=generator, dtype=graph.node_features.dtype)
    factor = torch.where(hidden, drawn.exp() if group == "scale" else drawn.sign(), 1)
    source, target = graph.structure.edge_index
    nodes, edges = factor[..., None], (factor[..., target] / factor[..., source])[..., None]
    return (
        ParameterGraph(graph.structure, graph.node_features * nodes, graph.edge_features * edges),
        nodes,
        edges,
    )


@EVERY
@BOTH
@pytest.mark.parametrize(("group", "activation"), [("scale", "ReLU"), ("sign", "sin"), ("sign", "Tanh")])
def test_scales_and_signs_of_hidden_units(cls, dtype, group, activation):
    graph = draw(mlp(2, 5, 4, 2, activation=activation), dtype, batch=(3,))
    moved, nodes, edges = transformed(graph, group)
    options = {**SMALL[cls], "out_features": 1}
    invariant = build(cls, [graph], dtype, equivariance=group, readout="all", **options)
    assert close(invariant(moved), invariant(graph))
    plain = build(cls, [graph], dtype, readout="all", **options)
    assert (plain(moved) - plain(graph)).abs().max() > 1e-3
    for level, factor in (("node", nodes), ("edge", edges)):
        network = build(cls, [graph], dtype, equivariance=group, level=level, **options)
        assert close(network(moved), network(graph) * factor)
        assert (network(moved) - network(graph)).abs().max() > 1e-3


@pytest.mark.parametrize("group", ["scale", "sign"])
def test_gauge_leaves_units_without_the_symmetry(group):
    """Units before a residual connection, a normalization or a product, and other nonlinearities, stay as they are."""
    for structure in (residual_cnn(), transformer(), mlp(2, 4, 3, activation="GELU")):
        graph = draw(structure)
        sizes = torch.tensor([layer.size for layer in structure.layers])
        free = torch.tensor([layer.name == "v" for layer in structure.layers]).repeat_interleave(sizes)
        gauge = choose_gauge(graph, group)
        assert (gauge[~free] == 1).all()


def test_dead_units_have_scale_zero_and_finite_gradients():
    graph = draw(mlp(2, 4, 2))
    nodes, edges = graph.node_features.clone(), graph.edge_features.clone()
    nodes[3], edges[2:4] = 0, 0
    dead = ParameterGraph(graph.structure, nodes.requires_grad_(), edges.requires_grad_())
    network = build(NeuralGraphNet, [graph], equivariance="scale")
    scale = torch.ones(8, 1, dtype=torch.float64)
    scale[3] = 7.0
    source = graph.structure.edge_index[0]
    moved = ParameterGraph(graph.structure, nodes, edges / scale[source])
    assert close(network(moved), network(dead))
    network(dead).sum().backward()
    assert torch.isfinite(nodes.grad).all()
    assert torch.isfinite(edges.grad).all()


PROBED = {
    "mlp": lambda: (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), (3,)),
    "cnn": lambda: (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)), (1, 5, 5)
    ),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", PROBED)
def test_probe_features_are_the_activations_of_each_network(name, dtype):
    module, shape = PROBED[name]()
    random_parameters(module).to(dtype)
    template = trace(module, torch.zeros(2, *shape, dtype=dtype))
    networks = []
    for seed in range(3):
        drawn = random_parameters(PROBED[name]()[0], seed).to(dtype)
        networks.append(trace(drawn, torch.zeros(2, *shape, dtype=dtype)))
    parameters = {k: torch.stack([net.parameters[k] for net in networks]) for k in template.parameters}
    probes = ProbeFeatures(template, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    features = probes(parameters)
    assert probes.inputs[0].abs().max() <= 1
    for net, found in zip(networks, features):
        values = net.to_module().values(probes.inputs[0])
        assert close(found, probes.structure.read_values(values).mT)
    outputs = [layer.kind == "output" for layer in probes.structure.layers]
    sizes = torch.tensor([layer.size for layer in probes.structure.layers])
    places = torch.tensor(outputs).repeat_interleave(sizes)
    answers = torch.stack([net.to_module()(probes.inputs[0]) for net in networks])
    assert close(features[:, places], answers.mT)

    graph = encode(template).with_parameters(parameters)
    network = build(NeuralGraphNet, [graph], dtype, width=8, layers=2, probes=6)
    network(graph, features).square().sum().backward()
    gradient = probes.inputs[0].grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_probes_of_other_inputs_are_refused_by_name():
    words = trace(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)), torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(UnsupportedOperationError, match="int64"):
        ProbeFeatures(words, 4)
    module = nn.Linear(3, 2)
    probes = ProbeFeatures(trace(module, torch.zeros(2, 3)), 4)
    with pytest.raises(ShapeError, match="same leading axes"):
        probes({"weight": torch.zeros(5, 2, 3), "bias": torch.zeros(4, 2)})


class Sine(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.sin(3 * self.second(torch.sin(3 * self.first(x)))))


GAUGED = {
    **{
        name: ARCHITECTURES[name]
        for name in ("resnet", "flattened convolutions", "squeeze and excitation", "glu", "gpt", "lstm", "prelu",
                     "residual mlp", "bilinear form", "siamese", "mlp-mixer", "encoder layer", "grouped convolutions")
    },
    "sine": Architecture(Sine, ((6, 2),), ()),
}  # fmt: skip
MOVING = {("flattened convolutions", "scale"), ("sine", "sign"), ("grouped convolutions", "scale")}


@pytest.mark.parametrize("name", GAUGED)
def test_units_are_free_only_where_the_function_stays(name):
    """Scale parameters as the graph says, and run the network."""
    architecture = GAUGED[name]
    inputs = architecture.inputs()
    network = trace(architecture.module(), inputs)
    structure = describe_structure(network)
    flat = torch.cat([network.parameters[name].reshape(-1) for name, _ in structure.parameters])
    source, target = structure.edge_index
    for group in ("scale", "sign"):
        drawn = torch.randn(structure.nodes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        factor = torch.where(
            free_units(structure, group), drawn.exp() if group == "scale" else drawn.sign(), 1
        )
        factors = torch.ones_like(flat)
        for entries, change in (
            (structure.node_entries, factor), (structure.edge_entries, factor[target] / factor[source])
        ):  # fmt: skip
            real = entries >= 0
            factors[entries[real]] = change[:, None].expand_as(entries)[real]
        pieces = (flat * factors).split([math.prod(shape) for _, shape in structure.parameters])
        moved = {name: piece.view(shape) for (name, shape), piece in zip(structure.parameters, pieces)}
        expected = network.to_module()(*inputs)
        assert close(network.replace_parameters(moved).to_module()(*inputs), expected, 100)
        if (name, group) in MOVING:
            assert (factors != 1).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY
def test_the_same_on_the_gpu(cls):
    graph = union(draw(mlp(2, 5, 4, 2)), draw(transformer()))
    for options in ({"readout": "all"}, {"level": "edge"}, {"equivariance": "scale"}):
        network = build(cls, [graph], **options, **SMALL[cls])
        expected = network(graph)
        assert close(network.cuda()(graph.to("cuda")).cpu(), expected)
