"""One rule per ATen operator: its keyword arguments in, a value out. See `aten.AtenReader`.

A rule returns NotImplemented for a form it does not cover, which then becomes an opaque node.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace import operations as op

if TYPE_CHECKING:
    from weightspace.aten import AtenReader

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
_END = 2**62


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * length if len(values) == 1 else values


def _weights(reader: AtenReader, **values: Any) -> dict[str, Any] | None:
    """Return role -> parameter name; None when one of them is computed by the program, not stored."""
    names = {role: reader.weight(value) for role, value in values.items()}
    return None if any(values[role] is not None and name is None for role, name in names.items()) else names


def _is_weight(value: Any) -> bool:
    return type(value).__name__ == "Weight"


# ---- affine ----------------------------------------------------------------------------------------------


@_rule("linear")
def _linear(reader: AtenReader, input, weight, bias=None):
    if not _is_weight(weight):
        product = reader.add(op.MatMul(), input, _transpose(reader, weight, -2, -1))
        return product if bias is None else reader.add(op.Add(), product, bias)
    operation = op.Linear(weight=weight.name, bias=reader.weight(bias), transposed=weight.transposed)
    result = reader.add(operation, input)
    computed_bias = bias is not None and operation.bias is None
    return reader.add(op.Add(), result, bias) if computed_bias else result


@_rule("matmul", "mm", "bmm", "mv")
def _matmul(reader: AtenReader, self, other=None, mat2=None, vec=None):
    first, second = self, next(value for value in (other, mat2, vec) if value is not None)
    if _is_weight(second) and not _is_weight(first) and len(reader.shape(second)) == 2:
        return reader.add(op.Linear(weight=second.name, transposed=not second.transposed), first)
    if (
        _is_weight(first)
        and not _is_weight(second)
        and len(reader.shape(first)) == 2
        and len(reader.shape(second)) == 1
    ):
        return reader.add(op.Linear(weight=first.name, transposed=first.transposed), second)
    return reader.add(op.MatMul(), first, second)


@_rule("einsum")
def _einsum(reader: AtenReader, equation, tensors, path=None):
    explicit = _explicit(equation, [len(reader.shape(value)) for value in tensors])
    return reader.add(op.Einsum(equation=explicit), *tensors)


def _explicit(equation: str, ranks: list[int]) -> str:
    """Spell an equation without spaces and ellipses and with its result."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    pieces = terms.split(",")
    if not arrow:
        letters = terms.replace(",", "").replace(".", "")
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        result = ("..." if "..." in terms else "") + "".join(once)
    free = [letter for letter in string.ascii_letters if letter not in terms]
    widths = [rank - len(piece.replace("...", "")) for piece, rank in zip(pieces, ranks, strict=True)]
    dots = "".join(free[: max((w for w, p in zip(widths, pieces, strict=True) if "..." in p), default=0)])
    pieces = [p.replace("...", dots[len(dots) - w :]) for p, w in zip(pieces, widths, strict=True)]
    return ",".join(pieces) + "->" + result.replace("...", dots)


@_rule("addmm")
def _addmm(reader: AtenReader, self, mat1, mat2, beta=1, alpha=1):
    product = _matmul(reader, mat1, mat2)
    if alpha != 1:
        product = reader.add(op.Scale(factor=alpha), product)
    addend = self if beta == 1 else reader.add(op.Scale(factor=beta), self)
    return reader.add(op.Add(), product, addend)


@_rule("conv1d", "conv2d", "conv3d")
def _conv(reader: AtenReader, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    axes = len(reader.shape(weight)) - 2
    dilation, stride = _tuple(dilation, axes), _tuple(stride, axes)
    if isinstance(padding, str):
        kernel = reader.shape(weight)[2:]
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        if any(amount % 2 for amount in total):
            amounts = [side for amount in reversed(total) for side in (amount // 2, amount - amount // 2)]
            input, total = reader.add(op.Pad(amounts=tuple(amounts)), input), [0] * axes
        padding = [amount // 2 for amount in total]
    return _convolution(reader, input, weight, bias, stride, padding, dilation, False, [0], groups)


@_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(
    reader: AtenReader, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    return _convolution(reader, input, weight, bias, stride, padding, dilation, True, output_padding, groups)


@_rule("convolution")
def _convolution(
    reader: AtenReader, input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
):
    axes = len(reader.shape(weight)) - 2
    settings: dict[str, Any] = {
        "stride": _tuple(stride, axes),
        "padding": _tuple(padding, axes),
        "dilation": _tuple(dilation, axes),
        "groups": groups,
        "transposed": transposed,
        "output_padding": _tuple(output_padding, axes) if transposed else (),
    }
    names = _weights(reader, weight=weight, bias=bias)
    if names is None:
        return reader.add(op.ComputedConv(**settings), input, weight, *(() if bias is None else (bias,)))
    return reader.add(op.Conv(**names, **settings), input)


@_rule("bilinear")
def _bilinear(reader: AtenReader, input1, input2, weight, bias=None):
    names = _weights(reader, weight=weight, bias=bias)
    return NotImplemented if names is None else reader.add(op.Bilinear(**names), input1, input2)


@_rule("embedding")
def _embedding(reader: AtenReader, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    name = reader.weight(weight)
    return NotImplemented if name is None else reader.add(op.Embedding(weight=name), indices)


# ---- activations -----------------------------------------------------------------------------------------

_PLAIN = {
    "relu": op.ReLU(),
    "tanh": op.Tanh(),
    "sigmoid": op.Sigmoid(),
    "silu": op.SiLU(),
    "abs": op.Absolute(),
    "relu6": op.Clip(lower=0.0, upper=6.0),
    "selu": op.ELU(alpha=1.6732632423543772, scale=1.0507009873554805),
}


def _plain(operation: op.Operation) -> Rule:
    def rule(reader: AtenReader, self):
        return reader.add(operation, self)

    return rule


RULES.update({name: _plain(operation) for name, operation in _PLAIN.items()})
RULES.update({name: _plain(op.Pointwise(name=name)) for name in op.Pointwise.NAMES})


@_rule("leaky_relu")
def _leaky_relu(reader: AtenReader, self, negative_slope=0.01):
    return reader.add(op.LeakyReLU(negative_slope=float(negative_slope)), self)


@_rule("prelu")
def _prelu(reader: AtenReader, self, weight):
    return reader.add(op.PReLU(weight=weight.name), self) if _is_weight(weight) else NotImplemented


@_rule("gelu")
def _gelu(reader: AtenReader, self, approximate="none"):
    return reader.add(op.GELU(approximate=approximate), self)


@_rule("elu")
def _elu(reader: AtenReader, self, alpha=1.0, scale=1.0, input_scale=1.0):
    return reader.add(op.ELU(alpha=float(alpha), scale=float(scale), input_scale=float(input_scale)), self)


@_rule("celu")
def _celu(reader: AtenReader, self, alpha=1.0):
    return reader.add(op.ELU(alpha=float(alpha), input_scale=1.0 / float(alpha)), self)


@_rule("softplus")
def _softplus(reader: AtenReader, self, beta=1.0, threshold=20.0):
    return reader.add(op.Softplus(beta=float(beta), threshold=float(threshold)), self)


@_rule("hardtanh")
def _hardtanh(reader: AtenReader, self, min_val=-1.0, max_val=1.0):
    return reader.add(op.Clip(lower=float(min_val), upper=float(max_val)), self)


@_rule("clamp", "clamp_min", "clamp_max", "clip")
def _clamp(reader: AtenReader, self, min=None, max=None):
    if not all(bound is None or isinstance(bound, int | float) for bound in (min, max)):
        return NotImplemented
    return reader.add(op.Clip(lower=min, upper=max), self)


@_rule("group_sort")
def _group_sort(reader: AtenReader, x, group_size, axis):
    return reader.add(op.GroupSort(group_size=group_size, axis=reader.axis(x, axis)), x)


@_rule("householder")
def _householder(reader: AtenReader, x, weight, axis):
    if not _is_weight(weight):
        return NotImplemented
    return reader.add(op.Householder(weight=weight.name, axis=reader.axis(x, axis)), x)


@_rule("implicit")
def _implicit(reader: AtenReader, x, weight, input_weight, bias, activation, negative_slope):
    names = _weights(reader, weight=weight, input_weight=input_weight, bias=bias)
    if names is None:
        return NotImplemented
    return reader.add(op.Implicit(activation=activation, negative_slope=float(negative_slope), **names), x)


def _softmax_rule(logarithm: bool) -> Rule:
    def rule(reader: AtenReader, self, dim, dtype=None, half_to_float=False):
        value = _to(reader, self, torch.float32 if half_to_float else dtype)
        return reader.add(op.Softmax(axis=reader.axis(self, dim), logarithm=logarithm), value)

    return rule


RULES |= dict.fromkeys(("softmax", "_softmax"), _softmax_rule(False))
RULES |= dict.fromkeys(("log_softmax", "_log_softmax"), _softmax_rule(True))


@_rule("scaled_dot_product_attention")
def _attention(
    reader: AtenReader,
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
):
    masks = () if attn_mask is None else (attn_mask,)
    return reader.add(
        op.Attention(causal=is_causal, scale=scale, grouped=enable_gqa), query, key, value, *masks
    )


# ---- normalization ---------------------------------------------------------------------------------------


@_rule("batch_norm")
def _batch_norm(
    reader: AtenReader, input, weight=None, bias=None, running_mean=None, running_var=None, training=False,
    momentum=0.1, eps=1e-5, cudnn_enabled=False,
):  # fmt: skip
    names = _weights(reader, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
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


@_rule("_native_batch_norm_legit_no_training")
def _batch_norm_inference(reader: AtenReader, input, weight, bias, running_mean, running_var, momentum, eps):
    result = _batch_norm(reader, input, weight, bias, running_mean, running_var, eps=eps)
    return NotImplemented if result is NotImplemented else [result]


@_rule("layer_norm")
def _layer_norm(
    reader: AtenReader, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=False
):
    names = _weights(reader, weight=weight, bias=bias)
    if names is None:
        return _affine(reader, _layer_norm(reader, input, normalized_shape, eps=eps), weight, bias)
    return reader.add(op.LayerNorm(**names, normalized_shape=tuple(normalized_shape), epsilon=eps), input)


@_rule("rms_norm")
def _rms_norm(reader: AtenReader, input, normalized_shape, weight=None, eps=None):
    names = _weights(reader, weight=weight)
    if names is None:
        return _affine(reader, _rms_norm(reader, input, normalized_shape, eps=eps), weight, None)
    return reader.add(op.RMSNorm(**names, normalized_shape=tuple(normalized_shape), epsilon=eps), input)


@_rule("group_norm")
def _group_norm(reader: AtenReader, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=False):
    names = _weights(reader, weight=weight, bias=bias)
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
    return _reshape(reader, value, [reader.shape(value)[0], *[1] * trailing])


@_rule("instance_norm")
def _instance_norm(
    reader: AtenReader, input, weight=None, bias=None, running_mean=None, running_var=None, use_input_stats=True,
    momentum=0.1, eps=1e-5, cudnn_enabled=False,
):  # fmt: skip
    if not use_input_stats:
        return _batch_norm(reader, input, weight, bias, running_mean, running_var, eps=eps)
    return _group_norm(reader, input, reader.shape(input)[1], weight, bias, eps)


# ---- arithmetic ------------------------------------------------------------------------------------------


def _scalar(reader: AtenReader, value: Any, other: Any) -> float | None:
    """Return a number that meets the tensor `other` and does not change its dtype, else None."""
    if isinstance(value, Tensor) and value.ndim == 0 and reader.dtype(other).is_floating_point:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@_rule("add")
def _add(reader: AtenReader, self, other, alpha=1):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(shift=number * alpha), self)
    if (number := _scalar(reader, self, other)) is not None:
        return reader.add(op.Scale(factor=alpha, shift=number), other)
    return reader.add(op.Add(), self, other if alpha == 1 else reader.add(op.Scale(factor=alpha), other))


@_rule("sub", "subtract")
def _sub(reader: AtenReader, self, other, alpha=1):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(shift=-number * alpha), self)
    return reader.add(op.Subtract(), self, other if alpha == 1 else reader.add(op.Scale(factor=alpha), other))


@_rule("rsub")
def _rsub(reader: AtenReader, self, other, alpha=1):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(factor=-alpha, shift=number), self)
    return _sub(reader, other, self, alpha)


@_rule("mul", "multiply")
def _mul(reader: AtenReader, self, other):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(factor=number), self)
    if (number := _scalar(reader, self, other)) is not None:
        return reader.add(op.Scale(factor=number), other)
    return reader.add(op.Multiply(), self, other)


@_rule("div", "divide", "true_divide")
def _div(reader: AtenReader, self, other, rounding_mode=None):
    if rounding_mode is not None:
        return NotImplemented
    number = _scalar(reader, other, self)
    if number and reader.dtype(self).is_floating_point:
        return reader.add(op.Scale(factor=1 / number), self)
    return reader.add(op.Divide(), self, other)


@_rule("neg", "negative")
def _neg(reader: AtenReader, self):
    return reader.add(op.Scale(factor=-1), self)


@_rule("pow")
def _pow(reader: AtenReader, self, exponent):
    number = _scalar(reader, exponent, self)
    return NotImplemented if number is None else reader.add(op.Power(exponent=number), self)


def _elementwise(name: str) -> Rule:
    def rule(reader: AtenReader, **arguments):
        return reader.add(op.Elementwise(name=name), *arguments.values())

    return rule


RULES.update({name: _elementwise(name) for name in op.Elementwise.NAMES if name != "where"})


RULES["__and__"], RULES["__or__"] = RULES["bitwise_and"], RULES["bitwise_or"]


@_rule("where")
def _where(reader: AtenReader, condition, self=None, other=None):
    return (
        NotImplemented if self is None else reader.add(op.Elementwise(name="where"), condition, self, other)
    )


@_rule("masked_fill")
def _masked_fill(reader: AtenReader, self, mask, value):
    fill = value if isinstance(value, Tensor) or not isinstance(value, int | float) else torch.tensor(value)
    if isinstance(fill, Tensor):
        fill = fill.to(reader.dtype(self))
    return reader.add(op.Elementwise(name="where"), mask, fill, self)


def _reduction(name: str) -> Rule:
    def rule(reader: AtenReader, self, dim=None, keepdim=False, dtype=None):
        self = _to(reader, self, dtype)
        axes = tuple(reader.axis(self, axis) for axis in (_tuple(dim, 1) if dim not in (None, []) else ()))
        return reader.add(op.Reduce(name=name, axes=axes, keep=keepdim), self)

    return rule


RULES.update({name: _reduction(name) for name in op.Reduce.NAMES})


@_rule("max")
def _max(reader: AtenReader, self, dim=None, keepdim=False, other=None):
    return _extreme(reader, "max", self, dim, keepdim, other)


@_rule("min")
def _min(reader: AtenReader, self, dim=None, keepdim=False, other=None):
    return _extreme(reader, "min", self, dim, keepdim, other)


def _extreme(reader: AtenReader, name: str, value: Any, axis: int | None, keep: bool, other: Any) -> Any:
    if other is not None:
        return reader.add(op.Elementwise(name=f"{name}imum"), value, other)
    if axis is None:
        return reader.add(op.Reduce(name=f"a{name}"), value)
    axis = reader.axis(value, axis)
    arguments = json.dumps({"self": {"input": 0}, "dim": axis, "keepdim": keep})
    index = op.Opaque(name=f"aten.arg{name}.default", arguments=arguments)
    largest = op.Reduce(name=f"a{name}", axes=(axis,), keep=keep)
    return [reader.add(largest, value), reader.add(index, value)]


@_rule("linalg_vector_norm", "norm")
def _norm(reader: AtenReader, self, ord=2, p=2, dim=None, keepdim=False, dtype=None):
    if ord != 2 or p != 2:
        return NotImplemented
    squares = reader.add(op.Pointwise(name="square"), _to(reader, self, dtype))
    axes = () if dim in (None, []) else tuple(reader.axis(self, axis) for axis in _tuple(dim, 1))
    total = reader.add(op.Reduce(name="sum", axes=axes, keep=keepdim), squares)
    return reader.add(op.Pointwise(name="sqrt"), total)


@_rule("_weight_norm")
def _weight_norm(reader: AtenReader, v, g, dim=0):
    axes = [axis for axis in range(len(reader.shape(v))) if axis != dim]
    return _mul(reader, v, _div(reader, g, _norm(reader, v, dim=axes, keepdim=True)))


@_rule("baddbmm")
def _baddbmm(reader: AtenReader, self, batch1, batch2, beta=1, alpha=1):
    return _addmm(reader, self, batch1, batch2, beta, alpha)


@_rule("cumsum")
def _cumsum(reader: AtenReader, self, dim, dtype=None):
    return reader.add(op.CumulativeSum(axis=reader.axis(self, dim)), _to(reader, self, dtype))


@_rule("diff")
def _diff(reader: AtenReader, self, n=1, dim=-1, prepend=None, append=None):
    if n != 1 or reader.dtype(self) == torch.bool:
        return NotImplemented
    axis = reader.axis(self, dim)
    pieces = [piece for piece in (prepend, self, append) if piece is not None]
    value = self if len(pieces) == 1 else _cat(reader, pieces, axis)
    if not isinstance(size := reader.shape(value)[axis], int):
        return NotImplemented
    return reader.add(op.Subtract(), *(_slice(reader, value, axis, i, size - 1 + i) for i in (1, 0)))


@_rule("arange")
def _arange(reader: AtenReader, end, start=0, dtype=None, **_):
    """0 .. batch - 1: a range as long as the batch is a cumulative sum of ones."""
    if start != 0:
        return NotImplemented
    ones = reader.filled([end], 1, dtype or torch.int64)
    return reader.add(op.Scale(shift=-1), reader.add(op.CumulativeSum(axis=0), ones))


@_rule("bitwise_not")
def _bitwise_not(reader: AtenReader, self):
    boolean = reader.dtype(self) == torch.bool
    return reader.add(op.Pointwise(name="logical_not"), self) if boolean else NotImplemented


@_rule("copy")
def _copy(reader: AtenReader, self, src, non_blocking=False):
    return _expand(reader, _to(reader, src, reader.dtype(self)), list(reader.shape(self)))


@_rule("to", "_to_copy", "type_as")
def _to(reader: AtenReader, self, dtype=None, other=None, **_):
    target = reader.dtype(other) if other is not None and not isinstance(other, torch.dtype) else dtype
    if not isinstance(target, torch.dtype) or target == reader.dtype(self):
        return self
    return reader.add(op.Cast(dtype=str(target).removeprefix("torch.")), self)


@_rule(
    "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "dropout", "feature_dropout", "alpha_dropout"
)
def _identity(reader: AtenReader, self=None, input=None, p=0.0, train=False, **_):
    return NotImplemented if train and p else (input if self is None else self)


# ---- shaping ---------------------------------------------------------------------------------------------


def _target(reader: AtenReader, value: Any, size: list[Any]) -> tuple[int, ...]:
    """Return a reshape target in which the one size that follows the batch is -1."""
    from weightspace.aten import NotStaticError, Symbol

    sizes: list[Any] = list(size)
    for index, entry in enumerate(sizes):
        if entry == -1:
            totals = [1, 1]
            for n in reader.shape(value):
                for which in range(2):
                    totals[which] *= n.sizes[which] if isinstance(n, Symbol) else n
            for n in sizes:
                for which in range(2):
                    if n != -1:
                        totals[which] //= n.sizes[which] if isinstance(n, Symbol) else max(n, 1)
            sizes[index] = totals[0] if totals[0] == totals[1] else Symbol((totals[0], totals[1]))
    moving = [n for n in sizes if isinstance(n, Symbol)]
    if len(moving) > 1:
        raise NotStaticError(f"{reader.label}: a reshape to {size} has two axes that follow the batch")
    return tuple(-1 if isinstance(n, Symbol) else n for n in sizes)


@_rule("view", "reshape", "_unsafe_view", "view_copy")
def _reshape(reader: AtenReader, self, size=None, shape=None, dtype=None):
    size = size if size is not None else shape
    if size is None:
        return NotImplemented
    target = _target(reader, self, size)
    if list(size) == list(reader.shape(self)):
        return self
    return reader.add(op.Reshape(shape=target), self)


@_rule("flatten")
def _flatten(reader: AtenReader, self, start_dim=0, end_dim=-1):
    start, end = reader.axis(self, start_dim), reader.axis(self, end_dim)
    return self if start == end else reader.add(op.Flatten(start=start, end=end), self)


@_rule("unflatten")
def _unflatten(reader: AtenReader, self, dim, sizes):
    shape, axis = list(reader.shape(self)), reader.axis(self, dim)
    return reader.add(
        op.Reshape(shape=_target(reader, self, [*shape[:axis], *sizes, *shape[axis + 1 :]])), self
    )


def _transpose(reader: AtenReader, value: Any, first: int, second: int) -> Any:
    rank = len(reader.shape(value))
    if rank < 2:
        return value
    axes = list(range(rank))
    axes[first], axes[second] = axes[second], axes[first]
    return _permute(reader, value, axes)


@_rule("permute")
def _permute(reader: AtenReader, self, dims):
    axes = tuple(reader.axis(self, axis) for axis in dims)
    if axes == tuple(range(len(axes))):
        return self
    if _is_weight(self) and len(axes) == 2:
        return type(self)(self.name, not self.transposed)
    return reader.add(op.Permute(axes=axes), self)


@_rule("transpose", "swapaxes", "swapdims")
def _transpose_axes(reader: AtenReader, self, **axes):
    first, second = axes.values()  # dim0, dim1 or axis0, axis1
    return _transpose(reader, self, first, second)


@_rule("t", "numpy_T", "mT")
def _t(reader: AtenReader, self):
    return _transpose(reader, self, -2, -1) if len(reader.shape(self)) <= 2 else NotImplemented


@_rule("unsqueeze")
def _unsqueeze(reader: AtenReader, self, dim):
    return reader.add(op.Unsqueeze(axis=reader.axis(self, dim, extra=1)), self)


@_rule("squeeze")
def _squeeze(reader: AtenReader, self, dim=None):
    if dim is None:
        return NotImplemented
    for axis in sorted((reader.axis(self, axis) for axis in _tuple(dim, 1)), reverse=True):
        if reader.shape(self)[axis] == 1:
            self = reader.add(op.Squeeze(axis=axis), self)
    return self


@_rule("expand")
def _expand(reader: AtenReader, self, size, implicit=False):
    from weightspace.aten import NotStaticError, Symbol
    from weightspace.builder import BATCHES

    own = reader.shape(self)
    padded = [None] * (len(size) - len(own)) + list(own)
    target = [-1 if n == have else n for n, have in zip(size, padded, strict=True)]
    if all(n == -1 for n in target):
        return self
    moving = {axis: n.sizes for axis, n in enumerate(target) if isinstance(n, Symbol)}
    if not moving:
        return reader.add(op.Expand(shape=tuple(target)), self)
    if list(moving.values()) != [BATCHES]:
        raise NotStaticError(f"{reader.label}: an expansion to {size} cannot follow the batch")
    target = [-1 if axis in moving else n for axis, n in enumerate(target)]
    return reader.add(
        op.Expand(shape=tuple(target), batch_axis=next(iter(moving))), self, reader.batch_source()
    )


@_rule("reshape_as", "view_as")
def _reshape_as(reader: AtenReader, self, other):
    return _reshape(reader, self, list(reader.shape(other)))


@_rule("expand_as")
def _expand_as(reader: AtenReader, self, other):
    return _expand(reader, self, list(reader.shape(other)))


@_rule("repeat")
def _repeat(reader: AtenReader, self, repeats):
    from weightspace.aten import Symbol
    from weightspace.builder import BATCHES

    for _ in range(len(repeats) - len(reader.shape(self))):
        self = reader.add(op.Unsqueeze(axis=0), self)
    for axis, count in enumerate(repeats):
        shape = list(reader.shape(self))
        if isinstance(count, int):
            if shape[axis] == 1:
                self = _expand(reader, self, [*shape[:axis], count, *shape[axis + 1 :]])
            elif count != 1:
                self = _cat(reader, [self] * count, axis)
            continue
        per_example = count.sizes[0] // BATCHES[0]  # as many copies as the batch has, times a number
        copies = [Symbol(BATCHES), *([per_example] if per_example > 1 else []), *shape[axis : axis + 1]]
        if shape[axis] == 1:
            copies.pop()
        for _ in copies[1:]:
            self = reader.add(op.Unsqueeze(axis=axis), self)
        self = _expand(reader, self, [*shape[:axis], *copies, *shape[axis + 1 :]])
        if len(copies) > 1:
            self = reader.add(op.Flatten(start=axis, end=axis + len(copies) - 1), self)
    return self


@_rule("repeat_interleave")
def _repeat_interleave(reader: AtenReader, self, repeats, dim=None, output_size=None):
    if not isinstance(repeats, int) or dim is None:
        return NotImplemented
    from weightspace.aten import Symbol

    if repeats == 1:
        return self
    shape, axis = list(reader.shape(self)), reader.axis(self, dim)
    size = shape[axis]
    longer = (
        Symbol((size.sizes[0] * repeats, size.sizes[1] * repeats))
        if isinstance(size, Symbol)
        else size * repeats
    )
    copies = reader.add(op.Unsqueeze(axis=axis + 1), self)
    copies = _expand(reader, copies, [*shape[: axis + 1], repeats, *shape[axis + 1 :]])
    return _reshape(reader, copies, [*shape[:axis], longer, *shape[axis + 1 :]])


@_rule("roll")
def _roll(reader: AtenReader, self, shifts, dims=()):
    if not dims:
        return NotImplemented
    axes = tuple(reader.axis(self, axis) for axis in _tuple(dims, 1))
    return reader.add(op.Roll(shifts=_tuple(shifts, len(axes)), axes=axes), self)


@_rule("flip")
def _flip(reader: AtenReader, self, dims):
    return reader.add(op.Flip(axes=tuple(reader.axis(self, axis) for axis in dims)), self)


@_rule("gather")
def _gather(reader: AtenReader, self, dim, index, sparse_grad=False):
    same = len(reader.shape(self)) == len(reader.shape(index)) > 0
    return reader.add(op.TakeAlong(axis=reader.axis(self, dim)), self, index) if same else NotImplemented


@_rule("select_scatter")
def _select_scatter(reader: AtenReader, self, src, dim, index):
    axis = reader.axis(self, dim)
    index = index % reader.shape(self)[axis] if index < 0 else index
    piece = reader.add(op.Unsqueeze(axis=axis), src)
    return _slice_scatter(reader, self, piece, axis, index, index + 1)


@_rule("slice_scatter")
def _slice_scatter(reader: AtenReader, self, src, dim=0, start=None, end=None, step=1):
    axis = reader.axis(self, dim)
    size = reader.shape(self)[axis]
    start = start or 0
    if start == 0 and step == 1 and (end is None or end == size or (isinstance(end, int) and end >= _END)):
        return src
    if not all(isinstance(value, int) for value in (size, start)) or step != 1:
        return NotImplemented
    start, end, _ = slice(start, end).indices(size)
    pieces = [src]
    if start > 0:
        pieces.insert(0, _slice(reader, self, axis, 0, start))
    if end < size:
        pieces.append(_slice(reader, self, axis, end, size))
    return pieces[0] if len(pieces) == 1 else _cat(reader, pieces, axis)


@_rule("slice")
def _slice(reader: AtenReader, self, dim=0, start=None, end=None, step=1):
    from weightspace.aten import NotStaticError, Symbol

    axis = reader.axis(self, dim)
    size = reader.shape(self)[axis]
    stop = None if end is None or end == size or (isinstance(end, int) and end >= _END) else end
    if isinstance(start, Symbol) or isinstance(stop, Symbol):
        raise NotStaticError(f"{reader.label}: a slice ends at a size that follows the batch")
    if isinstance(size, int) and stop is not None and stop >= size:
        stop = None
    if (start or 0) == 0 and stop is None and step == 1:
        return self
    return reader.add(op.Slice(axis=axis, start=start or 0, stop=stop, step=step), self)


@_rule("select")
def _select(reader: AtenReader, self, dim, index):
    made = reader.made_by(self)
    if made is not None and made.operation == op.Stack(axis=reader.axis(self, dim)):
        return type(self)(made.inputs[index])
    return reader.add(op.Select(axis=reader.axis(self, dim), index=index), self)


@_rule("narrow")
def _narrow(reader: AtenReader, self, dim, start, length):
    return _slice(reader, self, dim, start, start + length)


def _pieces(reader: AtenReader, value: Any, dim: int, sizes: list[int]) -> list[Any]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(_slice(reader, value, dim, start, start + size))
        start += size
    return pieces


@_rule("split_with_sizes", "split")
def _split(reader: AtenReader, self, split_size=None, split_sizes=None, dim=0):
    sizes: Any = split_sizes if split_sizes is not None else split_size
    total = reader.shape(self)[reader.axis(self, dim)]
    if not isinstance(total, int):
        return NotImplemented
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    return _pieces(reader, self, dim, sizes)


@_rule("chunk")
def _chunk(reader: AtenReader, self, chunks, dim=0):
    total = reader.shape(self)[reader.axis(self, dim)]
    return _split(reader, self, -(-total // chunks), dim=dim) if isinstance(total, int) else NotImplemented


@_rule("unbind")
def _unbind(reader: AtenReader, self, dim=0):
    total = reader.shape(self)[reader.axis(self, dim)]
    if not isinstance(total, int):
        return NotImplemented
    return [_select(reader, self, dim, index) for index in range(total)]


@_rule("cat", "concat", "concatenate")
def _cat(reader: AtenReader, tensors, dim=0):
    return reader.add(op.Concat(axis=reader.axis(tensors[0], dim)), *tensors)


@_rule("stack")
def _stack(reader: AtenReader, tensors, dim=0):
    return reader.add(op.Stack(axis=reader.axis(tensors[0], dim, extra=1)), *tensors)


@_rule("pad", "constant_pad_nd")
def _pad(reader: AtenReader, self, pad, mode="constant", value=0.0):
    return reader.add(op.Pad(amounts=tuple(pad), mode=mode, value=float(value or 0.0)), self)


@_rule("index_select")
def _index_select(reader: AtenReader, self, dim, index):
    return reader.add(op.Gather(axis=reader.axis(self, dim)), self, index)


@_rule("index")
def _index(reader: AtenReader, self, indices):
    used = [axis for axis, index in enumerate(indices) if index is not None]
    if len(used) != 1 or reader.dtype(indices[used[0]]) == torch.bool:
        return NotImplemented
    return reader.add(op.Gather(axis=used[0]), self, indices[used[0]])


@_rule("pixel_shuffle")
def _pixel_shuffle(reader: AtenReader, self, upscale_factor):
    return reader.add(op.PixelShuffle(factor=upscale_factor), self)


@_rule("pixel_unshuffle")
def _pixel_unshuffle(reader: AtenReader, self, downscale_factor):
    return reader.add(op.PixelUnshuffle(factor=downscale_factor), self)


# ---- pooling ---------------------------------------------------------------------------------------------


def _max_pool(axes: int) -> Rule:
    def rule(reader: AtenReader, self, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False):
        kernel = _tuple(kernel_size, axes)
        operation = op.MaxPool(
            kernel=kernel,
            stride=_tuple(stride, axes) if stride else kernel,
            padding=_tuple(padding, axes),
            dilation=_tuple(dilation, axes),
            ceil=ceil_mode,
        )
        return reader.add(operation, self)

    return rule


def _average_pool(axes: int) -> Rule:
    def rule(
        reader: AtenReader, self, kernel_size, stride=(), padding=0, ceil_mode=False, count_include_pad=True,
        divisor_override=None,
    ):  # fmt: skip
        if divisor_override is not None:
            return NotImplemented
        kernel = _tuple(kernel_size, axes)
        operation = op.AveragePool(
            kernel=kernel,
            stride=_tuple(stride, axes) if stride else kernel,
            padding=_tuple(padding, axes),
            ceil=ceil_mode,
            count_padding=count_include_pad,
        )
        return reader.add(operation, self)

    return rule


for _axes in (1, 2, 3):
    RULES[f"max_pool{_axes}d"] = _max_pool(_axes)
    RULES[f"avg_pool{_axes}d"] = _average_pool(_axes)


@_rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive_average_pool(reader: AtenReader, self, output_size):
    return reader.add(op.AdaptiveAveragePool(size=tuple(output_size)), self)


_INTERPOLATIONS = {
    "nearest": ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    "nearest-exact": ("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    "linear": ("upsample_linear1d",),
    "bilinear": ("upsample_bilinear2d", "_upsample_bilinear2d_aa"),
    "bicubic": ("upsample_bicubic2d", "_upsample_bicubic2d_aa"),
    "trilinear": ("upsample_trilinear3d",),
}


def _interpolation(mode: str, antialias: bool) -> Rule:
    def rule(
        reader: AtenReader, input=None, self=None, output_size=None, align_corners=False, scale_factors=None,
        **scales,
    ):  # fmt: skip
        value = self if input is None else input
        numbers = [*(output_size or ()), *(scale_factors or ())]
        if any(number is not None for number in scales.values()) or not all(
            isinstance(number, int | float) for number in numbers
        ):
            return NotImplemented
        operation = op.Interpolate(
            mode=mode,
            size=None if output_size is None else tuple(output_size),
            scale=tuple(float(factor) for factor in scale_factors or ()) if output_size is None else None,
            align_corners=bool(align_corners),
            antialias=antialias,
        )
        return reader.add(operation, value)

    return rule


for _mode, _names in _INTERPOLATIONS.items():
    RULES |= {name: _interpolation(_mode, name.endswith("_aa")) for name in _names}


# ---- recurrent layers ------------------------------------------------------------------------------------


def _zero(reader: AtenReader, value: Any) -> bool:
    """Whether a value is known to be zero: a constant, or one expanded to the size of the batch."""
    if isinstance(value, Tensor):
        return not bool(value.any())
    node = reader.builder.nodes[reader.node(value)]
    while node.operation.kind == "Expand":
        node = reader.builder.nodes[node.inputs[0]]
    name = node.operation.parameters.get("value")
    return (
        name is not None
        and reader.builder.is_constant(name)
        and not bool(reader.builder.parameters[name].any())
    )


def _recurrent(mode: str) -> Rule:
    def rule(
        reader: AtenReader, input, hx, params, has_biases, num_layers, dropout, train, bidirectional,
        batch_first=False,
    ):  # fmt: skip
        names = [reader.weight(value) if _is_weight(value) else None for value in params]
        first = list(hx) if mode == "LSTM" else [hx]
        directions = 2 if bidirectional else 1
        roles = op.Recurrent.ROLES[: 4 if has_biases else 2]
        if len(names) == num_layers * directions * (len(roles) + 1):
            roles = (*roles, "projection")
        if None in names or (train and dropout):
            return NotImplemented
        zero = all(_zero(reader, state) for state in first)
        prefixes = ("", "reverse_")[:directions]
        order = iter(names)
        last: list[Any] = []
        cells: list[Any] = []
        for layer in range(num_layers):
            weights: dict[str, Any] = {prefix + role: next(order) for prefix in prefixes for role in roles}
            states = (
                ()
                if zero
                else tuple(
                    _slice(reader, state, 0, layer * directions, (layer + 1) * directions) for state in first
                )
            )
            operation = op.Recurrent(mode=mode, batch_first=batch_first, **weights)
            sequence = reader.add(operation, input, *states)
            if mode == "LSTM":
                cells.append(reader.add(replace(operation, result="cell"), input, *states))
            input = sequence
            width = reader.shape(input)[-1] // directions
            time = 1 if batch_first else 0
            for direction in range(directions):
                half = _slice(reader, input, -1, direction * width, (direction + 1) * width)
                last.append(_select(reader, half, time, -1 if direction == 0 else 0))
        results = [input, _stack(reader, last)]
        return [*results, cells[0] if num_layers == 1 else _cat(reader, cells)] if mode == "LSTM" else results

    return rule


RULES |= {
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "rnn_tanh": _recurrent("RNN_TANH"),
    "rnn_relu": _recurrent("RNN_RELU"),
}
