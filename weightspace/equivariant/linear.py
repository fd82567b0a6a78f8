"""All linear maps between weight spaces that commute with the symmetries of the networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.equivariant.blocks import EMBEDDED, cut_into_blocks
from weightspace.equivariant.matrices import column_scales, new_matrix
from weightspace.equivariant.plan import plan_constants, plan_maps
from weightspace.equivariant.pooling import Mean, Pooling
from weightspace.equivariant.transport import BlockReader, BlockWriter
from weightspace.errors import ShapeError
from weightspace.symmetry_spec import SymmetrySpec

Features = Mapping[str, Tensor]
"""Parameter name -> (batch, channels, *shape)."""


@dataclass(frozen=True)
class Full:
    """Every entry of a fixed axis is a channel of its own: all maps, many of them for large inputs."""


@dataclass(frozen=True)
class Embedded:
    """Fixed axes of more than `above` entries are treated as permuted, and told apart by the constants only.

    Each layer adds a learned vector for every entry, so that stacks of layers with nonlinearities between them are
    equivariant to the true group and no larger one.
    """

    above: int = 64


@dataclass(frozen=True)
class LowRank:
    """Every entry of a fixed axis is a channel; matrices larger than that are products of two of this rank."""

    rank: int = 32


FixedAxes = Full | Embedded | LowRank
DEFAULT_FIXED_AXES = Embedded()
MEAN = Mean()


class _WeightSpaceMap(nn.Module):
    """Read the channels of a plan and multiply each by its matrix."""

    def __init__(
        self,
        spec: SymmetrySpec,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool,
        fixed: FixedAxes,
        pooling: Pooling,
        invariant: bool,
        dtype: torch.dtype | None,
        device: torch.device | None,
    ):
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise ShapeError(
                f"a layer needs at least 1 channel in and out; got {in_channels}, {out_channels}"
            )
        self.spec, self.fixed, self.pooling = spec, fixed, pooling
        self.in_channels, self.out_channels = in_channels, out_channels
        blocks = cut_into_blocks(spec, embed_above=fixed.above if isinstance(fixed, Embedded) else math.inf)
        self.plan = plan_maps(blocks, invariant=invariant)
        self.reader = BlockReader(self.plan, spec.shapes, pooling, in_channels)
        rank = fixed.rank if isinstance(fixed, LowRank) else None
        self.matrices = nn.ModuleList(
            new_matrix(
                channel, in_channels, out_channels, rank, column_scales(channel, blocks, pooling, in_channels)
            )
            for channel in self.plan.channels
        )
        self.constants: nn.Parameter | None = None
        self.constants_writer: BlockWriter | None = None
        if bias:
            embedded = any(index.group.startswith(EMBEDDED) for block in blocks for index in block.indices)
            self._add_constants(embedded and not invariant)
        self.to(dtype=dtype, device=device)

    def _add_constants(self, embedded: bool) -> None:
        """Constants are written by the channel that keeps no part, unless embedded entries are to be told apart."""
        width = self.plan.channels[0].written_width
        if embedded:
            plan = plan_constants(cut_into_blocks(self.spec))
            self.constants_writer = BlockWriter(plan, self.spec.shapes, self.out_channels)
            width = plan.channels[0].written_width
        self.constants = nn.Parameter(torch.zeros(width * self.out_channels))
        if embedded:  # equal constants would leave the entries exchangeable
            nn.init.normal_(self.constants, std=0.3)

    def mixed(self, features: Features) -> list[Tensor]:
        """Return the product of every channel with its matrix, constants added to the first where they belong there."""
        values = self.reader(features, self.matrices)
        if self.constants is not None and self.constants_writer is None:
            values[0] = values[0] + self.constants
        return values

    def extra_repr(self) -> str:
        weights = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"{self.in_channels}, {self.out_channels}, {weights:,} weights in {len(self.matrices)} matrices"
        )


class _EquivariantMap(_WeightSpaceMap):
    """A map whose results are parameters again."""

    def __init__(self, spec: SymmetrySpec, in_channels: int, out_channels: int, **options: Any):
        super().__init__(spec, in_channels, out_channels, invariant=False, **options)
        self.writer = BlockWriter(self.plan, spec.shapes, out_channels)

    def forward(self, features: Features) -> dict[str, Tensor]:
        written = self.writer(self.mixed(features))
        if self.constants is not None and self.constants_writer is not None:
            constants = self.constants_writer([self.constants[None]])
            written = {name: x + constants[name] for name, x in written.items()}
        return written


class EquivariantLinear(_EquivariantMap):
    r"""The most general affine map between weight spaces that commutes with every permutation of a spec.

    $L(\rho(g) \theta) = \rho(g) L(\theta)$. For each kind F of indices that can pass, the averages of all parameters
    over everything else are concatenated, multiplied by one matrix $\Theta_F$ and broadcast back to all parameters:

    $$ y = \sum_F \mathrm{broadcast}_F \bigl( \Theta_F \, \mathrm{mean}_F(x) \bigr) + b $$

    With fixed axes in full and one channel the matrices have exactly `count_maps(spec).linear` entries and span the
    space of all such maps; published layers miss a part of it. Time and memory are linear in the weights that are read.

    Args:
        spec: of the networks that are read, with the shapes of their parameters (`weightspace.symmetry`, or
            `describe_perceptron`); groups other than permutations are ignored.
        in_channels, out_channels: c in the features, name -> (batch, c, *shape).
        bias: add the constants that nothing moves.
        fixed: what to do with axes that no group moves: `Full`, `Embedded(above)` or `LowRank(rank)`.
    Raises:
        ShapeError: the spec knows no shapes; in a call, features are missing or have another shape.
    Source: Navon et al., Equivariant architectures for learning in deep weight spaces (2023), theorem 5.1; Zhou et
        al., Permutation equivariant neural functionals (2023), section 3; Maron et al. (2019), theorem 1. Differs in
        that it is complete, for any spec.

    Examples:
        >>> import torch, weightspace
        >>> from weightspace.equivariant import EquivariantLinear
        >>> from weightspace.testing import assert_equivariant
        >>> module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec = weightspace.symmetry(module)
        >>> layer = EquivariantLinear(spec, 1, 4)
        >>> weights = {name: torch.randn(5, 1, *shape) for name, shape in spec.shapes.items()}
        >>> {name: tuple(values.shape) for name, values in layer(weights).items()}
        {'0.weight': (5, 4, 8, 3), '0.bias': (5, 4, 8), '2.weight': (5, 4, 2, 8), '2.bias': (5, 4, 2)}
        >>> assert_equivariant(layer, spec)
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        fixed: FixedAxes = DEFAULT_FIXED_AXES,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        super().__init__(
            spec,
            in_channels,
            out_channels,
            bias=bias,
            fixed=fixed,
            pooling=Mean(),
            dtype=dtype,
            device=device,
        )


class EquivariantSetLayer(_EquivariantMap):
    """The equivariant layer with another summary than the mean: `Sum`, `Max` or `Attention`.

    What a parameter hands to its own entries stays linear; what it hands to others is pooled. Arguments as for
    `EquivariantLinear`.

    Source: Zaheer et al., Deep sets (2017), equation 4; Navon et al. (2023), appendix on implementation.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        in_channels: int,
        out_channels: int,
        *,
        pooling: Pooling,
        bias: bool = True,
        fixed: FixedAxes = DEFAULT_FIXED_AXES,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        super().__init__(
            spec,
            in_channels,
            out_channels,
            bias=bias,
            fixed=fixed,
            pooling=pooling,
            dtype=dtype,
            device=device,
        )


class InvariantLinear(_WeightSpaceMap):
    r"""The most general affine map from a weight space to numbers that no permutation of a spec changes.

    $L(\rho(g) \theta) = L(\theta)$: the averages of all parameters over everything that moves, times one matrix.
    Results have shape (batch, out_channels). Arguments and errors as for `EquivariantLinear`; `pooling` other than
    the mean makes it a nonlinear invariant layer.

    Source: Maron et al., Invariant and equivariant graph networks (2019), theorem 1, for whole axes.

    Examples:
        >>> import torch, weightspace
        >>> from weightspace.equivariant import InvariantLinear
        >>> module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec = weightspace.symmetry(module)
        >>> weights = {name: torch.randn(5, 1, *shape) for name, shape in spec.shapes.items()}
        >>> InvariantLinear(spec, 1, 10)(weights).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        fixed: FixedAxes = DEFAULT_FIXED_AXES,
        pooling: Pooling = MEAN,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        super().__init__(
            spec, in_channels, out_channels,
            bias=bias, fixed=fixed, pooling=pooling, invariant=True, dtype=dtype, device=device,
        )  # fmt: skip

    def forward(self, features: Features) -> Tensor:
        return self.mixed(features)[0]
