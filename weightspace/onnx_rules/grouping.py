"""Sorts and reflections of groups of channels, which ONNX writes as reshapes and transposes around plain operators.

Only exact rewritings; the pieces that nothing else uses disappear when the network is built. A Householder activation
keeps its directions as the file has them, of unit length, since exporting folds the normalization.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.aten import Value
from weightspace.network import Node
from weightspace.onnx_reader import OnnxReader
from weightspace.onnx_rules.registry import Rule, registrar
from weightspace.onnx_values import Known

RULES: dict[str, Rule] = {}
_rule = registrar(RULES)

_Grouped = op.GroupSort | op.Householder


@_rule("TopK")
def _top(reader: OnnxReader, x, k=None, *, axis=-1, largest=1, sorted=1):
    """All entries of an axis, smallest first: a sort in one group."""
    axis = reader.axis(x, axis)
    size = reader.shape(x)[axis]
    if largest or not sorted or size is None or not isinstance(k, Known) or reader.integers(k) != (size,):
        return NotImplemented
    return reader.add(op.GroupSort(group_size=size, axis=axis), x)


def ungrouped(reader: OnnxReader, x: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Value | None:
    """Return x, reshaped to `shapes` (at both batch sizes), as operations on the channels split to make it.

    None unless x comes by sorts and reflections of a last axis, and reshapes, from a value that had these shapes.
    """
    if not isinstance(x, Value) or not shapes[0]:
        return None
    chain: list[_Grouped] = []
    value, channels = x, shapes[0][-1]
    while not chain or reader.sizes(value) != shapes:
        found = _grouped(reader, reader.builder.nodes[value.node], channels)
        if found is None:
            return None
        operation, groups = found
        chain.append(operation)
        value = Value(groups.inputs[0] if isinstance(groups.operation, op.Reshape) else groups.name)
    return _applied(reader, [dataclasses.replace(entry, axis=len(shapes[0]) - 1) for entry in chain], value)


def _grouped(reader: OnnxReader, node: Node, channels: int) -> tuple[_Grouped, Node] | None:
    """Return the operation on the last axis that makes a node, one that fits runs of `channels`; and its input."""
    if isinstance(node.operation, op.GroupSort):
        fits = node.operation.axis == len(node.shape) - 1 and channels % node.operation.group_size == 0
        return (node.operation, reader.builder.nodes[node.inputs[0]]) if fits else None
    found = _reflection(reader, node)
    if found is None or reader.builder.parameters[found[0].weight].numel() != channels:
        return None
    return found


def _applied(reader: OnnxReader, chain: list[_Grouped], value: Value) -> Value:
    """Add operations, the last one first, the first one under the name of the result."""
    for operation in reversed(chain[1:]):
        value = reader.step(operation, value)
    return reader.add(chain[0], value)


def _reflection(reader: OnnxReader, node: Node) -> tuple[op.Householder, Node] | None:
    """Match z + (|u'z| - u'z) u over the last axis, u a constant (groups, n) with rows of length one; and z."""
    nodes = reader.builder.nodes
    if not isinstance(node.operation, op.Add):
        return None
    for z, product in (node.inputs, node.inputs[::-1]):
        difference, direction = _factors(reader, product)
        if direction is None or not isinstance(nodes[difference].operation, op.Subtract):
            continue
        magnitude, along = (nodes[name] for name in nodes[difference].inputs)
        if (
            isinstance(magnitude.operation, op.Absolute)
            and magnitude.inputs == (along.name,)
            and along.operation == op.Reduce(name="sum", axes=(len(node.shape) - 1,), keep=True)
            and _factors(reader, along.inputs[0]) == (z, direction)
            and reader.builder.parameters[direction].shape == node.shape[-2:]
            and _has_unit_rows(reader.builder.parameters[direction])
        ):
            return op.Householder(weight=direction), nodes[z]
    return None


def _factors(reader: OnnxReader, name: str) -> tuple[str, str | None]:
    """Return the node and the parameter that a value is the product of; no parameter where it is no such product."""
    nodes = reader.builder.nodes
    if isinstance(nodes[name].operation, op.Multiply):
        first, second = nodes[name].inputs
        for value, factor in ((first, nodes[second].operation), (second, nodes[first].operation)):
            if isinstance(factor, op.Parameter):
                return value, factor.value
    return name, None


def _has_unit_rows(weight: Tensor) -> bool:
    if not weight.is_floating_point():
        return False
    error = (weight.double().norm(dim=-1) - 1).abs()
    return bool((error <= 4 * torch.finfo(weight.dtype).eps).all())


def unpermuted(reader: OnnxReader, x: Any, axes: tuple[int, ...]) -> Value | None:
    """Return the permuted x as operations on the value whose permutation `axes` undoes.

    None unless x comes from that value by sorts and reflections of groups alone.
    """
    chain: list[_Grouped] = []
    if not isinstance(x, Value):
        return None
    node = reader.builder.nodes[x.node]
    while isinstance(node.operation, _Grouped):
        chain.append(node.operation)
        node = reader.builder.nodes[node.inputs[0]]
    if not chain or not isinstance(node.operation, op.Permute):
        return None
    moved = node.operation.axes
    if tuple(moved[axis] for axis in axes) != tuple(range(len(axes))):
        return None
    restored = [dataclasses.replace(operation, axis=moved[operation.axis]) for operation in chain]
    return _applied(reader, restored, Value(node.inputs[0]))
