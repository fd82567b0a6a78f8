"""What the rules of the encoding work on: the nodes and edges so far, and which nodes the values are made of.

A value is one of four things. `Units`: every element belongs to a node, and an int64 tensor with the value's own shape
(a batch of 1) holds its number, so that operations that move elements are run on the numbers themselves. `Entries`:
every element is an entry of a trained parameter. `Constant`: numbers of the program, the same for all networks of the
architecture. `Other`: data without units, such as token numbers and masks made from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.deferred import templates
from weightspace.errors import UnsupportedOperationError
from weightspace.graph.layout import collapsed, is_constant, occurrence, unique_rows
from weightspace.graph.structure import EDGE_KINDS, ONE, ZERO, NodeLayer, Reading
from weightspace.network import Network, Node


@dataclass(frozen=True, eq=False)
class Units:
    """numbers: the node that each element belongs to, int64."""

    numbers: Tensor


@dataclass(frozen=True, eq=False)
class Entries:
    """places: where each element stands among the concatenated parameters, int64."""

    places: Tensor


@dataclass(frozen=True, eq=False)
class Constant:
    """tensor: the numbers."""

    tensor: Tensor


@dataclass(frozen=True)
class Other:
    """Data that no node stands for."""


Value = Units | Entries | Constant | Other


class State:
    """The state of one walk through a network."""

    def __init__(self, network: Network, max_edges: int | None = None):
        self.network = network
        self.shapes = {name: tensor.shape for name, tensor in templates(network.parameters).items()}
        self.max_edges = max_edges
        self.edge_count = 0
        self.visited = ""  # the node whose rule runs
        self.values: dict[str, Value] = {}
        self.layers: list[NodeLayer] = []
        self.starts: list[int] = []
        self.nodes = 0
        self.inputs = 0  # input units so far: they are numbered through all inputs
        self.positions: list[Tensor] = []
        self.biases: list[Tensor] = []  # (size, 3): bias, running mean, running variance
        self.edges: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # source, target, kind, entries
        self.offsets: dict[str, int] = {}
        self.entry_count = 0
        self.alone: dict[str, bool] = {}  # value name -> whether no other value shows its units
        self.readings: dict[int, Reading] = {}

    # ---- parameters ------------------------------------------------------------------------------------------

    def entries(self, parameter: str) -> Tensor:
        """Return where the entries of a parameter stand, in its own shape."""
        shape = self.shapes[parameter]
        if parameter not in self.offsets:
            self.offsets[parameter] = self.entry_count
            self.entry_count += shape.numel()
        return (torch.arange(shape.numel()) + self.offsets[parameter]).reshape(shape)

    def optional(self, parameter: str | None) -> Tensor | None:
        """Return `entries` of a parameter that may be missing."""
        return None if parameter is None else self.entries(parameter)

    # ---- nodes and edges -------------------------------------------------------------------------------------

    def add(
        self,
        layer: NodeLayer,
        *,
        position: Tensor | None = None,
        bias: Tensor | None = None,
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Add a layer of nodes and return their numbers; `bias` and `statistics` are entries, one per node."""
        size = layer.size
        entries = torch.full((size, 3), ZERO)
        for channel, tensor in enumerate((bias, *(statistics or ()))):
            if tensor is not None:
                entries[:, channel] = tensor
        self.layers.append(layer)
        self.starts.append(self.nodes)
        self.nodes += size
        self.positions.append(torch.zeros(size, dtype=torch.int64) if position is None else position)
        self.biases.append(entries)
        return torch.arange(self.nodes - size, self.nodes)

    def connect(self, source: Tensor, target: Tensor, kind: str, entries: Tensor | int = ONE) -> None:
        """Add edges; `entries` has the broadcast shape of source and target, and two axes more for kernels."""
        source, target = torch.broadcast_tensors(source, target)
        self.edge_count += source.numel()
        if self.max_edges is not None and self.edge_count > self.max_edges:
            node = self.network.node(self.visited)
            raise self.refused(
                node, f"up to it the graph has {self.edge_count:,} edges, more than {self.max_edges:,}"
            )
        places = entries if isinstance(entries, Tensor) else torch.tensor(entries).expand(source.shape)
        kernel = places.shape[source.ndim :] or (1, 1)
        kinds = torch.full((source.numel(),), EDGE_KINDS.index(kind))
        self.edges.append((source.reshape(-1), target.reshape(-1), kinds, places.reshape(-1, *kernel)))

    def layer_of(self, units: Tensor) -> Tensor:
        """Return the layer of each unit."""
        return torch.bucketize(units, torch.tensor(self.starts), right=True) - 1

    def layers_of(self, numbers: Tensor) -> list[int] | None:
        """Return the layers that the units make up; None when they are part of a layer only."""
        units = collapsed(numbers).unique()
        found = self.layer_of(units).unique().tolist()
        whole = sum(self.layers[layer].size for layer in found) == len(units)
        return found if whole else None

    def change_layer(self, layer: int, **changes: Any) -> None:
        """Replace attributes of a layer."""
        self.layers[layer] = replace(self.layers[layer], **changes)

    def joined(
        self,
        layer: NodeLayer,
        sources: list[Tensor],
        kinds: tuple[str, ...],
        entries: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Add one node for every combination of units that meet after broadcasting, with an edge from each.

        `layer.size` is found here. Returns the numbers in the broadcast shape.
        """
        shape = torch.broadcast_shapes(*(source.shape for source in sources))
        small = torch.stack(torch.broadcast_tensors(*(collapsed(source) for source in sources)), -1)
        rows, inverse = unique_rows(small)
        new = self.add(replace(layer, size=len(rows)))
        for column in range(len(sources)):
            fresh = (rows[:, :column] != rows[:, column : column + 1]).all(1)  # an edge from each unit once
            weight = ONE if entries is None else entries[column]
            self.connect(rows[fresh, column], new[fresh], kinds[column], weight)
        return new[inverse].expand(shape)

    def pooled(self, layer: NodeLayer, numbers: Tensor, axes: list[int], kind: str = "pooling") -> Tensor:
        """Let one unit stand for all along some axes, which keep size 1: a new node where there were several."""
        for axis in axes:
            if is_constant(numbers, axis):
                numbers = numbers.narrow(axis, 0, 1)
        axes = [axis for axis in axes if numbers.shape[axis] > 1]
        if not axes:
            return numbers
        shape = [1 if axis in axes else n for axis, n in enumerate(numbers.shape)]
        rest = [axis for axis in range(numbers.ndim) if axis not in axes]
        rows, inverse = unique_rows(numbers.permute(*rest, *axes).flatten(len(rest)))
        new = self.add(replace(layer, size=len(rows)))
        pairs, _ = unique_rows(torch.stack([rows, new[:, None].expand_as(rows)], -1).reshape(-1, 2))
        self.connect(pairs[:, 0], pairs[:, 1], kind)
        return new[inverse].reshape(shape)

    def distinct(self, name: str, numbers: Tensor) -> Tensor:
        """Tell apart the elements along the last axis: "cell" nodes where one unit stands at several places."""
        rows, inverse = unique_rows(numbers)
        ranks = occurrence(rows)
        repeated = torch.zeros(self.nodes, dtype=torch.bool)
        repeated[rows[ranks > 0]] = True
        apart = repeated[rows]
        if not bool(apart.any()):
            return numbers
        pairs, found = unique_rows(torch.stack([rows[apart], ranks[apart]], -1))
        cells = self.add(NodeLayer(f"{name}.cells", "cell", len(pairs)), position=pairs[:, 1])
        self.connect(pairs[:, 0], cells, "identity")
        rows = rows.clone()
        rows[apart] = cells[found]
        return rows[inverse].reshape(numbers.shape)

    # ---- values ----------------------------------------------------------------------------------------------

    def units(self, node: Node, value: Value, name: str) -> Tensor:
        """Return the unit numbers of an input.

        A parameter becomes a table, a node per row and a unit per column; a constant, and data made from integers
        (one-hot words), a node per column.
        """
        shape = [1 if n is None else n for n in self.network.node(name).shape]
        match value:
            case Units():
                return value.numbers
            case Entries() if value.places.ndim:
                return self.table(name, value.places)
            case Constant() | Other() if shape:
                constant = isinstance(value, Constant)
                layer = NodeLayer(f"{name}.numbers", "constant" if constant else "input", shape[-1])
                first = 0 if constant else self.inputs
                self.inputs += 0 if constant else shape[-1]
                return self.add(layer, position=torch.arange(shape[-1]) + first).expand(shape)
        raise self.refused(node, f"its input {name!r} is a single number")

    def enter(self, node: Node, value: Value, before: int) -> None:
        """Store the value of a node that the nodes from number `before` on were added for."""
        value = spread(node, value)
        self.values[node.name] = value
        if not isinstance(value, Units):
            self.alone[node.name] = False
            return
        fresh = bool((collapsed(value.numbers) >= before).all())
        self.alone[node.name] = fresh or all(self.is_alone(name) for name in node.inputs)
        activated = (
            isinstance(node.operation, op.Activation | op.Power | op.Softmax) and self.alone[node.name]
        )
        self.note_readings(node, value.numbers, activated)

    def note_readings(self, node: Node, numbers: Tensor, activated: bool = False) -> None:
        """Note which layers can be read off a value; behind the nonlinearity where there is one."""
        axes = [axis for axis, n in enumerate(node.shape) if n is None]
        if len(axes) != 1 or numbers.shape[axes[0]] != 1:
            return  # the batch is mixed with another axis
        layers, counts = self.layer_of(collapsed(numbers).unique()).unique(return_counts=True)
        for layer, count in zip(layers.tolist(), counts.tolist(), strict=True):
            if count == self.layers[layer].size and (activated or layer not in self.readings):
                start = self.starts[layer]
                self.readings[layer] = Reading(node.name, axes[0], start, start + count, numbers)

    def remember(self, name: str, numbers: Tensor) -> None:
        """Let later uses of a value see the same cells."""
        if isinstance(self.values[name], Units):
            self.values[name] = Units(numbers)
            self.note_readings(self.network.node(name), numbers)

    def is_alone(self, name: str) -> bool:
        """Whether the next operation is the only one to see the units of a value."""
        users = self.network.consumers[name]
        return self.alone[name] and len(users) == 1 and name not in self.network.outputs

    def table(self, name: str, places: Tensor, kind: str = "constant", first: int = 0) -> Tensor:
        """Add a node for every row of a parameter and one for every column, joined by its entries."""
        rows, _ = unique_rows(places)
        row_nodes = self.add(
            NodeLayer(f"{name}.rows", kind, len(rows), "input" if kind == "input" else "linear"),
            position=torch.arange(len(rows)) + first,
        )
        units = self.add(NodeLayer(name, "hidden", rows.shape[1]))
        self.connect(row_nodes[:, None], units, "embedding", rows)
        return units.expand(places.shape)

    def refused(self, node: Node, reason: str) -> UnsupportedOperationError:
        """Return an UnsupportedOperationError with the operation, its place and the reason."""
        operation = node.operation
        kind = operation.name if isinstance(operation, op.Opaque) else operation.kind
        return UnsupportedOperationError(f"{kind} at {node.name!r} cannot be encoded: {reason}")


def spread(node: Node, value: Value) -> Value:
    """Repeat what was broadcast, so that the tensor has the value's own shape."""

    def full(tensor: Tensor) -> Tensor:
        tensor = tensor[(None,) * (len(node.shape) - tensor.ndim)]
        return tensor.expand([m if n is None else n for n, m in zip(node.shape, tensor.shape, strict=True)])

    match value:
        case Units():
            return Units(full(value.numbers))
        case Entries():
            return Entries(full(value.places))
    return value


Rule = Callable[[State, Node, Any, list[Value]], Value]
RULES: dict[type[op.Operation], Rule] = {}


def rule(*kinds: type[op.Operation]) -> Callable[[Rule], Rule]:
    """Enter a function as the rule of some operations: (state, node, operation, values of the inputs) -> value."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return enter
