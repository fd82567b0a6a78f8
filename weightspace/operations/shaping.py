"""Operations that move elements without changing them. Axes are counted from the front; -1 in a shape is inferred."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from weightspace.operations.base import Operation


@dataclass(frozen=True, kw_only=True)
class Reshape(Operation):
    """New shape in row-major order; at most one -1."""

    shape: tuple[int, ...]

    def evaluate(self, inputs, weights):
        return inputs[0].reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class Flatten(Operation):
    """Merge the axes `start` .. `end` (inclusive) into one."""

    start: int = 1
    end: int = -1

    def evaluate(self, inputs, weights):
        return inputs[0].flatten(self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class Permute(Operation):
    """Output axis i is input axis `axes[i]`."""

    axes: tuple[int, ...]

    def evaluate(self, inputs, weights):
        return inputs[0].permute(self.axes)


@dataclass(frozen=True, kw_only=True)
class Unsqueeze(Operation):
    """Insert an axis of size 1."""

    axis: int

    def evaluate(self, inputs, weights):
        return inputs[0].unsqueeze(self.axis)


@dataclass(frozen=True, kw_only=True)
class Squeeze(Operation):
    """Remove an axis of size 1."""

    axis: int

    def evaluate(self, inputs, weights):
        return inputs[0].squeeze(self.axis)


@dataclass(frozen=True, kw_only=True)
class Expand(Operation):
    """Broadcast to `shape`; -1 keeps an axis. With a second input, its axis 0 gives the size of `batch_axis`."""

    shape: tuple[int, ...]
    batch_axis: int | None = None

    def evaluate(self, inputs, weights):
        shape = list(self.shape)
        if self.batch_axis is not None:
            shape[self.batch_axis] = inputs[1].shape[0]
        return inputs[0].expand(shape)


@dataclass(frozen=True, kw_only=True)
class Slice(Operation):
    """Elements start, start + step, ... before stop along one axis; stop None is the end."""

    axis: int
    start: int = 0
    stop: int | None = None
    step: int = 1

    def evaluate(self, inputs, weights):
        x = inputs[0]
        return x[(slice(None),) * (self.axis % x.ndim) + (slice(self.start, self.stop, self.step),)]


@dataclass(frozen=True, kw_only=True)
class Select(Operation):
    """One index along one axis, which disappears."""

    axis: int
    index: int

    def evaluate(self, inputs, weights):
        return inputs[0].select(self.axis, self.index)


@dataclass(frozen=True, kw_only=True)
class Concat(Operation):
    """Join values along one axis."""

    axis: int

    def evaluate(self, inputs, weights):
        return torch.cat(inputs, self.axis)


@dataclass(frozen=True, kw_only=True)
class Stack(Operation):
    """Join values along a new axis."""

    axis: int

    def evaluate(self, inputs, weights):
        return torch.stack(inputs, self.axis)


@dataclass(frozen=True, kw_only=True)
class Pad(Operation):
    """Pad trailing axes, last axis first, as torch.nn.functional.pad counts them."""

    amounts: tuple[int, ...]
    mode: str = "constant"
    value: float = 0.0

    def evaluate(self, inputs, weights):
        if self.mode == "constant":
            return F.pad(inputs[0], self.amounts, self.mode, self.value)
        return F.pad(inputs[0], self.amounts, self.mode)


@dataclass(frozen=True, kw_only=True)
class Gather(Operation):
    """Take the entries of `inputs[0]` along one axis at the integer positions `inputs[1]` (any shape)."""

    axis: int

    def evaluate(self, inputs, weights):
        x, index = inputs
        axis = self.axis % x.ndim
        index = torch.where(index < 0, index + x.shape[axis], index)
        shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
        return x.index_select(axis, index.reshape(-1)).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class PixelShuffle(Operation):
    """(..., channels * r * r, height, width) -> (..., channels, height * r, width * r), r = `factor`."""

    factor: int

    def evaluate(self, inputs, weights):
        return F.pixel_shuffle(inputs[0], self.factor)


@dataclass(frozen=True, kw_only=True)
class PixelUnshuffle(Operation):
    """(..., channels, height * r, width * r) -> (..., channels * r * r, height, width), r = `factor`."""

    factor: int

    def evaluate(self, inputs, weights):
        return F.pixel_unshuffle(inputs[0], self.factor)


@dataclass(frozen=True, kw_only=True)
class TakeAlong(Operation):
    """out[..., i, ...] = x[..., index[..., i, ...], ...] along one axis; inputs x and index, of the same rank."""

    axis: int

    def evaluate(self, inputs, weights):
        return torch.gather(inputs[0], self.axis, inputs[1])


@dataclass(frozen=True, kw_only=True)
class Roll(Operation):
    """Move elements cyclically by `shifts` along `axes`."""

    shifts: tuple[int, ...]
    axes: tuple[int, ...]

    def evaluate(self, inputs, weights):
        return torch.roll(inputs[0], self.shifts, self.axes)


@dataclass(frozen=True, kw_only=True)
class Flip(Operation):
    """Reverse the order of elements along `axes`."""

    axes: tuple[int, ...]

    def evaluate(self, inputs, weights):
        return torch.flip(inputs[0], self.axes)
