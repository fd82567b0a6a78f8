"""Arithmetic between values, comparisons, reductions and casts."""

from __future__ import annotations

import math
from typing import Any

import torch

from weightspace import operations as op
from weightspace.aten import Value
from weightspace.onnx_reader import OnnxReader
from weightspace.onnx_rules.fusion import fused_product
from weightspace.onnx_rules.registry import Rule, registrar
from weightspace.onnx_values import DTYPES, Known

RULES: dict[str, Rule] = {}
_rule = registrar(RULES)


def _number(reader: OnnxReader, value: Any, other: Any) -> float | int | None:
    """Return a number that may be written into a Scale, None where a tensor has to stay one."""
    number = reader.scalar(value)
    if number is None or value.array.ndim > len(reader.shape(other)):
        return None
    # a vector of one entry beside a layer of one unit is that layer's bias or gain
    learned = value.array.ndim > 0 and reader.shape(other)[-1:] == (1,) and value.trained
    return None if learned or reader.dtype(other) == torch.bool else number


def _aligned(reader: OnnxReader, value: Any, other: Any) -> Any:
    """Drop the leading axes of size one of an addend, so that it can join the linear map it follows."""
    if not isinstance(value, Known) or not isinstance(other, Value) or value.array.ndim < 2:
        return value
    node = reader.builder.nodes[other.node]
    if not isinstance(node.operation, op.Linear) or value.array.ndim > len(node.shape):
        return value
    width = value.array.shape[-1]
    return reader.derived(value, value.array.reshape(-1), "flat") if width == value.array.size else value


@_rule("Add")
def _add(reader: OnnxReader, a, b):
    for value, number in ((b, _number(reader, a, b)), (a, _number(reader, b, a))):
        if number is not None:
            return reader.add(op.Scale(shift=number), value)
    return reader.add(op.Add(), _aligned(reader, a, b), _aligned(reader, b, a))


@_rule("Sub")
def _subtract(reader: OnnxReader, a, b):
    number = _number(reader, b, a)
    if number is not None:
        return reader.add(op.Scale(shift=-number), a)
    number = _number(reader, a, b)
    if number is not None:
        return reader.add(op.Scale(factor=-1, shift=number), b)
    return reader.add(op.Subtract(), a, b)


@_rule("Mul")
def _multiply(reader: OnnxReader, a, b):
    fused = fused_product(reader, a, b)
    if fused is not None:
        return fused
    for value, number in ((b, _number(reader, a, b)), (a, _number(reader, b, a))):
        if number is not None:
            return reader.add(op.Scale(factor=number), value)
    return reader.add(op.Multiply(), a, b)


@_rule("Div")
def _divide(reader: OnnxReader, a, b):
    if not reader.dtype(a).is_floating_point:
        return NotImplemented  # integer division, which truncates
    number = _number(reader, b, a)
    if number:
        return reader.add(op.Scale(factor=1.0 / number), a)
    number = _number(reader, a, b)
    if number is not None:
        inverse = op.Pointwise(name="reciprocal")
        return (
            reader.add(inverse, b)
            if number == 1
            else reader.add(op.Scale(factor=number), reader.step(inverse, b))
        )
    return reader.add(op.Divide(), a, b)


@_rule("Pow")
def _power(reader: OnnxReader, a, b):
    exponent = reader.scalar(b)
    if exponent is None or b.array.ndim > len(reader.shape(a)) or isinstance(a, Known):
        return NotImplemented
    if not reader.dtype(a).is_floating_point:
        if exponent != int(exponent) or exponent < 0:
            return NotImplemented
        exponent = int(exponent)
    return reader.add(op.Power(exponent=exponent), a)


def _chain(operation: op.Operation) -> Rule:
    def rule(reader: OnnxReader, first, *others):
        if not others:
            return first
        for value in others[:-1]:
            first = reader.step(operation, first, value)
        return reader.add(operation, first, others[-1])

    return rule


RULES["Sum"] = _chain(op.Add())


@_rule("Mean")
def _mean(reader: OnnxReader, first, *others):
    if not others:
        return first
    total = first
    for value in others:
        total = reader.step(op.Add(), total, value)
    return reader.add(op.Scale(factor=1.0 / (1 + len(others))), total)


def _extremum(name: str, side: str) -> Rule:
    chain = _chain(op.Elementwise(name=name))

    def rule(reader: OnnxReader, first, *others):
        for value, bound in ((first, others[0]), (others[0], first)) if len(others) == 1 else ():
            number = reader.scalar(bound)
            if number is not None and bound.array.ndim <= len(reader.shape(value)):
                unbounded = number == (-math.inf if side == "lower" else math.inf)
                return value if unbounded else reader.add(op.Clip(**{side: number}), value)
        return chain(reader, first, *others)

    return rule


RULES["Max"] = _extremum("maximum", "lower")
RULES["Min"] = _extremum("minimum", "upper")


def _elementwise(name: str) -> Rule:
    def rule(reader: OnnxReader, *inputs):
        return reader.add(op.Elementwise(name=name), *inputs)

    return rule


_ELEMENTWISE = {
    "Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le",
    "And": "logical_and",
    "Or": "logical_or", "Xor": "ne", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "Where": "where",
}  # fmt: skip
RULES.update({kind: _elementwise(name) for kind, name in _ELEMENTWISE.items()})


@_rule("Cast")
def _cast(reader: OnnxReader, x, *, to, saturate=1, round_mode="up"):
    dtype = DTYPES.get(to)
    if dtype is None:
        return NotImplemented
    return x if dtype == reader.dtype(x) else reader.add(op.Cast(dtype=str(dtype).removeprefix("torch.")), x)


@_rule("CastLike")
def _cast_like(reader: OnnxReader, x, target, *, saturate=1, round_mode="up"):
    dtype = reader.dtype(target)
    return x if dtype == reader.dtype(x) else reader.add(op.Cast(dtype=str(dtype).removeprefix("torch.")), x)


def reduced_axes(reader: OnnxReader, x: Any, listed: Any, keep_all: int) -> tuple[int, ...] | None:
    """Return the axes a reduction runs over, None when the node asks for none at all."""
    axes = () if listed is None else tuple(reader.axis(x, axis) for axis in reader.integers(listed))
    if axes:
        return axes
    return None if keep_all else tuple(range(len(reader.shape(x))))


def _reduction(
    name: str, before: tuple[op.Operation, ...] = (), after: tuple[op.Operation, ...] = ()
) -> Rule:
    def rule(reader: OnnxReader, x, listed=None, *, axes=None, keepdims=1, noop_with_empty_axes=0):
        over = reduced_axes(reader, x, listed if listed is not None else axes, noop_with_empty_axes)
        if over == () or (name == "mean" and not reader.dtype(x).is_floating_point):
            return NotImplemented
        steps = [
            *before,
            *([] if over is None else [op.Reduce(name=name, axes=over, keep=bool(keepdims))]),
            *after,
        ]
        if not steps:
            return x
        for operation in steps[:-1]:
            x = reader.step(operation, x)
        return reader.add(steps[-1], x)

    return rule


_SQUARE, _ROOT = op.Power(exponent=2.0), op.Pointwise(name="sqrt")
RULES["ReduceMean"] = _reduction("mean")
RULES["ReduceSum"] = _reduction("sum")
RULES["ReduceMax"] = _reduction("amax")
RULES["ReduceMin"] = _reduction("amin")
RULES["ReduceL1"] = _reduction("sum", before=(op.Absolute(),))
RULES["ReduceL2"] = _reduction("sum", before=(_SQUARE,), after=(_ROOT,))
RULES["ReduceSumSquare"] = _reduction("sum", before=(_SQUARE,))
