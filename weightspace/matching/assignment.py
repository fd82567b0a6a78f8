r"""Linear assignment, and its hierarchical form for groups that are within others.

A linear function of the lifted permutation of a family (`weightspace.matching.pieces`) is a sum of <G, lifted> over
its patterns. For heads with an independent permutation inside each, every pair (a, b) of heads has an inner problem
of its own, whose optimum is the gain V[a, b] of putting head b in place a:

    $\max_{o, \sigma} \sum_{a, i} G[(a, i), (o(a), \sigma_a(i))] = \max_o \sum_a V[a, o(a)]$,
    $V[a, b] = \max_\sigma \sum_i G[(a, i), (b, \sigma(i))]$,

which is exact. Where inner permutations multiply each other (queries that share one key head: the order of the query
heads times the order inside), the one of at most four units is enumerated, which is exact too; otherwise the inner
permutations alternate from several starts.
Source: Jonker, Volgenant, A shortest augmenting path algorithm for dense and sparse linear assignment problems (1987),
as `scipy.optimize.linear_sum_assignment`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.errors import NonFiniteError
from weightspace.matching.pieces import Family, Pattern

ENUMERATED = 4  # units whose orders are all tried: 24
RESTARTS = 4  # random starts of the alternation

Terms = Mapping[Pattern, Tensor]


def assign(gains: Tensor) -> Tensor:
    """Return p, shape (..., n), that maximizes the sum of gains[..., i, p(i)], for gains (..., n, n).

    When the row maxima form a permutation they are the answer.

    Raises:
        NonFiniteError: gains that are NaN or infinite.
    """
    n = gains.shape[-1]
    gains = gains.detach().cpu()
    flat = (gains if gains.dtype == torch.float64 else gains.float()).reshape(-1, n, n).numpy()
    if not np.isfinite(flat).all():
        wider = ", or store both networks as float64" if flat.dtype != np.float64 else ""
        raise NonFiniteError(
            f"the products of weights that say how well {n} units match are NaN or overflow {flat.dtype}; scale the "
            f"weights down{wider}"
        )
    best = flat.argmax(-1)
    waiting = (np.sort(best, -1) != np.arange(n)).any(-1).nonzero()[0]
    if n <= ENUMERATED and len(waiting) > 2:
        orders = np.array(list(itertools.permutations(range(n))))
        best[waiting] = orders[flat[waiting][:, np.arange(n), orders].sum(-1).argmax(-1)]
    else:
        for number in waiting:
            reduced = flat[number].astype(np.float64)
            reduced -= reduced.max(1, keepdims=True)
            reduced -= reduced.max(0)  # the same optimum, found in three quarters of the time
            best[number] = linear_sum_assignment(reduced, maximize=True)[1]
    return torch.from_numpy(best).reshape(gains.shape[:-1])


def reached(gains: Tensor, order: Tensor) -> Tensor:
    """Return the sum of gains[..., i, p(i)] in float64, shape (...)."""
    return gains.gather(-1, order.to(gains.device)[..., None])[..., 0].double().sum(-1).cpu()


def solve(family: Family, terms: Terms, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return the element of a family that maximizes the sum of <G, lifted element> over its patterns.

    Args:
        terms: pattern -> G, shape (n, n) with n entries of the pattern.
        generator: of the random starts where the problem is not separable.
    Raises:
        NotImplementedError: the groups are nested in a way that has no such solution; `solvable` tells.
    """
    if len(family.names) == 1:
        (name,), (gains,) = family.names, terms.values()
        return {name: assign(gains)}
    grids = {
        pattern: gains.cpu().reshape(*family.shape(pattern), *family.shape(pattern))
        for pattern, gains in terms.items()
    }
    tops = [name for name in family.names if not family.parents(name)]
    _, elements = _level(family, tops, grids, (), generator or torch.Generator().manual_seed(0))
    result = {}
    for name in family.moving:
        path = sorted(family.parents(name), key=lambda parent: len(family.parents(parent)))
        size = family.sizes[name]
        if name in elements:
            order = [path.index(parent) for parent in family.parents(name)]
            result[name] = elements[name].permute(*order, len(path))
        else:
            result[name] = torch.arange(size).expand(*(family.sizes[p] for p in family.parents(name)), size)
    return {name: element.contiguous() for name, element in result.items()}


def solvable(family: Family, patterns: Sequence[Pattern]) -> bool:
    """Whether `solve` has a solution: nested groups, and what multiplies each other has nothing within it."""
    if not family.nested:
        return False
    inner = {parent for name in family.names for parent in family.parents(name)}
    for pattern in patterns:
        outer = [name for name in pattern if name in inner]
        leaves = [name for name in pattern if name not in inner] or outer[-1:]
        if len(set(outer)) < len(outer):
            return False
        if any({*outer, name} != {*family.parents(name), name} for name in leaves):
            return False
    return True


# ---- the recursion ---------------------------------------------------------------------------------------
#
# A term has the shape (*batch, *rows, *columns), one row and one column axis for every name of its pattern.


def _level(
    family: Family, tops: Sequence[str], terms: Terms, batch: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Solve for groups side by side and all within them; returns values (*batch) and elements (*batch, ...)."""
    value = torch.zeros(batch, dtype=torch.float64)
    elements: dict[str, Tensor] = {}
    for pattern, term in terms.items():
        if not pattern:
            value += term
    for names in _components(family, tops, terms):
        own = {p: t for p, t in terms.items() if any(_top(family, name, tops) in names for name in p)}
        if not own:
            continue
        repeated = any(pattern.count(names[0]) > 1 for pattern in own)
        if len(names) > 1 or repeated:
            gain, found = _coupled(names, own, batch, generator)
        elif all(pattern == tuple(names) for pattern in own):
            (gains,) = own.values()
            order = assign(gains)
            gain, found = reached(gains, order), {names[0]: order}
        else:
            gain, found = _outer(family, names[0], own, batch, generator)
        value = value + gain
        elements |= found
    return value, elements


def _outer(
    family: Family, name: str, terms: Terms, batch: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Solve the inner problem of every pair of units, then the outer one on the inner optima."""
    rank, n = len(batch), family.sizes[name]
    still = name in family.still
    inner: dict[Pattern, Tensor] = {}
    for pattern, term in terms.items():
        place = pattern.index(name)
        term = term.movedim((rank + place, rank + len(pattern) + place), (rank, rank + 1))
        if still:
            term = term.diagonal(dim1=rank, dim2=rank + 1).movedim(-1, rank)
        inner[pattern[:place] + pattern[place + 1 :]] = term
    below = [c for c in family.names if {*family.parents(c)} == {name, *family.parents(name)}]
    pairs = (*batch, n) if still else (*batch, n, n)
    values, elements = _level(family, below, inner, pairs, generator)
    if still:
        return values.sum(-1), elements
    order = assign(values)
    chosen = {}
    for child, element in elements.items():
        index = order.reshape(*order.shape, *[1] * (element.ndim - rank - 1))
        index = index.expand(*order.shape, 1, *element.shape[rank + 2 :])
        chosen[child] = element.gather(rank + 1, index).squeeze(rank + 1)
    return reached(values, order), {name: order, **chosen}


def _top(family: Family, name: str, tops: Sequence[str]) -> str:
    return name if name in tops else next(p for p in family.parents(name) if p in tops)


def _components(family: Family, tops: Sequence[str], terms: Terms) -> list[list[str]]:
    """The groups of a level that occur in common patterns, directly or by way of others."""
    components: list[list[str]] = [[name] for name in tops]
    for pattern in terms:
        met = {_top(family, name, tops) for name in pattern}
        joined = [c for c in components if met & set(c)]
        if joined:
            components = [c for c in components if c not in joined] + [[name for c in joined for name in c]]
    return components


# ---- inner permutations that multiply each other ---------------------------------------------------------


def _coupled(
    names: Sequence[str], terms: Terms, batch: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    count = math.prod(batch)
    flat = {pattern: term.reshape(count, *term.shape[len(batch) :]) for pattern, term in terms.items()}
    sizes = {
        name: term.shape[1 + place] for pattern, term in flat.items() for place, name in enumerate(pattern)
    }
    search = _Products(names, flat, sizes, count)
    hubs = [name for name in names if sizes[name] <= ENUMERATED and search.separates(name)]
    if hubs:
        value, found = search.enumerated(min(hubs, key=lambda name: sizes[name]))
    else:
        value, found = search.alternated(generator)
    return value.reshape(batch), {name: e.reshape(*batch, sizes[name]) for name, e in found.items()}


class _Products:
    """A sum of terms, each a product of permutations, for a batch of problems at once."""

    def __init__(self, names: Sequence[str], terms: Terms, sizes: Mapping[str, int], count: int):
        self.names, self.terms, self.sizes, self.count = names, terms, sizes, count

    def separates(self, hub: str) -> bool:
        """Whether with the hub held the others are independent of each other."""
        rest = [tuple(name for name in pattern if name != hub) for pattern in self.terms]
        return all(len(names) <= 1 for names in rest)

    def held(self, free: str | None, elements: Mapping[str, Tensor]) -> Tensor:
        """Sum all terms with every permutation but one held: gains (count, n, n), or values (count)."""
        size = self.sizes[free] if free is not None else 0
        total = torch.zeros((self.count, size, size) if free else (self.count,), dtype=torch.float64)
        for pattern, term in self.terms.items():
            places = [place for place, name in enumerate(pattern) if name == free] if free else [None]
            for place in places:
                total += self._contracted(pattern, term, place, elements)
        return total

    def _contracted(
        self, pattern: Pattern, term: Tensor, kept: int | None, elements: Mapping[str, Tensor]
    ) -> Tensor:
        remaining = list(range(len(pattern)))
        for place in reversed(range(len(pattern))):
            if place == kept:
                continue
            at = remaining.index(place)
            term = term.movedim((1 + at, 1 + len(remaining) + at), (-2, -1))
            index = elements[pattern[place]].reshape(self.count, *[1] * (term.ndim - 3), term.shape[-2], 1)
            term = term.gather(-1, index.expand(*term.shape[:-1], 1))[..., 0].sum(-1)
            remaining.remove(place)
        return term

    def enumerated(self, hub: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Try every order of the hub; the others are then assignments of their own."""
        best = torch.full((self.count,), -torch.inf, dtype=torch.float64)
        found = {name: torch.zeros(self.count, self.sizes[name], dtype=torch.int64) for name in self.names}
        for order in itertools.permutations(range(self.sizes[hub])):
            trial = {hub: torch.tensor(order).expand(self.count, -1)}
            value = torch.zeros(self.count, dtype=torch.float64)
            gains: dict[str, Tensor] = {}
            for pattern, term in self.terms.items():
                others = [place for place, name in enumerate(pattern) if name != hub]
                contracted = self._contracted(pattern, term, others[0] if others else None, trial)
                if others:
                    name = pattern[others[0]]
                    gains[name] = gains[name] + contracted if name in gains else contracted
                else:
                    value += contracted
            for name, matrix in gains.items():
                trial[name] = assign(matrix)
                value += reached(matrix, trial[name])
            better = value > best
            best = torch.where(better, value, best)
            for name, element in trial.items():
                found[name] = torch.where(better[:, None], element, found[name])
        return best, found

    def alternated(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Improve one permutation after the other until none does, from several starts."""
        best, found = self._ascended(self._informed())
        for _ in range(RESTARTS):
            start = {
                name: torch.rand(self.count, self.sizes[name], generator=generator).argsort(-1)
                for name in self.names
            }
            value, trial = self._ascended(start)
            better = value > best
            best = torch.where(better, value, best)
            found = {name: torch.where(better[:, None], trial[name], found[name]) for name in self.names}
        return best, found

    def _informed(self) -> dict[str, Tensor]:
        """Start the permutation that meets most others from what each pair of its units could gain at best."""
        hub = max(self.names, key=lambda name: sum(name in p for p in self.terms if len(p) > 1))
        gains = torch.zeros(self.count, self.sizes[hub], self.sizes[hub], dtype=torch.float64)
        for pattern, term in self.terms.items():
            if pattern == (hub,):
                gains += term
            elif len(pattern) == 2 and pattern.count(hub) == 1:
                place = pattern.index(hub)
                other = pattern[1 - place]
                pairs = term.movedim((1 + place, 3 + place), (1, 2))
                if (other,) in self.terms:
                    pairs = pairs + self.terms[other,][:, None, None] / self.sizes[hub]
                gains += reached(pairs, assign(pairs))
        rest = {name: torch.arange(self.sizes[name]).repeat(self.count, 1) for name in self.names}
        return {**rest, hub: assign(gains)}

    def _ascended(self, elements: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value = self.held(None, elements)
        hub = max(self.names, key=lambda name: sum(name in p for p in self.terms if len(p) > 1))
        order = [*(name for name in self.names if name != hub), hub]
        while True:
            before = value
            for name in order:
                trial = {**elements, name: assign(self.held(name, elements))}
                reward = self.held(None, trial)
                better = reward > value
                value = torch.where(better, reward, value)
                elements[name] = torch.where(better[:, None], trial[name], elements[name])
            if not bool((value > before + 1e-9 * before.abs()).any()):
                return value, elements
