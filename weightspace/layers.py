"""Modules that several packages must build and recognize: MaxMin, GroupSort, Householder, Implicit, Bilinear.

The nonlinearities are registered as operators of their own (`torch.ops.weightspace`), so that a traced or
exported network keeps them as one operation instead of a dozen sorts and views.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weightspace.equilibrium import implicit as implicit, require_implicit_activation
from weightspace.errors import ShapeError

_LIBRARY = torch.library.Library("weightspace", "DEF")
_LIBRARY.define("group_sort(Tensor x, int group_size, int axis) -> Tensor")
_LIBRARY.define("householder(Tensor x, Tensor weight, int axis) -> Tensor")


def _split(x: Tensor, groups: int, axis: int) -> tuple[Tensor, int]:
    """Bring the channels to the end and split them into (groups, n); also the axis they came from."""
    # Counted from the front, since the older ONNX exporter writes negative axes of movedim down wrongly. The last axis
    # is moved too: it keeps exporters from merging the reshapes of neighboring layers, which readers then recognize.
    axis %= x.ndim
    return x.movedim(axis, x.ndim - 1).unflatten(x.ndim - 1, (groups, x.shape[axis] // groups)), axis


def _join(groups: Tensor, axis: int) -> Tensor:
    """Undo `_split`."""
    last = groups.ndim - 2
    return groups.flatten(last).movedim(last, axis)


def _group_sort(x: Tensor, group_size: int, axis: int) -> Tensor:
    groups, axis = _split(x, x.shape[axis] // group_size, axis)
    return _join(groups.sort(-1).values, axis)


def _householder(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    direction = weight / weight.norm(dim=-1, keepdim=True)
    groups, axis = _split(x, weight.shape[0], axis)
    along = (groups * direction).sum(-1, keepdim=True)
    return _join(groups + (along.abs() - along) * direction, axis)


def _is_torchscript() -> bool:
    """Whether `torch.jit.trace`, and with it the older ONNX exporter, is looking: it knows plain operators only."""
    return torch._C._get_tracing_state() is not None


_LIBRARY.impl("group_sort", _group_sort, "CompositeImplicitAutograd")
_LIBRARY.impl("householder", _householder, "CompositeImplicitAutograd")


def group_sort(x: Tensor, group_size: int = 2, axis: int = 1) -> Tensor:
    """Sort each run of `group_size` consecutive channels ascending.

    Args:
        x: any shape; `axis` holds the channels, a multiple of `group_size`.
    Raises:
        ShapeError: the channels do not divide into groups.
    Source: Anil, Lucas, Grosse, Sorting out Lipschitz function approximation (2019), section 4.

    Examples:
        >>> import torch
        >>> from weightspace.layers import group_sort
        >>> group_sort(torch.tensor([[3.0, 1.0, 2.0, 5.0]]), 2)
        tensor([[1., 3., 2., 5.]])
    """
    if x.shape[axis] % group_size:
        raise ShapeError(
            f"group_sort needs channels divisible by group_size={group_size}; got {x.shape[axis]}"
        )
    if _is_torchscript():
        return _group_sort(x, group_size, axis)
    return torch.ops.weightspace.group_sort(x, group_size, axis)


def householder(x: Tensor, weight: Tensor, axis: int = 1) -> Tensor:
    r"""Reflect each group z of channels onto the side of its direction w, $z + (|u'z| - u'z)\,u$, $u = w/|w|$.

    Args:
        x: any shape; `axis` holds groups x n channels.
        weight: w, shape (groups, n), any nonzero length.
    Raises:
        ShapeError: the channels are not groups x n.
    Source: Singla, Singla, Feizi, Improved deterministic l2 robustness (2022), Householder activations.

    Examples:
        >>> import torch
        >>> from weightspace.layers import householder
        >>> householder(torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[1., 2.]])
    """
    if x.shape[axis] != weight.numel():
        raise ShapeError(
            f"householder needs {weight.numel()} channels for weight {tuple(weight.shape)}; got {x.shape[axis]}"
        )
    if _is_torchscript():
        return _householder(x, weight, axis)
    return torch.ops.weightspace.householder(x, weight, axis)


class GroupSort(nn.Module):
    """Sort runs of `group_size` channels along `axis`; see `group_sort`.

    Examples:
        >>> import torch
        >>> from weightspace.layers import GroupSort
        >>> GroupSort(4)(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
        tensor([[1., 2., 3., 5.]])
    """

    def __init__(self, group_size: int, axis: int = 1):
        super().__init__()
        self.group_size, self.axis = group_size, axis

    def forward(self, x: Tensor) -> Tensor:
        return group_sort(x, self.group_size, self.axis)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, axis={self.axis}"


class MaxMin(GroupSort):
    """Order pairs of neighboring channels, smaller first: GroupSort with groups of two.

    Examples:
        >>> import torch
        >>> from weightspace.layers import MaxMin
        >>> MaxMin()(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
        tensor([[1., 3., 2., 5.]])
    """

    def __init__(self, axis: int = 1):
        super().__init__(2, axis)


class Householder(nn.Module):
    """Learned reflections of groups of channels; see `householder`.

    Args:
        channels: total number along `axis`; a multiple of `group_size`.

    Examples:
        >>> import torch
        >>> from weightspace.layers import Householder
        >>> x = torch.tensor([[3.0, 1.0, 2.0, 5.0]])
        >>> torch.allclose(Householder(4)(x).norm(), x.norm())  # reflections keep lengths
        True
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


class Implicit(nn.Module):
    r"""Implicit (deep equilibrium) layer, $z = \varphi(W z + U x + b)$; see `implicit`.

    `weight` is W (features, features), drawn with spectral norm 1/2, `input_weight` U (features, in_features),
    `bias` b (features,) or None. Training may leave the well-posed weights; the forward pass then raises.

    Args:
        activation: "ReLU", "LeakyReLU", "Tanh", "Sigmoid" or "Absolute"; `negative_slope` is LeakyReLU's.

    Examples:
        >>> import torch
        >>> from weightspace.layers import Implicit
        >>> layer, x = Implicit(3, 5).double(), torch.ones(2, 3, dtype=torch.float64)
        >>> z = layer(x)
        >>> y = torch.relu(z @ layer.weight.T + x @ layer.input_weight.T + layer.bias)
        >>> torch.allclose(y, z, atol=1e-6)
        True
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        activation: str = "ReLU",
        negative_slope: float = 0.01,
        *,
        bias: bool = True,
    ):
        super().__init__()
        require_implicit_activation(activation)
        self.activation, self.negative_slope = activation, negative_slope
        weight = torch.randn(features, features)
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(weight / (2 * torch.linalg.matrix_norm(weight, 2)))
        self.input_weight = nn.Parameter(torch.empty(features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(features).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return implicit(
            x, self.weight, self.input_weight, self.bias,
            activation=self.activation, negative_slope=self.negative_slope,
        )  # fmt: skip

    def extra_repr(self) -> str:
        features, in_features = self.input_weight.shape
        slope = f", negative_slope={self.negative_slope}" if self.activation == "LeakyReLU" else ""
        return f"{in_features}, {features}, activation={self.activation!r}{slope}"


class Bilinear(nn.Module):
    r"""Bilinear layer $y = P[(Wx + b) \odot (Vx + c)] + a$.

    `left` is (W, b), `right` is (V, c), both hidden x in; `output` is (P, a), out x hidden.
    `bias` False leaves out a, b and c.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
    interpretability (2024), section 2.

    Examples:
        >>> import torch
        >>> from weightspace.layers import Bilinear
        >>> layer, x = Bilinear(3, 4, 2), torch.ones(1, 3)
        >>> torch.allclose(layer(x), layer.output(layer.left(x) * layer.right(x)))
        True
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

    Examples:
        >>> import torch
        >>> from weightspace.layers import BilinearMLP
        >>> BilinearMLP(64, 16, 10, layers=3, residual=True)(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
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
