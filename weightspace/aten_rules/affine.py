"""Rules of operators with matrices of weights."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from weightspace import operations as op
from weightspace.aten_rules.registry import is_weight, rule, tuple_of, weights
from weightspace.aten_rules.shaping import transposed

if TYPE_CHECKING:
    from weightspace.aten import AtenReader


@rule("linear")
def _linear(reader: AtenReader, input, weight, bias=None):
    if not is_weight(weight):
        product = reader.add(op.MatMul(), input, transposed(reader, weight, -2, -1))
        return product if bias is None else reader.add(op.Add(), product, bias)
    operation = op.Linear(weight=weight.name, bias=reader.weight(bias), transposed=weight.transposed)
    result = reader.add(operation, input)
    computed_bias = bias is not None and operation.bias is None
    return reader.add(op.Add(), result, bias) if computed_bias else result


@rule("matmul", "mm", "bmm", "mv")
def _matmul(reader: AtenReader, self, other=None, mat2=None, vec=None):
    first, second = self, next(value for value in (other, mat2, vec) if value is not None)
    if is_weight(second) and not is_weight(first) and len(reader.shape(second)) == 2:
        return reader.add(op.Linear(weight=second.name, transposed=not second.transposed), first)
    if (
        is_weight(first)
        and not is_weight(second)
        and len(reader.shape(first)) == 2
        and len(reader.shape(second)) == 1
    ):
        return reader.add(op.Linear(weight=first.name, transposed=first.transposed), second)
    return reader.add(op.MatMul(), first, second)


@rule("einsum")
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


@rule("addmm")
def addmm(reader: AtenReader, self, mat1, mat2, beta=1, alpha=1):
    product = _matmul(reader, mat1, mat2)
    if alpha != 1:
        product = reader.add(op.Scale(factor=alpha), product)
    addend = self if beta == 1 else reader.add(op.Scale(factor=beta), self)
    return reader.add(op.Add(), product, addend)


@rule("conv1d", "conv2d", "conv3d")
def _conv(reader: AtenReader, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    axes = len(reader.shape(weight)) - 2
    dilation, stride = tuple_of(dilation, axes), tuple_of(stride, axes)
    if isinstance(padding, str):
        kernel = reader.shape(weight)[2:]
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        if any(amount % 2 for amount in total):
            amounts = [side for amount in reversed(total) for side in (amount // 2, amount - amount // 2)]
            input, total = reader.add(op.Pad(amounts=tuple(amounts)), input), [0] * axes
        padding = [amount // 2 for amount in total]
    return _convolution(reader, input, weight, bias, stride, padding, dilation, False, [0], groups)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(
    reader: AtenReader, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    return _convolution(reader, input, weight, bias, stride, padding, dilation, True, output_padding, groups)


@rule("convolution")
def _convolution(
    reader: AtenReader, input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
):
    axes = len(reader.shape(weight)) - 2
    settings: dict[str, Any] = {
        "stride": tuple_of(stride, axes),
        "padding": tuple_of(padding, axes),
        "dilation": tuple_of(dilation, axes),
        "groups": groups,
        "transposed": transposed,
        "output_padding": tuple_of(output_padding, axes) if transposed else (),
    }
    names = weights(reader, weight=weight, bias=bias)
    if names is None:
        return reader.add(op.ComputedConv(**settings), input, weight, *(() if bias is None else (bias,)))
    return reader.add(op.Conv(**names, **settings), input)


@rule("bilinear")
def _bilinear(reader: AtenReader, input1, input2, weight, bias=None):
    names = weights(reader, weight=weight, bias=bias)
    return NotImplemented if names is None else reader.add(op.Bilinear(**names), input1, input2)


@rule("embedding")
def _embedding(reader: AtenReader, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    name = reader.weight(weight)
    return NotImplemented if name is None else reader.add(op.Embedding(weight=name), indices)
