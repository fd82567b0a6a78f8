"""Pooling; what torch cannot pad by itself is padded first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from weightspace import operations as op
from weightspace.onnx_reader import OnnxReader
from weightspace.onnx_rules.affine import pad_amounts, paddings
from weightspace.onnx_rules.registry import Rule, registrar
from weightspace.onnx_values import Known

RULES: dict[str, Rule] = {}
_rule = registrar(RULES)


def _torch_pads(sides: Sequence[tuple[int, int]], kernel: Sequence[int]) -> bool:
    return all(before == after <= size // 2 for (before, after), size in zip(sides, kernel, strict=True))


@_rule("MaxPool")
def _max_pool(
    reader: OnnxReader, x, *, kernel_shape, strides=None, pads=None, dilations=None, ceil_mode=0,
    auto_pad="NOTSET",
    storage_order=0,
):  # fmt: skip
    axes = len(kernel_shape)
    if not 1 <= axes <= 3:
        return NotImplemented
    strides, dilations = strides or [1] * axes, dilations or [1] * axes
    sides = paddings(reader, x, kernel_shape, strides, dilations, pads, auto_pad)
    padding = tuple(before for before, _ in sides)
    if not _torch_pads(sides, kernel_shape):
        x = reader.step(op.Pad(amounts=pad_amounts(sides), value=float("-inf")), x)
        padding = (0,) * axes
    return reader.add(
        op.MaxPool(
            kernel=tuple(kernel_shape),
            stride=tuple(strides),
            padding=padding,
            dilation=tuple(dilations),
            ceil=bool(ceil_mode),
        ),
        x,
    )


@_rule("AveragePool")
def _average_pool(
    reader: OnnxReader, x, *, kernel_shape, strides=None, pads=None, dilations=None, ceil_mode=0,
    auto_pad="NOTSET",
    count_include_pad=0,
):  # fmt: skip
    axes = len(kernel_shape)
    dilations = dilations or [1] * axes
    if not 1 <= axes <= 3 or any(dilation != 1 for dilation in dilations):
        return NotImplemented
    strides = strides or [1] * axes
    sides = paddings(reader, x, kernel_shape, strides, dilations, pads, auto_pad)
    fits = _torch_pads(sides, kernel_shape)
    operation = op.AveragePool(
        kernel=tuple(kernel_shape),
        stride=tuple(strides),
        padding=tuple(before for before, _ in sides) if fits else (0,) * axes,
        ceil=bool(ceil_mode),
        count_padding=bool(count_include_pad) or not fits,
    )
    if fits:
        return reader.add(operation, x)
    amounts = pad_amounts(sides)
    padded = reader.step(op.Pad(amounts=amounts), x)
    if count_include_pad:
        return reader.add(operation, padded)
    # the mean over the padded window, times window size / elements of the window that are not padding
    ones = torch.ones(1, 1, *(reader.static(x, axis + 2) for axis in range(axes)), dtype=reader.dtype(x))
    share = operation.evaluate((F.pad(ones, amounts),), {})
    correction = Known(np.asarray(1.0 / share[0].numpy()), f"{reader.label}.correction")
    return reader.add(op.Multiply(), reader.step(operation, padded), correction)


@_rule("GlobalAveragePool")
def _global_average_pool(reader: OnnxReader, x):
    axes = len(reader.shape(x)) - 2
    if 1 <= axes <= 3:
        return reader.add(op.AdaptiveAveragePool(size=(1,) * axes), x)
    return NotImplemented


@_rule("GlobalMaxPool")
def _global_max_pool(reader: OnnxReader, x):
    axes = tuple(range(2, len(reader.shape(x))))
    return reader.add(op.Reduce(name="amax", axes=axes, keep=True), x) if axes else x
