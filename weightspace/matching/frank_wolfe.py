"""Frank-Wolfe matching: ascend over convex combinations of group elements, all groups at once, then round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightspace.matching.alignment import Matcher, Problem
from weightspace.matching.assignment import reached, solve
from weightspace.matching.pieces import Pattern, inner_product, lifted
from weightspace.matching.weight_matching import Ascent

Relaxed = dict[tuple[int, Pattern], Tensor]  # (family, pattern) -> convex combination of lifted permutations
Vertex = dict[tuple[int, Pattern], Tensor]  # (family, pattern) -> gather index of one lifted permutation


@dataclass(frozen=True)
class FrankWolfeMatching(Matcher):
    r"""Maximize f = sum <A, (D ⊗ D' ...) B> over convex combinations D of group elements, then round and polish.

    From the barycentre, where every D is uniform, repeat: S maximizes <df/dD, S> over the group (an assignment per
    family of groups), D <- D + t (S - D) with the t in [0, 1] that maximizes f. Where no tensor is carried by more
    than two slots f is quadratic on that line, $f(t) = f(0) + l t + q t^2$, t = 1 if $q \ge 0$, else
    $\min(1, -l / 2q)$; otherwise the polynomial is read off at as many points as it needs. The end point is rounded
    by an assignment and raised by the coordinate steps of `WeightMatching`.

    One run of `WeightMatching` comes first. Its result is returned where it is plain: every unit fits its partner
    better than any other (copies, fine-tuned models). Else the better of the two is.

    Slots of more than 8192 entries (large grouped convolutions, whose two axes form one slot) take part in the
    coordinate steps only.

    Args:
        iterations: largest number of steps.
        tolerance: the ascent ends when a step gains less than this share of f.
        seed: of random starts inside the assignments that are not separable.
    Source: Crisostomi et al., C2M3: cycle-consistent multi-model merging (2024), sections 3 and 4.
    """

    iterations: int = 100
    tolerance: float = 1e-3
    seed: int = 0

    def match(self, problem: Problem) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        state = Ascent(problem.spec, problem.pieces, generator)
        value = state.start()
        if state.is_plain():
            return state.elements
        first = state.elements
        relaxation = Relaxation(state)
        relaxation.climb(self.iterations, self.tolerance)
        state.move(relaxation.rounded())
        state.climb()
        return state.elements if state.objective() > value else first


class Relaxation:
    """The relaxed elements of all families, f and its gradient."""

    def __init__(self, state: Ascent):
        self.state = state
        self.pieces = [piece for number, piece in enumerate(state.pieces) if state.is_joint(number)]
        self.relaxed: Relaxed = {}
        for piece in self.pieces:
            for slot in piece.slots:
                if (slot.family, slot.pattern) not in self.relaxed:
                    self.relaxed[slot.family, slot.pattern] = self._uniform(
                        slot.family, slot.pattern, piece.a
                    )
        self.terms: list[_Pair | _Product] = []
        for piece in self.pieces:
            if len(piece.slots) == 2:
                self.terms.append(_Pair(piece.slots, piece.a, piece.b, self.relaxed))
            elif len(piece.slots) > 2:
                self.terms.append(_Product(piece.slots, piece.a, piece.b))
        self.constants = {
            (family, pattern): matrix
            for family in range(len(state.families))
            for pattern, matrix in state.constants(family).items()
        }

    def _uniform(self, family: int, pattern: Pattern, like: Tensor) -> Tensor:
        """The mean of all lifted elements: uniform, within every place of an index that does not move."""
        own = self.state.families[family]
        blocks = torch.ones((), dtype=like.dtype, device=like.device)
        for name in pattern:
            n = own.sizes[name]
            still = name in own.still
            block = torch.eye(n, dtype=like.dtype) if still else torch.full((n, n), 1 / n, dtype=like.dtype)
            blocks = torch.kron(blocks, block.to(like))
        return blocks

    def climb(self, iterations: int, tolerance: float) -> int:
        """Take Frank-Wolfe steps until one gains little; returns their number."""
        for step in range(iterations):
            gradient = self.gradient()
            vertex = self.best_vertex(gradient)
            coefficients = self.line(gradient, vertex)
            t = best_step(coefficients)
            gain = float(np.polynomial.polynomial.polyval(t, coefficients)) - coefficients[0]
            self.advance(vertex, t)
            if gain <= tolerance * abs(coefficients[0]):
                return step + 1
        return iterations

    def gradient(self) -> Relaxed:
        """df/dD for every relaxed element."""
        gradient = dict(self.constants)
        for term in self.terms:
            for key, matrix in term.gradient(self.relaxed):
                gradient[key] = gradient[key] + matrix if key in gradient else matrix
        return gradient

    def best_vertex(self, gradient: Relaxed) -> Vertex:
        """The group element that maximizes the linear function."""
        vertex: Vertex = {}
        for number, family in enumerate(self.state.families):
            own = {pattern: matrix for (f, pattern), matrix in gradient.items() if f == number}
            if own:
                found = solve(family, own, self.state.generator)
                for pattern in own:
                    vertex[number, pattern] = lifted(family, pattern, found).to(own[pattern].device)
        return vertex

    def line(self, gradient: Relaxed, vertex: Vertex) -> list[float]:
        """The coefficients of f on the line from the present point to a vertex, constant first."""
        total = np.zeros(2)
        for key, matrix in self.constants.items():
            now = inner_product(matrix, self.relaxed[key])
            total += (now, float(reached(matrix, vertex[key])) - now)
        for term in self.terms:
            total = np.polynomial.polynomial.polyadd(total, term.line(self.relaxed, vertex))
        return total.tolist()

    def advance(self, vertex: Vertex, t: float) -> None:
        """Move by t towards a vertex."""
        for term in self.terms:
            term.advance(t)
        for key, index in vertex.items():
            self.relaxed[key].mul_(1 - t)
            self.relaxed[key][torch.arange(len(index), device=index.device), index] += t

    def rounded(self) -> dict[str, Tensor]:
        """The group element closest to the relaxed one."""
        found: dict[str, Tensor] = {}
        for number, family in enumerate(self.state.families):
            own = {pattern: matrix for (f, pattern), matrix in self.relaxed.items() if f == number}
            if own:
                found |= solve(family, own, self.state.generator)
        return found


def best_step(coefficients: Sequence[float]) -> float:
    """Return the t in [0, 1] that maximizes a polynomial."""
    slope = np.polynomial.polynomial.polyder(np.array(coefficients))
    roots = np.polynomial.polynomial.polyroots(np.trim_zeros(slope, "b")) if np.any(slope) else np.zeros(0)
    inside = [float(r.real) for r in np.atleast_1d(roots) if abs(r.imag) < 1e-9 and 0 < r.real < 1]
    return max([1.0, 0.0, *inside], key=lambda t: float(np.polynomial.polynomial.polyval(t, coefficients)))


class _Pair:
    """<A, D B E'> for a tensor in two slots, with D B and A E kept: on a line both are linear in t."""

    def __init__(self, slots: Sequence, a: Tensor, b: Tensor, relaxed: Relaxed):
        self.keys = [(slot.family, slot.pattern) for slot in slots]
        self.a, self.b = a, b
        self.left = torch.einsum("ik,klr->ilr", relaxed[self.keys[0]], b)  # D B
        self.right = torch.einsum("ijr,jl->ilr", a, relaxed[self.keys[1]])  # A E

    def gradient(self, relaxed: Relaxed) -> list[tuple[tuple[int, Pattern], Tensor]]:
        first = self.right.flatten(1) @ self.b.flatten(1).mT
        second = self.a.movedim(1, 0).flatten(1) @ self.left.movedim(1, 0).flatten(1).mT
        return [(self.keys[0], first), (self.keys[1], second)]

    def line(self, relaxed: Relaxed, vertex: Vertex) -> list[float]:
        self._left = self.b.index_select(0, vertex[self.keys[0]])
        self._right = self.a.index_select(1, vertex[self.keys[1]].argsort())
        start = inner_product(self.right, self.left)
        cross = inner_product(self.right, self._left) + inner_product(self._right, self.left)
        return [start, cross - 2 * start, inner_product(self._right, self._left) - cross + start]

    def advance(self, t: float) -> None:
        self.left.lerp_(self._left, t)
        self.right.lerp_(self._right, t)


class _Product:
    """<A, B in any number of slots>, evaluated anew at every point."""

    def __init__(self, slots: Sequence, a: Tensor, b: Tensor):
        self.keys = [(slot.family, slot.pattern) for slot in slots]
        self.a, self.b = a, b

    def _moved(self, relaxed: Relaxed, without: int | None = None) -> Tensor:
        tensor = self.b
        for place, key in enumerate(self.keys):
            if place != without:
                moved = relaxed[key] @ tensor.movedim(place, 0).flatten(1)
                tensor = moved.reshape(-1, *tensor.movedim(place, 0).shape[1:]).movedim(0, place)
        return tensor

    def gradient(self, relaxed: Relaxed) -> list[tuple[tuple[int, Pattern], Tensor]]:
        return [
            (
                key,
                self.a.movedim(place, 0).flatten(1)
                @ self._moved(relaxed, place).movedim(place, 0).flatten(1).mT,
            )
            for place, key in enumerate(self.keys)
        ]

    def line(self, relaxed: Relaxed, vertex: Vertex) -> list[float]:
        degree = len(self.keys)
        points = np.linspace(0, 1, degree + 1)
        values = []
        for t in points:
            mixed = {}
            for key in self.keys:
                mixed[key] = relaxed[key] * (1 - t)
                mixed[key][torch.arange(len(vertex[key]), device=vertex[key].device), vertex[key]] += t
            values.append(inner_product(self.a, self._moved(mixed)))
        return np.polynomial.polynomial.polyfit(points, values, degree).tolist()

    def advance(self, t: float) -> None:
        pass
