"""Normalizations, and attention (opset 23)."""

from __future__ import annotations

import numpy as np

from weightspace import operations as op
from weightspace.onnx_reader import OnnxReader
from weightspace.onnx_rules.registry import Rule, registrar
from weightspace.onnx_values import Known

RULES: dict[str, Rule] = {}
_rule = registrar(RULES)


@_rule("BatchNormalization")
def _batch_normalization(
    reader: OnnxReader, x, scale, bias, mean, variance, *, epsilon=1e-5, momentum=0.9, training_mode=0,
    spatial=1,
    is_test=1,
):  # fmt: skip
    if training_mode or not spatial:
        return NotImplemented
    return reader.add(
        op.BatchNorm(
            weight=reader.weight(scale),
            bias=reader.weight(bias),
            running_mean=reader.weight(mean, trained=False),
            running_var=reader.weight(variance, trained=False),
            epsilon=epsilon,
        ),
        x,
    )


@_rule("InstanceNormalization")
def _instance_normalization(reader: OnnxReader, x, scale, bias, *, epsilon=1e-5):
    return reader.add(
        op.GroupNorm(
            weight=reader.weight(scale),
            bias=reader.weight(bias),
            groups=reader.static(x, 1),
            epsilon=epsilon,
        ),
        x,
    )


@_rule("GroupNormalization")
def _group_normalization(reader: OnnxReader, x, scale, bias, *, num_groups, epsilon=1e-5, stash_type=1):
    channels = reader.static(x, 1)
    names = []
    for value in (scale, bias):
        if isinstance(value, Known) and value.array.size != channels:  # opset 18: one number per group
            value = reader.derived(value, np.repeat(value.array, channels // num_groups), "channels")
        names.append(reader.weight(value))
    return reader.add(op.GroupNorm(weight=names[0], bias=names[1], groups=num_groups, epsilon=epsilon), x)


def _normalized_shape(reader: OnnxReader, x, axis: int) -> tuple[int, ...]:
    first = reader.axis(x, axis)
    return tuple(reader.static(x, index) for index in range(first, len(reader.shape(x))))


@_rule("LayerNormalization")
def _layer_normalization(reader: OnnxReader, x, scale, bias=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    shape = _normalized_shape(reader, x, axis)
    return reader.add(
        op.LayerNorm(
            weight=reader.weight(scale, shape),
            bias=reader.optional(bias, shape),
            normalized_shape=shape,
            epsilon=epsilon,
        ),
        x,
    )


@_rule("RMSNormalization")
def _rms_normalization(reader: OnnxReader, x, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    shape = _normalized_shape(reader, x, axis)
    weight = reader.weight(scale, shape)
    return reader.add(op.RMSNorm(weight=weight, normalized_shape=shape, epsilon=epsilon), x)


@_rule("Attention")
def _attention(
    reader: OnnxReader, query, key, value, mask=None, *, is_causal=0, scale=None, softcap=0.0,
    qk_matmul_output_mode=0,
    softmax_precision=None,
):  # fmt: skip
    if len(reader.shape(query)) != 4 or softcap or (mask is not None and is_causal):
        return NotImplemented
    grouped = reader.shape(query)[1] != reader.shape(key)[1]
    masks = () if mask is None else (mask,)
    operation = op.Attention(causal=bool(is_causal), scale=scale, grouped=grouped)
    return reader.add(operation, query, key, value, *masks)
