r"""From a `Network` to what every bound is derived from: its nonlinearities and the linear maps between them.

Between two inputs, the increment of every value of the network is a linear function of the increments
$z = (x, v_1, .., v_K)$ of the input and of every nonlinearity. Biases cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from certify.constraints import Constraint, SlopeRestricted, WindowMaximum, constraint_of
from certify.convolution import (
    LARGEST,
    Matrix,
    average_matrix,
    convolution_matrix,
    dense,
    identity,
    is_zero,
    scale_rows,
    stack,
    window_table,
    zeros,
)
from certify.unbounded import is_square, refuse_products
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
    Pad,
    Parameter,
    Pointwise,
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
Signal = Mapping[int, Matrix]  # block of z -> matrix; blocks that are missing count as zero


def seen(signal: Signal) -> set[int]:
    """Return the blocks that a signal depends on."""
    return {k for k, matrix in signal.items() if not is_zero(matrix)}


@dataclass(frozen=True, eq=False)
class Nonlinearity:
    r"""$v_k$, what `constraint` leaves unknown of $\phi(y_k)$ with $y_k = \sum_j$ `signal[j]` $v_j$.

    Block 0 is the input.

    Attributes:
        signal: has block k itself in implicit layers only, where y depends on the layer's own output.
        parameters: role -> tensor of the operation.
        kept: over a region, which of the operation's neurons are not linear there and have a row; None for all.
    """

    name: str
    operation: Operation
    parameters: Mapping[str, Tensor]
    constraint: Constraint
    signal: Signal
    kept: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class System:
    """The nonlinearities of a network and the linear maps that connect them, float64, of convolutions sparse.

    Attributes:
        widths: size of every block of z: inputs, then one block per nonlinearity.
        layers: the nonlinearities that the output depends on, in the order of the network's nodes.
        output: the selected rows of the output.
        network, selection: where it comes from.
        too_large: the last operation of the first linear map too large to be written out, which is left empty; None
            where there is none.
        moving: over a region, which inputs it does not fix and have a coordinate; None for all.
        whole: the system of all outputs, where this is of one or two and over all inputs.
    """

    widths: tuple[int, ...]
    layers: tuple[Nonlinearity, ...]
    output: Signal
    network: Network
    selection: Output
    too_large: str | None = None
    moving: np.ndarray | None = None
    whole: System | None = None

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

    def spread(self, multipliers: Sequence[np.ndarray]) -> tuple[tuple[float, ...], ...]:
        """Return the multipliers with zeros for neurons that are linear over the region."""
        lists = []
        for layer, values in zip(self.layers, multipliers, strict=True):
            full = values
            if layer.kept is not None:
                full = np.zeros(len(layer.kept))
                full[layer.kept] = values
            lists.append(tuple(full.tolist()))
        return tuple(lists)

    def select(self, row: int | tuple[int, int]) -> System:
        """Return the system of one output or of the difference of two."""
        j = row if isinstance(row, tuple) else (row,)
        output = {}
        for k, matrix in self.output.items():
            rows = dense(matrix[list(j)])
            output[k] = rows[:1] - rows[1:] if len(j) == 2 else rows
        whole = self if self.moving is None else None
        return replace(self, output=output, selection=row, whole=whole)


@dataclass(frozen=True, eq=False)
class _Value:
    """What a node returns: rows of z's blocks; a matrix None is the identity, that of a whole block."""

    width: int
    blocks: dict[int, Matrix | None]

    @property
    def is_input(self) -> bool:
        return set(self.blocks) == {0} and self.blocks[0] is None

    def times(self, weight: Matrix) -> _Value:
        blocks = {k: weight if m is None else weight @ m for k, m in self.blocks.items()}
        return _Value(weight.shape[0], {k: m for k, m in blocks.items() if not is_zero(m)})

    def scaled(self, factor: np.ndarray | float) -> _Value:
        return _Value(self.width, {k: scale_rows(m, factor) for k, m in self.matrices().items()})

    def matrices(self) -> dict[int, Matrix]:
        return {k: identity(self.width) if m is None else m for k, m in self.blocks.items()}


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
    refuse_products(network)
    return _Walk(network, eliminate).run(output)


def require_unrolled(system: System) -> None:
    """Raise where the matrices of a system were too large to be written out.

    Raises:
        UnsupportedOperationError: they were.
    """
    if system.too_large:
        raise UnsupportedOperationError(f"{too_large_to_unroll(system)}; use bounder=NormProduct()")


def too_large_to_unroll(system: System) -> str:
    """Say what `System.too_large` names."""
    return f"the linear map that ends with {system.too_large} is a matrix of more than {LARGEST} entries"


class _Walk:
    def __init__(self, network: Network, eliminate: bool):
        self.network, self.eliminate = network, eliminate
        shapes = (
            network.node(node.inputs[0]).shape for node in network.nodes if isinstance(node.operation, Linear)
        )
        self.by_rows = any(len(shape) > 2 for shape in shapes)  # the network acts on each row of features
        self.too_large: str | None = None
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
        output_signal = value.matrices()
        system = System(
            tuple(self.widths), tuple(self.layers), output_signal, self.network, None, self.too_large
        )
        if not system.output:  # a constant
            system = replace(system, output={0: zeros(value.width, self.widths[0])})
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
                width = math.prod(n for n in _sample(node.shape) if n is not None)
                if not self.by_rows:
                    self.widths[0] = width
                return _Value(width, {0: None})
            case Parameter():
                return _Value(math.prod(n for n in node.shape if n is not None), {})
            case Flatten() | Reshape() | Squeeze() | Unsqueeze():
                return self.reshaped(node, inputs[0], place)
            case Linear():
                value = self.features(node.inputs[0], inputs[0], place)
                weight = operation.matrix(_floating(tensors["weight"], node)).double().numpy()
                weight = np.ascontiguousarray(weight)
                if any(matrix is not None for matrix in value.blocks.values()):
                    return self.mapped(value, len(weight), place, lambda: weight)
                return value.times(weight)
            case Conv() | AveragePool() | AdaptiveAveragePool() if not self.by_rows:
                return self.spatial(node, operation, inputs[0], tensors, place)
            case BatchNorm() if len(node.shape) == 2 or (len(node.shape) > 2 and not self.by_rows):
                factors = _normalization(operation, tensors)
                repeats = math.prod(n or 0 for n in node.shape[2:])
                return self.features(node.inputs[0], inputs[0], place).scaled(np.repeat(factors, repeats))
            case Scale():
                return inputs[0] if operation.factor == 1 else inputs[0].scaled(operation.factor)
            case Add() | Subtract():
                return self.added(node, inputs, place)
            case Concat():
                return self.joined(node, inputs, place)
            case Slice() | Select():
                return self.cut(node, operation, inputs[0], place)
            case MaxPool() if not self.by_rows:
                return self.pooled(node, operation, inputs[0], place)
        if is_square(node):
            node = replace(node, operation=Pointwise(name="square"), inputs=node.inputs[:1])
        _refuse(node)
        return self.activated(node, self.features(node.inputs[0], inputs[0], place), tensors)

    def features(self, name: str, value: _Value, place: str) -> _Value:
        """The value as one flat sample, or by rows: as features along its last axis, the axes before it, if any,
        only repeat the function.
        """
        node = self.network.node(name)
        if not self.by_rows and None not in _sample(node.shape):
            return value
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
        if not self.by_rows:
            sizes = _sample(before.shape) + _sample(node.shape)
            if before.shape[:1] == node.shape[:1] and len(before.shape) > 1 and None not in sizes:
                return value
            if value.blocks:
                raise UnsupportedOperationError(
                    f"{place} takes {before.shape} to {node.shape}; axis 0 must stay the batch"
                )
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
        total: dict[int, Matrix | None] = {}
        for position, value in enumerate(operands):
            sign = -1.0 if position and isinstance(node.operation, Subtract) else 1.0
            for k, matrix in value.matrices().items():
                known = total.get(k)
                total[k] = sign * matrix if known is None else known + sign * matrix
        return _Value(width, total)

    def joined(self, node: Node, inputs: list[_Value], place: str) -> _Value:
        axis = node.operation.attributes["axis"]
        if self.by_rows or axis % len(node.shape) != 1:  # along axis 1, flat samples are joined end to end
            self.require_feature_axis(node, axis, place)
        parts = []
        for name, value in zip(node.inputs, inputs, strict=True):
            if value.blocks:
                parts.append(self.features(name, value, place))
            else:  # a constant
                sizes = _sample(self.network.node(name).shape)
                parts.append(_Value(math.prod(n or 0 for n in sizes), {}))
        known = [part.matrices() for part in parts]
        blocks = {}
        for k in sorted({k for part in known for k in part}):
            rows = [
                part.get(k, zeros(value.width, self.widths[k]))
                for part, value in zip(known, parts, strict=True)
            ]
            blocks[k] = stack(rows)
        return _Value(sum(part.width for part in parts), blocks)

    def cut(self, node: Node, operation: Slice | Select, value: _Value, place: str) -> _Value:
        before = self.network.node(node.inputs[0])
        sizes, axis = _sample(before.shape), operation.axis % len(before.shape)
        axis -= len(before.shape) > 1
        if self.by_rows or axis < 0 or None in sizes:
            self.require_feature_axis(before, operation.axis, place)
        value = self.features(node.inputs[0], value, place)
        places = np.arange(value.width).reshape([n or 0 for n in sizes])
        if isinstance(operation, Select):
            rows = np.take(places, operation.index, axis=axis)
        else:
            chosen = slice(operation.start, operation.stop, operation.step)
            rows = places[(slice(None),) * axis + (chosen,)]
        rows = rows.reshape(-1)
        return _Value(len(rows), {k: matrix[rows] for k, matrix in value.matrices().items()})

    def require_feature_axis(self, node: Node, axis: int, place: str) -> None:
        if axis % len(node.shape) != len(node.shape) - 1 or len(node.shape) != 2:
            raise UnsupportedOperationError(
                f"{place} must act along the features of a (batch, features) value"
            )

    def spatial(
        self,
        node: Node,
        operation: Conv | AveragePool | AdaptiveAveragePool,
        value: _Value,
        tensors: dict[str, Tensor],
        place: str,
    ) -> _Value:
        channels, sizes, outputs = self.positions(node, place)
        width = (node.shape[1] or 0) * math.prod(outputs)
        if not isinstance(operation, Conv):
            build = partial(average_matrix, operation, channels, sizes, outputs)
            return self.mapped(value, width, place, build)
        if operation.transposed:
            raise UnsupportedOperationError(
                f"{place} is transposed, for which this version has no rule; certify the part without it"
            )
        weight = _floating(tensors["weight"], node).double().numpy()
        build = partial(convolution_matrix, operation, weight, sizes, outputs)
        return self.mapped(value, width, place, build)

    def mapped(self, value: _Value, width: int, place: str, build: Callable[[], Matrix]) -> _Value:
        """The value behind a linear map; left empty where its matrix, written out, would be too large."""
        columns = [value.width if m is None else m.shape[1] for m in value.blocks.values()]
        if self.too_large or width * max(columns, default=0) > LARGEST:
            self.too_large = self.too_large or place
            return _Value(width, {k: zeros(width, n) for k, n in zip(value.blocks, columns, strict=True)})
        return value.times(build())

    def positions(self, node: Node, place: str) -> tuple[int, list[int], list[int]]:
        """Return channels and positions per axis before, and positions after."""
        before = self.network.node(node.inputs[0]).shape
        operation = node.operation
        axes = len(getattr(operation, "stride", None) or getattr(operation, "size", ()))
        if len(before) != axes + 2 or None in before[1:] or None in node.shape[1:]:
            raise UnsupportedOperationError(
                f"{place} takes shape {before} to {node.shape}; (batch, channels, {axes} sizes) are needed"
            )
        channels, *sizes = (n or 0 for n in before[1:])
        return channels, sizes, [n or 0 for n in node.shape[2:]]

    def pooled(self, node: Node, operation: MaxPool, value: _Value, place: str) -> _Value:
        constraint = WindowMaximum(window_table(operation, *self.positions(node, place)), value.width)
        if not (constraint.windows >= 0).any(axis=1).all():
            raise UnsupportedOperationError(
                f"{place} has a window that lies in the padding; use less padding"
            )
        k, signal = len(self.widths), value.matrices() or {0: zeros(value.width, self.widths[0])}
        self.layers.append(Nonlinearity(node.name, operation, {}, constraint, signal))
        maxima, r = constraint.counts
        self.widths.append(maxima * r)
        passed = {j: constraint.through(matrix) for j, matrix in signal.items()}
        return _Value(maxima, {**passed, k: constraint.lift(identity(maxima * r))})

    def activated(self, node: Node, value: _Value, tensors: dict[str, Tensor]) -> _Value:
        if isinstance(node.operation, PReLU) and not self.by_rows and tensors["weight"].numel() > 1:
            repeats = math.prod(n or 0 for n in node.shape[2:])  # one slope per channel
            tensors = {**tensors, "weight": tensors["weight"].repeat_interleave(repeats)}
        width = (node.shape[-1] or 0) if self.by_rows else math.prod(n or 0 for n in _sample(node.shape))
        constraint = constraint_of(node.operation, tensors, width, node.name)
        assert not isinstance(constraint, WindowMaximum)
        k = len(self.widths)
        signal = value.matrices()
        width = value.width
        if isinstance(node.operation, Implicit):
            signal = value.times(tensors["input_weight"].double().numpy()).matrices()
            signal[k] = tensors["weight"].double().numpy()
            width = len(signal[k])
        if not signal:
            signal = {0: zeros(value.width, self.widths[0])}
        self.layers.append(Nonlinearity(node.name, node.operation, tensors, constraint, signal))
        if isinstance(constraint, SlopeRestricted) or not self.eliminate:
            self.widths.append(width)
            return _Value(width, {k: None})
        groups, r = constraint.counts
        self.widths.append(groups * r)
        passed = {j: constraint.through(matrix) for j, matrix in signal.items()}
        return _Value(value.width, {**passed, k: constraint.lift(np.eye(groups * r))})


def _sample(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The shape of one sample: without the batch, which a network of one vector does not have."""
    return shape[1:] if len(shape) > 1 else shape


def _floating(weight: Tensor, node: Node) -> Tensor:
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise UnsupportedOperationError(
            f"{node.operation.kind} at node {node.name!r} has a {weight.dtype} weight; certify needs real "
            "floating point"
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
            f"{place} acts on shape {node.shape}; it is followed in networks whose Linear layers take "
            "(batch, features) and whose convolutions take (batch, channels, sizes)"
        )
    if isinstance(operation, Pad):
        raise UnsupportedOperationError(
            f"{place} pads in mode {operation.mode!r}; convolutions and pools with zero padding of their own are "
            "covered: use padding_mode='zeros'"
        )
    if (
        isinstance(operation, GroupSort | Householder)
        and operation.axis % len(node.shape) != len(node.shape) - 1
    ):
        raise UnsupportedOperationError(
            f"{place} sorts along axis {operation.axis} of shape {node.shape}, not along the features (the last axis)"
        )


def _require_output(output: Output, rows: int) -> None:
    indices = output if isinstance(output, tuple) else (output,)
    if len(indices) not in (1, 2) or not all(type(j) is int and 0 <= j < rows for j in indices):
        raise ShapeError(
            f"output={output!r} must be an index or a pair of indices below {rows}, the output width"
        )
