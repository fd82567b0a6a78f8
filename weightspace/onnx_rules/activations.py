"""Pointwise functions and softmax."""

from __future__ import annotations

import numpy as np
import torch

from weightspace import operations as op
from weightspace.onnx_reader import OnnxReader
from weightspace.onnx_rules.registry import Rule, registrar
from weightspace.onnx_values import Known

RULES: dict[str, Rule] = {}
_rule = registrar(RULES)

_PLAIN = {
    "Relu": op.ReLU(),
    "Tanh": op.Tanh(),
    "Sigmoid": op.Sigmoid(),
    "Abs": op.Absolute(),
    "Neg": op.Scale(factor=-1),
    "Not": op.Pointwise(name="logical_not"),
    "IsNaN": op.Pointwise(name="isnan"),
    "HardSwish": op.Pointwise(name="hardswish"),
    **{
        name.capitalize(): op.Pointwise(name=name)
        for name in (
            "atan", "ceil", "cos", "erf", "exp", "floor", "log", "mish", "reciprocal", "round", "sign", "sin",
            "softsign", "sqrt", "tan",
        )
    },
}  # fmt: skip


def _plain(operation: op.Operation) -> Rule:
    def rule(reader: OnnxReader, x):
        return reader.add(operation, x)

    return rule


RULES.update({name: _plain(operation) for name, operation in _PLAIN.items()})


@_rule("LeakyRelu")
def _leaky_relu(reader: OnnxReader, x, *, alpha=0.01):
    return reader.add(op.LeakyReLU(negative_slope=alpha), x)


@_rule("PRelu")
def _prelu(reader: OnnxReader, x, slope):
    if not isinstance(slope, Known):
        return NotImplemented
    shape, rank = slope.array.shape, len(reader.shape(x))
    aligned = (1,) * (rank - len(shape)) + shape
    channels = aligned[1] if rank > 1 else 1
    if rank > 1 and slope.array.size in (1, channels):
        flat = slope if len(shape) == 1 else reader.derived(slope, slope.array.reshape(-1), "flat")
        return reader.add(op.PReLU(weight=reader.weight(flat)), x)
    below = reader.step(op.Multiply(), reader.step(op.Clip(upper=0.0), x), slope)
    return reader.add(op.Add(), reader.step(op.ReLU(), x), below)


@_rule("Elu")
def _elu(reader: OnnxReader, x, *, alpha=1.0):
    return reader.add(op.ELU(alpha=alpha), x)


@_rule("Selu")
def _selu(reader: OnnxReader, x, *, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875):
    return reader.add(op.ELU(alpha=alpha, scale=gamma), x)


@_rule("Celu")
def _celu(reader: OnnxReader, x, *, alpha=1.0):
    return reader.add(op.ELU(alpha=alpha, input_scale=1.0 / alpha), x)


@_rule("Softplus")
def _softplus(reader: OnnxReader, x):
    # beyond the threshold torch returns x itself: off by exp(-threshold), invisible at these precisions
    return reader.add(op.Softplus(threshold=40.0 if reader.dtype(x) == torch.float64 else 20.0), x)


@_rule("Gelu")
def _gelu(reader: OnnxReader, x, *, approximate="none"):
    return reader.add(op.GELU(approximate=approximate), x)


@_rule("HardSigmoid")
def _hard_sigmoid(reader: OnnxReader, x, *, alpha=0.2, beta=0.5):
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return reader.add(op.Pointwise(name="hardsigmoid"), x)
    return reader.add(op.Clip(lower=0.0, upper=1.0), reader.step(op.Scale(factor=alpha, shift=beta), x))


@_rule("Swish")
def _swish(reader: OnnxReader, x, *, alpha=1.0):
    if alpha == 1.0:
        return reader.add(op.SiLU(), x)
    gate = reader.step(op.Sigmoid(), reader.step(op.Scale(factor=alpha), x))
    return reader.add(op.Multiply(), x, gate)


@_rule("ThresholdedRelu")
def _thresholded_relu(reader: OnnxReader, x, *, alpha=1.0):
    dtype = np.dtype(str(reader.dtype(x)).removeprefix("torch."))
    threshold, zero = (Known(np.array(n, dtype), f"{reader.label}.{n}") for n in (alpha, 0.0))
    above = reader.step(op.Elementwise(name="gt"), x, threshold)
    return reader.add(op.Elementwise(name="where"), above, x, zero)


@_rule("Clip")
def _clip(reader: OnnxReader, x, lower=None, upper=None, *, min=None, max=None):
    numbers = []
    for attribute, value in ((min, lower), (max, upper)):
        number = attribute if value is None else reader.scalar(value)
        if value is not None and number is None:
            break
        # the defaults of old opsets are the ends of float32: no bound at all
        numbers.append(None if number is None or abs(number) >= 3.4028234e38 else number)
    else:
        return reader.add(op.Clip(lower=numbers[0], upper=numbers[1]), x) if numbers != [None, None] else x
    if lower is not None:
        x = reader.step(op.Elementwise(name="maximum"), x, lower)
    return x if upper is None else reader.add(op.Elementwise(name="minimum"), x, upper)


def _softmax(logarithm: bool) -> Rule:
    def rule(reader: OnnxReader, x, *, axis=None):
        shape = reader.shape(x)
        axis = reader.axis(x, (-1 if reader.opset >= 13 else 1) if axis is None else axis)
        if reader.opset >= 13 or all(size == 1 for size in shape[axis + 1 :]):
            return reader.add(op.Softmax(axis=axis, logarithm=logarithm), x)
        # before opset 13: one softmax over all axes from `axis` on
        flat = reader.step(op.Softmax(axis=axis, logarithm=logarithm), reader.step(op.Flatten(start=axis), x))
        if sum(size is None for size in shape) > 1:
            return NotImplemented
        return reader.add(op.Reshape(shape=tuple(-1 if size is None else size for size in shape)), flat)

    return rule


RULES["Softmax"] = _softmax(False)
RULES["LogSoftmax"] = _softmax(True)
