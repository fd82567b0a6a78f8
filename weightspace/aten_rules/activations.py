"""Rules of activations, softmax and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from weightspace import operations as op
from weightspace.aten_rules.arithmetic import convert
from weightspace.aten_rules.registry import RULES, Rule, is_weight, rule, weights

if TYPE_CHECKING:
    from weightspace.aten import AtenReader


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


@rule("leaky_relu")
def _leaky_relu(reader: AtenReader, self, negative_slope=0.01):
    return reader.add(op.LeakyReLU(negative_slope=float(negative_slope)), self)


@rule("prelu")
def _prelu(reader: AtenReader, self, weight):
    return reader.add(op.PReLU(weight=weight.name), self) if is_weight(weight) else NotImplemented


@rule("gelu")
def _gelu(reader: AtenReader, self, approximate="none"):
    return reader.add(op.GELU(approximate=approximate), self)


@rule("elu")
def _elu(reader: AtenReader, self, alpha=1.0, scale=1.0, input_scale=1.0):
    return reader.add(op.ELU(alpha=float(alpha), scale=float(scale), input_scale=float(input_scale)), self)


@rule("celu")
def _celu(reader: AtenReader, self, alpha=1.0):
    return reader.add(op.ELU(alpha=float(alpha), input_scale=1.0 / float(alpha)), self)


@rule("softplus")
def _softplus(reader: AtenReader, self, beta=1.0, threshold=20.0):
    return reader.add(op.Softplus(beta=float(beta), threshold=float(threshold)), self)


@rule("hardtanh")
def _hardtanh(reader: AtenReader, self, min_val=-1.0, max_val=1.0):
    return reader.add(op.Clip(lower=float(min_val), upper=float(max_val)), self)


@rule("clamp", "clamp_min", "clamp_max", "clip")
def _clamp(reader: AtenReader, self, min=None, max=None):
    if not all(bound is None or isinstance(bound, int | float) for bound in (min, max)):
        return NotImplemented
    return reader.add(op.Clip(lower=min, upper=max), self)


@rule("group_sort")
def _group_sort(reader: AtenReader, x, group_size, axis):
    return reader.add(op.GroupSort(group_size=group_size, axis=reader.axis(x, axis)), x)


@rule("householder")
def _householder(reader: AtenReader, x, weight, axis):
    if not is_weight(weight):
        return NotImplemented
    return reader.add(op.Householder(weight=weight.name, axis=reader.axis(x, axis)), x)


@rule("implicit")
def _implicit(reader: AtenReader, x, weight, input_weight, bias, activation, negative_slope):
    names = weights(reader, weight=weight, input_weight=input_weight, bias=bias)
    if names is None:
        return NotImplemented
    return reader.add(op.Implicit(activation=activation, negative_slope=float(negative_slope), **names), x)


def _softmax_rule(logarithm: bool) -> Rule:
    def rule(reader: AtenReader, self, dim, dtype=None, half_to_float=False):
        value = convert(reader, self, torch.float32 if half_to_float else dtype)
        return reader.add(op.Softmax(axis=reader.axis(self, dim), logarithm=logarithm), value)

    return rule


RULES |= dict.fromkeys(("softmax", "_softmax"), _softmax_rule(False))
RULES |= dict.fromkeys(("log_softmax", "_log_softmax"), _softmax_rule(True))


@rule("scaled_dot_product_attention")
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
