"""How far two checkpoints are from each other: tensor by tensor as they stand, or as a whole modulo neuron order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weightspace.errors import SymmetryError
from weightspace.network import Network, require_finite
from weightspace.permutation import compose, inverse, permute
from weightspace.reading import as_network
from weightspace.symmetry_spec import SymmetrySpec

if TYPE_CHECKING:
    from weightspace.matching import Matcher

BLOCK_ENTRIES = 1 << 17


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of A against its counterpart in B.

    Attributes:
        gap: sum |a - b| / (sum |a| + sum |b|) over finite entries, in [0, 1]; 0 equal, 1 nothing in common.
        cosine: of the two as vectors; None when one of them is zero.
        largest: max |a - b|; infinite where one is not finite and the other is something else.
    """

    name: str
    other: str
    shape: tuple[int, ...]
    gap: float
    cosine: float | None
    largest: float


@dataclass(frozen=True)
class Difference:
    """Result of `difference`: tensors in both, in A only, in B only, and those whose shapes differ.

    Attributes:
        gap: sum |a - b| / (sum |a| + sum |b|) over the finite entries of all tensors in both.
    """

    tensors: tuple[TensorDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    gap: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether both hold the same tensors with the same values."""
        return not (self.only_a or self.only_b or self.reshaped) and all(r.largest == 0 for r in self.tensors)


def difference(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, names: Mapping[str, str] | None = None
) -> Difference:
    """Compare two sets of named tensors, in float64, a block of one tensor at a time.

    Args:
        a, b: name -> tensor. Those that `open_checkpoint` maps from a file are read where they lie.
        names: a's name -> b's; default equal names.

    Examples:
        >>> import torch, weightspace
        >>> a, b = {"w": torch.zeros(2), "v": torch.ones(1)}, {"w": torch.ones(2)}
        >>> found = weightspace.difference(a, b)
        >>> found.only_a, found.tensors[0].name, found.gap
        (('v',), 'w', 1.0)
    """
    names = names if names is not None else {name: name for name in a if name in b}
    rows, reshaped = [], []
    total = Sums()
    for name, other in names.items():
        first, second = a[name], b[other]
        if first.shape != second.shape:
            reshaped.append((name, tuple(first.shape), tuple(second.shape)))
            continue
        sums = Sums()
        for x, y in _blocks(first, second):
            sums.add(x, y)
        rows.append(TensorDifference(name, other, tuple(first.shape), sums.gap, sums.cosine, sums.largest))
        total.absolute, total.apart = total.absolute + sums.absolute, total.apart + sums.apart
    matched = set(names.values())
    return Difference(
        tuple(rows),
        tuple(name for name in a if name not in names),
        tuple(name for name in b if name not in matched),
        tuple(reshaped),
        total.gap,
    )


@dataclass
class Sums:
    """What gap, cosine and largest difference are made of, over blocks."""

    absolute: float = 0.0
    apart: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0
    product: float = 0.0
    squares_apart: float = 0.0
    largest: float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        apart = (x - y).abs()
        if not bool(apart.max().isfinite()):  # inf - inf is NaN, but equal infinities do not differ
            same = (x == y) | (x.isnan() & y.isnan())
            apart = torch.where(same, 0.0, apart.nan_to_num(nan=torch.inf, posinf=torch.inf))
            self.largest = max(self.largest, float(apart.max()))
            finite = x.isfinite() & y.isfinite()
            x, y, apart = x[finite], y[finite], apart[finite]
        else:
            self.largest = max(self.largest, float(apart.max()))
        self.absolute += float(x.abs().sum() + y.abs().sum())
        self.apart += float(apart.sum())
        self.squares_a += float(x @ x)
        self.squares_b += float(y @ y)
        self.product += float(x @ y)
        self.squares_apart += float(apart @ apart)

    @property
    def gap(self) -> float:
        return min(self.apart / self.absolute, 1.0) if self.absolute else 0.0

    @property
    def cosine(self) -> float | None:
        norms = (self.squares_a * self.squares_b) ** 0.5
        return max(-1.0, min(1.0, self.product / norms)) if norms else None

    @property
    def distance(self) -> float:
        return self.squares_apart**0.5

    @property
    def scale(self) -> float:
        """The root mean square of the two norms."""
        return ((self.squares_a + self.squares_b) / 2) ** 0.5


def _blocks(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The entries of two tensors of equal shape in float64, a block at a time; complex ones as pairs."""
    if first.is_complex() or second.is_complex():
        first, second = (torch.view_as_real(t.to(torch.complex128)) for t in (first, second))
    first, second = first.reshape(-1), second.reshape(-1)
    for start in range(0, first.numel(), BLOCK_ENTRIES):
        block = slice(start, start + BLOCK_ENTRIES)
        yield first[block].double(), second[block].double()


# ---- networks as a whole ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Distance(float):
    """A distance between two networks: a number, `value`, that carries what else was found.

    Attributes:
        value: ||A - P B|| over all floating tensors that the networks compute with, running statistics included.
        relative: value / sqrt((||A||^2 + ||B||^2) / 2); independent vectors of equal length have sqrt(2).
        gap: sum |A - P B| / (sum |A| + sum |B|), in [0, 1].
        cosine: of A and P B as vectors; None when one is zero.
        modulo: "permutation", or None when P is the identity.
        raw: the value for P = identity.
    """

    value: float
    relative: float
    gap: float
    cosine: float | None
    modulo: str | None
    raw: float

    def __new__(cls, value: float, *rest: object, **named: object) -> Distance:
        return super().__new__(cls, value)


def distance(
    a: Network | nn.Module,
    b: Network | nn.Module,
    *,
    modulo: str | None = "permutation",
    matcher: Matcher | None = None,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    spec: SymmetrySpec | None = None,
) -> Distance:
    """Return the Frobenius distance of two networks of one architecture, min over P of ||A - P B||.

    The minimum over the reorderings P of hidden units is searched by `weightspace.align`, hence an upper estimate;
    it is exactly 0 when the two are one network in another order (`weightspace.canonical_hash`).

    Args:
        modulo: "permutation"; None compares the networks as they stand.
        matcher: for `weightspace.align`.
        example_inputs: to trace modules whose first layer is not Linear.
        spec: the symmetries to use, under a's parameter names; default `weightspace.symmetry(a)`.
    Raises:
        ShapeError: the structures differ; the message names the first difference.
        NonFiniteError: NaN or infinite weights.
        ValueError: another `modulo`.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> found = weightspace.distance(a, b)
        >>> 0 < found.value < found.raw
        True
        >>> weightspace.distance(a, a).value
        0.0
    """
    from weightspace.matching.alignment import corresponding_parameters

    if modulo not in (None, "permutation"):
        raise ValueError(f"modulo is 'permutation' or None, not {modulo!r}")
    first, second = as_network(a, example_inputs), as_network(b, example_inputs)
    names = corresponding_parameters(first, second)
    require_finite(first)
    require_finite(second)
    raw = sums_between(first, second, names)
    sums = raw
    if modulo is not None:
        ordered = reordered(first, second, names, spec=spec, matcher=matcher)
        sums = sums_between(first, ordered, names)
    relative = sums.distance / sums.scale if sums.scale else 0.0
    return Distance(sums.distance, relative, sums.gap, sums.cosine, modulo, raw.distance)


def sums_between(a: Network, b: Network, names: Mapping[str, str], *, trained: bool = False) -> Sums:
    """Sum up two networks over their floating tensors, or over the trained ones only."""
    sums = Sums()
    for name, other in names.items():
        if a.parameters[name].is_floating_point() and not (trained and name in a.buffers):
            for x, y in _blocks(a.parameters[name], b.parameters[other]):
                sums.add(x, y)
    return sums


def reordered(
    a: Network,
    b: Network,
    names: Mapping[str, str],
    *,
    spec: SymmetrySpec | None = None,
    matcher: Matcher | None = None,
) -> Network:
    """Return b with its hidden units in a's order, as closely as can be; equal networks are matched exactly.

    Args:
        names: a's parameter names -> b's (`matching.alignment.corresponding_parameters`).
        spec: as for `weightspace.align`.
    """
    from weightspace.canonical_form import permutations_of

    spec = permutations_of(a, spec)
    return permute(b, spec.renamed(names), reordering(a, b, names, spec, matcher)) if spec.groups else b


def reordering(
    a: Network, b: Network, names: Mapping[str, str], spec: SymmetrySpec, matcher: Matcher | None = None
) -> Mapping[str, Tensor]:
    """Return the element of the permutation groups of `spec` that `reordered` applies to b."""
    from weightspace.canonical_form import canonical_order
    from weightspace.matching import align

    theirs = spec.renamed(names)
    try:
        orders = canonical_order(a, spec), canonical_order(b, theirs)
    except SymmetryError:
        pass
    else:
        if permute(a, spec, orders[0]) == permute(b, theirs, orders[1]):
            return compose(spec, orders[1], inverse(spec, orders[0]))
    return align(a, b, matcher=matcher, spec=spec).permutations
