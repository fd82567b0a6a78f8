"""What a graph of parameters has in common for all networks of one architecture: nodes, edges, and where each feature
stands among the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from weightspace.errors import ShapeError

# "residual": sums of nodes; "cell": a unit at one place, told apart by node_position; "product": products of two nodes,
# "head": their sum; "constant": a row of a parameter that is no input; "state": of a recurrent layer, before a step.
NODE_KINDS = (
    "input", "hidden", "output", "residual", "normalization", "cell", "product", "head", "constant", "state"
)  # fmt: skip
EDGE_KINDS = ("linear", "convolution", "embedding", "identity", "gain", "query", "key", "value", "pooling")
# Entries that are no parameter: a missing bias, the weight of a residual connection, of what is subtracted.
ZERO, ONE, MINUS_ONE = -1, -2, -3


@dataclass(frozen=True)
class NodeLayer:
    """A run of nodes with one role.

    name: of the network value the nodes are the units of; nodes are numbered layer by layer.
    kind: one of NODE_KINDS.
    size: how many nodes.
    activation: the nonlinearity behind the units, "linear" where there is none, "input" for inputs.
    """

    name: str
    kind: str
    size: int
    activation: str = "linear"


@dataclass(frozen=True)
class EdgeBucket:
    """The targets that `degree` edges end at, and those edges: `edges` numbers them, shape (targets, degree).

    Aggregation is then a reduction of a dense array along its last axis but one, with no scatter.
    """

    nodes: Tensor  # (targets,)
    edges: Tensor  # (targets, degree)


@dataclass(frozen=True, eq=False)
class Reading:
    """Where the activations of the nodes `start` .. `stop` stand: in the value called `value` of the network.

    axis: the axis of the value that is the batch.
    numbers: the node that each element belongs to, shape of the value with a batch of 1.
    """

    value: str
    axis: int
    start: int
    stop: int
    numbers: Tensor


@dataclass(frozen=True, eq=False)
class GraphStructure:
    """Nodes and edges of the graph of an architecture (or the disjoint union of several).

    Attributes:
        layers: the runs of nodes, in an order in which edges lead forward.
        edge_index: (2, edges) int64, source and target node.
        edge_kind: (edges,) int64, place in EDGE_KINDS.
        node_position: (nodes,) int64: the number of an input or output unit (of the spatial cell, for "cell" nodes),
            by which a positional embedding tells them apart; 0 elsewhere, where nodes of a layer are interchangeable.
        node_depth: (nodes,) int64: number of the layer within its own network.
        node_graph: (nodes,) int64: which network of a union the node belongs to.
        node_entries: (nodes, node channels) int64: where in the concatenated parameters each feature stands, or
            ZERO, ONE or MINUS_ONE.
        edge_entries: (edges, edge channels) int64, likewise; the channels are the places of the largest kernel.
        kernel: the largest kernel, (rows, columns); linear weights stand in its center.
        parameters: name and shape of the parameters, in the order in which they are concatenated.
        readings: for the layers whose units are elements of a value of the network, where to read them.
    """

    layers: tuple[NodeLayer, ...]
    edge_index: Tensor
    edge_kind: Tensor
    node_position: Tensor
    node_depth: Tensor
    node_graph: Tensor
    node_entries: Tensor
    edge_entries: Tensor
    kernel: tuple[int, int]
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    readings: tuple[Reading, ...] = ()

    @property
    def nodes(self) -> int:
        return len(self.node_position)

    @property
    def edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def graphs(self) -> int:
        return int(self.node_graph[-1]) + 1

    @cached_property
    def incoming(self) -> tuple[EdgeBucket, ...]:
        """The nodes by the number of edges that end at them, with those edges; nodes without any in a bucket too."""
        return _buckets(self.edge_index[1], self.nodes)

    @cached_property
    def outgoing(self) -> tuple[EdgeBucket, ...]:
        """The nodes by the number of edges that start at them, with those edges."""
        return _buckets(self.edge_index[0], self.nodes)

    def to(self, device: torch.device | str) -> GraphStructure:
        """Return the structure on a device."""
        tensors = (
            "edge_index", "edge_kind", "node_position", "node_depth", "node_graph", "node_entries", "edge_entries"
        )  # fmt: skip
        if self.edge_index.device == torch.device(device):
            return self
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def gather(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return node features (..., nodes, channels) and edge features (..., edges, channels) of many networks.

        Args:
            parameters: name -> (..., *shape), the same leading axes for all.
        Raises:
            ShapeError: a parameter is missing or has another shape than the one encoded.
        """
        flat = []
        for name, shape in self.parameters:
            if name not in parameters:
                raise ShapeError(f"the graph reads parameter {name!r}, which is not among those given")
            tensor = parameters[name]
            leading = tensor.ndim - len(shape)
            if leading < 0 or tuple(tensor.shape[leading:]) != shape:
                raise ShapeError(
                    f"parameter {name!r} must have shape (..., {shape}); it has {tuple(tensor.shape)}"
                )
            flat.append(tensor.reshape(*tensor.shape[:leading], -1))
        values = torch.cat(flat, -1)
        constants = values.new_tensor([-1.0, 1.0, 0.0]).expand(*values.shape[:-1], 3)
        values = torch.cat([values, constants], -1)  # so that ZERO, ONE and MINUS_ONE count from the end
        return values[..., self.node_entries], values[..., self.edge_entries]

    def read_values(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the activation of every node, (batch, nodes): the mean over time and space, 0 for nodes without one.

        Args:
            values: what the network makes of a batch, by name (`Network.to_module().values(inputs)`).
        Raises:
            ShapeError: a value is missing or has another shape than the one encoded.
        """
        read = []
        for reading in self.readings:
            if reading.value not in values:
                raise ShapeError(f"the graph reads value {reading.value!r}, which is not among those given")
            value = values[reading.value]
            numbers = reading.numbers.to(value.device).squeeze(reading.axis)
            own = (numbers >= reading.start) & (numbers < reading.stop)
            value = value.movedim(reading.axis, 0)
            if value.shape[1:] != numbers.shape:
                raise ShapeError(
                    f"value {reading.value!r} must have shape {tuple(numbers.shape)} beside the batch; it has "
                    f"{tuple(value.shape[1:])}"
                )
            read.append((value[:, own], numbers[own]))
        elements = torch.cat([value for value, _ in read], 1)
        numbers = torch.cat([number for _, number in read])
        counts = torch.bincount(numbers, minlength=self.nodes).clamp(min=1)
        return elements.new_zeros(len(elements), self.nodes).index_add(1, numbers, elements) / counts


def _buckets(ends: Tensor, nodes: int) -> tuple[EdgeBucket, ...]:
    """Sort the edges by the node at one end, and the nodes by their number of edges."""
    degrees = torch.bincount(ends, minlength=nodes)
    order = ends.argsort(stable=True)
    starts = degrees.cumsum(0) - degrees
    buckets = []
    for degree in degrees.unique().tolist():
        members = (degrees == degree).nonzero()[:, 0]
        places = starts[members][:, None] + torch.arange(degree, device=ends.device)
        buckets.append(EdgeBucket(members, order[places]))
    return tuple(buckets)
