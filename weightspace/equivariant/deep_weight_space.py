"""`DeepWeightSpaceNet`: a network that reads networks, layer by layer equivariant to the order of their neurons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.equivariant.linear import (
    DEFAULT_FIXED_AXES,
    EquivariantLinear,
    EquivariantSetLayer,
    FixedAxes,
    InvariantLinear,
)
from weightspace.equivariant.pooling import Max, Mean, Pooling
from weightspace.errors import ArchitectureError, ShapeError
from weightspace.symmetry_spec import SymmetrySpec


class DeepWeightSpaceNet(nn.Module):
    r"""Equivariant layers with nonlinearities between them, and an invariant or an equivariant head.

    $\theta \mapsto h \circ \sigma \circ N_k \circ L_k \cdots \sigma \circ N_1 \circ L_1(\theta)$, with layers
    $L_i$ that commute with the permutations of hidden units (`EquivariantLinear`), a normalization $N_i$ of the
    channels and, where widths agree, residual connections around $\sigma N_i L_i$. The invariant head is a
    perceptron on the averages and the maxima over everything that moves.

    Args:
        spec: of the networks that are read.
        out_features: numbers per network, results (batch, out_features); None for the equivariant head, results
            name -> (batch, out_channels, *shape).
        channels: width of every equivariant layer.
        in_channels: c of the input; inputs without a channel axis, name -> (batch, *shape), have one channel.
        out_channels: of the equivariant head.
        pooling: `Mean()` for linear layers, or `Max()`, `Sum()`, `Attention()`.
        normalization: "batch" (over networks and entries, by parameter and channel), "channel" (over the channels of
            each entry) or None.
        head_width: hidden units of the invariant head.
        fixed: as for `EquivariantLinear`.
    Raises:
        ShapeError: no channels; in a call, parameters are missing or have another shape.
        ArchitectureError: an unknown normalization.
    Source: Navon et al., Equivariant architectures for learning in deep weight spaces (2023), section 5; Zhou et al.,
        Permutation equivariant neural functionals (2023), for the heads.

    Examples:
        >>> import torch, weightspace
        >>> from weightspace.equivariant import DeepWeightSpaceNet
        >>> module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec = weightspace.symmetry(module)
        >>> weights = {name: torch.randn(5, *shape) for name, shape in spec.shapes.items()}
        >>> DeepWeightSpaceNet(spec, 10, channels=(8, 8))(weights).shape  # five networks, ten classes
        torch.Size([5, 10])
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        out_features: int | None = None,
        *,
        channels: Sequence[int] = (32, 32, 32),
        in_channels: int = 1,
        out_channels: int = 1,
        activation: Callable[[Tensor], Tensor] = F.relu,
        pooling: Pooling = Mean(),  # noqa: B008  an immutable value
        normalization: str | None = "batch",
        residual: bool = True,
        dropout: float = 0.0,
        head_width: int = 128,
        fixed: FixedAxes = DEFAULT_FIXED_AXES,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        super().__init__()
        if not channels:
            raise ShapeError("a DeepWeightSpaceNet needs at least one layer; channels is empty")
        self.spec, self.in_channels, self.residual = spec, in_channels, residual
        self.activation = activation
        widths = [in_channels, *channels]

        def layer(inner: int, outer: int) -> nn.Module:
            if isinstance(pooling, Mean):
                return EquivariantLinear(spec, inner, outer, fixed=fixed)
            return EquivariantSetLayer(spec, inner, outer, pooling=pooling, fixed=fixed)

        self.layers = nn.ModuleList(layer(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(_normalization(normalization, spec, width) for width in channels)
        self.dropout = nn.Dropout(dropout)
        self.head: nn.Module
        if out_features is None:
            self.head = EquivariantLinear(spec, widths[-1], out_channels, fixed=fixed)
        else:
            self.head = InvariantHead(spec, widths[-1], out_features, head_width, dropout, fixed)
        self.to(dtype=dtype, device=device)

    def forward(self, parameters: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        x = {
            name: self._with_channels(parameters, name, len(shape))
            for name, shape in self.spec.shapes.items()
        }
        for layer, norm in zip(self.layers, self.norms, strict=True):
            y = norm(layer(x))
            y = {name: self.dropout(self.activation(value)) for name, value in y.items()}
            same = self.residual and layer.in_channels == layer.out_channels
            x = {name: x[name] + value for name, value in y.items()} if same else y
        return self.head(x)

    def _with_channels(self, parameters: Mapping[str, Tensor], name: str, rank: int) -> Tensor:
        if name not in parameters:
            raise ShapeError(f"the network reads parameter {name!r}, which is not among those given")
        x = parameters[name]
        return x.unsqueeze(1) if self.in_channels == 1 and x.ndim == rank + 1 else x


class InvariantHead(nn.Module):
    """A perceptron on the averages and maxima over everything that moves; results (batch, out_features)."""

    def __init__(
        self,
        spec: SymmetrySpec,
        channels: int,
        out_features: int,
        width: int,
        dropout: float = 0.0,
        fixed: FixedAxes = DEFAULT_FIXED_AXES,
    ):
        super().__init__()
        self.mean = InvariantLinear(spec, channels, width, fixed=fixed)
        self.max = InvariantLinear(spec, channels, width, fixed=fixed, pooling=Max())
        self.perceptron = nn.Sequential(
            nn.LayerNorm(2 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.ReLU(),
            nn.Linear(width, out_features),
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.perceptron(torch.cat([self.mean(features), self.max(features)], -1))


def _normalization(kind: str | None, spec: SymmetrySpec, channels: int) -> nn.Module:
    match kind:
        case "batch":
            return BatchNormalization(spec, channels)
        case "channel":
            return ChannelNormalization(channels)
        case None:
            return nn.Identity()
    raise ArchitectureError(f"normalization is 'batch', 'channel' or None; got {kind!r}")


class BatchNormalization(nn.Module):
    """Batch normalization of each channel of each parameter, over the networks and all entries."""

    def __init__(self, spec: SymmetrySpec, channels: int):
        super().__init__()
        self.names = tuple(spec.shapes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in self.names)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: norm(features[name].flatten(2)).view_as(features[name])
            for name, norm in zip(self.names, self.norms, strict=True)
        }


class ChannelNormalization(nn.Module):
    """Layer normalization over the channels of each entry."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.norm(x.movedim(1, -1)).movedim(-1, 1) for name, x in features.items()}
