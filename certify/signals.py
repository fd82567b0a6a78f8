r"""From a `Network` to what every bound is derived from: its nonlinearities and the linear maps between them.

Between two inputs, the increment of every value of the network is a linear function of the increments
$z = (x, v_1, .., v_K)$ of the input and of every nonlinearity. Biases cancel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from certify.constraints import Constraint, SlopeRestricted, constraint_of
from weightspace.errors import ShapeError, UnsupportedOperationError
from weightspace.network import Network, Node, require_finite
from weightspace.operations import (
    AdaptiveAveragePool,
    Add,
    Attention,
    AveragePool,
    BatchNorm,
    Concat,
    Conv,
    Flatten,
    GroupSort,
    Householder,
    Implicit,
    Input,
    LayerNorm,
    Linear,
    MaxPool,
    Opaque,
    Operation,
    Parameter,
    PReLU,
    Reshape,
    RMSNorm,
    Scale,
    Select,
    Slice,
    Softmax,
    Squeeze,
    Subtract,
    Unsqueeze,
)

Output = int | tuple[int, int] | None
Signal = Mapping[int, np.ndarray]  # block of z -> matrix; blocks that are missing count as zero


def seen(signal: Signal) -> set[int]:
    """Return the blocks that a signal depends on."""
    return {k for k, matrix in signal.items() if matrix.any()}


@dataclass(frozen=True, eq=False)
class Nonlinearity:
    r"""$v_k$, what `constraint` leaves unknown of $\phi(y_k)$ with $y_k = \sum_j$ `signal[j]` $v_j$.

    Block 0 is the input.

    Attributes:
        signal: has block k itself in implicit layers only, where y depends on the layer's own output.
        parameters: role -> tensor of the operation.
    """

    name: str
    operation: Operation
    parameters: Mapping[str, Tensor]
    constraint: Constraint
    signal: Signal


@dataclass(frozen=True, eq=False)
class System:
    """The nonlinearities of a network and the linear maps that connect them, float64.

    Attributes:
        widths: size of every block of z: inputs, then one block per nonlinearity.
        layers: the nonlinearities that the output depends on, in the order of the network's nodes.
        output: the selected rows of the output.
        network, selection: where it comes from.
    """

    widths: tuple[int, ...]
    layers: tuple[Nonlinearity, ...]
    output: Signal
    network: Network
    selection: Output

    @property
    def outputs(self) -> int:
        """Number of output rows."""
        return next(iter(self.output.values())).shape[0] if self.output else 0

    @property
    def implicit(self) -> bool:
        """True where a nonlinearity depends on itself."""
        return any(k + 1 in layer.signal for k, layer in enumerate(self.layers))

    @property
    def is_chain(self) -> bool:
        """True where each nonlinearity is slope-restricted and sees only the one before it."""
        signals = [*(layer.signal for layer in self.layers), self.output]
        return all(seen(signal) <= {k} for k, signal in enumerate(signals)) and all(
            isinstance(layer.constraint, SlopeRestricted) for layer in self.layers
        )

    def select(self, row: int | tuple[int, int]) -> System:
        """Return the system of one output or of the difference of two."""
        j = row if isinstance(row, tuple) else (row,)
        output = {k: (m[j[0]] - m[j[1]] if len(j) == 2 else m[j[0]])[None] for k, m in self.output.items()}
        return replace(self, output=output, selection=row)


@dataclass(frozen=True, eq=False)
class _Value:
    """What a node returns: rows of z's blocks; a matrix None is the identity, that of a whole block."""

    width: int
    blocks: dict[int, np.ndarray | None]

    @property
    def is_input(self) -> bool:
        return set(self.blocks) == {0} and self.blocks[0] is None

    def times(self, weight: np.ndarray) -> _Value:
        blocks = {k: weight if m is None else weight @ m for k, m in self.blocks.items()}
        return _Value(len(weight), {k: m for k, m in blocks.items() if m.any()})

    def scaled(self, factor: np.ndarray | float) -> _Value:
        return _Value(self.width, {k: np.reshape(factor, (-1, 1)) * m for k, m in self.dense().items()})

    def dense(self) -> dict[int, np.ndarray]:
        return {k: np.eye(self.width) if m is None else m for k, m in self.blocks.items()}


def system_of(network: Network, output: Output = None, *, eliminate: bool = True) -> System:
    """Walk a network once: affine maps, sums, concatenations, slices and nonlinearities with a known constraint.

    Args:
        output: None, one output, or a pair (j, k) for the difference of outputs j and k.
        eliminate: let the part that a group activation preserves pass through; otherwise all of its output is new
            coordinates, as in the published quadratic constraints.
    Raises:
        UnsupportedOperationError: any other operation; the message names it, its node and a remedy.
        NonFiniteError: a parameter with NaN or infinity.
        ShapeError: `output` does not exist.
    """
    require_finite(network)
    if len(network.outputs) != 1 or len(network.inputs) != 1:
        raise UnsupportedOperationError(
            f"certify needs a network with one input and one output; this one has {len(network.inputs)} and "
            f"{len(network.outputs)}; wrap it so that one tensor goes in and one comes out"
        )
    return _Walk(network, eliminate).run(output)


class _Walk:
    def __init__(self, network: Network, eliminate: bool):
        self.network, self.eliminate = network, eliminate
        self.values: dict[str, _Value] = {}
        self.widths: list[int] = [-1]  # the input's, until something uses it
        self.layers: list[Nonlinearity] = []

    def run(self, output: Output) -> System:
        needed = {self.network.outputs[0]}
        for node in reversed(self.network.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        for node in self.network.nodes:
            if node.name in needed:
                self.values[node.name] = self.visit(node)
        value = self.values[self.network.outputs[0]]
        if self.widths[0] < 0:
            self.widths[0] = value.width
        system = System(tuple(self.widths), tuple(self.layers), value.dense(), self.network, None)
        if not system.output:  # a constant
            system = replace(system, output={0: np.zeros((value.width, self.widths[0]))})
        if output is None:
            return system
        _require_output(output, system.outputs)
        return system.select(output)

    def visit(self, node: Node) -> _Value:
        operation, tensors = node.operation, self.network.weights(node)
        inputs = [self.values[name] for name in node.inputs]
        place = f"{operation.kind} at node {node.name!r}"
        match operation:
            case Input():
                return _Value(math.prod(n for n in node.shape[1:] if n is not None), {0: None})
            case Parameter():
                return _Value(math.prod(n for n in node.shape if n is not None), {})
            case Flatten() | Reshape() | Squeeze() | Unsqueeze():
                return self.reshaped(node, inputs[0], place)
            case Linear():
                value = self.features(node.inputs[0], inputs[0], place)
                weight = operation.matrix(_floating(tensors["weight"], node)).double().numpy()
                return value.times(np.ascontiguousarray(weight))
            case BatchNorm() if len(node.shape) == 2:
                return self.features(node.inputs[0], inputs[0], place).scaled(
                    _normalization(operation, tensors)
                )
            case Scale():
                return inputs[0] if operation.factor == 1 else inputs[0].scaled(operation.factor)
            case Add() | Subtract():
                return self.added(node, inputs, place)
            case Concat():
                return self.joined(node, inputs, place)
            case Slice() | Select():
                return self.cut(node, operation, inputs[0], place)
        _refuse(node)
        return self.activated(node, self.features(node.inputs[0], inputs[0], place), tensors)

    def features(self, name: str, value: _Value, place: str) -> _Value:
        """The value as features along its last axis; the axes before it, if any, only repeat the function."""
        node = self.network.node(name)
        width = node.shape[-1] if node.shape else None
        if width is None:
            raise UnsupportedOperationError(
                f"{place} has no fixed width (shape {node.shape}); certify needs one"
            )
        if value.is_input and self.widths[0] in (-1, width):
            self.widths[0] = width
            return _Value(width, {0: None})
        if value.width != width:
            raise UnsupportedOperationError(
                f"{place} acts on shape {node.shape}, of which certify follows the last axis only; reshape the "
                "input or the result outside"
            )
        return value

    def reshaped(self, node: Node, value: _Value, place: str) -> _Value:
        before = self.network.node(node.inputs[0])
        if not (value.is_input and self.widths[0] < 0) and node.shape != before.shape:
            raise UnsupportedOperationError(
                f"{place} changes the shape after the first layer, which the certificates of this version do not "
                "follow; reshape the input or the result outside"
            )
        return value

    def added(self, node: Node, inputs: list[_Value], place: str) -> _Value:
        operands = []
        for name, value in zip(node.inputs, inputs, strict=True):
            if value.blocks:
                if self.network.node(name).shape != node.shape:
                    raise UnsupportedOperationError(
                        f"{place} broadcasts {name!r}, which certify does not follow"
                    )
                operands.append(self.features(name, value, place))
            else:
                operands.append(value)
        width = next((value.width for value in operands if value.blocks), operands[0].width)
        total: dict[int, np.ndarray | None] = {}
        for position, value in enumerate(operands):
            sign = -1.0 if position and isinstance(node.operation, Subtract) else 1.0
            for k, matrix in value.dense().items():
                known = total.get(k)
                total[k] = sign * matrix if known is None else known + sign * matrix
        return _Value(width, total)

    def joined(self, node: Node, inputs: list[_Value], place: str) -> _Value:
        self.require_feature_axis(node, node.operation.attributes["axis"], place)
        parts = []
        for name, value in zip(node.inputs, inputs, strict=True):
            width = self.network.node(name).shape[-1]
            parts.append(self.features(name, value, place) if value.blocks else _Value(width or 0, {}))
        dense = [part.dense() for part in parts]
        blocks = {}
        for k in sorted({k for part in dense for k in part}):
            rows = [
                part.get(k, np.zeros((value.width, self.widths[k])))
                for part, value in zip(dense, parts, strict=True)
            ]
            blocks[k] = np.concatenate(rows)
        return _Value(sum(part.width for part in parts), blocks)

    def cut(self, node: Node, operation: Slice | Select, value: _Value, place: str) -> _Value:
        before = self.network.node(node.inputs[0])
        self.require_feature_axis(before, operation.axis, place)
        value = self.features(node.inputs[0], value, place)
        if isinstance(operation, Select):
            rows = [operation.index % value.width]
        else:
            rows = range(value.width)[operation.start : operation.stop : operation.step]
        return _Value(len(rows), {k: matrix[list(rows)] for k, matrix in value.dense().items()})

    def require_feature_axis(self, node: Node, axis: int, place: str) -> None:
        if axis % len(node.shape) != len(node.shape) - 1 or len(node.shape) != 2:
            raise UnsupportedOperationError(
                f"{place} must act along the features of a (batch, features) value"
            )

    def activated(self, node: Node, value: _Value, tensors: dict[str, Tensor]) -> _Value:
        constraint = constraint_of(node.operation, tensors, node.shape[-1] or 0, node.name)
        k = len(self.widths)
        signal = value.dense()
        width = value.width
        if isinstance(node.operation, Implicit):
            signal = value.times(tensors["input_weight"].double().numpy()).dense()
            signal[k] = tensors["weight"].double().numpy()
            width = len(signal[k])
        if not signal:
            signal = {0: np.zeros((value.width, self.widths[0]))}
        self.layers.append(Nonlinearity(node.name, node.operation, tensors, constraint, signal))
        if isinstance(constraint, SlopeRestricted) or not self.eliminate:
            self.widths.append(width)
            return _Value(width, {k: None})
        groups, r, _ = constraint.complement.shape
        self.widths.append(groups * r)
        passed = {j: constraint.through(matrix) for j, matrix in signal.items()}
        return _Value(value.width, {**passed, k: constraint.lift(np.eye(groups * r))})


def _floating(weight: Tensor, node: Node) -> Tensor:
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise UnsupportedOperationError(
            f"Linear at node {node.name!r} has a {weight.dtype} weight; certify needs real floating point"
        )
    return weight


def _normalization(operation: BatchNorm, tensors: Mapping[str, Tensor]) -> np.ndarray:
    scale = 1 / np.sqrt(tensors["running_var"].double().numpy() + operation.epsilon)
    return scale * tensors["weight"].double().numpy() if "weight" in tensors else scale


def _refuse(node: Node) -> None:
    """Refuse operations that are no activation on the features, each with its reason."""
    operation = node.operation
    if isinstance(operation, Opaque):
        raise UnsupportedOperationError(
            f"{operation.name} at node {node.name!r} is not known to this version"
        )
    place = f"{operation.kind} at node {node.name!r}"
    if len(node.inputs) != 1:
        raise UnsupportedOperationError(
            f"{place} has {len(node.inputs)} inputs; this version certifies Linear layers, scalar and group "
            "activations, sums, concatenations and slices"
        )
    if isinstance(operation, Softmax | Attention):
        raise UnsupportedOperationError(
            f"{place} has no global Lipschitz bound in this version; certify the network up to its input (the logits)"
        )
    if isinstance(operation, LayerNorm | RMSNorm):
        raise UnsupportedOperationError(
            f"{place} has no useful global Lipschitz bound; certify a network without it"
        )
    if isinstance(operation, BatchNorm | Conv | AveragePool | AdaptiveAveragePool | MaxPool):
        raise UnsupportedOperationError(
            f"{place} is not covered by this version, which follows values of shape (batch, features)"
        )
    if (
        isinstance(operation, GroupSort | Householder)
        and operation.axis % len(node.shape) != len(node.shape) - 1
    ):
        raise UnsupportedOperationError(
            f"{place} sorts along axis {operation.axis} of shape {node.shape}, not along the features (the last axis)"
        )
    if isinstance(operation, PReLU) and len(node.shape) != 2:
        raise UnsupportedOperationError(
            f"{place} has shape {node.shape}; per-channel slopes need (batch, features)"
        )


def _require_output(output: Output, rows: int) -> None:
    indices = output if isinstance(output, tuple) else (output,)
    if len(indices) not in (1, 2) or not all(type(j) is int and 0 <= j < rows for j in indices):
        raise ShapeError(
            f"output={output!r} must be an index or a pair of indices below {rows}, the output width"
        )
