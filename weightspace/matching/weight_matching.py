"""Weight matching by coordinate ascent over the groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.matching.alignment import Matcher, Problem
from weightspace.permutation import identity, permute_tensor


@dataclass(frozen=True)
class WeightMatching(Matcher):
    r"""Solve one group at a time as a linear assignment problem, all others held, until none improves.

    For group p, with B permuted by all other groups: maximize over permutations the sum of G[i, p(i)],
    $G = \sum_k \mathrm{unfold}(A_k)\, \mathrm{unfold}(B_k)^\top$ over all tensors that carry p. A step is taken
    only if the objective rises, so the objective is monotone even where a tensor carries p on two axes.

    Args:
        restarts: number of random orders of the groups that are tried from the identity; the best is kept.
        seed: of those orders.
    Source: Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023), algorithm 1.
    """

    restarts: int = 3
    seed: int = 0

    def match(self, problem: Problem) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        runs = [self._ascend(problem, generator) for _ in range(self.restarts)]
        return max(runs, key=lambda run: run[0])[1]

    def _ascend(self, problem: Problem, generator: torch.Generator) -> tuple[float, dict[str, Tensor]]:
        permutations = identity(problem.spec)
        objective = problem.objective(permutations)
        names = list(permutations)
        carriers = {name: _carriers(problem, name) for name in names}
        neighbors = {
            name: {axis.group for key, _ in carriers[name] for axis in problem.spec.axes[key] if axis}
            - {name}
            for name in names
        }
        waiting = set(names)
        while waiting:
            for position in torch.randperm(len(names), generator=generator).tolist():
                name = names[position]
                if name not in waiting:
                    continue
                waiting.discard(name)
                candidate = {
                    **permutations,
                    name: _assign(_gains(problem, name, carriers[name], permutations)),
                }
                value = problem.objective(candidate)
                if value > objective + 1e-12 * abs(objective):
                    permutations, objective = candidate, value
                    waiting |= neighbors[name]
                    if any(twice(problem.spec.axes[key], name) for key, _ in carriers[name]):
                        waiting.add(name)
        return objective, permutations


def twice(axes: tuple, group: str) -> bool:
    """Whether a tensor carries a group on two of its axes."""
    return sum(axis is not None and axis.group == group for axis in axes) > 1


def _carriers(problem: Problem, group: str) -> list[tuple[str, int]]:
    """The (parameter, axis) pairs a group acts on."""
    return [
        (name, number)
        for name in problem.reference
        for number, axis in enumerate(problem.spec.axes[name])
        if axis is not None and axis.group == group
    ]


def _gains(
    problem: Problem, group: str, carriers: list[tuple[str, int]], permutations: dict[str, Tensor]
) -> Tensor:
    """G[i, j]: what placing the model's unit j at position i adds to the objective."""
    size = len(permutations[group])
    gains = torch.zeros(size, size, dtype=torch.float64)
    for name, number in carriers:
        axes = problem.spec.axes[name]
        others = tuple(axis if n != number else None for n, axis in enumerate(axes))
        a = problem.reference[name].movedim(number, 0).reshape(size, -1)
        b = permute_tensor(problem.model[name], others, permutations).movedim(number, 0).reshape(size, -1)
        gains.addmm_(a, b.mT)
    return gains


def _assign(gains: Tensor) -> Tensor:
    """Maximize sum gains[i, p[i]]; when the row maxima form a permutation they are the answer."""
    best = gains.argmax(1)
    if len(best.unique()) == len(best):
        return best
    return torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
