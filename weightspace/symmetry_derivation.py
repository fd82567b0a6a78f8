"""Derive permutation groups from the graph of a network: union-find over the axes of its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightspace import operations as op
from weightspace.network import Network, Node
from weightspace.symmetry_spec import Axis, Frozen, Group, SymmetrySpec


@dataclass(frozen=True)
class Place:
    """One axis of a value: a variable of the union-find, and how many entries move as one unit."""

    variable: int
    block: int = 1


@dataclass
class _Variable:
    parent: int
    size: int | None
    name: str
    frozen: str | None = None


class _Derivation:
    """The state of one derivation: variables, the axes of every value, the axes of every parameter."""

    def __init__(self, network: Network):
        self.network = network
        self.variables: list[_Variable] = []
        self.values: dict[str, tuple[Place, ...]] = {}
        self.parameters: dict[str, list[list[Place]]] = {
            name: [[] for _ in tensor.shape] for name, tensor in network.parameters.items()
        }

    # ---- variables ---------------------------------------------------------------------------------------

    def fresh(self, size: int | None, name: str, frozen: str | None = None) -> Place:
        self.variables.append(_Variable(len(self.variables), size, name, frozen))
        return Place(len(self.variables) - 1)

    def find(self, variable: int) -> int:
        while self.variables[variable].parent != variable:
            variable = self.variables[variable].parent
        return variable

    def freeze(self, places: Sequence[Place], reason: str) -> None:
        for place in places:
            root = self.variables[self.find(place.variable)]
            root.frozen = root.frozen or reason

    def unite(self, a: Place, b: Place, reason: str) -> Place:
        """Require two axes to be permuted alike; what does not fit is frozen."""
        if a.block != b.block:
            self.freeze([a, b], f"{reason}: units of {a.block} and of {b.block} entries meet")
            return a
        first, second = self.find(a.variable), self.find(b.variable)
        if first != second:
            kept, gone = self.variables[first], self.variables[second]
            if kept.size != gone.size:
                self.freeze([a, b], f"{reason}: {kept.size} and {gone.size} units meet")
                return a
            gone.parent = first
            kept.frozen = kept.frozen or gone.frozen
        return a

    def touch(self, parameter: str | None, *places: Place | None) -> None:
        """Record that a parameter's axes carry these places (None: an axis that stays fixed)."""
        if parameter is None:
            return
        for axis, place in enumerate(places):
            if place is None:
                place = self.fresh(None, parameter, "fixed axis")
            self.parameters[parameter][axis].append(place)

    # ---- the walk ----------------------------------------------------------------------------------------

    def walk(self) -> None:
        for node in self.network.nodes:
            inputs = [self.values[name] for name in node.inputs]
            self.values[node.name] = self.visit(node, inputs)
        for name in self.network.outputs:
            self.freeze(self.values[name], "network output")

    def unknown(self, node: Node, inputs: Sequence[tuple[Place, ...]]) -> tuple[Place, ...]:
        """Freeze everything that goes in and comes out."""
        operation = node.operation
        kind = operation.name if isinstance(operation, op.Opaque) else operation.kind
        reason = f"{kind} at {node.name}: no rule for how it moves units"
        for places in inputs:
            self.freeze(places, reason)
        for name in operation.parameters.values():
            self.touch(name, *(self.fresh(n, name, reason) for n in self.network.parameters[name].shape))
        return self.fixed(node, reason)

    def fixed(self, node: Node, reason: str) -> tuple[Place, ...]:
        return tuple(self.fresh(size, node.name, reason) for size in node.shape)

    def visit(self, node: Node, inputs: Sequence[tuple[Place, ...]]) -> tuple[Place, ...]:
        operation = node.operation
        match operation:
            case op.Input():
                return self.fixed(node, "network input")
            case op.Parameter():
                single = len(node.shape) == 1
                places = tuple(
                    self.fresh(size, node.name if single else f"{node.name}[{axis}]")
                    for axis, size in enumerate(node.shape)
                )
                self.touch(operation.value, *places)
                return places
            case op.Linear():
                return self.linear(node, operation, inputs[0])
            case op.Conv() if operation.groups == 1:
                return self.conv(node, operation, inputs[0])
            case op.BatchNorm():
                for name in operation.parameters.values():
                    self.touch(name, inputs[0][1])
                return inputs[0]
            case op.LayerNorm() | op.RMSNorm() if len(operation.normalized_shape) == 1:
                for name in operation.parameters.values():
                    self.touch(name, inputs[0][-1])
                return inputs[0]
            case op.PReLU():
                single = self.network.parameters[operation.weight].numel() == 1
                self.touch(operation.weight, None if single else inputs[0][1])
                return inputs[0]
            case op.Activation() | op.Scale() | op.Power() | op.Cast() | op.Softmax():
                return inputs[0]
            case op.Add() | op.Subtract() | op.Multiply() | op.Divide():
                return self.broadcast(node, inputs)
            case op.Flatten():
                return self.flatten(node, operation, inputs[0])
            case op.MaxPool() | op.AveragePool() | op.AdaptiveAveragePool():
                return (*inputs[0][:2], *self.fixed(node, "position in space")[2:])
            case op.Reduce():
                axes = {axis % len(inputs[0]) for axis in operation.axes} or set(range(len(inputs[0])))
                if operation.keep:
                    return tuple(
                        self.fresh(1, node.name) if i in axes else p for i, p in enumerate(inputs[0])
                    )
                return tuple(place for axis, place in enumerate(inputs[0]) if axis not in axes)
            case op.Embedding():
                width = self.fresh(node.shape[-1], node.name)
                self.touch(operation.weight, None, width)
                return (*inputs[0], width)
        return self.unknown(node, inputs)

    def linear(self, node: Node, operation: op.Linear, source: tuple[Place, ...]) -> tuple[Place, ...]:
        output = self.fresh(node.shape[-1], node.name)
        places = (source[-1], output) if operation.transposed else (output, source[-1])
        self.touch(operation.weight, *places)
        self.touch(operation.bias, output)
        return (*source[:-1], output)

    def conv(self, node: Node, operation: op.Conv, source: tuple[Place, ...]) -> tuple[Place, ...]:
        output = self.fresh(node.shape[-operation.axes - 1], node.name)
        channels = source[-operation.axes - 1]
        places = (channels, output) if operation.transposed else (output, channels)
        self.touch(operation.weight, *places, *[None] * operation.axes)
        self.touch(operation.bias, output)
        space = self.fixed(node, "position in space")[-operation.axes :]
        return (*source[: -operation.axes - 1], output, *space)

    def broadcast(self, node: Node, inputs: Sequence[tuple[Place, ...]]) -> tuple[Place, ...]:
        places: list[Place] = []
        shapes = [self.network.node(name).shape for name in node.inputs]
        rank = len(node.shape)
        for axis in range(rank):
            present = [
                (places_of[axis - rank + len(shape)], shape[axis - rank + len(shape)])
                for places_of, shape in zip(inputs, shapes, strict=True)
                if axis - rank + len(shape) >= 0
            ]
            wide = [place for place, size in present if size != 1] or [place for place, _ in present]
            for other in wide[1:]:
                self.unite(wide[0], other, f"{node.operation.kind} at {node.name}")
            places.append(wide[0])
        return tuple(places)

    def flatten(self, node: Node, operation: op.Flatten, source: tuple[Place, ...]) -> tuple[Place, ...]:
        shape = self.network.node(node.inputs[0]).shape
        start, end = operation.start, operation.end % len(source)
        inner = shape[start + 1 : end + 1]
        if None in shape[start : end + 1] or source[start].block != 1:
            return self.unknown(node, [source])
        block = 1
        for size in inner:
            block *= size or 1
        self.freeze(source[start + 1 : end + 1], f"Flatten at {node.name}")
        return (*source[:start], Place(source[start].variable, block), *source[end + 1 :])


def derive(network: Network) -> SymmetrySpec:
    """Return the groups that the rules above allow; not yet verified by running."""
    state = _Derivation(network)
    state.walk()
    for name, places_by_axis in state.parameters.items():
        for places in places_by_axis:
            for other in places[1:]:
                state.unite(places[0], other, f"parameter {name} is used twice")
    used: dict[int, list[str]] = {}
    for name, places_by_axis in state.parameters.items():
        for places in places_by_axis:
            if places:
                used.setdefault(state.find(places[0].variable), []).append(name)
    groups: dict[int, Group] = {}
    frozen: list[Frozen] = []
    for root in sorted(used):
        variable = state.variables[root]
        if variable.size is None or variable.size < 2:
            continue
        if variable.frozen:
            frozen.append(Frozen(variable.name, variable.size, variable.frozen))
        else:
            groups[root] = Group(variable.name, variable.size)
    axes: dict[str, tuple[Axis | None, ...]] = {}
    for name, places_by_axis in state.parameters.items():
        axes[name] = tuple(
            Axis(groups[root].name, places[0].block)
            if places and (root := state.find(places[0].variable)) in groups
            else None
            for places in places_by_axis
        )
    moved = {name: entries for name, entries in axes.items() if any(entries)}
    return SymmetrySpec(tuple(groups.values()), moved, tuple(dict.fromkeys(frozen)))
