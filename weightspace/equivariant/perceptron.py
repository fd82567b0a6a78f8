"""The weight space of a multilayer perceptron as a symmetry spec."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from weightspace.errors import ShapeError
from weightspace.symmetry_spec import Group, SymmetrySpec, plain


def describe_perceptron(sizes: Sequence[int], *, bias: bool = True) -> SymmetrySpec:
    """Return the spec of layers of these sizes: parameters `layers.0.weight` (sizes[1], sizes[0]), `layers.0.bias`, ...

    Each hidden layer has a group of permutations; inputs and outputs are fixed.

    Raises:
        ShapeError: fewer than two sizes, or one below 1.
    Source: Hecht-Nielsen, On the algebraic structure of feedforward network weight spaces (1990).
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ShapeError(f"a perceptron needs at least two sizes of 1 or more; got {tuple(sizes)}")
    last = len(sizes) - 1
    units = [plain(f"layers.{n - 1}", size) if 0 < n < last else () for n, size in enumerate(sizes)]
    shapes: dict[str, tuple[int, ...]] = {}
    axes = {}
    for n, (inner, outer) in enumerate(pairwise(sizes)):
        shapes[f"layers.{n}.weight"] = (outer, inner)
        axes[f"layers.{n}.weight"] = (units[n + 1], units[n])
        if bias:
            shapes[f"layers.{n}.bias"] = (outer,)
            axes[f"layers.{n}.bias"] = (units[n + 1],)
    return SymmetrySpec(
        tuple(Group(f"layers.{n}", size) for n, size in enumerate(sizes[1:-1])),
        {name: entries for name, entries in axes.items() if any(entries)},
        shapes=shapes,
    )
