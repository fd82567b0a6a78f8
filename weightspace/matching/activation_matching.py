"""Activation matching: units that respond alike to the same data belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.errors import ArchitectureError
from weightspace.matching.alignment import Matcher, Problem
from weightspace.matching.assignment import solvable, solve
from weightspace.matching.pieces import Pattern, cut
from weightspace.matching.weight_matching import LARGEST, Ascent
from weightspace.module import NetworkModule
from weightspace.network import Network
from weightspace.value_axes import value_axes

Batch = Tensor | tuple[Tensor, ...]

_REARRANGED = (
    op.Cast,
    op.Expand,
    op.Flatten,
    op.Permute,
    op.Reshape,
    op.Select,
    op.Slice,
    op.Squeeze,
    op.Unsqueeze,
)


@dataclass(frozen=True, eq=False)
class ActivationMatching(Matcher):
    r"""Match units by the correlation of their values on data: one assignment per family, no iteration.

    $C = \sum_v Z_A^\top Z_B / m$ over all values v of the network that carry the family; the rows of Z are the m
    samples times positions, its columns the units, centered and divided by their standard deviation (0 where that
    is 0). In a value that other families move as well, the mean over their units is taken. Families that no value
    carries are then matched by their weights, with the others held.

    Args:
        data: inputs of the network: one tensor, samples first, or a sequence of batches (tuples for several
            inputs). Every batch is run twice through both networks.
        seed: of random starts inside the assignments that are not separable.
    Source: Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023), section 3.1; Li et al., Convergent learning (2016).

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import digits, load
        >>> images = digits()[0]
        >>> matcher = weightspace.ActivationMatching(images)
        >>> found = weightspace.align(load("digits_mlp_a"), load("digits_mlp_b"), matcher=matcher)
        >>> found.distance < found.distance_before
        True
    """

    data: Tensor | Sequence[Batch] = field(repr=False)
    seed: int = 0

    def match(self, problem: Problem) -> dict[str, Tensor]:
        if problem.networks is None:
            raise ArchitectureError("ActivationMatching runs the networks; use it through `align`")
        generator = torch.Generator().manual_seed(self.seed)
        state = Ascent(problem.spec, problem.pieces, generator)
        unseen = []
        gains = self._correlations(problem, state)
        for number, family in enumerate(state.families):
            if gains[number] and solvable(family, list(gains[number])):
                state.move(solve(family, gains[number], generator))
            else:
                unseen.append(number)
        state.climb(unseen)
        return state.elements

    def _correlations(self, problem: Problem, state: Ascent) -> list[dict[Pattern, Tensor]]:
        """For every family, pattern -> C."""
        totals: dict[_Site, _Moments] = {}
        for site, a, b in self._values(problem):
            if site not in totals:
                totals[site] = _Moments.none(len(a))
            totals[site].add(a, b)
        gains: list[dict[Pattern, Tensor]] = [{} for _ in state.families]
        for site, a, b in self._values(problem):
            a, b = totals[site].standardized(a, b)
            own = gains[site[2]]
            product = a @ b.mT
            own[site[3]] = own[site[3]] + product if site[3] in own else product
        return gains

    def _values(self, problem: Problem) -> Iterator[tuple[_Site, Tensor, Tensor]]:
        """Yield, batch by batch, the values of both networks as (units, samples) for every slot of every node."""
        assert problem.networks is not None
        first, second = problem.networks
        modules = [NetworkModule(network) for network in (first, second)]
        axes = {
            name: found
            for name, found in value_axes(first, problem.spec).items()
            if not isinstance(first.node(name).operation, _REARRANGED)
        }
        theirs = {a.name: b.name for a, b in zip(first.nodes, second.nodes, strict=True)}
        for batch in batches(self.data):
            with torch.no_grad():
                ours, others = (
                    module.to(inputs[0].device).values(*inputs)
                    for module, inputs in zip(modules, (cast(batch, n) for n in (first, second)), strict=True)
                )
            carried = {name: v for name, v in ours.items() if name in axes and _is_number(v)}
            matched = {name: others[theirs[name]] for name in carried}
            for number, piece in enumerate(cut(problem.spec, axes, carried, matched)):
                for place, slot in enumerate(piece.slots):
                    if piece.shape[place] <= LARGEST:
                        rest = [n for n in range(len(piece.slots)) if n != place]
                        a, b = (t.mean(rest) if rest else t for t in (piece.a, piece.b))
                        yield (number, place, slot.family, slot.pattern), a, b


_Site = tuple[int, int, int, Pattern]  # piece, slot, family, pattern


@dataclass
class _Moments:
    """Sums over the samples, for means and standard deviations."""

    a: Tensor
    b: Tensor
    aa: Tensor
    bb: Tensor
    count: int = 0

    @classmethod
    def none(cls, units: int) -> _Moments:
        a, b, aa, bb = (torch.zeros(units, dtype=torch.float64) for _ in range(4))
        return cls(a, b, aa, bb)

    def add(self, a: Tensor, b: Tensor) -> None:
        for total, value in ((self.a, a), (self.b, b), (self.aa, a.square()), (self.bb, b.square())):
            total += value.sum(1, dtype=torch.float64).cpu()
        self.count += a.shape[1]

    def standardized(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Center, divide by the standard deviation and by the root of the number of samples."""
        results = []
        for value, total, square in ((a, self.a, self.aa), (b, self.b, self.bb)):
            mean = total / self.count
            variance = (square / self.count - mean**2).clamp(min=0)
            spread = (variance * self.count).sqrt()
            scale = torch.where(variance > 1e-10 * mean**2, 1 / spread, 0.0)
            results.append((value - mean.to(value)[:, None]) * scale.to(value)[:, None])
        return results[0], results[1]


def batches(data: Tensor | Sequence[Batch], size: int = 1000) -> Iterator[tuple[Tensor, ...]]:
    """Yield the inputs of one batch after the other."""
    for batch in data.split(size) if isinstance(data, Tensor) else data:
        yield (batch,) if isinstance(batch, Tensor) else tuple(batch)


def cast(inputs: Sequence[Tensor], network: Network) -> list[Tensor]:
    """Return inputs in the dtypes the network takes."""
    dtypes: Mapping[int, torch.dtype] = {
        n: getattr(torch, node.dtype) for n, node in enumerate(network.inputs)
    }
    return [x.to(dtypes[n]) if n in dtypes and x.is_floating_point() else x for n, x in enumerate(inputs)]


def _is_number(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
