"""Find the quadratic function that a network computes, by running its graph on exact polynomials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace import operations as op
from weightspace.errors import ArchitectureError, NonFiniteError, UnsupportedOperationError
from weightspace.layers import Bilinear
from weightspace.network import Network, Node, require_finite
from weightspace.reading import default_inputs
from weightspace.tracing import trace

# Affine in their input, all other inputs being constants.
_AFFINE = (
    op.Linear, op.Conv, op.BatchNorm, op.Scale, op.AveragePool, op.AdaptiveAveragePool,
    op.Reshape, op.Flatten, op.Permute, op.Expand, op.Unsqueeze, op.Squeeze, op.Slice, op.Select, op.Pad,
    op.Gather,
)  # fmt: skip
_JOINTLY_LINEAR = (op.Add, op.Subtract, op.Concat, op.Stack)
_PRODUCTS = (op.Multiply, op.MatMul, op.Bilinear)  # affine as well, when one factor is constant
_TOLERANCE = 1e-9  # what float64 rounding explains


@dataclass(frozen=True, eq=False)
class QuadraticForm:
    r"""The function $y = P\,[(W'x') \odot (V'x')] + A'x'$ with $x' = [x; 1]$, all in float64.

    Attributes:
        left, right: $W' = [W\; b]$ and $V' = [V\; c]$, shape (h, d + 1).
        output: $P$, shape (o, h).
        affine: $A'$, shape (o, d + 1): residual connections and biases after the product.
        input_shape: shape of one sample; d is its number of entries.
        dtype: in which the network computes.
    """

    left: Tensor
    right: Tensor
    output: Tensor
    affine: Tensor
    input_shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate on (n, d); returns (n, o)."""
        padded = torch.cat([x, x.new_ones(len(x), 1)], 1)
        return (padded @ self.left.mT) * (padded @ self.right.mT) @ self.output.mT + padded @ self.affine.mT


def recognize(
    model: nn.Module | Network, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> QuadraticForm:
    """Read a network with one bilinear layer, and any affine maps around it, as one quadratic form.

    Raises:
        UnsupportedOperationError: an operation that is neither affine nor the one product, named with its
            node; a second bilinear layer after the first; no product at all.
        ArchitectureError: several inputs or outputs, no free batch axis, a module whose input shape is
            unknown.
        NonFiniteError: NaN or infinite weights.
    """
    if type(model) is Bilinear:  # subclasses may compute something else
        return _read_off(model)
    network = _network(model, example_inputs)
    require_finite(network)
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ArchitectureError(
            f"decompose needs one input and one output; the network has {len(network.inputs)} inputs "
            f"({', '.join(node.name for node in network.inputs)}) and {len(network.outputs)} outputs"
        )
    source = network.inputs[0]
    shape = tuple(size for size in source.shape[1:] if size is not None)
    if not source.shape or source.shape[0] is not None or len(shape) != len(source.shape) - 1:
        raise ArchitectureError(
            f"decompose needs an input whose first axis is the batch; {source.name!r} has shape "
            f"{source.shape}; give example inputs of shape (batch, features)"
        )
    if not getattr(torch, source.dtype).is_floating_point:
        raise ArchitectureError(
            f"decompose needs a floating input; {source.name!r} has dtype {source.dtype}: "
            "decompose the layers after the embedding"
        )
    dtype = getattr(torch, network.node(network.outputs[0]).dtype)
    exact = network.astype(torch.float64)
    form = _Interpreter(exact, shape, dtype).form()
    _verify(exact, form)
    return form


def _read_off(layer: Bilinear) -> QuadraticForm:
    """Take the factors of a `Bilinear` layer as they are; wide layers would be slow to interpret."""
    factors = []
    for name, linear in (("left", layer.left), ("right", layer.right), ("output", layer.output)):
        weight = linear.weight.detach().double().cpu()
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().double().cpu()
        factors.append(torch.cat([weight, bias[:, None]], 1))
        if not bool(torch.isfinite(factors[-1]).all()):
            raise NonFiniteError(f"the {name} factor of the bilinear layer has NaN or infinite entries")
    left, right, output = factors
    affine = left.new_zeros(len(output), left.shape[1])
    affine[:, -1] = output[:, -1]
    return QuadraticForm(left, right, output[:, :-1], affine, (left.shape[1] - 1,), layer.left.weight.dtype)


def _network(model: nn.Module | Network, example_inputs: Tensor | Sequence[Tensor] | None) -> Network:
    if isinstance(model, Network):
        return model
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"decompose needs an nn.Module or a Network, not {type(model).__name__}; "
            "for a file use decompose(weightspace.read(path))"
        )
    if isinstance(model, nn.Bilinear):
        if model.in1_features != model.in2_features:
            raise ArchitectureError(
                f"decompose gives nn.Bilinear one input twice; this one takes {model.in1_features} and "
                f"{model.in2_features} features: wrap it in a module of one input"
            )
        example_inputs = torch.zeros(
            2, model.in1_features, dtype=model.weight.dtype, device=model.weight.device
        )
        model = _SelfBilinear(model)
    return trace(model, default_inputs(model) if example_inputs is None else example_inputs)


class _SelfBilinear(nn.Module):
    """x' W_o x + b_o: an nn.Bilinear whose two inputs are one."""

    def __init__(self, bilinear: nn.Bilinear):
        super().__init__()
        self.bilinear = bilinear

    def forward(self, x: Tensor) -> Tensor:
        return self.bilinear(x, x)


class _Interpreter:
    """Evaluate a graph on polynomials of the input instead of numbers.

    A value is a tensor (columns, *sample shape): column 0 holds its constant part, columns 1 .. d the
    coefficients of x, the others those of the products p_j = (W'x')_j (V'x')_j seen so far. An affine
    operation
    f acts on every column: as f(column) - f(0), and as f on the constant part. So the batch axis of the
    operations carries the columns, and no operation needs a rule of its own.
    """

    def __init__(self, network: Network, sample: tuple[int, ...], dtype: torch.dtype):
        self.network, self.sample, self.dtype = network, sample, dtype
        self.size = math.prod(sample)
        self.left = torch.zeros(0, self.size + 1, dtype=torch.float64)
        self.right = torch.zeros(0, self.size + 1, dtype=torch.float64)
        self.values: dict[str, Tensor] = {}
        self.constants: dict[str, Tensor] = {}

    def form(self) -> QuadraticForm:
        for node in self.network.nodes:
            if isinstance(node.operation, op.Input):
                columns = torch.zeros(self.size + 1, self.size, dtype=torch.float64)
                columns[1:] = torch.eye(self.size, dtype=torch.float64)
                self.values[node.name] = columns.reshape(-1, *self.sample)
            elif not any(name in self.values for name in node.inputs):
                constants = tuple(self.constants[name] for name in node.inputs)
                self.constants[node.name] = node.operation.evaluate(constants, self.network.weights(node))
            else:
                self.values[node.name] = self._value(node)
        output = self.values.get(self.network.outputs[0])
        coefficients = None if output is None else self._widened(output).flatten(1)
        start = self.size + 1
        if coefficients is None or not coefficients[start:].any():
            raise UnsupportedOperationError(
                "decompose needs a bilinear layer, a product of two linear maps of its input; "
                "the network has none"
            )
        used = coefficients[start:].any(1)
        affine = torch.cat([coefficients[1:start], coefficients[:1]]).mT
        return QuadraticForm(
            self.left[used], self.right[used], coefficients[start:][used].mT, affine, self.sample, self.dtype
        )

    def _value(self, node: Node) -> Tensor:
        operation = node.operation
        moving = [name for name in node.inputs if name in self.values]
        if isinstance(operation, op.Power) and operation.exponent == 2:
            return self._product(node, self.values[moving[0]], self.values[moving[0]])
        if isinstance(operation, op.Pointwise) and operation.name == "square":
            return self._product(node, self.values[moving[0]], self.values[moving[0]])
        if isinstance(operation, op.Multiply) and len(moving) == 2:
            return self._product(node, self.values[node.inputs[0]], self.values[node.inputs[1]])
        if isinstance(operation, op.Bilinear) and len(moving) == 2:
            return self._bilinear(node, operation)
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
                f"{_kind(operation)} at {node.name!r} is neither affine nor the product of two linear maps, "
                "so decompose has no exact form for it; decompose the bilinear layer on its own"
            )
        return self._affine(node)

    def _affine(self, node: Node) -> Tensor:
        """Apply an operation that is affine in all its moving inputs taken together."""
        moving = {name: self._widened(self.values[name]) for name in node.inputs if name in self.values}
        still = {name: torch.zeros_like(value) for name, value in moving.items()}
        weights = self.network.weights(node)
        result = self._evaluate(node, moving, weights)
        if isinstance(node.operation, op.Linear | op.Conv):
            # Leaving the bias out rounds less than subtracting it.
            homogeneous = {role: weight for role, weight in weights.items() if role != "bias"}
            return torch.cat([result[:1], self._evaluate(node, moving, homogeneous)[1:]])
        return torch.cat([result[:1], (result - self._evaluate(node, still, weights))[1:]])

    def _evaluate(self, node: Node, moving: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
        columns = 1 + self.size + len(self.left)
        inputs = tuple(moving[name] if name in moving else self.constants[name] for name in node.inputs)
        mixes = node.shape[:1] != (None,)
        result = None if mixes else node.operation.evaluate(inputs, weights)
        if result is None or result.shape[0] != columns:
            raise UnsupportedOperationError(
                f"{_kind(node.operation)} at {node.name!r} mixes the samples of a batch; "
                "decompose needs a function of one sample"
            )
        return result

    def _product(self, node: Node, first: Tensor, second: Tensor) -> Tensor:
        """Multiply two values elementwise: every entry of the result becomes a product of its own."""
        self._require_affine(node, first, second)
        start = self.size + 1
        first, second = torch.broadcast_tensors(first[:start], second[:start])
        return self._append(first.flatten(1), second.flatten(1), tuple(first.shape[1:]))

    def _bilinear(self, node: Node, operation: op.Bilinear) -> Tensor:
        """y_o = sum over i of a_i (W_o b)_i + bias_o: one product for every pair (o, i)."""
        first, second = (self.values[name] for name in node.inputs)
        self._require_affine(node, first, second)
        if first.ndim != 2:
            raise UnsupportedOperationError(f"Bilinear at {node.name!r} takes more than one row per sample")
        start = self.size + 1
        weights = self.network.weights(node)
        weight = weights["weight"]  # (o, i, j)
        outputs, rows, _ = weight.shape
        left = first[:start].repeat(1, outputs)
        right = second[:start] @ weight.flatten(0, 1).mT
        products = self._append(left, right, (outputs * rows,))
        result = products.unflatten(1, (outputs, rows)).sum(2)
        if "bias" in weights:
            result[0] += weights["bias"]
        return result

    def _append(self, left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Add products of affine columns (d + 1, n), constant first; return the value they form."""
        known, count = len(self.left), left.shape[1]
        self.left = torch.cat([self.left, left.roll(-1, 0).mT])
        self.right = torch.cat([self.right, right.roll(-1, 0).mT])
        result = torch.zeros(1 + self.size + known + count, count, dtype=torch.float64)
        result[1 + self.size + known :] = torch.eye(count, dtype=torch.float64)
        return result.reshape(-1, *shape)

    def _require_affine(self, node: Node, *factors: Tensor) -> None:
        for factor in factors:
            if factor[self.size + 1 :].any():
                raise UnsupportedOperationError(
                    f"{_kind(node.operation)} at {node.name!r} multiplies values that are already products: "
                    "a second bilinear layer; decompose takes one (depth comes in a later version): "
                    "decompose each on its own"
                )

    def _widened(self, value: Tensor) -> Tensor:
        """Give a value the columns of the products that were added after it was made."""
        missing = 1 + self.size + len(self.left) - len(value)
        return torch.cat([value, value.new_zeros(missing, *value.shape[1:])]) if missing else value


def _kind(operation: op.Operation) -> str:
    if isinstance(operation, op.Opaque | op.Pointwise | op.Elementwise | op.Reduce):
        return f"{operation.kind} {operation.name}"
    return operation.kind


def _verify(network: Network, form: QuadraticForm) -> None:
    """Run the network, so that an error of the reading above cannot go unnoticed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, form.left.shape[1] - 1, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = network.to_module()(x.reshape(8, *form.input_shape)).flatten(1)
    padded = torch.cat([x, x.new_ones(8, 1)], 1)
    # Large terms may cancel in the output: rounding is measured against the terms.
    terms = ((padded @ form.left.mT) * (padded @ form.right.mT)).abs() @ form.output.mT.abs()
    scale = terms + padded.abs() @ form.affine.mT.abs()
    error = float((form(x) - expected).abs().max() / scale.max().clamp_min(1e-300))
    if not error <= _TOLERANCE:
        raise ArchitectureError(
            f"the form found differs from the network by {error:.1e}; please report this network"
        )
