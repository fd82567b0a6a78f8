"""One rule per ATen operator: its keyword arguments in, a value out. See `aten.AtenReader`.

A rule returns NotImplemented for a form it does not cover, which then becomes an opaque node.
"""

from __future__ import annotations

from collections.abc import Callable
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
    name, bias_name = reader.weight(weight), reader.weight(bias)
    if name is None or (bias is not None and bias_name is None):
        return NotImplemented
    axes = len(reader.shape(weight)) - 2
    return reader.add(
        op.Conv(
            weight=name,
            bias=bias_name,
            stride=_tuple(stride, axes),
            padding=_tuple(padding, axes),
            dilation=_tuple(dilation, axes),
            groups=groups,
            transposed=transposed,
            output_padding=_tuple(output_padding, axes) if transposed else (),
        ),
        input,
    )


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
        if half_to_float or dtype not in (None, reader.dtype(self)):
            return NotImplemented
        return reader.add(op.Softmax(axis=reader.axis(self, dim), logarithm=logarithm), self)

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
    if training or names is None or running_mean is None or running_var is None:
        return NotImplemented
    return reader.add(op.BatchNorm(**names, epsilon=eps), input)


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
        return NotImplemented
    return reader.add(op.LayerNorm(**names, normalized_shape=tuple(normalized_shape), epsilon=eps), input)


@_rule("rms_norm")
def _rms_norm(reader: AtenReader, input, normalized_shape, weight=None, eps=None):
    names = _weights(reader, weight=weight)
    if names is None:
        return NotImplemented
    return reader.add(op.RMSNorm(**names, normalized_shape=tuple(normalized_shape), epsilon=eps), input)


@_rule("group_norm")
def _group_norm(reader: AtenReader, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=False):
    names = _weights(reader, weight=weight, bias=bias)
    return (
        NotImplemented
        if names is None
        else reader.add(op.GroupNorm(**names, groups=num_groups, epsilon=eps), input)
    )


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


@_rule("sub")
def _sub(reader: AtenReader, self, other, alpha=1):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(shift=-number * alpha), self)
    return reader.add(op.Subtract(), self, other if alpha == 1 else reader.add(op.Scale(factor=alpha), other))


@_rule("rsub")
def _rsub(reader: AtenReader, self, other, alpha=1):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(factor=-alpha, shift=number), self)
    return _sub(reader, other, self, alpha)


@_rule("mul")
def _mul(reader: AtenReader, self, other):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(factor=number), self)
    if (number := _scalar(reader, self, other)) is not None:
        return reader.add(op.Scale(factor=number), other)
    return reader.add(op.Multiply(), self, other)


@_rule("div")
def _div(reader: AtenReader, self, other, rounding_mode=None):
    if rounding_mode is not None:
        return NotImplemented
    number = _scalar(reader, other, self)
    if number and reader.dtype(self).is_floating_point:
        return reader.add(op.Scale(factor=1 / number), self)
    return reader.add(op.Divide(), self, other)


@_rule("neg")
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
        if dtype is not None and dtype != reader.dtype(self):
            return NotImplemented
        axes = tuple(reader.axis(self, axis) for axis in (_tuple(dim, 1) if dim not in (None, []) else ()))
        return reader.add(op.Reduce(name=name, axes=axes, keep=keepdim), self)

    return rule


RULES.update({name: _reduction(name) for name in op.Reduce.NAMES})


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
