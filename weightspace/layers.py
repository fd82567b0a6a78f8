"""Modules that several packages must build and recognize: MaxMin, GroupSort, Householder, Bilinear.

The nonlinearities are registered as operators of their own (`torch.ops.weightspace`), so that a traced or
exported network keeps them as one operation instead of a dozen sorts and views.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError

_LIBRARY = torch.library.Library("weightspace", "DEF")
_LIBRARY.define("group_sort(Tensor x, int group_size, int axis) -> Tensor")
_LIBRARY.define("householder(Tensor x, Tensor weight, int axis) -> Tensor")


def _group_sort(x: Tensor, group_size: int, axis: int) -> Tensor:
    groups = x.movedim(axis, -1).unflatten(-1, (-1, group_size))
    return groups.sort(-1).values.flatten(-2).movedim(-1, axis)


def _householder(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    direction = weight / weight.norm(dim=-1, keepdim=True)
    groups = x.movedim(axis, -1).unflatten(-1, tuple(weight.shape))
    along = (groups * direction).sum(-1, keepdim=True)
    return (groups + (along.abs() - along) * direction).flatten(-2).movedim(-1, axis)


_LIBRARY.impl("group_sort", _group_sort, "CompositeImplicitAutograd")
_LIBRARY.impl("householder", _householder, "CompositeImplicitAutograd")


def group_sort(x: Tensor, group_size: int = 2, axis: int = 1) -> Tensor:
    """Sort each run of `group_size` consecutive channels ascending.

    Args:
        x: any shape; `axis` holds the channels, a multiple of `group_size`.
    Raises:
        ShapeError: the channels do not divide into groups.
    Source: Anil, Lucas, Grosse, Sorting out Lipschitz function approximation (2019), section 4.
    """
    if x.shape[axis] % group_size:
        raise ShapeError(
            f"group_sort needs channels divisible by group_size={group_size}; got {x.shape[axis]}"
        )
    return torch.ops.weightspace.group_sort(x, group_size, axis)


def householder(x: Tensor, weight: Tensor, axis: int = 1) -> Tensor:
    r"""Reflect each group z of channels onto the side of its direction w, $z + (|u'z| - u'z)\,u$, $u = w/|w|$.

    Args:
        x: any shape; `axis` holds groups x n channels.
        weight: w, shape (groups, n), any nonzero length.
    Raises:
        ShapeError: the channels are not groups x n.
    Source: Singla, Singla, Feizi, Improved deterministic l2 robustness (2022), Householder activations.
    """
    if x.shape[axis] != weight.numel():
        raise ShapeError(
            f"householder needs {weight.numel()} channels for weight {tuple(weight.shape)}; got {x.shape[axis]}"
        )
    return torch.ops.weightspace.householder(x, weight, axis)


class GroupSort(nn.Module):
    """Sort runs of `group_size` channels along `axis`; see `group_sort`."""

    def __init__(self, group_size: int, axis: int = 1):
        super().__init__()
        self.group_size, self.axis = group_size, axis

    def forward(self, x: Tensor) -> Tensor:
        return group_sort(x, self.group_size, self.axis)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, axis={self.axis}"


class MaxMin(GroupSort):
    """Order pairs of neighboring channels, smaller first: GroupSort with groups of two."""

    def __init__(self, axis: int = 1):
        super().__init__(2, axis)


class Householder(nn.Module):
    """Learned reflections of groups of channels; see `householder`.

    Args:
        channels: total number along `axis`; a multiple of `group_size`.
    """

    def __init__(self, channels: int, group_size: int = 2, axis: int = 1):
        super().__init__()
        if channels % group_size:
            raise ShapeError(
                f"Householder needs channels divisible by group_size={group_size}; got {channels}"
            )
        self.axis = axis
        self.weight = nn.Parameter(torch.randn(channels // group_size, group_size))

    def forward(self, x: Tensor) -> Tensor:
        return householder(x, self.weight, self.axis)


class Bilinear(nn.Module):
    r"""Bilinear layer $y = P[(Wx + b) \odot (Vx + c)] + a$.

    `left` is (W, b), `right` is (V, c), both hidden x in; `output` is (P, a), out x hidden.
    `bias` False leaves out a, b and c.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
    interpretability (2024), section 2.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, bias: bool = False):
        super().__init__()
        self.left = nn.Linear(in_features, hidden, bias)
        self.right = nn.Linear(in_features, hidden, bias)
        self.output = nn.Linear(hidden, out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.left(x) * self.right(x))


class BilinearMLP(nn.Module):
    """Embedding, bilinear layers with residual connections, head; see `Bilinear`.

    Args:
        residual: add each layer's input to its output (needs all layers `width` wide).
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int,
        *,
        layers: int = 1,
        hidden: int | None = None,
        residual: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        self.residual = residual
        self.embedding = nn.Linear(in_features, width, bias)
        stack = [Bilinear(width, hidden or width, width, bias) for _ in range(layers)]
        self.layers = nn.ModuleList(stack)
        self.head = nn.Linear(width, out_features, bias)
        with torch.no_grad():
            for layer in stack:  # a product of two unit-scale features keeps unit scale
                layer.output.weight.mul_(math.sqrt(3.0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        for layer in self.layers:
            h = h + layer(h) if self.residual else layer(h)
        return self.head(h)
