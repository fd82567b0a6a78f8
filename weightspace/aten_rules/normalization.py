"""Rules of normalizations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weightspace import operations as op
from weightspace.aten_rules.registry import rule, weights
from weightspace.aten_rules.shaping import reshape

if TYPE_CHECKING:
    from weightspace.aten import AtenReader


@rule("batch_norm")
def _batch_norm(
    reader: AtenReader, input, weight=None, bias=None, running_mean=None, running_var=None, training=False,
    momentum=0.1, eps=1e-5, cudnn_enabled=False,
):  # fmt: skip
    names = weights(reader, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    if running_mean is None or running_var is None:
        return _standardized(reader, input, weight, bias, eps)
    if training:
        return NotImplemented
    if names is None:
        shift = reader.add(op.Scale(factor=-1), running_mean)
        spread = reader.add(op.Pointwise(name="rsqrt"), reader.add(op.Scale(shift=eps), running_var))
        values = [_along_channels(reader, value, input) for value in (shift, spread, weight, bias)]
        centered = reader.add(op.Multiply(), reader.add(op.Add(), input, values[0]), values[1])
        return _affine(reader, centered, *values[2:])
    return reader.add(op.BatchNorm(**names, epsilon=eps), input)


def _standardized(reader: AtenReader, input: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """Batch normalization by the statistics of the input itself (used to standardize kernels)."""
    axes = tuple(axis for axis in range(len(reader.shape(input))) if axis != 1)
    mean = op.Reduce(name="mean", axes=axes, keep=True)
    centered = reader.add(op.Subtract(), input, reader.add(mean, input))
    variance = reader.add(mean, reader.add(op.Pointwise(name="square"), centered))
    spread = reader.add(op.Pointwise(name="rsqrt"), reader.add(op.Scale(shift=epsilon), variance))
    scale, shift = (_along_channels(reader, value, input) for value in (weight, bias))
    return _affine(reader, reader.add(op.Multiply(), centered, spread), scale, shift)


@rule("_native_batch_norm_legit_no_training")
def _batch_norm_inference(reader: AtenReader, input, weight, bias, running_mean, running_var, momentum, eps):
    result = _batch_norm(reader, input, weight, bias, running_mean, running_var, eps=eps)
    return NotImplemented if result is NotImplemented else [result]


@rule("layer_norm")
def _layer_norm(
    reader: AtenReader, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=False
):
    names = weights(reader, weight=weight, bias=bias)
    if names is None:
        return _affine(reader, _layer_norm(reader, input, normalized_shape, eps=eps), weight, bias)
    return reader.add(op.LayerNorm(**names, normalized_shape=tuple(normalized_shape), epsilon=eps), input)


@rule("rms_norm")
def _rms_norm(reader: AtenReader, input, normalized_shape, weight=None, eps=None):
    names = weights(reader, weight=weight)
    if names is None:
        return _affine(reader, _rms_norm(reader, input, normalized_shape, eps=eps), weight, None)
    return reader.add(op.RMSNorm(**names, normalized_shape=tuple(normalized_shape), epsilon=eps), input)


@rule("group_norm")
def _group_norm(reader: AtenReader, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=False):
    names = weights(reader, weight=weight, bias=bias)
    if names is None:
        scale, shift = (_along_channels(reader, value, input) for value in (weight, bias))
        return _affine(reader, _group_norm(reader, input, num_groups, eps=eps), scale, shift)
    return reader.add(op.GroupNorm(**names, groups=num_groups, epsilon=eps), input)


def _affine(reader: AtenReader, value: Any, weight: Any, bias: Any) -> Any:
    """weight * value + bias with computed coefficients, None leaving one out."""
    value = value if weight is None else reader.add(op.Multiply(), value, weight)
    return value if bias is None else reader.add(op.Add(), value, bias)


def _along_channels(reader: AtenReader, value: Any, other: Any) -> Any:
    """A vector as it meets axis 1 of another value."""
    trailing = len(reader.shape(other)) - 2
    if value is None or trailing == 0:
        return value
    return reshape(reader, value, [reader.shape(value)[0], *[1] * trailing])


@rule("instance_norm")
def _instance_norm(
    reader: AtenReader, input, weight=None, bias=None, running_mean=None, running_var=None, use_input_stats=True,
    momentum=0.1, eps=1e-5, cudnn_enabled=False,
):  # fmt: skip
    if not use_input_stats:
        return _batch_norm(reader, input, weight, bias, running_mean, running_var, eps=eps)
    return _group_norm(reader, input, reader.shape(input)[1], weight, bias, eps)
