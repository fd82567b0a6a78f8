"""Random small symmetry specs, and the slow definitions that equivariant layers are tested against."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from weightspace.equivariant.features import entry_order
from weightspace.symmetry_spec import Factor, Group, Segment, SymmetrySpec


def random_spec(seed: int, entries: int = 60) -> SymmetrySpec:
    """Draw groups (some within others) and parameters with axes of every kind."""
    draw = random.Random(seed)
    outer = Group("outer", draw.choice([1, 2, 2, 3]))
    groups = [
        Group("a", draw.choice([1, 2, 3, 4])),
        Group("b", draw.choice([2, 3])),
        outer,
        Group("inner", draw.choice([2, 3]), within=("outer",), copies=(outer.size,)),
        Group("deeper", 2, within=("outer", "inner"), copies=(outer.size, 0)),
        Group("told", 2, within=("heads",), copies=(2,)),
    ]
    groups[4] = Group("deeper", 2, within=("outer", "inner"), copies=(outer.size, groups[3].size))
    by_name = {group.name: group for group in groups}

    def product(*names: str | int) -> list[Factor]:
        sizes = [
            by_name[n].size if isinstance(n, str) and n in by_name else 2 if n == "heads" else int(n)
            for n in names
        ]
        strides = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
        return [
            Factor(n if isinstance(n, str) else "", size, stride)
            for n, size, stride in zip(names, sizes, strides)
        ]

    kinds = [
        ("a",), ("a",), ("b",), ("a", 2), ("outer", "inner"), ("outer", "inner"), ("heads", "told"),
        ("outer", "inner", "deeper"), (2,), (1,),
    ]  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    axes = {}
    for number in range(40):
        if len(shapes) == 4:
            break
        shape, own = [], []
        for _ in range(draw.choice([1, 1, 2, 2, 2, 3])):
            runs, offset = [], 0
            for _ in range(draw.choice([1, 1, 1, 2])):
                factors = product(*draw.choice(kinds))
                if any(f.name for f in factors):
                    runs.append(Segment(tuple(factors), offset))
                offset += math.prod(f.size for f in factors)
            shape.append(offset)
            own.append(tuple(runs))
        size = math.prod(shape)
        if size + sum(map(math.prod, shapes.values())) <= entries:
            shapes[f"p{number}"] = tuple(shape)
            axes[f"p{number}"] = tuple(own)
    present = {f.name for own in axes.values() for axis in own for s in axis for f in s.factors}
    return SymmetrySpec(
        tuple(group for group in groups if group.name in present),
        {name: own for name, own in axes.items() if any(own)},
        shapes=shapes,
    )


def generators(spec: SymmetrySpec) -> list[dict[str, Tensor]]:
    """Elements that generate the whole group: for every copy of every group a swap and a cycle."""
    found = []
    for group in spec.permutations:
        rest = torch.arange(group.size).expand(*group.copies, group.size)
        for copy in np.ndindex(*group.copies):
            for moved in (
                rest[copy].roll(1),
                rest[copy][[1, 0, *range(2, group.size)]] if group.size > 1 else None,
            ):
                if moved is not None:
                    element = rest.clone()
                    element[copy] = moved
                    found.append({group.name: element})
    return found


def count_orbits(spec: SymmetrySpec, *, pairs: bool) -> int:
    """Count the orbits of entries, or of pairs of entries, by joining what generators join."""
    moves = [entry_order(spec, element).numpy() for element in generators(spec)]
    n = sum(map(math.prod, spec.shapes.values()))
    size = n * n if pairs else n
    own = np.arange(size)
    ends = [(move[:, None] * n + move[None, :]).reshape(-1) if pairs else move for move in moves]
    rows, columns = np.concatenate([own, *[own] * len(ends)]), np.concatenate([own, *ends])
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(size, size))
    return connected_components(graph, directed=False)[0]


def random_features(
    spec: SymmetrySpec, batch: int, channels: int, dtype: torch.dtype, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, channels, *shape, dtype=dtype, generator=generator)
        for name, shape in spec.shapes.items()
    }
