"""Elements of the permutation groups of a `SymmetrySpec` and their action on parameters.

An element maps group name -> gather index, int64, shape (*copies, size): `new[i] = old[p[i]]`, so a matrix becomes
P W P' with P[i, p[i]] = 1, and first p then q is `p[q]`. A group within another keeps its index under the *new*
place of the outer unit: entry (a, i) comes from `(outer[a], inner[a][i])`. Groups not listed act as the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.network import Network
from weightspace.symmetry_spec import Axis, Group, Segment, SymmetrySpec

Permutations = Mapping[str, Tensor]


def permute_tensor(
    tensor: Tensor, axes: Sequence[Axis], permutations: Permutations, groups: Mapping[str, Group]
) -> Tensor:
    """Apply the permutations to the axes of one parameter."""
    dependent = []  # axes whose order depends on the place along another one, which must have moved before
    for number in range(len(axes)):
        index, row = axis_index(axes, number, permutations, groups, tensor.shape[number])
        if row is not None:
            dependent.append((number, row, index))
        elif index is not None:
            tensor = tensor.index_select(number, index.to(tensor.device))
    for number, row, index in dependent:
        shape = [1] * tensor.ndim
        shape[row], shape[number] = tensor.shape[row], tensor.shape[number]
        spread = (index if row < number else index.mT).reshape(shape).expand(tensor.shape)
        tensor = tensor.gather(number, spread.to(tensor.device))
    return tensor


def axis_index(
    axes: Sequence[Axis], number: int, permutations: Permutations, groups: Mapping[str, Group], length: int
) -> tuple[Tensor | None, int | None]:
    """Return the gather index of an axis, and the other axis its rows follow.

    The index has shape (length,), or (other length, length) where a group on this axis is within one that the other
    axis carries (the inputs of a grouped convolution, told apart by the row); None where nothing moves.
    """
    moving = [s for s in axes[number] if any(factor.name in permutations for factor in s.factors)]
    if not moving:
        return None, None
    row = _row(axes, number, moving, permutations, groups)
    rows = 1 if row is None else 1 + max(_last(segment) for segment in axes[row])
    index = torch.arange(length).expand(rows, length).clone()
    for segment in moving:
        rank = len(segment.factors)
        # Along the grid (row, factor, factor, ...): where every factor points, and the unit of each group.
        units = {
            factor.name: torch.arange(factor.size).reshape(-1, *[1] * (rank - place - 1))
            for place, factor in enumerate(segment.factors)
            if factor.name
        }
        if row is not None:
            elsewhere = {factor.name for other in axes[row] for factor in other.factors} - {"", *units}
            units |= {
                name: units_along(axes[row], name, rows).reshape(rows, *[1] * rank) for name in elsewhere
            }
        new = torch.full((rows, *segment.shape), segment.offset)
        old = new.clone()
        for place, factor in enumerate(segment.factors):
            place_of = torch.arange(factor.size).reshape(-1, *[1] * (rank - place - 1))
            new += factor.stride * place_of
            if factor.name in permutations:
                outer = (units[parent] for parent in groups[factor.name].within)
                place_of = permutations[factor.name].cpu()[(*outer, place_of)]
            old += factor.stride * place_of
        index.scatter_(1, new.reshape(rows, -1), old.reshape(rows, -1))
    return (index[0], None) if row is None else (index, row)


def _row(
    axes: Sequence[Axis],
    number: int,
    moving: Sequence[Segment],
    permutations: Permutations,
    groups: Mapping[str, Group],
) -> int | None:
    """The other axis that carries what a group on this axis is within, if this axis does not carry it itself."""
    for segment in moving:
        own = {factor.name for factor in segment.factors}
        for name in own & permutations.keys():
            for parent in groups[name].within:
                if parent not in own:
                    return next(n for n, other in enumerate(axes) if n != number and _carries(other, parent))
    return None


def _carries(axis: Axis, name: str) -> bool:
    return any(factor.name == name for segment in axis for factor in segment.factors)


def _last(segment: Segment) -> int:
    return segment.offset + sum((factor.size - 1) * factor.stride for factor in segment.factors)


def units_along(axis: Axis, name: str, length: int) -> Tensor:
    """For every place along an axis, the index of the unit of a group that it belongs to."""
    units = torch.zeros(length, dtype=torch.int64)
    for segment in axis:
        places = [place for place, factor in enumerate(segment.factors) if factor.name == name]
        if not places:
            continue
        position = torch.full(segment.shape, segment.offset)
        index = torch.zeros(segment.shape, dtype=torch.int64)
        for place, factor in enumerate(segment.factors):
            grid = torch.arange(factor.size).reshape(-1, *[1] * (len(segment.factors) - place - 1))
            position += factor.stride * grid
            if place == places[0]:
                index += grid
        units[position.reshape(-1)] = index.reshape(-1)
    return units


def permute(network: Network, spec: SymmetrySpec, permutations: Permutations) -> Network:
    """Return the network with its hidden units in another order; its function is the same.

    Raises:
        ShapeError: an unknown group, or an index that is no permutation of the group's units.

    Examples:
        >>> import torch, weightspace
        >>> from weightspace import permutation
        >>> from weightspace.bundled import load
        >>> a = load("digits_mlp_a")
        >>> spec = weightspace.symmetry(a)
        >>> group = spec.groups[0]
        >>> other = permutation.permute(a, spec, {group.name: torch.arange(group.size).flip(0)})
        >>> weightspace.canonical_hash(other) == weightspace.canonical_hash(a)
        True
    """
    require_elements(spec, permutations)
    return network.change_parameters(
        spec.axes,
        lambda name, tensor: permute_tensor(tensor, spec.axes[name], permutations, spec.by_name),
    )


def require_elements(spec: SymmetrySpec, permutations: Permutations) -> None:
    """Raise ShapeError unless every index permutes the units of a permutation group of the spec."""
    groups = {group.name: group for group in spec.permutations}
    for name, index in permutations.items():
        if name not in groups:
            raise ShapeError(f"the spec has no group {name!r}; its groups are {', '.join(groups) or 'none'}")
        group = groups[name]
        shape = (*group.copies, group.size)
        if tuple(index.shape) != shape:
            raise ShapeError(
                f"the index of group {name!r} has shape {tuple(index.shape)}; its units are {shape}"
            )
        if not torch.equal(
            index.sort(-1).values, torch.arange(group.size, device=index.device).expand(shape)
        ):
            raise ShapeError(f"the index of group {name!r} is no permutation of its {group.size} units")


def random_permutations(spec: SymmetrySpec, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Draw an element of the whole permutation group uniformly."""
    return {
        group.name: torch.rand((*group.copies, group.size), generator=generator).argsort(-1)
        for group in spec.permutations
    }


def identity(spec: SymmetrySpec) -> dict[str, Tensor]:
    """Return the element that moves nothing."""
    return {
        group.name: torch.arange(group.size).expand(*group.copies, group.size).clone()
        for group in spec.permutations
    }


def outer_places(spec: SymmetrySpec, group: Group, permutations: Permutations) -> tuple[Tensor, ...]:
    """For every copy of a group, the copy it comes from: one index tensor, shape `copies`, per parent."""
    rank = len(group.copies)
    grids = {
        parent: torch.arange(n).reshape(-1, *[1] * (rank - place - 1))
        for place, (parent, n) in enumerate(zip(group.within, group.copies, strict=True))
    }
    places = []
    for parent in group.within:
        index = grids[parent]
        if parent in permutations:
            element = permutations[parent]
            index = element[(*(grids[outer] for outer in spec.by_name[parent].within), index)]
        places.append(index.expand(group.copies))
    return tuple(places)


def inverse(spec: SymmetrySpec, permutations: Permutations) -> dict[str, Tensor]:
    """Return the element that undoes `permutations`."""
    result = {}
    for group in spec.permutations:
        if group.name in permutations:
            undone = permutations[group.name].argsort(-1)
            if group.within:
                moved = torch.empty_like(undone)
                moved[outer_places(spec, group, permutations)] = undone
                undone = moved
            result[group.name] = undone
    return result


def compose(spec: SymmetrySpec, first: Permutations, second: Permutations) -> dict[str, Tensor]:
    """Return the element that acts as `first`, then `second`; a group missing in one of them rests there."""
    rest = identity(spec)
    result = {}
    for group in spec.permutations:
        if group.name in first or group.name in second or group.within:
            p, q = first.get(group.name, rest[group.name]), second.get(group.name, rest[group.name])
            if group.within:
                p = p[outer_places(spec, group, second)]
            result[group.name] = p.gather(-1, q)
    return result
