"""Rules of operators that move entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from weightspace import operations as op
from weightspace.aten_rules.registry import END, is_weight, rule, tuple_of

if TYPE_CHECKING:
    from weightspace.aten import AtenReader


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


@rule("view", "reshape", "_unsafe_view", "view_copy")
def reshape(reader: AtenReader, self, size=None, shape=None, dtype=None):
    size = size if size is not None else shape
    if size is None:
        return NotImplemented
    target = _target(reader, self, size)
    if list(size) == list(reader.shape(self)):
        return self
    return reader.add(op.Reshape(shape=target), self)


@rule("flatten")
def _flatten(reader: AtenReader, self, start_dim=0, end_dim=-1):
    start, end = reader.axis(self, start_dim), reader.axis(self, end_dim)
    return self if start == end else reader.add(op.Flatten(start=start, end=end), self)


@rule("unflatten")
def _unflatten(reader: AtenReader, self, dim, sizes):
    shape, axis = list(reader.shape(self)), reader.axis(self, dim)
    return reader.add(
        op.Reshape(shape=_target(reader, self, [*shape[:axis], *sizes, *shape[axis + 1 :]])), self
    )


def transposed(reader: AtenReader, value: Any, first: int, second: int) -> Any:
    rank = len(reader.shape(value))
    if rank < 2:
        return value
    axes = list(range(rank))
    axes[first], axes[second] = axes[second], axes[first]
    return _permute(reader, value, axes)


@rule("permute")
def _permute(reader: AtenReader, self, dims):
    axes = tuple(reader.axis(self, axis) for axis in dims)
    if axes == tuple(range(len(axes))):
        return self
    if is_weight(self) and len(axes) == 2:
        return type(self)(self.name, not self.transposed)
    return reader.add(op.Permute(axes=axes), self)


@rule("transpose", "swapaxes", "swapdims")
def _transpose_axes(reader: AtenReader, self, **axes):
    first, second = axes.values()  # dim0, dim1 or axis0, axis1
    return transposed(reader, self, first, second)


@rule("t", "numpy_T", "mT")
def _t(reader: AtenReader, self):
    return transposed(reader, self, -2, -1) if len(reader.shape(self)) <= 2 else NotImplemented


@rule("unsqueeze")
def _unsqueeze(reader: AtenReader, self, dim):
    return reader.add(op.Unsqueeze(axis=reader.axis(self, dim, extra=1)), self)


@rule("squeeze")
def _squeeze(reader: AtenReader, self, dim=None):
    if dim is None:
        return NotImplemented
    for axis in sorted((reader.axis(self, axis) for axis in tuple_of(dim, 1)), reverse=True):
        if reader.shape(self)[axis] == 1:
            self = reader.add(op.Squeeze(axis=axis), self)
    return self


@rule("expand")
def expand(reader: AtenReader, self, size, implicit=False):
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


@rule("reshape_as", "view_as")
def _reshape_as(reader: AtenReader, self, other):
    return reshape(reader, self, list(reader.shape(other)))


@rule("expand_as")
def _expand_as(reader: AtenReader, self, other):
    return expand(reader, self, list(reader.shape(other)))


@rule("repeat")
def _repeat(reader: AtenReader, self, repeats):
    from weightspace.aten import Symbol
    from weightspace.builder import BATCHES

    for _ in range(len(repeats) - len(reader.shape(self))):
        self = reader.add(op.Unsqueeze(axis=0), self)
    for axis, count in enumerate(repeats):
        shape = list(reader.shape(self))
        if isinstance(count, int):
            if shape[axis] == 1:
                self = expand(reader, self, [*shape[:axis], count, *shape[axis + 1 :]])
            elif count != 1:
                self = concatenate(reader, [self] * count, axis)
            continue
        per_example = count.sizes[0] // BATCHES[0]  # as many copies as the batch has, times a number
        copies = [Symbol(BATCHES), *([per_example] if per_example > 1 else []), *shape[axis : axis + 1]]
        if shape[axis] == 1:
            copies.pop()
        for _ in copies[1:]:
            self = reader.add(op.Unsqueeze(axis=axis), self)
        self = expand(reader, self, [*shape[:axis], *copies, *shape[axis + 1 :]])
        if len(copies) > 1:
            self = reader.add(op.Flatten(start=axis, end=axis + len(copies) - 1), self)
    return self


@rule("repeat_interleave")
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
    copies = expand(reader, copies, [*shape[: axis + 1], repeats, *shape[axis + 1 :]])
    return reshape(reader, copies, [*shape[:axis], longer, *shape[axis + 1 :]])


@rule("roll")
def _roll(reader: AtenReader, self, shifts, dims=()):
    if not dims:
        return NotImplemented
    axes = tuple(reader.axis(self, axis) for axis in tuple_of(dims, 1))
    return reader.add(op.Roll(shifts=tuple_of(shifts, len(axes)), axes=axes), self)


@rule("flip")
def _flip(reader: AtenReader, self, dims):
    return reader.add(op.Flip(axes=tuple(reader.axis(self, axis) for axis in dims)), self)


@rule("gather")
def _gather(reader: AtenReader, self, dim, index, sparse_grad=False):
    same = len(reader.shape(self)) == len(reader.shape(index)) > 0
    return reader.add(op.TakeAlong(axis=reader.axis(self, dim)), self, index) if same else NotImplemented


@rule("select_scatter")
def _select_scatter(reader: AtenReader, self, src, dim, index):
    axis = reader.axis(self, dim)
    index = index % reader.shape(self)[axis] if index < 0 else index
    piece = reader.add(op.Unsqueeze(axis=axis), src)
    return _slice_scatter(reader, self, piece, axis, index, index + 1)


@rule("slice_scatter")
def _slice_scatter(reader: AtenReader, self, src, dim=0, start=None, end=None, step=1):
    axis = reader.axis(self, dim)
    size = reader.shape(self)[axis]
    start = start or 0
    if start == 0 and step == 1 and (end is None or end == size or (isinstance(end, int) and end >= END)):
        return src
    if not all(isinstance(value, int) for value in (size, start)) or step != 1:
        return NotImplemented
    start, end, _ = slice(start, end).indices(size)
    pieces = [src]
    if start > 0:
        pieces.insert(0, sliced(reader, self, axis, 0, start))
    if end < size:
        pieces.append(sliced(reader, self, axis, end, size))
    return pieces[0] if len(pieces) == 1 else concatenate(reader, pieces, axis)


@rule("slice")
def sliced(reader: AtenReader, self, dim=0, start=None, end=None, step=1):
    from weightspace.aten import NotStaticError, Symbol

    axis = reader.axis(self, dim)
    size = reader.shape(self)[axis]
    stop = None if end is None or end == size or (isinstance(end, int) and end >= END) else end
    if isinstance(start, Symbol) or isinstance(stop, Symbol):
        raise NotStaticError(f"{reader.label}: a slice ends at a size that follows the batch")
    if isinstance(size, int) and stop is not None and stop >= size:
        stop = None
    if (start or 0) == 0 and stop is None and step == 1:
        return self
    return reader.add(op.Slice(axis=axis, start=start or 0, stop=stop, step=step), self)


@rule("select")
def select(reader: AtenReader, self, dim, index):
    made = reader.made_by(self)
    if made is not None and made.operation == op.Stack(axis=reader.axis(self, dim)):
        return type(self)(made.inputs[index])
    return reader.add(op.Select(axis=reader.axis(self, dim), index=index), self)


@rule("narrow")
def _narrow(reader: AtenReader, self, dim, start, length):
    return sliced(reader, self, dim, start, start + length)


def _pieces(reader: AtenReader, value: Any, dim: int, sizes: list[int]) -> list[Any]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(sliced(reader, value, dim, start, start + size))
        start += size
    return pieces


@rule("split_with_sizes", "split")
def _split(reader: AtenReader, self, split_size=None, split_sizes=None, dim=0):
    sizes: Any = split_sizes if split_sizes is not None else split_size
    total = reader.shape(self)[reader.axis(self, dim)]
    if not isinstance(total, int):
        return NotImplemented
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    return _pieces(reader, self, dim, sizes)


@rule("chunk")
def _chunk(reader: AtenReader, self, chunks, dim=0):
    total = reader.shape(self)[reader.axis(self, dim)]
    return _split(reader, self, -(-total // chunks), dim=dim) if isinstance(total, int) else NotImplemented


@rule("unbind")
def _unbind(reader: AtenReader, self, dim=0):
    total = reader.shape(self)[reader.axis(self, dim)]
    if not isinstance(total, int):
        return NotImplemented
    return [select(reader, self, dim, index) for index in range(total)]


@rule("cat", "concat", "concatenate")
def concatenate(reader: AtenReader, tensors, dim=0):
    return reader.add(op.Concat(axis=reader.axis(tensors[0], dim)), *tensors)


@rule("stack")
def stack(reader: AtenReader, tensors, dim=0):
    return reader.add(op.Stack(axis=reader.axis(tensors[0], dim, extra=1)), *tensors)


@rule("pad", "constant_pad_nd")
def _pad(reader: AtenReader, self, pad, mode="constant", value=0.0):
    return reader.add(op.Pad(amounts=tuple(pad), mode=mode, value=float(value or 0.0)), self)


@rule("index_select")
def _index_select(reader: AtenReader, self, dim, index):
    return reader.add(op.Gather(axis=reader.axis(self, dim)), self, index)


@rule("index")
def _index(reader: AtenReader, self, indices):
    used = [axis for axis, index in enumerate(indices) if index is not None]
    if len(used) != 1 or reader.dtype(indices[used[0]]) == torch.bool:
        return NotImplemented
    return reader.add(op.Gather(axis=used[0]), self, indices[used[0]])


@rule("pixel_shuffle")
def _pixel_shuffle(reader: AtenReader, self, upscale_factor):
    return reader.add(op.PixelShuffle(factor=upscale_factor), self)


@rule("pixel_unshuffle")
def _pixel_unshuffle(reader: AtenReader, self, downscale_factor):
    return reader.add(op.PixelUnshuffle(factor=downscale_factor), self)
