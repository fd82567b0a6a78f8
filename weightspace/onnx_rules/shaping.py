"""Operations that move elements, and the arithmetic on shapes that drives them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from weightspace import operations as op
from weightspace.aten import NotStaticError
from weightspace.errors import ArchitectureError
from weightspace.onnx_reader import OnnxReader
from weightspace.onnx_rules.grouping import ungrouped, unpermuted
from weightspace.onnx_rules.registry import Rule, registrar
from weightspace.onnx_values import Known, Sizes

RULES: dict[str, Rule] = {}
_rule = registrar(RULES)


def _measured(reader: OnnxReader, first: Any, second: Any) -> Any:
    a, b = np.asarray(first, np.int64), np.asarray(second, np.int64)
    return Known(a, reader.label) if np.array_equal(a, b) else Sizes((a, b))


@_rule("Shape")
def _shape(reader: OnnxReader, x, *, start=0, end=None):
    first, second = reader.sizes(x)
    return _measured(reader, first[start:end], second[start:end])


@_rule("Size")
def _size(reader: OnnxReader, x):
    first, second = reader.sizes(x)
    return _measured(reader, math.prod(first), math.prod(second))


@_rule("Identity")
def _identity(reader: OnnxReader, x):
    return x


@_rule("Dropout")
def _dropout(reader: OnnxReader, x, ratio=None, training_mode=None, *, seed=None, is_test=1, **_):
    return x


@_rule("ConstantOfShape")
def _constant_of_shape(reader: OnnxReader, shape, *, value=None):
    first, second = reader.pairs(shape)
    fill = np.zeros(1, np.float32) if value is None else _array(value)
    scalar = Known(fill.reshape((1,) * len(first)), f"{reader.label}.value")
    return reader.expand(scalar, first, second)


def _array(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _resolved(own: tuple[int, ...], wanted: tuple[int, ...], allowzero: int) -> tuple[int, ...]:
    """Return the sizes a Reshape asks for, its 0 (copied) and -1 (inferred) worked out."""
    sizes = [own[axis] if n == 0 and not allowzero else n for axis, n in enumerate(wanted)]
    if -1 in sizes:
        rest = -math.prod(sizes)
        if sizes.count(-1) > 1 or (rest and math.prod(own) % rest):
            raise ArchitectureError(f"an input of shape {own} cannot take the shape {wanted}")
        sizes[sizes.index(-1)] = math.prod(own) // rest if rest else 0
    return tuple(sizes)


@_rule("Reshape")
def _reshape(reader: OnnxReader, x, target=None, *, shape=None, allowzero=0):
    own = reader.sizes(x)
    wanted = reader.pairs(shape if target is None else target)
    first, second = (_resolved(have, want, allowzero) for have, want in zip(own, wanted, strict=True))
    return _reshaped(reader, x, first, second)


def _reshaped(reader: OnnxReader, x: Any, first: tuple[int, ...], second: tuple[int, ...]) -> Any:
    own = reader.sizes(x)
    if (first, second) == own:
        return x
    fused = ungrouped(reader, x, (first, second))
    if fused is not None:
        return fused
    if len(first) == 2 < len(own[0]) and (first[0], second[0]) == (own[0][0], own[1][0]):
        return reader.add(op.Flatten(start=1), x)
    target = tuple(a if a == b else -1 for a, b in zip(first, second, strict=True))
    if target.count(-1) > 1:
        raise NotStaticError(f"{reader.label}: a reshape to {first} has two axes that follow the batch")
    return reader.add(op.Reshape(shape=target), x)


@_rule("Flatten")
def _flatten(reader: OnnxReader, x, *, axis=1):
    rank = len(reader.shape(x))
    axis = axis + rank if axis < 0 else axis
    first, second = ((math.prod(sizes[:axis]), math.prod(sizes[axis:])) for sizes in reader.sizes(x))
    return _reshaped(reader, x, first, second)


@_rule("Transpose")
def _transpose(reader: OnnxReader, x, *, perm=None):
    rank = len(reader.shape(x))
    axes = tuple(perm) if perm else tuple(reversed(range(rank)))
    if axes == tuple(range(rank)):
        return x
    fused = unpermuted(reader, x, axes)
    return reader.add(op.Permute(axes=axes), x) if fused is None else fused


@_rule("Squeeze")
def _squeeze(reader: OnnxReader, x, listed=None, *, axes=None):
    shape = reader.shape(x)
    listed = axes if listed is None else listed
    if listed is None:
        chosen = [axis for axis, size in enumerate(shape) if size == 1]
    else:
        chosen = sorted(reader.axis(x, axis) for axis in reader.integers(listed))
    for position, axis in enumerate(reversed(chosen)):
        if shape[axis] != 1:
            raise NotStaticError(
                f"{reader.label}: axis {axis} has size {shape[axis] or 'batch'} and cannot be squeezed"
            )
        x = (reader.add if position == len(chosen) - 1 else reader.step)(op.Squeeze(axis=axis), x)
    return x


@_rule("Unsqueeze")
def _unsqueeze(reader: OnnxReader, x, listed=None, *, axes=None):
    numbers = reader.integers(axes if listed is None else listed)
    chosen = sorted(reader.axis(x, axis, extra=len(numbers)) for axis in numbers)
    for axis in chosen[:-1]:
        x = reader.step(op.Unsqueeze(axis=axis), x)
    return reader.add(op.Unsqueeze(axis=chosen[-1]), x) if chosen else x


@_rule("Concat")
def _concat(reader: OnnxReader, *parts, axis=1):
    return parts[0] if len(parts) == 1 else reader.add(op.Concat(axis=reader.axis(parts[0], axis)), *parts)


@_rule("Split")
def _split(reader: OnnxReader, x, sizes=None, *, axis=0, split=None, num_outputs=None):
    axis = reader.axis(x, axis)
    total = reader.static(x, axis)
    outputs = reader.call.outputs
    if sizes is not None or split is not None:
        lengths = reader.integers(split if sizes is None else sizes)
    else:
        step = -(-total // len(outputs))
        lengths = [min(step, total - step * index) for index in range(len(outputs))]
    if sum(lengths) != total or len(lengths) != len(outputs):
        raise ArchitectureError(
            f"{total} entries cannot be split into {len(outputs)} parts of {list(lengths)}"
        )
    pieces, start = [], 0
    for name, length in zip(outputs, lengths, strict=True):
        reader.label = name or reader.label
        pieces.append(_sliced(reader, reader.add, x, axis, start, start + length, 1))
        start += length
    return pieces


def _sliced(reader: OnnxReader, add: Any, x: Any, axis: int, start: Any, stop: Any, step: int) -> Any:
    """Slice one axis; `start` and `stop` may be pairs that follow the batch."""
    sizes = [shape[axis] for shape in reader.sizes(x)]
    starts, stops = (list(n) if isinstance(n, tuple) else [n, n] for n in (start, stop))
    ranges = [range(*slice(a, b, step).indices(n)) for a, b, n in zip(starts, stops, sizes, strict=True)]
    if all(found == range(n) for found, n in zip(ranges, sizes, strict=True)):
        return x
    if sizes[0] == sizes[1] and ranges[0] == ranges[1]:
        found = ranges[0]
        if step > 0:
            end = None if found.stop >= sizes[0] else found.stop
            return add(op.Slice(axis=axis, start=found.start, stop=end, step=step), x)
        return add(op.Gather(axis=axis), x, Known(np.array(found, np.int64), f"{reader.label}.positions"))
    if step < 0 or starts[0] != starts[1]:
        raise NotStaticError(
            f"{reader.label}: a slice of the batch axis starts at a size that follows the batch"
        )
    open_end = all(found.stop == n for found, n in zip(ranges, sizes, strict=True))
    if not open_end and stops[0] != stops[1]:
        raise NotStaticError(f"{reader.label}: a slice ends at a size that follows the batch")
    return add(op.Slice(axis=axis, start=starts[0], stop=None if open_end else stops[0], step=step), x)


@_rule("Slice")
def _slice(
    reader: OnnxReader,
    x,
    first=None,
    last=None,
    listed=None,
    strides=None,
    *,
    starts=None,
    ends=None,
    axes=None,
):
    begins, stops = (reader.pairs(a if b is None else b) for a, b in ((starts, first), (ends, last)))
    listed = axes if listed is None else listed
    chosen = range(len(begins[0])) if listed is None else reader.integers(listed)
    steps = [1] * len(begins[0]) if strides is None else reader.integers(strides)
    for position, axis in enumerate(chosen):
        add = reader.add if position == len(begins[0]) - 1 else reader.step
        start, stop = ((pair[0][position], pair[1][position]) for pair in (begins, stops))
        x = _sliced(reader, add, x, reader.axis(x, axis), start, stop, steps[position])
    return x


@_rule("Expand")
def _expand(reader: OnnxReader, x, shape):
    return reader.expand(x, *reader.pairs(shape))


@_rule("Tile")
def _tile(reader: OnnxReader, x, repeats):
    if isinstance(repeats, Sizes):
        shapes = reader.sizes(x)
        if all(
            n == 1 or k == 1
            for own, ks in zip(shapes, reader.pairs(repeats), strict=True)
            for n, k in zip(own, ks, strict=False)
        ):
            return reader.expand(x, *reader.pairs(repeats))
    counts = reader.integers(repeats)
    if max(counts, default=1) > 64:
        return NotImplemented
    for axis, count in enumerate(counts):
        if count != 1:
            x = reader.add(op.Concat(axis=axis), *[x] * count)
    return x


_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@_rule("Pad")
def _pad(
    reader: OnnxReader, x, amounts=None, fill=None, listed=None, *, mode="constant", pads=None, value=0.0
):
    numbers = reader.integers(pads if amounts is None else amounts)
    rank = len(reader.shape(x))
    axes = [reader.axis(x, axis) for axis in (range(rank) if listed is None else reader.integers(listed))]
    if len(numbers) != 2 * len(axes):
        raise ArchitectureError(f"{len(numbers)} amounts were given for {len(axes)} axes")
    sides = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        sides[axis] = (numbers[position], numbers[position + len(axes)])
    while sides and sides[0] == (0, 0):
        sides = sides[1:]
    if not sides:
        return x
    number = value if fill is None else reader.scalar(fill)
    if number is None or mode not in _MODES:
        return NotImplemented
    if mode != "constant" and (len(sides) > rank - 1 or len(sides) > 3):
        return NotImplemented
    amounts = tuple(amount for side in reversed(sides) for amount in side)
    return reader.add(op.Pad(amounts=amounts, mode=_MODES[mode], value=float(number)), x)
