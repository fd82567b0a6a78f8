"""Rule of recurrent layers: one step, from the state before it to the state behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.graph.rules.affine import apply_weights
from weightspace.graph.rules.state import State, Units, Value, rule
from weightspace.graph.structure import NodeLayer
from weightspace.network import Node

ACTIVATIONS = {"LSTM": "Sigmoid", "GRU": "Sigmoid", "RNN_TANH": "Tanh", "RNN_RELU": "ReLU"}


@rule(op.Recurrent)
def recurrence(state: State, node: Node, operation: op.Recurrent, inputs: list[Value]) -> Value:
    """Nodes for the state before the step, the gates, and the state behind it, which the former also leads to.

    So the units of all gates and of both states permute together.
    """
    names = node.inputs
    units, *given = (state.units(node, value, name) for value, name in zip(inputs, names, strict=True))
    layer = NodeLayer(f"{node.name}.inputs", "residual", 0)
    units = state.pooled(layer, units, list(range(units.ndim - 1)))[(0,) * (units.ndim - 1)]
    ends = []
    for direction, prefix in enumerate(("", "reverse_") if operation.bidirectional else ("",)):
        parameters = {role: getattr(operation, prefix + role) for role in operation.ROLES}
        first = [numbers[direction, 0] for numbers in given]
        ends.append(_step(state, f"{node.name}.{prefix}", operation, parameters, units, first))
    if operation.result == "cell":
        return Units(torch.stack([cell for _, cell in ends if cell is not None])[:, None])
    sequence = torch.cat([hidden for hidden, _ in ends])
    shape = state.network.node(names[0]).shape[:-1]
    return Units(sequence.expand(*(1 if n is None else n for n in shape), len(sequence)))


def _step(
    state: State,
    name: str,
    operation: op.Recurrent,
    parameters: dict[str, str | None],
    units: Tensor,
    given: list[Tensor],
) -> tuple[Tensor, Tensor | None]:
    """The units of the state behind the step, and those of the cell of an LSTM."""

    def entries(role: str) -> Tensor | None:
        places = state.optional(parameters[role])
        return None if places is None else places[None]

    def layer(part: str, kind: str, activation: str = "linear") -> NodeLayer:
        return NodeLayer(f"{name}{part}", kind, 0, activation)

    def joined(to: NodeLayer, *sources: Tensor) -> Tensor:
        return state.joined(to, list(sources), ("identity",) * len(sources))

    def before(part: str, size: int, number: int) -> Tensor:
        if number < len(given):
            return joined(layer(part, "state"), given[number])
        return state.add(NodeLayer(f"{name}{part}", "state", size))

    input_weight, hidden_weight = entries("input_weight"), entries("hidden_weight")
    assert input_weight is not None
    assert hidden_weight is not None
    size = hidden_weight.shape[1] // operation.gates
    earlier = before("state", hidden_weight.shape[2], 0)
    from_input = apply_weights(state, f"{name}input", units[None], input_weight, entries("input_bias"))[0]
    from_state = apply_weights(state, f"{name}hidden", earlier[None], hidden_weight, entries("hidden_bias"))[
        0
    ]
    pairs = list(zip(from_input.split(size), from_state.split(size), strict=True))
    gate = ACTIVATIONS[operation.mode]
    if operation.mode == "LSTM":
        kinds = (gate, gate, "Tanh", gate)
        opened, kept, written, shown = (
            joined(layer("gate", "residual", kind), *pair) for kind, pair in zip(kinds, pairs, strict=True)
        )
        cell = joined(layer("cell", "product", "Tanh"), kept, before("cell before", size, 1), opened, written)
        projection = entries("projection")
        if projection is None:
            return joined(layer("output", "product"), shown, cell, earlier), cell
        hidden = joined(layer("output", "product"), shown, cell)
        projected = apply_weights(state, f"{name}projection", hidden[None], projection)[0]
        return joined(layer("projected", "residual"), projected, earlier), cell
    if operation.mode == "GRU":
        reset, update = (joined(layer("gate", "residual", gate), *pair) for pair in pairs[:2])
        remembered = joined(layer("reset", "product"), reset, pairs[2][1])
        written = joined(layer("written", "residual", "Tanh"), pairs[2][0], remembered)
        return joined(layer("output", "product"), update, written, earlier), None
    return joined(layer("output", "residual", gate), *pairs[0], earlier), None
