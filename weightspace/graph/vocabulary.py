"""`GraphVocabulary`: the kinds, places and sizes that the learned embeddings of a graph network have entries for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.structure import GraphStructure

POSITIONED = ("input", "output", "cell", "constant")  # kinds of nodes that are told apart by their position


@dataclass(frozen=True)
class GraphVocabulary:
    """What a graph network must be able to tell apart, by numbers and names alone.

    node_channels, edge_channels: features of a node, of an edge.
    depth: number of layers of the deepest network.
    inputs, outputs, cells, constants: how many input units, output units, spatial cells and learned positions have a
        place of their own.
    activations: names of the nonlinearities.
    log_degree: mean of log(degree + 1) over the nodes, edges of both directions; the unit of degree scaling.
    """

    node_channels: int
    edge_channels: int
    depth: int
    inputs: int
    outputs: int
    cells: int = 0
    constants: int = 0
    activations: tuple[str, ...] = ("input", "linear")
    log_degree: float = 1.0

    @property
    def places(self) -> int:
        """The number of places that a positional embedding tells apart."""
        return self.inputs + self.outputs + self.cells + self.constants

    def activation_of_nodes(self, structure: GraphStructure) -> Tensor:
        """Return the number of each node's nonlinearity among `activations`, (nodes,).

        Raises:
            ShapeError: a nonlinearity is not among them.
        """
        numbers = {name: number for number, name in enumerate(self.activations)}
        for layer in structure.layers:
            if layer.activation not in numbers:
                raise ShapeError(
                    f"layer {layer.name!r} has activation {layer.activation!r}, which the vocabulary lacks (it has "
                    f"{', '.join(self.activations)}); describe_graphs must see all architectures"
                )
        return _of_nodes(structure, [numbers[layer.activation] for layer in structure.layers])

    def place_of_nodes(self, structure: GraphStructure) -> Tensor:
        """Return the place of each node, (nodes,): inputs, outputs, cells, constants in this order; -1 for all others.

        Raises:
            ShapeError: a network has more inputs, outputs, cells or layers than the vocabulary.
        """
        sizes = (self.inputs, self.outputs, self.cells, self.constants)
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        offsets = {kind: (start, size) for kind, start, size in zip(POSITIONED, starts, sizes, strict=True)}
        start, size = (
            _of_nodes(structure, [offsets.get(layer.kind, (-1, 1))[part] for layer in structure.layers])
            for part in (0, 1)
        )
        position = torch.where(start >= 0, structure.node_position, 0)
        for name, values, limits in (
            ("position", position, size),
            ("depth", structure.node_depth, torch.full_like(size, self.depth)),
        ):
            if (values >= limits).any():
                node = int((values >= limits).nonzero()[0, 0])
                layer = _layer_of(structure, node)
                raise ShapeError(
                    f"node {node} of layer {layer.name!r} ({layer.kind}) has {name} {int(values[node])}, and the "
                    f"vocabulary ends at {int(limits[node]) - 1}; describe_graphs must see all architectures"
                )
        return start + position


def describe_graphs(graphs: Iterable[ParameterGraph]) -> GraphVocabulary:
    """Return the vocabulary of the given graphs, whose structures alone are looked at.

    Raises:
        ShapeError: no graph is given.

    Examples:
        >>> import weightspace
        >>> from weightspace import graph
        >>> from weightspace.bundled import load
        >>> vocabulary = graph.describe_graphs([weightspace.encode(load("digits_mlp_a"))])
        >>> vocabulary.activations, vocabulary.inputs, vocabulary.outputs
        (('ReLU', 'input', 'linear'), 64, 10)
    """
    structures: dict[GraphStructure, tuple[int, int]] = {}
    for graph in graphs:
        structures[graph.structure] = (graph.node_features.shape[-1], graph.edge_features.shape[-1])
    if not structures:
        raise ShapeError("describe_graphs needs at least one graph")
    layers = [layer for structure in structures for layer in structure.layers]
    places = dict.fromkeys(POSITIONED, 0)
    for structure in structures:
        starts = torch.tensor([0, *(layer.size for layer in structure.layers)]).cumsum(0).tolist()
        for layer, start in zip(structure.layers, starts[:-1], strict=True):
            if layer.kind in places and layer.size:
                last = int(structure.node_position[start : start + layer.size].max())
                places[layer.kind] = max(places[layer.kind], last + 1)
    logarithms = [
        math.log1p(bucket.edges.shape[1])
        for structure in structures
        for bucket in (*structure.incoming, *structure.outgoing)
        if bucket.edges.shape[1]
        for _ in range(len(bucket.nodes))
    ]
    return GraphVocabulary(
        node_channels=max(nodes for nodes, _ in structures.values()),
        edge_channels=max(edges for _, edges in structures.values()),
        depth=max(int(structure.node_depth.max()) for structure in structures) + 1,
        inputs=places["input"],
        outputs=places["output"],
        cells=places["cell"],
        constants=places["constant"],
        activations=tuple(sorted({layer.activation for layer in layers})),
        log_degree=math.fsum(logarithms) / len(logarithms) if logarithms else 1.0,
    )


def _of_nodes(structure: GraphStructure, values: list[int]) -> Tensor:
    """Repeat one number per layer for the nodes of the layer."""
    sizes = torch.tensor([layer.size for layer in structure.layers])
    return torch.tensor(values).repeat_interleave(sizes).to(structure.node_position.device)


def _layer_of(structure: GraphStructure, node: int):
    for layer in structure.layers:
        if node < layer.size:
            return layer
        node -= layer.size
    raise IndexError(node)
