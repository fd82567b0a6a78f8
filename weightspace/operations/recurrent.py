"""Recurrent layers over a sequence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightspace.operations.base import Operation, parameter


@dataclass(frozen=True, kw_only=True)
class Recurrent(Operation):
    """One LSTM, GRU or RNN layer, read forward and, when the `reverse_` roles are filled, backward too.

    Inputs: x (time, batch, in), or (batch, time, in) when `batch_first`; then, unless the first states are zero, h
    (directions, batch, state) and for the LSTM c (directions, batch, hidden). The value is the sequence of states
    (..., directions * state), forward first, or with `result` "cell" the last c (directions, batch, hidden).
    `input_weight` is (gates * hidden, in) and `hidden_weight` (gates * hidden, state), the gates in torch's order:
    i, f, g, o for the LSTM and r, z, n for the GRU; `projection` (state, hidden) belongs to the LSTM only, without it
    state is hidden. A multi-layer module is a chain of these.
    """

    mode: str
    input_weight: str = parameter()
    hidden_weight: str = parameter()
    input_bias: str | None = parameter(optional=True)
    hidden_bias: str | None = parameter(optional=True)
    projection: str | None = parameter(optional=True)
    reverse_input_weight: str | None = parameter(optional=True)
    reverse_hidden_weight: str | None = parameter(optional=True)
    reverse_input_bias: str | None = parameter(optional=True)
    reverse_hidden_bias: str | None = parameter(optional=True)
    reverse_projection: str | None = parameter(optional=True)
    batch_first: bool = False
    result: str = "sequence"

    GATES: ClassVar[dict[str, int]] = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
    ROLES: ClassVar[tuple[str, ...]] = (
        "input_weight",
        "hidden_weight",
        "input_bias",
        "hidden_bias",
        "projection",
    )

    def __post_init__(self):
        if self.mode not in self.GATES:
            raise TypeError(f"Recurrent knows {', '.join(self.GATES)}, not {self.mode!r}")
        if self.result not in ("sequence", "cell") or (self.result == "cell" and self.mode != "LSTM"):
            raise TypeError(
                f"the result of a {self.mode} layer is 'sequence', of an LSTM also 'cell'; not {self.result!r}"
            )

    @property
    def gates(self) -> int:
        """Number of blocks of `hidden` rows in the weights."""
        return self.GATES[self.mode]

    @property
    def bidirectional(self) -> bool:
        """Whether the sequence is also read backward."""
        return self.reverse_input_weight is not None

    def evaluate(self, inputs, weights):
        x, *states = inputs
        prefixes = ("", "reverse_") if self.bidirectional else ("",)
        flat = [weights[p + role] for p in prefixes for role in self.ROLES if p + role in weights]
        batch = x.shape[0 if self.batch_first else 1]
        if not states:
            widths = [weights["hidden_weight"].shape[1], weights["hidden_weight"].shape[0] // self.gates]
            states = [x.new_zeros(len(prefixes), batch, n) for n in widths[: 2 if self.mode == "LSTM" else 1]]
        options = ("input_bias" in weights, 1, 0.0, False, self.bidirectional, self.batch_first)
        if self.mode == "LSTM":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "LSTM with projections")  # that oneDNN has none
                sequence, _, cell = torch.lstm(x, states, flat, *options)
            return cell if self.result == "cell" else sequence
        function = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[self.mode]
        return function(x, states[0], flat, *options)[0]
