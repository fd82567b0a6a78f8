r"""Many models in one neuron order: the strategies of `merge`.

Every model i gets one element $\pi_i$ of the symmetry group, which puts it into a common order, the *universe*. The
map from model j to model i is $\pi_i^{-1} \pi_j$, so that maps around a cycle compose to the identity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightspace.deferred import DeferredTensors, chosen, templates
from weightspace.errors import ShapeError
from weightspace.matching.alignment import Matcher, Problem
from weightspace.matching.frank_wolfe import FrankWolfeMatching
from weightspace.matching.pieces import inner_product
from weightspace.matching.weight_matching import WeightMatching
from weightspace.network import Network
from weightspace.permutation import Permutations, compose, identity, inverse, permute_tensor
from weightspace.symmetry_spec import SymmetrySpec

Tensors = Mapping[str, Tensor]
Elements = dict[str, Tensor]


@dataclass(frozen=True)
class Ensemble:
    """What a strategy works on.

    Attributes:
        spec: the permutations, under the first network's names.
        networks: of equal structure, names and dtypes.
        matcher: how one model is aligned to one reference. None: Frank-Wolfe from nothing, and coordinate steps
            (`WeightMatching`) to improve an order that is there, which is much cheaper and as good.
    """

    spec: SymmetrySpec
    networks: tuple[Network, ...]
    matcher: Matcher | None

    @cached_property
    def matched(self) -> frozenset[str]:
        """The trained floating tensors that some group moves; running statistics move without a vote."""
        return frozenset(
            n for n in self.spec.axes if n in self.floating and n not in self.networks[0].buffers
        )

    @cached_property
    def floating(self) -> Mapping[str, Tensor]:
        """Name -> template in float64, for all floating tensors."""
        known = templates(self.networks[0].parameters)
        return {name: t.to("meta").double() for name, t in known.items() if t.is_floating_point()}

    def made(self, make: Callable[[str], Tensor]) -> Tensors:
        """Return make(name) for all floating tensors: at once, or deferred where the networks' parameters are."""
        deferred = isinstance(self.networks[0].parameters, DeferredTensors)
        return chosen(self.floating, make, deferred=deferred)

    def moved(self, index: int, permutations: Permutations) -> Tensors:
        """Return all floating tensors of one model in another order, in float64."""
        axes, groups, tensors = self.spec.axes, self.spec.by_name, self.networks[index].parameters
        return self.made(
            lambda name: (
                permute_tensor(tensors[name].double(), axes[name], permutations, groups)
                if name in axes
                else tensors[name].double()
            )
        )

    def sum(self, models: Sequence[Tensors]) -> Tensors:
        """Return the sum of several models' tensors."""

        def total(name: str) -> Tensor:
            result = models[0][name].clone()
            for model in models[1:]:
                result += model[name]
            return result

        return self.made(total)

    def match(self, total: Tensors, count: int, model: Tensors, *, improving: bool = False) -> Elements:
        """Return the element that moves a model to the mean of others, given their sum and number."""
        matcher = self.matcher or (WeightMatching() if improving else FrankWolfeMatching())
        mean = self.made(lambda name: total[name] / count)
        first, second = self._network(mean), self._network(model)
        known = templates(first.parameters)
        matched = {name: known[name] for name in sorted(self.matched)}
        deferred = isinstance(first.parameters, DeferredTensors)
        sides = [
            chosen(matched, network.parameters.__getitem__, deferred=deferred) for network in (first, second)
        ]
        names = {name: name for name in known}
        return matcher.match(Problem(self.spec, sides[0], sides[1], (first, second), names))

    def inner(self, a: Tensors, b: Tensors) -> float:
        """Return <a, b> over the tensors that are matched."""
        return sum(inner_product(a[name], b[name]) for name in sorted(self.matched))

    def objective(self, permutations: Sequence[Permutations]) -> float:
        r"""$E = \|\sum_i \pi_i \theta_i\|^2$, maximal where the squared distances of all pairs have the least sum."""
        total = self.sum([self.moved(index, p) for index, p in enumerate(permutations)])
        return self.inner(total, total)

    def _network(self, tensors: Tensors) -> Network:
        first = self.networks[0]
        known = templates(first.parameters)
        return first.change_parameters(self.floating, lambda name, _: tensors[name].to(known[name].dtype))


class Strategy(ABC):
    """How models are brought into one order."""

    aligns = True
    """Whether the strategy permutes anything."""

    @abstractmethod
    def order(self, ensemble: Ensemble) -> list[Elements]:
        """Return one element per model; that of the first is the identity, so that its order is the common one."""


@dataclass(frozen=True)
class Average(Strategy):
    """Leave every model in its own order: the plain average, what fine-tunings of one network want.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a = load("digits_mlp_a")
        >>> merged = weightspace.merge([a, a], method=weightspace.Average())
        >>> merged.model == a
        True
    """

    aligns = False

    def order(self, ensemble: Ensemble) -> list[Elements]:
        return [identity(ensemble.spec) for _ in ensemble.networks]


@dataclass(frozen=True)
class Reference(Strategy):
    """Align every model to one of them: N - 1 matches, taken as they are.

    Args:
        index: the model that is aligned to.
    Raises:
        ShapeError: there is no such model.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> merged = weightspace.merge([a, b], method=weightspace.Reference(1))
        >>> max(merged.distances) < max(merged.distances_before)
        True
    """

    index: int = 0

    def order(self, ensemble: Ensemble) -> list[Elements]:
        if not 0 <= self.index < len(ensemble.networks):
            raise ShapeError(
                f"there is no model {self.index}; the models are 0 to {len(ensemble.networks) - 1}"
            )
        models = [ensemble.moved(index, {}) for index in range(len(ensemble.networks))]
        found = [
            identity(ensemble.spec) if index == self.index else ensemble.match(models[self.index], 1, model)
            for index, model in enumerate(models)
        ]
        return _first_at_rest(ensemble.spec, found)


@dataclass(frozen=True)
class Universe(Strategy):
    r"""Coordinate ascent on $E = \|\sum_i \pi_i\theta_i\|^2$: match every model to the sum of the others, in turn.

    With all others held, E = const + 2 <sum of the others, pi_i theta_i>, which is what a matcher maximizes. A step
    is taken only if E rises, whatever the matcher looks at; E of the result is at least E of the models as they are.
    The start is one model, to which the others are added one by one, each matched to the sum of those before it; at
    the barycenter of all permutations, the natural start, all gradients are equal.

    Args:
        iterations: sweeps over all models at most; the ascent ends when a sweep changes nothing.
        starts: how many models are tried as the first (the first model, then random ones); the largest E is kept.
        seed: of the order in which models are visited.
    Source: Crisostomi et al., C2M3: Cycle-consistent multi-model merging (2024), for the universe and E; they ascend
        by Frank-Wolfe on all permutations together.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> matcher = weightspace.WeightMatching()
        >>> merged = weightspace.merge([a, b, a], matcher=matcher, method=weightspace.Universe(starts=2))
        >>> merged.objective > merged.objective_before
        True
    """

    iterations: int = 50
    starts: int = 1
    seed: int = 0

    def order(self, ensemble: Ensemble) -> list[Elements]:
        generator = torch.Generator().manual_seed(self.seed)
        count = len(ensemble.networks)
        runs = []
        for start in range(max(1, min(self.starts, count))):
            order = torch.randperm(count, generator=generator).tolist()
            if start == 0:
                order.insert(0, order.pop(order.index(0)))
            found = _ascend(ensemble, _one_by_one(ensemble, order), self.iterations, generator)
            runs.append((ensemble.objective(found), found))
        return _at_least_given(ensemble, max(runs, key=lambda run: run[0])[1])


@dataclass(frozen=True)
class MergeMany(Strategy):
    """Match every model to the mean of the others, in random order, until nothing moves, from the models as they are.

    The same ascent as `Universe` from the start its authors give, the models in their own order: the first
    steps match to a mean of neurons that have nothing to do with each other.

    Args:
        iterations: sweeps at most.
        seed: of the order of the visits.
    Source: Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023), algorithm 3.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> matcher = weightspace.WeightMatching()
        >>> merged = weightspace.merge([a, b], matcher=matcher, method=weightspace.MergeMany())
        >>> merged.objective >= merged.objective_before
        True
    """

    iterations: int = 50
    seed: int = 0

    def order(self, ensemble: Ensemble) -> list[Elements]:
        generator = torch.Generator().manual_seed(self.seed)
        start = [identity(ensemble.spec) for _ in ensemble.networks]
        return _first_at_rest(ensemble.spec, _ascend(ensemble, start, self.iterations, generator))


def between_models(
    spec: SymmetrySpec, permutations: Sequence[Permutations], source: int, target: int
) -> Elements:
    r"""Return the map from one model's order to another's, $\pi_i^{-1} \pi_j$ for j = source, i = target."""
    return compose(spec, permutations[source], inverse(spec, permutations[target]))


def _one_by_one(ensemble: Ensemble, order: Sequence[int]) -> list[Elements]:
    found = [identity(ensemble.spec) for _ in ensemble.networks]
    placed = [ensemble.moved(order[0], {})]
    for index in order[1:]:
        found[index] = ensemble.match(ensemble.sum(placed), len(placed), ensemble.moved(index, {}))
        placed.append(ensemble.moved(index, found[index]))
    return found


def _ascend(
    ensemble: Ensemble, start: Sequence[Elements], iterations: int, generator: torch.Generator
) -> list[Elements]:
    """Match one model at a time to the sum of the others; E never falls."""
    found = list(start)
    moved = [ensemble.moved(index, p) for index, p in enumerate(found)]
    size = ensemble.objective(found)
    settled = 0  # models since the last change: all of them have been asked and stay
    for _ in range(iterations):
        for index in torch.randperm(len(found), generator=generator).tolist():
            if settled == len(found):
                return found
            others = ensemble.sum([model for place, model in enumerate(moved) if place != index])
            step = ensemble.match(others, len(found) - 1, moved[index], improving=True)
            candidate = compose(ensemble.spec, found[index], step)
            tensors = ensemble.moved(index, candidate)
            gain = ensemble.inner(others, tensors) - ensemble.inner(others, moved[index])
            if gain > 1e-10 * size:
                found[index], moved[index], settled = candidate, tensors, 0
            else:
                settled += 1
    return found


def _at_least_given(ensemble: Ensemble, found: list[Elements]) -> list[Elements]:
    """Keep the order the models have where it is better: an anchor may serve a pair and harm the rest."""
    rest = [identity(ensemble.spec) for _ in found]
    better = ensemble.objective(found) >= ensemble.objective(rest)
    return _first_at_rest(ensemble.spec, found) if better else rest


def _first_at_rest(spec: SymmetrySpec, found: Sequence[Elements]) -> list[Elements]:
    """Put everything into the order of the first model; E is the same."""
    back = inverse(spec, found[0])
    return [compose(spec, p, back) for p in found]
