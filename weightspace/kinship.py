"""`provenance`: is B a reordered, rounded or fine-tuned A, or a stranger? A graded answer from the weights alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weightspace.distances import reordered, sums_between
from weightspace.network import Network, require_finite
from weightspace.permutation import permute, random_permutations
from weightspace.reading import as_network
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.untouched_weights import untouched_weights

if TYPE_CHECKING:
    from weightspace.matching import Matcher

DERIVED, STRANGER = (
    0.6,
    0.7,
)  # of the gap of a stranger: at most, at least; measured in benchmarks/provenance.py
SAME_ORDER = 6.0  # standard deviations
DRAWS = 30
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class Kinship(StrEnum):
    """How two networks are related; the text is what the reader sees.

    Examples:
        >>> import weightspace
        >>> weightspace.Kinship.REORDERED.value
        'the same network in another neuron order'
    """

    IDENTICAL = "identical"
    REORDERED = "the same network in another neuron order"
    ROUNDED = "the same network up to rounding"
    DERIVED = "derived: one was trained on from the other, or both from a common ancestor"
    SAME_ORDER = (
        "in the same neuron order: of common origin, perhaps the initialization only, or made so by alignment"
    )
    UNCERTAIN = "uncertain: closer than strangers of this architecture usually are"
    INDEPENDENT = "independent as far as the weights tell"


@dataclass(frozen=True)
class Provenance:
    """Result of `provenance`.

    Attributes:
        kinship: the graded answer.
        gap: sum |A - P B| / (sum |A| + sum |B|) over the trained floating tensors, P the best reordering found;
            `gap_raw` with P = identity; `gap_stranger` between A and B's weights reassembled at random.
        order_score: by how many standard deviations `gap_raw` is below the gaps of B in random neuron orders; for
            networks that never had a common order it is a draw from their distribution.
        untouched: share of the weights that no gradient reached since they were one (`weightspace.untouched_weights`).
        distance, distance_raw: ||A - P B|| and ||A - B|| over the same tensors.
        precision: what the networks agree up to, for `Kinship.ROUNDED`.
        equal_tensors, tensors: how many of the tensors are equal, of how many.
        aligned: B in the order P.
    """

    kinship: Kinship
    gap: float
    gap_raw: float
    gap_stranger: float
    order_score: float
    untouched: float
    distance: float
    distance_raw: float
    precision: str | None
    equal_tensors: int
    tensors: int
    aligned: Network = field(repr=False, compare=False)

    @property
    def ratio(self) -> float:
        """The gap in units of a stranger's: 0 the same weights, about 1 nothing in common."""
        return self.gap / self.gap_stranger if self.gap_stranger else 0.0

    def __str__(self) -> str:
        if self.kinship in (Kinship.IDENTICAL, Kinship.REORDERED):
            return str(self.kinship)
        if self.kinship is Kinship.ROUNDED:
            return f"{self.kinship} ({self.precision})"
        equal = f"; {self.equal_tensors} of {self.tensors} tensors equal" if self.equal_tensors else ""
        equal += f"; {self.untouched:.0%} of the weights untouched" if self.untouched else ""
        return (
            f"{self.kinship} (gap {self.gap:.3g} modulo neuron order, {self.ratio:.0%} of a stranger's; "
            f"{self.gap_raw:.3g} as they stand, {self.order_score:.0f} standard deviations from random orders{equal})"
        )

    def to_json(self) -> str:
        """Return everything but the aligned network as JSON."""
        data = {key: value for key, value in vars(self).items() if key != "aligned"}
        return json.dumps({**data, "ratio": self.ratio, "text": str(self)})


def provenance(
    a: Network | nn.Module,
    b: Network | nn.Module,
    *,
    matcher: Matcher | None = None,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    spec: SymmetrySpec | None = None,
    seed: int = 0,
) -> Provenance:
    """Say whether B is A, A in another neuron order or precision, derived from it, or a stranger.

    In this order: equal bytes, as they stand or in canonical order; rounding, when all weights of one lie on the grid
    of a coarser dtype and the other's round to them, or when none differs by more than four units in the last place of
    its tensor's largest entry; then three numbers decide.

    * The gap after alignment in units of a stranger's, B's weights shuffled over the units of every tensor and aligned
      in the same way (which keeps the distribution of weights at every fixed input and output). Up to 60 %: derived.
    * Weights that no gradient reached in one's training: at least 1 % of all (and thrice a stranger's): derived.
    * The gap as they stand against B in random neuron orders. Independent training has no preferred order, so six
      standard deviations are no accident: a common origin, or somebody's alignment.

    Independently trained digits networks have 65 to 104 % and fine-tuned ones 4 to 53 % (benchmarks/provenance.py); a
    reordered network and its own initialization, which have 51 to 95 %, may pass for strangers.
    Independent training that always finds the same solution (tiny networks, one feature) cannot be told from kinship.

    Args:
        matcher, example_inputs, spec: as for `weightspace.align`.
        seed: of the random orders and the stranger.
    Raises:
        ShapeError: the structures differ; the message names the first difference.
        NonFiniteError: NaN or infinite weights.

    Examples:
        >>> import torch, weightspace
        >>> from weightspace.bundled import load
        >>> from weightspace.permutation import permute
        >>> a = load("digits_mlp_a")
        >>> spec = weightspace.symmetry(a)
        >>> b = permute(a, spec, {group.name: torch.arange(group.size).flip(0) for group in spec.groups})
        >>> weightspace.provenance(a, b).kinship.value
        'the same network in another neuron order'
    """
    from weightspace.canonical_form import permutations_of
    from weightspace.matching.alignment import corresponding_parameters

    first, second = as_network(a, example_inputs), as_network(b, example_inputs)
    names = corresponding_parameters(first, second)
    require_finite(first)
    require_finite(second)
    spec = permutations_of(first, spec)
    theirs = spec.renamed(names)
    generator = torch.Generator().manual_seed(seed)
    raw = sums_between(first, second, names, trained=True)
    aligned = reordered(first, second, names, spec=spec, matcher=matcher)
    best = sums_between(first, aligned, names, trained=True)
    pairs = [(first.parameters[ours], aligned.parameters[other]) for ours, other in names.items()]
    numbers: dict[str, Any] = {
        "gap": best.gap,
        "gap_raw": raw.gap,
        "gap_stranger": 0.0,
        "order_score": 0.0,
        "untouched": 0.0,
        "distance": best.distance,
        "distance_raw": raw.distance,
        "precision": None,
        "equal_tensors": sum(torch.equal(x, y) for x, y in pairs),
        "tensors": len(pairs),
        "aligned": aligned,
    }
    if first in (second, aligned):
        kinship = Kinship.IDENTICAL if first == second else Kinship.REORDERED
        return Provenance(kinship, **numbers)
    if (precision := common_precision(pairs)) is not None:
        return Provenance(Kinship.ROUNDED, **{**numbers, "precision": precision})
    other = stranger(second, theirs, generator)
    other = reordered(first, other, names, spec=spec, matcher=matcher)
    renamed = [under_names_of(first, network, names) for network in (aligned, other)]
    if shares_untouched(first, *renamed):
        numbers["untouched"] = float(untouched_weights([first, renamed[0]])[0][0, 1])
    numbers["gap_stranger"] = sums_between(first, other, names, trained=True).gap
    numbers["order_score"] = _order_score(first, second, names, theirs, raw.gap, generator)
    found = Provenance(Kinship.UNCERTAIN, **numbers)
    return replace(found, kinship=_grade(found))


def under_names_of(first: Network, second: Network, names: Mapping[str, str]) -> Network:
    """Return the first network with the second's tensors, in its dtypes."""
    return first.replace_parameters(
        {ours: second.parameters[other].to(first.parameters[ours].dtype) for ours, other in names.items()}
    )


def _grade(found: Provenance) -> Kinship:
    if found.untouched or (found.gap_stranger and found.ratio <= DERIVED):
        return Kinship.DERIVED
    if found.order_score >= SAME_ORDER:
        return Kinship.SAME_ORDER
    return Kinship.INDEPENDENT if found.gap_stranger and found.ratio >= STRANGER else Kinship.UNCERTAIN


def shares_untouched(a: Network, b: Network, other: Network) -> bool:
    """Whether a and b share more untouched weights than a and a stranger, by at least 1 % of all weights."""
    shared, _ = untouched_weights([a, b, other])
    return bool(shared[0, 1] > 0.01 + 3 * shared[0, 2])


def common_precision(pairs: Sequence[tuple[Tensor, Tensor]]) -> str | None:
    """Return the dtype up to which pairs of tensors agree, None when none explains their difference."""
    floating = [(x, y) for x, y in pairs if x.is_floating_point() and y.is_floating_point()]
    if any(not torch.equal(x, y) for x, y in pairs if not x.is_floating_point()):
        return None
    for dtype in PRECISIONS:
        # One of the two is on the grid of the dtype and the other rounds to it.
        for coarse in (0, 1):
            if all(_exactly(pair[coarse], pair[1 - coarse].to(dtype)) for pair in floating):
                return str(dtype).removeprefix("torch.")
    epsilon = 4 * torch.finfo(torch.float32).eps
    if all(
        float((x.double() - y.double()).abs().max()) <= epsilon * float(x.double().abs().max())
        for x, y in floating
        if x.numel()
    ):
        return "float32 arithmetic"
    return None


def _exactly(coarse: Tensor, rounded: Tensor) -> bool:
    return torch.equal(coarse.double(), rounded.double())


def stranger(network: Network, spec: SymmetrySpec, generator: torch.Generator) -> Network:
    """Return a network of the same weights with none of their connections: entries shuffled along all moving axes.

    Independently at every place of the fixed axes, so that dead inputs stay dead and classes keep their scale.
    """
    shuffled = {}
    for name, axes in spec.axes.items():
        tensor = network.parameters[name]
        if not tensor.is_floating_point() or name in network.buffers:
            continue
        order = sorted(range(tensor.ndim), key=lambda number: bool(axes[number]))
        moved = tensor.permute(order)
        fixed = sum(not segments for segments in axes)
        flat = moved.reshape(*moved.shape[:fixed], -1)
        flat = flat.gather(-1, torch.rand(flat.shape, generator=generator).argsort(-1))
        back = sorted(range(tensor.ndim), key=order.__getitem__)
        shuffled[name] = flat.reshape(moved.shape).permute(back).contiguous()
    return network.replace_parameters(shuffled)


def _order_score(
    a: Network,
    b: Network,
    names: Mapping[str, str],
    spec: SymmetrySpec,
    gap: float,
    generator: torch.Generator,
) -> float:
    gaps = torch.tensor(
        [
            sums_between(a, permute(b, spec, random_permutations(spec, generator)), names, trained=True).gap
            for _ in range(DRAWS if spec.groups else 0)
        ],
        dtype=torch.float64,
    )
    spread = float(gaps.std()) if len(gaps) else 0.0
    return float(gaps.mean() - gap) / spread if spread > 1e-12 else 0.0
