"""Run the graph of a network on polynomials of its input instead of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.quadratic_form import QuadraticForm
from weightspace import operations as op
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network, Node

# Affine in their input, all other inputs being constants.
_MOVING = (
    op.Reshape, op.Flatten, op.Permute, op.Expand, op.Unsqueeze, op.Squeeze, op.Slice, op.Select,
)  # fmt: skip
_AFFINE = (
    *_MOVING, op.Linear, op.Conv, op.BatchNorm, op.Scale, op.AveragePool, op.AdaptiveAveragePool, op.Pad, op.Gather,
    op.Roll, op.Flip, op.PixelShuffle, op.PixelUnshuffle, op.CumulativeSum,
)  # fmt: skip
_JOINTLY_LINEAR = (op.Add, op.Subtract, op.Concat, op.Stack)
_PRODUCTS = (op.Multiply, op.MatMul, op.Bilinear)  # affine as well, when one factor is constant
_SQUARES = (op.Power(exponent=2), op.Pointwise(name="square"))
_ELEMENTWISE = (op.Activation, op.Scale, op.Power, op.Cast, op.Add, op.Subtract, op.Multiply, op.Divide)


class TooDeepError(UnsupportedOperationError):
    """A product of values that are products already: degree four."""


@dataclass(frozen=True, eq=False)
class _Gate:
    """A value that is a scalar function of an affine one, entry by entry.

    Attributes:
        origin: the node where it stopped being affine.
        root: name of the affine value, before numbers were added or multiplied to it.
        argument, samples: the affine value as columns, and on the data, (n, *shape).
    """

    origin: Node
    root: str
    argument: Tensor
    samples: Tensor


class Interpreter:
    """Evaluate the nodes after `source`, whose value is the input x.

    A value is a tensor (columns, *sample shape): column 0 holds its constant part, columns 1 .. d the
    coefficients of x, the others those of the products p_j = (W'x')_j (V'x')_j seen so far. An affine
    operation f acts on every column: as f(column) - f(0), and as f on the constant part. So the batch axis
    of the operations carries the columns, and no operation needs a rule of its own.

    Args:
        network: in float64.
        source: a node whose first axis is the batch; only its value may be used by later nodes.
        constants: values of the nodes that do not depend on the input.
        data: every node's values on samples, to fit gates by affine functions; empty refuses gates.
    """

    def __init__(
        self, network: Network, source: Node, constants: Mapping[str, Tensor], data: Mapping[str, Tensor]
    ):
        self.network, self.constants, self.data = network, constants, data
        self.sample = tuple(size for size in source.shape[1:] if size is not None)
        self.size = math.prod(self.sample)
        self.left = torch.zeros(0, self.size + 1, dtype=torch.float64)
        self.right = torch.zeros(0, self.size + 1, dtype=torch.float64)
        columns = torch.zeros(self.size + 1, self.size, dtype=torch.float64)
        columns[1:] = torch.eye(self.size, dtype=torch.float64)
        self.values = {source.name: columns.reshape(-1, *self.sample)}
        # Of values that are products, or inputs, as they are: the first of their columns. A linear map of them is
        # its own matrix, and is not multiplied with an identity.
        self.fresh = {source.name: 1}
        self.roots: dict[str, str] = {}
        self.gates: dict[str, _Gate] = {}
        self.fitted = False

    def add(self, node: Node) -> None:
        """Compute one further node, whose inputs have been computed.

        Raises:
            TooDeepError: a product of products.
            UnsupportedOperationError: an operation that is not affine, named with its node.
        """
        if any(name in self.gates for name in node.inputs):
            self._add_to_gate(node)
        elif isinstance(node.operation, op.Activation | op.Power) and node.operation not in _SQUARES:
            self.gates[node.name] = self._gate(node)
        else:
            self.values[node.name] = self._value(node)
            moving = [name for name in node.inputs if name in self.values]
            if len(moving) == 1 and isinstance(node.operation, _ELEMENTWISE):
                self.roots[node.name] = self._root(moving[0])

    def is_affine(self, name: str) -> bool:
        return name in self.values and not bool(self.values[name][self.size + 1 :].any())

    def affine_map(self, name: str) -> Tensor:
        """Return the affine value `name` as a matrix [E e] on [x; 1]."""
        columns = self.values[name][: self.size + 1].flatten(1)
        return columns.roll(-1, 0).mT

    def form(self, name: str, dtype: torch.dtype, embedding: Tensor | None) -> QuadraticForm:
        """Return the value `name` as a function of the source."""
        if name in self.gates:
            raise UnsupportedOperationError(
                f"{_kind(self.gates[name].origin)} is not a gate: its values are not multiplied by a linear map"
            )
        coefficients = self._widened(self.values[name]).flatten(1)
        start = self.size + 1
        used = coefficients[start:].any(1)
        affine = coefficients[:start].roll(-1, 0).mT
        return QuadraticForm(
            self.left[used],
            self.right[used],
            coefficients[start:][used].mT,
            affine,
            self.sample,
            dtype,
            embedding,
        )

    # ---- polynomials -------------------------------------------------------------------------------------

    def _value(self, node: Node) -> Tensor:
        operation = node.operation
        moving = [name for name in node.inputs if name in self.values]
        if operation in _SQUARES:
            return self._product(node, self.values[moving[0]], self.values[moving[0]])
        if isinstance(operation, op.Multiply) and len(moving) == 2:
            return self._product(node, self.values[node.inputs[0]], self.values[node.inputs[1]])
        if isinstance(operation, op.Bilinear) and len(moving) == 2:
            return self._bilinear(node)
        if isinstance(operation, op.Cast) and getattr(torch, operation.dtype).is_floating_point:
            return self.values[moving[0]]
        affine = (
            isinstance(operation, _JOINTLY_LINEAR)
            or (len(moving) == 1 and isinstance(operation, (*_AFFINE, *_PRODUCTS)))
            or (isinstance(operation, op.Divide) and moving == [node.inputs[0]])
            or (isinstance(operation, op.Reduce) and operation.name in ("mean", "sum"))
        )
        if not affine:
            raise UnsupportedOperationError(
                f"{_kind(node)} is neither affine nor the product of two linear maps, so there is no exact form "
                "for it; decompose the bilinear layer on its own"
            )
        return self._affine(node)

    def _affine(self, node: Node) -> Tensor:
        """Apply an operation that is affine in all its moving inputs taken together."""
        weights = self.network.weights(node)
        if isinstance(node.operation, op.Linear):
            return self._linear(node, weights)
        moving = {name: self._widened(self.values[name]) for name in node.inputs if name in self.values}
        still = {name: torch.zeros_like(value) for name, value in moving.items()}
        result = self._evaluate(node, moving, weights)
        if isinstance(node.operation, op.Conv):
            # Leaving the bias out rounds less than subtracting it.
            homogeneous = {role: weight for role, weight in weights.items() if role != "bias"}
            return torch.cat([result[:1], self._evaluate(node, moving, homogeneous)[1:]])
        return torch.cat([result[:1], (result - self._evaluate(node, still, weights))[1:]])

    def _linear(self, node: Node, weights: dict[str, Tensor]) -> Tensor:
        (name,) = node.inputs
        value = self.values[name]
        self._require_samples(node)
        if name in self.fresh and value.ndim == 2:
            result = torch.zeros(len(value), len(weights["weight"]), dtype=torch.float64)
            start = self.fresh[name]
            result[start : start + value.shape[1]] = weights["weight"].mT
        else:
            result = value @ weights["weight"].mT
        if "bias" in weights:
            result[0] += weights["bias"]
        return result

    def _evaluate(self, node: Node, moving: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
        self._require_samples(node)
        inputs = tuple(moving[name] if name in moving else self.constants[name] for name in node.inputs)
        result = node.operation.evaluate(inputs, weights)
        if result.shape[0] != 1 + self.size + len(self.left):
            self._refuse_mixing(node)
        return result

    def _require_samples(self, node: Node) -> None:
        if node.shape[:1] != (None,):
            self._refuse_mixing(node)

    def _refuse_mixing(self, node: Node) -> None:
        raise UnsupportedOperationError(
            f"{_kind(node)} mixes the samples of a batch; decompose needs a function of one sample"
        )

    def _product(self, node: Node, first: Tensor, second: Tensor) -> Tensor:
        """Multiply two values elementwise: every entry of the result becomes a product of its own."""
        self._require_affine(node, first, second)
        start = self.size + 1
        first, second = torch.broadcast_tensors(first[:start], second[:start])
        return self._append(node, first.flatten(1), second.flatten(1), tuple(first.shape[1:]))

    def _bilinear(self, node: Node) -> Tensor:
        """y_o = sum over i of a_i (W_o b)_i + bias_o: one product for every pair (o, i)."""
        first, second = (self.values[name] for name in node.inputs)
        self._require_affine(node, first, second)
        if first.ndim != 2:
            raise UnsupportedOperationError(f"{_kind(node)} takes more than one row per sample")
        start = self.size + 1
        weights = self.network.weights(node)
        weight = weights["weight"]  # (o, i, j)
        outputs, rows, _ = weight.shape
        left = first[:start].repeat(1, outputs)
        right = second[:start] @ weight.flatten(0, 1).mT
        products = self._append(node, left, right, (outputs * rows,))
        del self.fresh[node.name]
        result = products.unflatten(1, (outputs, rows)).sum(2)
        if "bias" in weights:
            result[0] += weights["bias"]
        return result

    def _append(self, node: Node, left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Add products of affine columns (d + 1, n), constant first; return the value they form."""
        known, count = len(self.left), left.shape[1]
        self.left = torch.cat([self.left, left.roll(-1, 0).mT])
        self.right = torch.cat([self.right, right.roll(-1, 0).mT])
        start = 1 + self.size + known
        result = torch.zeros(start + count, count, dtype=torch.float64)
        result[start:] = torch.eye(count, dtype=torch.float64)
        self.fresh[node.name] = start
        return result.reshape(-1, *shape)

    def _require_affine(self, node: Node, *factors: Tensor) -> None:
        if any(bool(factor[self.size + 1 :].any()) for factor in factors):
            raise TooDeepError(
                f"{_kind(node)} multiplies values that are already products: a second bilinear layer"
            )

    def _widened(self, value: Tensor) -> Tensor:
        """Give a value the columns of the products that were added after it was made."""
        missing = 1 + self.size + len(self.left) - len(value)
        return torch.cat([value, value.new_zeros(missing, *value.shape[1:])]) if missing else value

    # ---- gates -------------------------------------------------------------------------------------------

    def _gate(self, node: Node) -> _Gate:
        (name,) = node.inputs
        if not self.data:
            raise UnsupportedOperationError(
                f"{_kind(node)} is neither affine nor the product of two linear maps, so there is no exact form "
                "for it; if it is a gate, pass data: it is then replaced by affine functions, and the residual "
                "this leaves is reported"
            )
        self._require_affine(node, self.values[name])
        return _Gate(node, self._root(name), self.values[name], self.data[name])

    def _root(self, name: str) -> str:
        return self.roots.get(name, name)

    def _add_to_gate(self, node: Node) -> None:
        """Go on with a function of the gate's argument, or multiply the gate with another value."""
        operation = node.operation
        gate = next(self.gates[name] for name in node.inputs if name in self.gates)
        others = [name for name in node.inputs if name in self.values and self._root(name) != gate.root]
        one = all(self.gates[name].root == gate.root for name in node.inputs if name in self.gates)
        same_shape = self.data[node.name].shape == gate.samples.shape
        if one and not others and isinstance(operation, _ELEMENTWISE) and same_shape:
            self.gates[node.name] = gate
        elif isinstance(operation, _MOVING):
            argument = self._evaluate(node, {node.inputs[0]: self._widened(gate.argument)}, {})
            samples = operation.evaluate((gate.samples, *(self.data[name] for name in node.inputs[1:])), {})
            self.gates[node.name] = _Gate(gate.origin, node.name, argument, samples)
        elif one and isinstance(operation, op.Multiply) and len(others) == 1:
            own = next(name for name in node.inputs if name in self.gates)
            affine = self._fitted(gate, self.data[own], self.data[others[0]])
            self.values[node.name] = self._product(node, affine, self.values[others[0]])
        else:
            raise UnsupportedOperationError(
                f"{_kind(node)} takes the values of {_kind(gate.origin)} before they are multiplied by a linear "
                "map: not a gate"
            )

    def _fitted(self, gate: _Gate, values: Tensor, factors: Tensor) -> Tensor:
        """The affine function of the argument that is closest to the gate where its partner v is large.

        For every unit the least squares of v^2 (g - alpha z - beta)^2, which is the error of the product.
        """
        self.fitted = True
        z, g, v = torch.broadcast_tensors(gate.samples, values, factors)
        weight = v.square() + torch.finfo(v.dtype).tiny
        weight = weight / weight.sum(0)
        z_mean, g_mean = (weight * z).sum(0), (weight * g).sum(0)
        variance = (weight * (z - z_mean).square()).sum(0)
        covariance = (weight * (z - z_mean) * (g - g_mean)).sum(0)
        slope = torch.where(variance > 0, covariance / variance.clamp_min(torch.finfo(v.dtype).tiny), 0.0)
        result = slope * gate.argument
        result[0] += g_mean - slope * z_mean
        return result


def _kind(node: Node) -> str:
    operation = node.operation
    named = isinstance(operation, op.Opaque | op.Pointwise | op.Elementwise | op.Reduce)
    kind = f"{operation.kind} {operation.name}" if named else operation.kind
    return f"{kind} at {node.name!r}"
