"""Rules of arithmetic, comparisons, reductions and casts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.aten_rules.affine import addmm
from weightspace.aten_rules.registry import RULES, Rule, rule, tuple_of
from weightspace.aten_rules.shaping import concatenate, expand, sliced

if TYPE_CHECKING:
    from weightspace.aten import AtenReader


def _scalar(reader: AtenReader, value: Any, other: Any) -> float | None:
    """Return a number that meets the tensor `other` and does not change its dtype, else None."""
    if isinstance(value, Tensor) and value.ndim == 0 and reader.dtype(other).is_floating_point:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@rule("add")
def _add(reader: AtenReader, self, other, alpha=1):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(shift=number * alpha), self)
    if (number := _scalar(reader, self, other)) is not None:
        return reader.add(op.Scale(factor=alpha, shift=number), other)
    return reader.add(op.Add(), self, other if alpha == 1 else reader.add(op.Scale(factor=alpha), other))


@rule("sub", "subtract")
def _sub(reader: AtenReader, self, other, alpha=1):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(shift=-number * alpha), self)
    return reader.add(op.Subtract(), self, other if alpha == 1 else reader.add(op.Scale(factor=alpha), other))


@rule("rsub")
def _rsub(reader: AtenReader, self, other, alpha=1):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(factor=-alpha, shift=number), self)
    return _sub(reader, other, self, alpha)


@rule("mul", "multiply")
def _mul(reader: AtenReader, self, other):
    if (number := _scalar(reader, other, self)) is not None:
        return reader.add(op.Scale(factor=number), self)
    if (number := _scalar(reader, self, other)) is not None:
        return reader.add(op.Scale(factor=number), other)
    return reader.add(op.Multiply(), self, other)


@rule("div", "divide", "true_divide")
def _div(reader: AtenReader, self, other, rounding_mode=None):
    if rounding_mode is not None:
        return NotImplemented
    number = _scalar(reader, other, self)
    if number and reader.dtype(self).is_floating_point:
        return reader.add(op.Scale(factor=1 / number), self)
    return reader.add(op.Divide(), self, other)


@rule("neg", "negative")
def _neg(reader: AtenReader, self):
    return reader.add(op.Scale(factor=-1), self)


@rule("pow")
def _pow(reader: AtenReader, self, exponent):
    number = _scalar(reader, exponent, self)
    return NotImplemented if number is None else reader.add(op.Power(exponent=number), self)


def _elementwise(name: str) -> Rule:
    def rule(reader: AtenReader, **arguments):
        return reader.add(op.Elementwise(name=name), *arguments.values())

    return rule


RULES.update({name: _elementwise(name) for name in op.Elementwise.NAMES if name != "where"})


RULES["__and__"], RULES["__or__"] = RULES["bitwise_and"], RULES["bitwise_or"]


@rule("where")
def _where(reader: AtenReader, condition, self=None, other=None):
    return (
        NotImplemented if self is None else reader.add(op.Elementwise(name="where"), condition, self, other)
    )


@rule("masked_fill")
def _masked_fill(reader: AtenReader, self, mask, value):
    fill = value if isinstance(value, Tensor) or not isinstance(value, int | float) else torch.tensor(value)
    if isinstance(fill, Tensor):
        fill = fill.to(reader.dtype(self))
    return reader.add(op.Elementwise(name="where"), mask, fill, self)


def _reduction(name: str) -> Rule:
    def rule(reader: AtenReader, self, dim=None, keepdim=False, dtype=None):
        self = convert(reader, self, dtype)
        axes = tuple(reader.axis(self, axis) for axis in (tuple_of(dim, 1) if dim not in (None, []) else ()))
        return reader.add(op.Reduce(name=name, axes=axes, keep=keepdim), self)

    return rule


RULES.update({name: _reduction(name) for name in op.Reduce.NAMES})


@rule("max")
def _max(reader: AtenReader, self, dim=None, keepdim=False, other=None):
    return _extreme(reader, "max", self, dim, keepdim, other)


@rule("min")
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


@rule("linalg_vector_norm", "norm")
def _norm(reader: AtenReader, self, ord=2, p=2, dim=None, keepdim=False, dtype=None):
    if ord != 2 or p != 2:
        return NotImplemented
    squares = reader.add(op.Pointwise(name="square"), convert(reader, self, dtype))
    axes = () if dim in (None, []) else tuple(reader.axis(self, axis) for axis in tuple_of(dim, 1))
    total = reader.add(op.Reduce(name="sum", axes=axes, keep=keepdim), squares)
    return reader.add(op.Pointwise(name="sqrt"), total)


@rule("_weight_norm")
def _weight_norm(reader: AtenReader, v, g, dim=0):
    axes = [axis for axis in range(len(reader.shape(v))) if axis != dim]
    return _mul(reader, v, _div(reader, g, _norm(reader, v, dim=axes, keepdim=True)))


@rule("baddbmm")
def _baddbmm(reader: AtenReader, self, batch1, batch2, beta=1, alpha=1):
    return addmm(reader, self, batch1, batch2, beta, alpha)


@rule("cumsum")
def _cumsum(reader: AtenReader, self, dim, dtype=None):
    return reader.add(op.CumulativeSum(axis=reader.axis(self, dim)), convert(reader, self, dtype))


@rule("diff")
def _diff(reader: AtenReader, self, n=1, dim=-1, prepend=None, append=None):
    if n != 1 or reader.dtype(self) == torch.bool:
        return NotImplemented
    axis = reader.axis(self, dim)
    pieces = [piece for piece in (prepend, self, append) if piece is not None]
    value = self if len(pieces) == 1 else concatenate(reader, pieces, axis)
    if not isinstance(size := reader.shape(value)[axis], int):
        return NotImplemented
    return reader.add(op.Subtract(), *(sliced(reader, value, axis, i, size - 1 + i) for i in (1, 0)))


@rule("arange")
def _arange(reader: AtenReader, end, start=0, dtype=None, **_):
    """0 .. batch - 1: a range as long as the batch is a cumulative sum of ones."""
    if start != 0:
        return NotImplemented
    ones = reader.filled([end], 1, dtype or torch.int64)
    return reader.add(op.Scale(shift=-1), reader.add(op.CumulativeSum(axis=0), ones))


@rule("bitwise_not")
def _bitwise_not(reader: AtenReader, self):
    boolean = reader.dtype(self) == torch.bool
    return reader.add(op.Pointwise(name="logical_not"), self) if boolean else NotImplemented


@rule("copy")
def _copy(reader: AtenReader, self, src, non_blocking=False):
    return expand(reader, convert(reader, src, reader.dtype(self)), list(reader.shape(self)))


@rule("to", "_to_copy", "type_as")
def convert(reader: AtenReader, self, dtype=None, other=None, **_):
    target = reader.dtype(other) if other is not None and not isinstance(other, torch.dtype) else dtype
    if not isinstance(target, torch.dtype) or target == reader.dtype(self):
        return self
    return reader.add(op.Cast(dtype=str(target).removeprefix("torch.")), self)


@rule(
    "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "dropout", "feature_dropout", "alpha_dropout"
)
def _identity(reader: AtenReader, self=None, input=None, p=0.0, train=False, **_):
    return NotImplemented if train and p else (input if self is None else self)
