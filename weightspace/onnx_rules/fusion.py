"""Activations written as products: x sigmoid(x), x tanh(softplus(x)), x (1 + erf(x / sqrt 2)) / 2.

Only exact rewritings; the pieces that nothing else uses disappear when the network is built.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from weightspace import operations as op
from weightspace.aten import Value
from weightspace.onnx_reader import OnnxReader
from weightspace.onnx_values import Known


def fused_product(reader: OnnxReader, a: Any, b: Any) -> Value | None:
    """Return the activation that the product of `a` and `b` is, None when it is none."""
    for gate, x in ((a, b), (b, a)):
        if not isinstance(gate, Value) or not isinstance(x, Value | Known):
            continue
        node = reader.builder.nodes[gate.node]
        if isinstance(x, Value) and isinstance(node.operation, op.Sigmoid) and node.inputs == (x.node,):
            return reader.add(op.SiLU(), x)
        if isinstance(x, Value) and isinstance(node.operation, op.Tanh):
            inner = reader.builder.nodes[node.inputs[0]]
            if isinstance(inner.operation, op.Softplus) and inner.inputs == (x.node,):
                return reader.add(op.Pointwise(name="mish"), x)
    return _gelu(reader, a, b)


def _gelu(reader: OnnxReader, a: Any, b: Any) -> Value | None:
    """Recognize x * 0.5 * (1 + erf(x / sqrt 2)) however its three factors are grouped."""
    factors: Counter[str] = Counter()
    constant = 1.0
    pending = [a, b]
    while pending:
        value = pending.pop()
        if isinstance(value, Known):
            number = reader.scalar(value)
            if number is None:
                return None
            constant *= number
            continue
        if not isinstance(value, Value):
            return None
        node = reader.builder.nodes[value.node]
        operation = node.operation
        if isinstance(operation, op.Multiply):
            pending += [Value(name) for name in node.inputs]
        elif isinstance(operation, op.Scale) and operation.shift == 0:
            constant *= operation.factor
            pending.append(Value(node.inputs[0]))
        else:
            factors[value.node] += 1
        if len(factors) > 2:
            return None
    if abs(constant - 0.5) > 1e-6 or sorted(factors.values()) != [1, 1]:
        return None
    for gate, x in (tuple(factors), tuple(factors)[::-1]):
        if _is_error_function_of(reader, gate, x):
            return reader.add(op.GELU(), Value(x))
    return None


def _is_error_function_of(reader: OnnxReader, gate: str, x: str) -> bool:
    """Whether `gate` is 1 + erf(x / sqrt 2)."""
    nodes = reader.builder.nodes
    shift = nodes[gate].operation
    if not (isinstance(shift, op.Scale) and (shift.factor, shift.shift) == (1, 1)):
        return False
    erf = nodes[nodes[gate].inputs[0]]
    if not (isinstance(erf.operation, op.Pointwise) and erf.operation.name == "erf"):
        return False
    inner = nodes[erf.inputs[0]]
    scale = inner.operation
    return (
        isinstance(scale, op.Scale)
        and scale.shift == 0
        and abs(scale.factor - 1 / math.sqrt(2)) < 1e-6
        and inner.inputs == (x,)
    )
