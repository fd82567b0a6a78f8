"""Frank-Wolfe matching: ascend over convex combinations of group elements, all groups at once, then round."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from weightspace.matching.alignment import Matcher, Problem
from weightspace.matching.assignment import Terms, reached, solve
from weightspace.matching.pieces import Family, Pattern, Piece, inner_product, lifted
from weightspace.matching.weight_matching import Ascent
from weightspace.permutation import Permutations

SPARSE = 8  # a combination of more than one in that many of the permutations' size is multiplied as a matrix

Relaxed = Mapping[tuple[int, Pattern], "Combination"]
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

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> found = weightspace.align(a, b, matcher=weightspace.FrankWolfeMatching(iterations=20))
        >>> found.objective > found.objective_before
        True
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


class Combination:
    """A convex combination of lifted permutations of one slot, w U + sum_i w_i S_i, without the matrix.

    U is the mean of the whole group: uniform, within every place of an index that does not move. There is one S_i
    for every step since the last one that went all the way.
    """

    def __init__(self, family: Family, pattern: Pattern):
        self.shape = family.shape(pattern)
        self._moving = [place for place, name in enumerate(pattern) if name not in family.still]
        self._rest = 1.0
        self._weights: list[float] = []
        self._indices: list[Tensor] = []

    def advance(self, index: Tensor, t: float) -> None:
        """Move by t towards the lifted permutation with this gather index."""
        self._rest *= 1 - t
        kept = [
            (w * (1 - t), i) for w, i in zip(self._weights, self._indices, strict=True) if w * (1 - t) > 0
        ]
        if t > 0:
            kept.append((t, index))
        self._weights, self._indices = [w for w, _ in kept], [i for _, i in kept]

    def rows(self, tensor: Tensor) -> Tensor:
        """Return D X for X of shape (n, m)."""
        n = len(tensor)
        if len(self._indices) * SPARSE > n:
            return self.dense(tensor) @ tensor
        result = self._rest * self._mean(tensor) if self._rest else torch.zeros_like(tensor)
        if self._indices:
            weights = tensor.new_tensor(self._weights).expand(n, -1).contiguous()
            result += embedding_bag(
                torch.stack(self._indices, 1), tensor.contiguous(), per_sample_weights=weights, mode="sum"
            )
        return result

    def inner(self, gains: Tensor) -> float:
        """Return <gains, D> for gains of shape (n, n)."""
        total = self._rest * float(self._mean(gains).diagonal().double().sum()) if self._rest else 0.0
        return total + sum(
            w * float(reached(gains, i)) for w, i in zip(self._weights, self._indices, strict=True)
        )

    def dense(self, like: Tensor) -> Tensor:
        """Return D as a matrix (n, n), in the dtype and on the device of a tensor."""
        n = math.prod(self.shape)
        matrix = self._rest * self._mean(torch.eye(n, dtype=like.dtype, device=like.device))
        for weight, index in zip(self._weights, self._indices, strict=True):
            matrix[torch.arange(n, device=like.device), index] += weight
        return matrix

    def mixed(self, index: Tensor, t: float) -> Combination:
        """Return the combination at t on the way to a lifted permutation."""
        other = copy.copy(self)
        other.advance(index, t)
        return other

    def _mean(self, tensor: Tensor) -> Tensor:
        """Return U X."""
        if not self._moving:
            return tensor.clone()
        grid = tensor.reshape(*self.shape, -1)
        return grid.mean(self._moving, keepdim=True).expand(grid.shape).reshape(tensor.shape)


class Relaxation:
    """The relaxed elements of all families, f and its gradient; one family's gradient is in memory at a time."""

    def __init__(self, state: Ascent):
        self.state = state
        joint = [piece for number, piece in enumerate(state.pieces) if state.is_joint(number)]
        self.pairs = [piece for piece in joint if len(piece.slots) == 2]
        self.products = [piece for piece in joint if len(piece.slots) > 2]
        self.relaxed: Relaxed = {
            (slot.family, slot.pattern): Combination(state.families[slot.family], slot.pattern)
            for piece in joint
            for slot in piece.slots
        }

    def climb(self, iterations: int, tolerance: float) -> int:
        """Take Frank-Wolfe steps until one gains little; returns their number."""
        for step in range(iterations):
            vertex, coefficients = self.line(self._best)
            t = best_step(coefficients)
            gain = float(np.polynomial.polynomial.polyval(t, coefficients)) - coefficients[0]
            self.advance(vertex, t)
            if gain <= tolerance * abs(coefficients[0]):
                return step + 1
        return iterations

    def line(self, choose: Callable[[int, Terms], Permutations]) -> tuple[Vertex, list[float]]:
        """Return a vertex, and the coefficients of f on the line to it from the present point, constant first.

        For the tensors in two slots f(0) and f'(0) follow from the gradient, and f(1) is one more sum.

        Args:
            choose: from the number of a family and its part of df/dD, pattern -> matrix, to an element of it.
        """
        vertex: Vertex = {}
        fixed, start, slope = np.zeros(2), 0.0, 0.0
        for number, family in enumerate(self.state.families):
            constant, pairs = self.state.constants(number), self._gradient(number, self.pairs)
            terms = added(constant, pairs, self._gradient(number, self.products))
            if not terms:
                continue
            element = choose(number, terms)
            for pattern, matrix in terms.items():
                vertex[number, pattern] = lifted(family, pattern, element).to(matrix.device)
            for pattern, matrix in constant.items():
                now = self.relaxed[number, pattern].inner(matrix)
                fixed += (now, float(reached(matrix, vertex[number, pattern])) - now)
            for pattern, matrix in pairs.items():
                now = self.relaxed[number, pattern].inner(matrix)
                start, slope = start + now / 2, slope + float(reached(matrix, vertex[number, pattern])) - now
        end = sum(
            inner_product(p.a, _permuted(p.b, [vertex[s.family, s.pattern] for s in p.slots]))
            for p in self.pairs
        )
        total = np.polynomial.polynomial.polyadd(fixed, (start, slope, end - start - slope))
        for piece in self.products:
            total = np.polynomial.polynomial.polyadd(total, self._product_line(piece, vertex))
        return vertex, total.tolist()

    def advance(self, vertex: Vertex, t: float) -> None:
        """Move by t towards a vertex."""
        for key, index in vertex.items():
            self.relaxed[key].advance(index, t)

    def rounded(self) -> dict[str, Tensor]:
        """The group element closest to the relaxed one."""
        found: dict[str, Tensor] = {}
        like = torch.empty(0, dtype=self.state.pieces[0].dtype, device=self.state.pieces[0].device)
        for number, family in enumerate(self.state.families):
            own = {pattern: d.dense(like) for (f, pattern), d in self.relaxed.items() if f == number}
            if own:
                found |= solve(family, own, self.state.generator)
        return found

    def _best(self, number: int, terms: Terms) -> Permutations:
        return solve(self.state.families[number], terms, self.state.generator)

    def _gradient(self, family: int, pieces: Sequence[Piece]) -> dict[Pattern, Tensor]:
        """The part of df/dD of one family that some pieces contribute."""
        terms: dict[Pattern, Tensor] = {}
        for piece in pieces:
            for place, slot in enumerate(piece.slots):
                if slot.family == family:
                    moved = self._moved(piece, self.relaxed, place)
                    product = piece.rows(piece.a, place) @ piece.rows(moved, place).mT
                    terms[slot.pattern] = (
                        terms[slot.pattern].add_(product) if slot.pattern in terms else product
                    )
        return terms

    def _moved(self, piece: Piece, relaxed: Relaxed, without: int | None = None) -> Tensor:
        """B of a piece, mixed along its slots; one may be left at rest."""
        tensor = piece.b
        for place, slot in enumerate(piece.slots):
            if place != without:
                first = tensor.movedim(place, 0)
                mixed = relaxed[slot.family, slot.pattern].rows(first.flatten(1))
                tensor = mixed.reshape(first.shape).movedim(0, place)
        return tensor

    def _product_line(self, piece: Piece, vertex: Vertex) -> list[float]:
        """The coefficients for a tensor in more than two slots, from as many points as its polynomial needs."""
        degree = len(piece.slots)
        points = np.linspace(0, 1, degree + 1)
        values = []
        for t in points:
            keys = {(slot.family, slot.pattern) for slot in piece.slots}
            mixed = {key: self.relaxed[key].mixed(vertex[key], float(t)) for key in keys}
            values.append(inner_product(piece.a, self._moved(piece, mixed)))
        return np.polynomial.polynomial.polyfit(points, values, degree).tolist()


def added(*terms: Terms) -> dict[Pattern, Tensor]:
    """Add up pattern -> matrix."""
    total: dict[Pattern, Tensor] = {}
    for part in terms:
        for pattern, matrix in part.items():
            total[pattern] = total[pattern] + matrix if pattern in total else matrix
    return total


def _permuted(tensor: Tensor, indices: Sequence[Tensor]) -> Tensor:
    for place, index in enumerate(indices):
        tensor = tensor.index_select(place, index)
    return tensor


def best_step(coefficients: Sequence[float]) -> float:
    """Return the t in [0, 1] that maximizes a polynomial."""
    slope = np.polynomial.polynomial.polyder(np.array(coefficients))
    roots = np.polynomial.polynomial.polyroots(np.trim_zeros(slope, "b")) if np.any(slope) else np.zeros(0)
    inside = [float(r.real) for r in np.atleast_1d(roots) if abs(r.imag) < 1e-9 and 0 < r.real < 1]
    return max([1.0, 0.0, *inside], key=lambda t: float(np.polynomial.polynomial.polyval(t, coefficients)))
