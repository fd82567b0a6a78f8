"""Parameters cut into blocks: dense arrays, one index for every group that acts on them.

A block is a product of runs of the parameter's axes. Its moving indices each belong to one permutation group; its
fixed indices are channels. What a spec can say beyond whole axes (segments, strides, units of several entries,
heads told apart by a fixed bias) is resolved here, so that the layers see plain dense arrays only.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.group_action import segment_positions
from weightspace.symmetry_spec import PERMUTATION, Axis, Factor, SymmetrySpec

EMBEDDED = (
    "fixed axes of"  # the name, with their size, of the group that permutes fixed axes when they are embedded
)


@dataclass(frozen=True)
class Index:
    """A moving index of a block.

    group: what permutes it.
    size: how many values it takes.
    parents: which indices of the block the group is within: it is permuted anew for each of their values.
    """

    group: str
    size: int
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Block:
    """Entries of one parameter as a dense array (fixed, moving indices...).

    places: (fixed, *moving sizes) int64, where each entry stands in the flattened parameter.
    """

    parameter: str
    indices: tuple[Index, ...]
    fixed: int
    places: Tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(index.size for index in self.indices)


def cut_into_blocks(spec: SymmetrySpec, *, embed_above: float = math.inf) -> tuple[Block, ...]:
    """Return the blocks of all parameters of a spec; together they hold every entry once.

    Args:
        embed_above: fixed axes of more entries than this are treated as permuted, those of equal size together.
    Raises:
        ShapeError: the spec does not know the shapes of its parameters.
    """
    missing = [name for name in spec.axes if name not in spec.shapes]
    if missing or not spec.shapes:
        raise ShapeError(
            f"the spec does not know the shape of {(missing or ['any parameter'])[0]!r}; take it from "
            "`weightspace.symmetry(network)` or pass `shapes=` to SymmetrySpec"
        )
    permuting = spec.only((PERMUTATION,))
    return tuple(
        block for name, shape in spec.shapes.items() for block in _blocks(name, shape, permuting, embed_above)
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """Part of an axis: the product of its factors; `places` has their sizes as shape."""

    factors: tuple[Factor, ...]
    places: Tensor


def _blocks(name: str, shape: tuple[int, ...], spec: SymmetrySpec, embed_above: float) -> list[Block]:
    axes = spec.axes.get(name, tuple(() for _ in shape))
    strides = [math.prod(shape[number + 1 :]) for number in range(len(shape))]
    apart = {parent for group in spec.groups for parent in group.within if parent not in spec.by_name}
    runs = [_runs(axis, size, apart) for axis, size in zip(axes, shape, strict=True)]
    return [_block(name, product, strides, spec, embed_above) for product in itertools.product(*runs)]


def _runs(axis: Axis, size: int, apart: set[str]) -> list[_Run]:
    """Cut an axis into its segments and one run of what is left; segments once for each unit that is told apart."""
    left = torch.ones(size, dtype=torch.bool)
    runs = []
    for segment in axis:
        places = segment_positions(segment)
        left[places.reshape(-1)] = False
        runs += _told_apart(_Run(segment.factors, places), apart)
    if left.any():
        rest = left.nonzero()[:, 0]
        runs.append(_Run((Factor("", len(rest)),), rest))
    return runs


def _told_apart(run: _Run, apart: set[str]) -> list[_Run]:
    """Cut a run at every factor whose units other groups are within although nothing moves them.

    The groups within become one group for each unit, named after it.
    """
    for number, factor in enumerate(run.factors):
        if factor.name in apart:
            cut = []
            for unit in range(factor.size):
                fixed = Factor(f"{factor.name}={unit}", 1)
                factors = (*run.factors[:number], fixed, *run.factors[number + 1 :])
                cut += _told_apart(_Run(factors, run.places.narrow(number, unit, 1)), apart)
            return cut
    return [run]


def _block(
    name: str, runs: tuple[_Run, ...], strides: list[int], spec: SymmetrySpec, embed_above: float
) -> Block:
    factors = [(number, factor) for number, run in enumerate(runs) for factor in run.factors]
    kept: dict[int, int] = {}  # place among all factors -> place among the moving indices
    indices: list[Index] = []
    for place, (_, factor) in enumerate(factors):
        group = spec.by_name.get(factor.name)
        if factor.size == 1:
            continue
        if group is not None:
            told = [factors[_nearest(factors, place, p)][1] for p in group.within if p not in spec.by_name]
            name_of_copy = " of ".join([group.name, *(unit.name for unit in told)])
            indices.append(Index(name_of_copy, factor.size))
        elif factor.size > embed_above:
            indices.append(Index(f"{EMBEDDED} {factor.size}", factor.size))
        else:
            continue
        kept[place] = len(indices) - 1
    for place, index in kept.items():
        group = spec.by_name.get(factors[place][1].name)
        parents = tuple(
            kept[other]
            for parent in (group.within if group else ())
            if parent in spec.by_name and spec.by_name[parent].size > 1
            for other in [_nearest(factors, place, parent)]
        )
        indices[index] = Index(indices[index].group, indices[index].size, parents)
    fixed = [place for place in range(len(factors)) if place not in kept]
    places = torch.zeros((), dtype=torch.int64)
    for run, stride in zip(runs, strides, strict=True):
        places = places[(..., *[None] * run.places.ndim)] + run.places * stride
    places = places.permute(*fixed, *kept).reshape(-1, *(index.size for index in indices))
    return Block(name, tuple(indices), len(places), places)


def _nearest(factors: list[tuple[int, Factor]], place: int, parent: str) -> int:
    """The factor of what an index is within: on its own axis if there is one."""
    found = [
        other
        for other, (_, factor) in enumerate(factors)
        if factor.name == parent or factor.name.startswith(f"{parent}=")
    ]
    beside = [other for other in found if factors[other][0] == factors[place][0]]
    return (beside or found)[0]
