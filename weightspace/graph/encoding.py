"""Encode a network's parameters as a graph: one node per neuron, one edge per weight."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.errors import ShapeError, UnsupportedOperationError
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.rules import RULES, Constant, Entries, Other, State, Units, Value
from weightspace.graph.rules.affine import scaled
from weightspace.graph.rules.inputs import input_units
from weightspace.graph.rules.normalization import normalized
from weightspace.graph.structure import ZERO, GraphStructure, NodeLayer
from weightspace.network import Network, Node
from weightspace.symmetry_patterns import RootMeanSquare, root_mean_squares


def encode(
    network: Network, *, kernel: tuple[int, int] | None = None, max_edges: int | None = None
) -> ParameterGraph:
    r"""Encode a network as a graph whose nodes are units and whose edges are weights.

    The operations are visited in order. A linear layer adds a node per unit with its bias and an edge per weight; a
    convolution an edge per pair of connected channels, the kernel centered in the largest one of the network; a
    normalization new nodes with the gains on the edges to them; a residual connection new nodes joined by edges of
    weight 1. Attention adds a "product" node for every unit of a head's queries and keys, and a "head" node that the
    products lead to, which together with a unit of the values leads to a unit of the result: the graph has the
    permutation symmetry of the computation and no more. Flattened channels become "cell" nodes, joined to the channel.
    Tied weights are repeated. Every edge leads forward.

    Args:
        kernel: rows and columns of the kernels on the edges; the largest of the network when None.
        max_edges: refuse networks whose graph has more edges, before they fill the memory.
    Raises:
        UnsupportedOperationError: an operation without an encoding, by name and place; more than `max_edges`; no
            parameters.
        ShapeError: `kernel` is smaller than a kernel of the network.
    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
    (2024), section 3; Lim et al., Graph metanetworks for processing diverse neural architectures (2024), section 3.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> graph = weightspace.encode(load("digits_mlp_a"))
        >>> graph.layer_sizes
        (64, 24, 12, 10)
        >>> graph.edge_features.shape
        torch.Size([1944, 1])
        >>> graph.to_networkx().number_of_nodes()
        110
    """
    structure = describe_structure(network, kernel=kernel, max_edges=max_edges)
    return ParameterGraph(structure, *structure.gather(network.parameters))


def describe_structure(
    network: Network, *, kernel: tuple[int, int] | None = None, max_edges: int | None = None
) -> GraphStructure:
    """Return the nodes and edges of `encode`, which are the same for all networks of the architecture."""
    state = State(network, max_edges)
    norms = _norms(network)
    skipped = {name for norm in norms.values() for name in norm.inner}
    for node in network.nodes:
        before = state.nodes
        state.visited = node.name
        if node.name in norms:
            source = norms[node.name].source
            units = state.units(node, state.values[source], source)
            value: Value = Units(normalized(state, node.name, units, [units.ndim - 1], None, None))
        else:
            value = Other() if node.name in skipped else _visited(state, node)
        state.enter(node, value, before)
    _mark_outputs(state)
    if not state.offsets:
        raise UnsupportedOperationError(
            "the network has no parameters that an operation uses: nothing to encode"
        )
    return _assembled(state, kernel)


def _norms(network: Network) -> dict[str, RootMeanSquare]:
    """The nodes that are an RMSNorm written out, where nothing else uses what it computes on the way."""
    found = root_mean_squares(network)
    return {
        name: norm
        for name, norm in found.items()
        if all(user.name in (name, *norm.inner) for inner in norm.inner for user in network.consumers[inner])
        and not set(norm.inner) & set(network.outputs)
    }


def _visited(state: State, node: Node) -> Value:
    operation = node.operation
    inputs = [state.values[name] for name in node.inputs]
    if isinstance(operation, op.Input):
        floating = getattr(torch, node.dtype).is_floating_point and len(node.shape) > 0
        return Units(input_units(state, node)) if floating else Other()
    if inputs and not operation.parameters and not any(isinstance(v, Units | Entries) for v in inputs):
        tensors = [value.tensor for value in inputs if isinstance(value, Constant)]
        return Constant(operation.evaluate(tuple(tensors), {})) if len(tensors) == len(inputs) else Other()
    if type(operation) not in RULES:
        raise state.refused(
            node, "there is no rule for it; encode the parts of the network before and behind it on their own"
        )
    return RULES[type(operation)](state, node, operation, inputs)


def _mark_outputs(state: State) -> None:
    """Number the units of the network's outputs, in nodes that are nothing else."""
    count = 0
    for name in dict.fromkeys(state.network.outputs):
        value = state.values[name]
        if not isinstance(value, Units):
            continue
        units, inverse = value.numbers.unique(return_inverse=True)
        first = torch.full((len(units),), inverse.numel()).scatter_reduce(
            0, inverse.reshape(-1), torch.arange(inverse.numel()), "amin"
        )
        position = first.argsort().argsort() + count
        count += len(units)
        layers = state.layers_of(value.numbers) if state.alone[name] else None
        if layers is None or state.network.consumers[name] or any(_is_given(state, n) for n in layers):
            node = state.network.node(name)
            layer = NodeLayer(f"{name}.output", "output", 0)
            state.note_readings(node, scaled(state, layer, value.numbers, position=position[inverse]))
            layers = [len(state.layers) - 1]
        else:
            for layer in layers:
                start = state.starts[layer]
                own = (units >= start) & (units < start + state.layers[layer].size)
                state.positions[layer] = position[own]
        for layer in layers:
            state.change_layer(layer, kind="output")


def _is_given(state: State, layer: int) -> bool:
    return state.layers[layer].kind in ("input", "constant")


def _assembled(state: State, kernel: tuple[int, int] | None) -> GraphStructure:
    shapes = torch.tensor([list(places.shape[1:]) for *_, places in state.edges])
    rows, columns = (int(n) for n in shapes.amax(0))
    kernel = kernel or (rows, columns)
    if kernel[0] < rows or kernel[1] < columns:
        raise ShapeError(f"kernel {kernel} is smaller than the largest of the network, {(rows, columns)}")
    node_entries = torch.cat(state.biases)
    if bool((node_entries[:, 1:] == ZERO).all()):
        node_entries = node_entries[:, :1]
    sizes = torch.tensor([layer.size for layer in state.layers])
    return GraphStructure(
        layers=tuple(state.layers),
        edge_index=torch.stack([torch.cat(ends) for ends in list(zip(*state.edges, strict=True))[:2]]),
        edge_kind=torch.cat([kinds for _, _, kinds, _ in state.edges]),
        node_position=torch.cat(state.positions),
        node_depth=torch.arange(len(sizes)).repeat_interleave(sizes),
        node_graph=torch.zeros(state.nodes, dtype=torch.int64),
        node_entries=node_entries,
        edge_entries=torch.cat([centered(places, kernel).flatten(1) for *_, places in state.edges]),
        kernel=kernel,
        parameters=tuple((name, tuple(state.shapes[name])) for name in state.offsets),
        readings=tuple(state.readings.values()),
    )


def centered(places: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Put kernels (edges, rows, columns) into the center of larger ones."""
    (rows, columns), (high, wide) = places.shape[1:], kernel
    top, left = (high - rows) // 2, (wide - columns) // 2
    return torch.nn.functional.pad(places, (left, wide - columns - left, top, high - rows - top), value=ZERO)
