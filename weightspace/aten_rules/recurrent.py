"""Rules of LSTM, GRU and RNN."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from weightspace import operations as op
from weightspace.aten_rules.registry import RULES, Rule, is_weight
from weightspace.aten_rules.shaping import concatenate, select, sliced, stack

if TYPE_CHECKING:
    from weightspace.aten import AtenReader


def _zero(reader: AtenReader, value: Any) -> bool:
    """Whether a value is known to be zero: a constant, or one expanded to the size of the batch."""
    if isinstance(value, Tensor):
        return not bool(value.any())
    node = reader.builder.nodes[reader.node(value)]
    while node.operation.kind == "Expand":
        node = reader.builder.nodes[node.inputs[0]]
    name = node.operation.parameters.get("value")
    return (
        name is not None
        and reader.builder.is_constant(name)
        and not bool(reader.builder.parameters[name].any())
    )


def _recurrent(mode: str) -> Rule:
    def rule(
        reader: AtenReader, input, hx, params, has_biases, num_layers, dropout, train, bidirectional,
        batch_first=False,
    ):  # fmt: skip
        names = [reader.weight(value) if is_weight(value) else None for value in params]
        first = list(hx) if mode == "LSTM" else [hx]
        directions = 2 if bidirectional else 1
        roles = op.Recurrent.ROLES[: 4 if has_biases else 2]
        if len(names) == num_layers * directions * (len(roles) + 1):
            roles = (*roles, "projection")
        if None in names or (train and dropout):
            return NotImplemented
        zero = all(_zero(reader, state) for state in first)
        prefixes = ("", "reverse_")[:directions]
        order = iter(names)
        last: list[Any] = []
        cells: list[Any] = []
        for layer in range(num_layers):
            weights: dict[str, Any] = {prefix + role: next(order) for prefix in prefixes for role in roles}
            states = (
                ()
                if zero
                else tuple(
                    sliced(reader, state, 0, layer * directions, (layer + 1) * directions) for state in first
                )
            )
            operation = op.Recurrent(mode=mode, batch_first=batch_first, **weights)
            sequence = reader.add(operation, input, *states)
            if mode == "LSTM":
                cells.append(reader.add(replace(operation, result="cell"), input, *states))
            input = sequence
            width = reader.shape(input)[-1] // directions
            time = 1 if batch_first else 0
            for direction in range(directions):
                half = sliced(reader, input, -1, direction * width, (direction + 1) * width)
                last.append(select(reader, half, time, -1 if direction == 0 else 0))
        results = [input, stack(reader, last)]
        return (
            [*results, cells[0] if num_layers == 1 else concatenate(reader, cells)]
            if mode == "LSTM"
            else results
        )

    return rule


RULES |= {
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "rnn_tanh": _recurrent("RNN_TANH"),
    "rnn_relu": _recurrent("RNN_RELU"),
}
