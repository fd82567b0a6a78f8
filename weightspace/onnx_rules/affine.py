"""Products with weights, and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weightspace import operations as op
from weightspace.onnx_reader import OnnxReader
from weightspace.onnx_rules.registry import Rule, registrar
from weightspace.onnx_values import Known

RULES: dict[str, Rule] = {}
_rule = registrar(RULES)


@_rule("MatMul")
def _matmul(reader: OnnxReader, a, b):
    if isinstance(b, Known) and b.array.ndim == 2 and not isinstance(a, Known):
        return reader.linear(a, b, transposed=True)
    if isinstance(a, Known) and a.array.ndim == 2 and len(reader.shape(b)) == 1:
        return reader.linear(b, a, transposed=False)
    return reader.add(op.MatMul(), a, b)


@_rule("Gemm")
def _gemm(reader: OnnxReader, a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    if transA:
        a = reader.step(op.Permute(axes=(1, 0)), a)
    plain = alpha == 1.0
    if isinstance(b, Known):
        width = b.array.shape[0 if transB else 1]
        if plain and beta == 1.0 and isinstance(c, Known) and c.array.shape == (width,):
            return reader.linear(a, b, c, transposed=not transB)
        weight, transposed = (b.transposed_of, transB) if b.transposed_of else (b, not transB)
        operation: op.Operation = op.Linear(weight=reader.weight(weight), transposed=bool(transposed))
        inputs = (a,)
    else:
        operation = op.MatMul()
        inputs = (a, reader.step(op.Permute(axes=(1, 0)), b) if transB else b)
    if plain and (c is None or beta == 0.0):
        return reader.add(operation, *inputs)
    product = reader.step(operation, *inputs)
    if c is None or beta == 0.0:
        return reader.add(op.Scale(factor=alpha), product)
    if not plain:
        product = reader.step(op.Scale(factor=alpha), product)
    if isinstance(c, Known):
        array = c.array if c.array.ndim < 2 or c.array.shape[0] > 1 else c.array[0]
        scaled = array if beta == 1.0 else (array * beta).astype(array.dtype)
        c = c if scaled is c.array else reader.derived(c, scaled, "addend")
    elif beta != 1.0:
        c = reader.step(op.Scale(factor=beta), c)
    return reader.add(op.Add(), product, c)


def paddings(
    reader: OnnxReader, x: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
    pads: Sequence[int] | None, auto_pad: str,
) -> list[tuple[int, int]]:  # fmt: skip
    """Return (before, after) for every spatial axis, whichever way the node states it."""
    axes = len(kernel)
    if auto_pad == "VALID":
        return [(0, 0)] * axes
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        result = []
        for axis in range(axes):
            size = reader.static(x, axis + 2)
            steps = -(-size // stride[axis]) - 1
            total = max(steps * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1 - size, 0)
            low, high = total // 2, total - total // 2
            result.append((low, high) if auto_pad == "SAME_UPPER" else (high, low))
        return result
    flat = list(pads or [0] * (2 * axes))
    return list(zip(flat[:axes], flat[axes:], strict=True))


def pad_amounts(sides: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return paddings in the order of `Pad.amounts`, last axis first."""
    return tuple(amount for side in reversed(sides) for amount in side)


@_rule("Conv")
def _conv(
    reader: OnnxReader, x, w, b=None, *, kernel_shape=None, strides=None, pads=None, dilations=None, group=1,
    auto_pad="NOTSET",
):  # fmt: skip
    name, bias = reader.weight(w), reader.optional(b)
    kernel = w.array.shape[2:]
    axes = len(kernel)
    if not 1 <= axes <= 3 or (kernel_shape and tuple(kernel_shape) != kernel):
        return NotImplemented
    strides, dilations = strides or [1] * axes, dilations or [1] * axes
    sides = paddings(reader, x, kernel, strides, dilations, pads, auto_pad)
    symmetric = all(before == after >= 0 for before, after in sides)
    if not symmetric:
        x = reader.step(op.Pad(amounts=pad_amounts(sides)), x)
    operation = op.Conv(
        weight=name,
        bias=bias,
        stride=tuple(strides),
        padding=tuple(before for before, _ in sides) if symmetric else (0,) * axes,
        dilation=tuple(dilations),
        groups=group,
    )
    return reader.add(operation, x)


@_rule("ConvTranspose")
def _conv_transpose(
    reader: OnnxReader, x, w, b=None, *, kernel_shape=None, strides=None, pads=None, dilations=None, group=1,
    auto_pad="NOTSET", output_padding=None, output_shape=None,
):  # fmt: skip
    name, bias = reader.weight(w), reader.optional(b)
    kernel = w.array.shape[2:]
    axes = len(kernel)
    if not 1 <= axes <= 3:
        return NotImplemented
    strides, dilations = strides or [1] * axes, dilations or [1] * axes
    extra = tuple(output_padding or [0] * axes)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        sides = []
        for axis in range(axes):
            size = reader.static(x, axis + 2)
            wanted = output_shape[axis - axes] if output_shape else size * strides[axis]
            total = strides[axis] * (size - 1) + extra[axis] + spans[axis] - wanted
            if total < 0:
                return NotImplemented
            low, high = total // 2, total - total // 2
            sides.append((low, high) if auto_pad == "SAME_UPPER" else (high, low))
    else:
        sides = paddings(reader, x, kernel, strides, dilations, pads, auto_pad)
    symmetric = all(before == after for before, after in sides)
    operation = op.Conv(
        weight=name,
        bias=bias,
        stride=tuple(strides),
        padding=tuple(before for before, _ in sides) if symmetric else (0,) * axes,
        dilation=tuple(dilations),
        groups=group,
        transposed=True,
        output_padding=extra,
    )
    if symmetric:
        return reader.add(operation, x)
    # a negative padding crops: the whole adjoint first, then its two unequal margins go
    return reader.add(op.Pad(amounts=tuple(-n for n in pad_amounts(sides))), reader.step(operation, x))


@_rule("Gather")
def _gather(reader: OnnxReader, data, indices, *, axis=0):
    axis = reader.axis(data, axis)
    if isinstance(data, Known) and data.array.ndim == 2 and axis == 0 and data.array.dtype.kind in "fV":
        return reader.add(op.Embedding(weight=reader.weight(data)), indices)
    if not isinstance(indices, Known):
        return reader.add(op.Gather(axis=axis), data, indices)
    size = reader.shape(data)[axis]
    array = indices.array.astype(np.int64)
    if (array < 0).any():
        array = np.where(array < 0, array + (reader.static(data, axis) if size is None else size), array)
    if array.ndim == 0:
        return reader.add(op.Select(axis=axis, index=int(array)), data)
    if array.ndim == 1 and array.size and (np.diff(array) == 1).all():
        return reader.add(op.Slice(axis=axis, start=int(array[0]), stop=int(array[-1]) + 1), data)
    return reader.add(op.Gather(axis=axis), data, reader.derived(indices, array, "positive"))
