"""Matching by permutations and continuous symmetries together: rotations, invertible maps, scalings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from scipy.optimize import minimize
from torch import Tensor

from weightspace.errors import ArchitectureError
from weightspace.group_action import act_tensor, centered_basis, segment_positions
from weightspace.matching.alignment import Matcher, Problem
from weightspace.matching.assignment import assign
from weightspace.module import NetworkModule
from weightspace.permutation import identity, units_along
from weightspace.symmetry_spec import LINEAR, PERMUTATION, SCALINGS, Group, Segment, SymmetrySpec
from weightspace.value_axes import value_axes


@dataclass(frozen=True, eq=False)
class ProcrustesMatching(Matcher):
    r"""Minimize $\sum_k \|A_k - g B_k\|^2$ over all groups of a spec, one after another until none improves.

    With all other groups held, and with $G = \sum A_k B_k^\top$ over the axes a group acts on:
    orthogonal, $Q = U V^\top$ of $G = U S V^\top$ (centered: the same, orthogonal to the vector of ones);
    invertible, $M$ minimizing $\sum \|A - M B\|^2 + \sum \|A' - M^{-\top} B'\|^2$ by L-BFGS from the best rotation;
    positive scaling, the root of a quartic per unit; sign, the sign of $G_{ii}$; heads with a linear group inside,
    the assignment that maximizes the sum of nuclear norms of their blocks of $G$; other permutations, the assignment
    on $G$. A step is taken only if the distance falls.

    Use it with `symmetry(fold_gains(network), continuous=True)` for transformers.

    Args:
        sweeps: largest number of passes over all groups.
        tolerance: the passes end when one lowers the squared distance by less than this share.
        data: inputs of the networks, samples first; then the same steps first bring the values the two networks
            compute on it together (invertible groups as rotations), and the descent on weights starts there.
    Source: Schoenemann, A generalized solution of the orthogonal Procrustes problem (1966); Theus et al.,
    Generalized linear mode connectivity for transformers (2025).

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> spec = weightspace.symmetry(a, continuous=True)  # scalings of ReLU units, too
        >>> found = weightspace.align(a, b, matcher=weightspace.ProcrustesMatching(), spec=spec)
        >>> found.distance < found.distance_before
        True
    """

    sweeps: int = 30
    tolerance: float = 1e-5
    data: Tensor | None = field(default=None, repr=False)

    def match(self, problem: Problem) -> dict[str, Tensor]:
        state = _Descent(problem.spec, problem.reference, problem.model)
        if self.data is not None:
            state.start(_values_together(problem, self.data, self))
        state.descend(self.sweeps, self.tolerance)
        return state.elements


def _values_together(problem: Problem, data: Tensor, settings: ProcrustesMatching) -> dict[str, Tensor]:
    """The elements that bring the values of two networks on the same data together, each value scaled to norm 1."""
    if problem.networks is None:
        raise ArchitectureError("ProcrustesMatching with data runs the networks; use it through `align`")
    first, second = problem.networks
    axes = value_axes(first, problem.spec)
    theirs = {a.name: b.name for a, b in zip(first.nodes, second.nodes, strict=True)}
    with torch.no_grad():
        ours, others = (NetworkModule(network).values(data) for network in (first, second))
    pairs = {name: (ours[name].double(), others[theirs[name]].double()) for name in axes}
    pairs = {name: pair for name, pair in pairs.items() if all(float(value.norm()) > 0 for value in pair)}
    groups = tuple(
        replace(g, kind="orthogonal") if g.kind == "invertible" else g for g in problem.spec.groups
    )
    spec = SymmetrySpec(groups, {name: axes[name] for name in pairs})
    state = _Descent(
        spec, *({name: pair[n] / pair[n].norm() for name, pair in pairs.items()} for n in (0, 1))
    )
    state.descend(settings.sweeps, settings.tolerance)
    return state.elements


class _Descent:
    """The elements so far, and steps that only ever lower the distance."""

    def __init__(self, spec: SymmetrySpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]):
        self.spec, self.groups = spec, spec.by_name
        self.a = {name: tensor.double() for name, tensor in a.items()}
        self.b = {name: b[name].double() for name in self.a}
        self.elements = {**identity(self.spec), **{g.name: _rest(g) for g in self.spec.continuous}}
        self.distance = self.measured(self.elements)

    def start(self, elements: Mapping[str, Tensor]) -> None:
        """Go on from other elements, wherever they lie."""
        self.elements = {**self.elements, **elements}
        self.distance = self.measured(self.elements)

    def descend(self, sweeps: int, tolerance: float) -> None:
        """Improve one group after another until a pass gains too little."""
        for _ in range(sweeps):
            before = self.distance
            for group in self.spec.groups:
                self.improve(group)
            if before - self.distance <= tolerance * max(before, 1e-300):
                break

    def measured(self, elements: Mapping[str, Tensor]) -> float:
        """The squared distance over all tensors that some group moves."""
        total = 0.0
        for name, a in self.a.items():
            moved = act_tensor(self.b[name], self.spec.axes[name], elements, self.groups)
            total += float((a - moved).square().sum())
        return total

    def improve(self, group: Group) -> None:
        """Try the best element of one group, and of the linear groups inside it, with all others held."""
        candidate = {**self.elements, **self.proposal(group)}
        distance = self.measured(candidate)
        if distance < self.distance:
            self.elements, self.distance = candidate, distance

    def proposal(self, group: Group) -> dict[str, Tensor]:
        if group.kind == PERMUTATION:
            inner = [g for g in self.spec.groups if group.name in g.within and g.kind in LINEAR]
            if inner and not group.within:
                return self.heads(group, inner)
            signs = [g for g in self.spec.groups if g.units == group.name and g.kind == "sign"]
            gram = sum(a.mT @ b for a, b, _ in self.pairs(group, (group.name, *(g.name for g in signs))))
            assert isinstance(gram, Tensor)
            order = torch.stack([assign(block.abs() if signs else block) for block in gram])
            found = {group.name: order.reshape(*group.copies, group.size)}
            for sign in signs:
                picked = gram.gather(-1, order[..., None])[..., 0]
                found[sign.name] = (
                    torch.where(picked < 0, -1.0, 1.0).reshape(*group.copies, group.size).double()
                )
            return found
        direct, mass, dual, dual_mass = self.sums(group)
        if group.kind in SCALINGS:
            numbers = [x.diagonal(dim1=-2, dim2=-1) for x in (direct, mass, dual, dual_mass)]
            scale = _scale(*numbers) if group.kind == "positive" else _sign(numbers[0] + numbers[2])
            return {group.name: scale.reshape(*group.copies, group.size)}
        matrices = torch.stack([_rotation(block, group.kind) for block in direct + dual])
        if group.kind == "invertible":
            current = self.elements[group.name].reshape(matrices.shape)
            parts = zip(direct, mass, dual, dual_mass, strict=True)
            matrices = torch.stack(
                [
                    _invertible([rotation, own], *sums)
                    for rotation, own, sums in zip(matrices, current, parts, strict=True)
                ]
            )
        return {group.name: matrices.reshape(*group.copies, group.size, group.size)}

    def sums(self, group: Group) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sum of A B' and B B' over the axes that carry the group, then over those that carry it dually."""
        count = max(1, int(torch.tensor(group.copies).prod()) if group.copies else 1)
        totals = [torch.zeros(count, group.size, group.size, dtype=torch.float64) for _ in range(4)]
        for a, b, dual in self.pairs(group, (group.name,)):
            totals[2 * dual] += a.mT @ b
            totals[2 * dual + 1] += b.mT @ b
        return totals[0], totals[1], totals[2], totals[3]

    def pairs(self, group: Group, without: tuple[str, ...]) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield A and the moved B as (copies, rows, units), for every axis segment that carries the group."""
        rest = {name: e for name, e in self.elements.items() if name not in without}
        for name, number, segment in self.spec.carriers[group.name]:
            if name not in self.a:
                continue
            place = next(n for n, f in enumerate(segment.factors) if group.name in (f.name, f.scale))
            axes = self.spec.axes[name]
            moved = act_tensor(self.b[name], axes, rest, self.groups)
            a, b = (_rows(t, axes, number, segment, (place,), group) for t in (self.a[name], moved))
            yield a, b, segment.factors[place].dual

    def heads(self, outer: Group, inner: list[Group]) -> dict[str, Tensor]:
        """Pair heads by how well rotations inside could fit them, and take those rotations along."""
        held = {outer.name, *(group.name for group in inner)}
        rest = {name: e for name, e in self.elements.items() if name not in held}
        gains = torch.zeros(outer.size, outer.size, dtype=torch.float64)
        blocks = {
            g.name: torch.zeros(outer.size, outer.size, g.size, g.size, dtype=torch.float64) for g in inner
        }
        for name, number, segment in self.spec.carriers[outer.name]:
            if name not in self.a:
                continue
            axes = self.spec.axes[name]
            moved = act_tensor(self.b[name], axes, rest, self.groups)
            names = [factor.name for factor in segment.factors]
            place = names.index(outer.name)
            inside = next((group for group in inner if group.name in names), None)
            if inside is None:
                a, b = (_rows(t, axes, number, segment, (place,), None)[0] for t in (self.a[name], moved))
                gains += a.mT @ b
            else:
                places = (place, names.index(inside.name))
                a, b = (_rows(t, axes, number, segment, places, None)[0] for t in (self.a[name], moved))
                shape = (outer.size, inside.size, outer.size, inside.size)
                blocks[inside.name] += (a.mT @ b).reshape(shape).transpose(1, 2)
        for block in blocks.values():
            gains += torch.linalg.svdvals(block).sum(-1)
        order = assign(gains)
        found = {outer.name: order}
        for group in inner:
            chosen = blocks[group.name][torch.arange(outer.size), order]
            if group.within == (outer.name,):
                found[group.name] = torch.stack([_rotation(block, group.kind) for block in chosen])
        return found


def _rest(group: Group) -> Tensor:
    """The element that moves nothing."""
    if group.kind in SCALINGS:
        return torch.ones(*group.copies, group.size, dtype=torch.float64)
    return torch.eye(group.size, dtype=torch.float64).expand(*group.copies, group.size, group.size).clone()


def _rows(
    tensor: Tensor, axes: tuple, number: int, segment: Segment, places: tuple[int, ...], group: Group | None
) -> Tensor:
    """Unfold a tensor to (copies of the group, rows, units of the factors at `places`)."""
    block = tensor.movedim(number, 0)[segment_positions(segment).to(tensor.device)]
    others = [n for n in range(tensor.ndim) if n != number]
    outside = [n for n in range(len(segment.factors)) if n not in places]
    block = block.movedim(places, tuple(range(-len(places), 0))).flatten(-len(places))
    units = block.shape[-1]
    if group is None or not group.within:
        return block.reshape(1, -1, units)
    index = torch.zeros(block.shape[:-1], dtype=torch.int64)
    names = [segment.factors[n].name for n in outside]
    for parent, copies in zip(group.within, group.copies, strict=True):
        if parent in names:
            at, where = names.index(parent), torch.arange(copies)
        else:
            row = next(n for n in others if any(f.name == parent for s in axes[n] for f in s.factors))
            at = len(outside) + others.index(row)
            where = units_along(axes[row], parent, tensor.shape[row])
        index = index * copies + where.reshape(-1, *[1] * (index.ndim - at - 1))
    count = int(torch.tensor(group.copies).prod())
    order = index.reshape(-1).argsort(stable=True)
    return block.reshape(-1, units)[order].reshape(count, -1, units)


def _rotation(gram: Tensor, kind: str) -> Tensor:
    """The orthogonal Q that maximizes <Q, G>."""
    if kind == "centered":
        basis = centered_basis(len(gram)).to(gram)
        return basis @ _rotation(basis.mT @ gram @ basis, "orthogonal") @ basis.mT + 1 / len(gram)
    left, _, right = torch.linalg.svd(gram)
    return left @ right


def _sign(gain: Tensor) -> Tensor:
    return torch.where(gain < 0, -1.0, 1.0).double()


def _scale(direct: Tensor, mass: Tensor, dual: Tensor, dual_mass: Tensor) -> Tensor:
    """The s > 0 minimizing |a - s b|^2 + |a' - b'/s|^2, a root of |b|^2 s^4 - <a, b> s^3 + <a', b'> s - |b'|^2."""
    live = (mass > 0) & (dual_mass > 0)
    top = torch.where(live, mass, 1.0)
    companion = torch.zeros(*direct.shape, 4, 4, dtype=torch.float64)
    companion[..., 0, 0], companion[..., 0, 2], companion[..., 0, 3] = (
        direct / top,
        -dual / top,
        dual_mass / top,
    )
    companion[..., 1, 0] = companion[..., 2, 1] = companion[..., 3, 2] = 1
    roots = torch.linalg.eigvals(companion)
    s = torch.where(roots.imag.abs() <= 1e-6 * roots.abs(), roots.real, torch.nan)
    s = torch.where(s > 1e-12, s, torch.nan)
    cost = (
        mass[..., None] * s**2
        - 2 * direct[..., None] * s
        - 2 * dual[..., None] / s
        + dual_mass[..., None] / s**2
    )
    best = s.gather(-1, cost.nan_to_num(nan=torch.inf).argmin(-1, keepdim=True))[..., 0]
    return torch.where(live & best.isfinite(), best, 1.0)


def _invertible(
    starts: list[Tensor], direct: Tensor, mass: Tensor, dual: Tensor, dual_mass: Tensor
) -> Tensor:
    """Minimize tr(M S M') - 2 <M, P> + the same of M^-T for the dual side, from the best of several starts."""
    n = len(direct)

    def cost(flat):
        matrix = torch.from_numpy(flat).reshape(n, n)
        try:
            other = torch.linalg.inv(matrix).mT
        except RuntimeError:
            return torch.inf, flat * 0
        value = ((matrix @ mass - 2 * direct) * matrix).sum() + ((other @ dual_mass - 2 * dual) * other).sum()
        slope = 2 * (other @ dual_mass - dual)
        gradient = 2 * (matrix @ mass - direct) - other @ slope.mT @ other
        return float(value), gradient.reshape(-1).numpy()

    start = min(starts, key=lambda matrix: cost(matrix.reshape(-1).numpy())[0])
    found = minimize(cost, start.reshape(-1).numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 60})
    return torch.from_numpy(found.x).reshape(n, n)
