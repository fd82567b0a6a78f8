"""Elements of all groups of a `SymmetrySpec` and their action: permutations, then scalings and linear maps.

An element maps group name -> tensor: a gather index (*copies, size) for permutations (`weightspace.permutation`),
positive numbers or signs (*copies, size) for scalings, matrices (*copies, size, size) for linear groups. Where a
tensor carries a linear group its new entries are M x, or M^-T x where the factor is dual (the input side of a
matrix), so that y = W x stays the same function of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.network import Network
from weightspace.permutation import permute_tensor, random_permutations, require_elements, units_along
from weightspace.symmetry_spec import PERMUTATION, SCALINGS, Axis, Group, Segment, SymmetrySpec

Elements = Mapping[str, Tensor]


def act_tensor(
    tensor: Tensor, axes: Sequence[Axis], elements: Elements, groups: Mapping[str, Group]
) -> Tensor:
    """Apply an element of the whole group to one parameter; groups that are not listed rest."""
    moves = {name: e for name, e in elements.items() if groups[name].kind == PERMUTATION}
    tensor = permute_tensor(tensor, axes, moves, groups)
    for number, segments in enumerate(axes):
        for segment in segments:
            for place, factor in enumerate(segment.factors):
                for name in (factor.scale or "", factor.name):
                    if name in elements and groups[name].kind != PERMUTATION:
                        tensor = _transformed(
                            tensor, axes, number, segment, place, elements[name], groups[name]
                        )
    return tensor


def _transformed(
    tensor: Tensor,
    axes: Sequence[Axis],
    number: int,
    segment: Segment,
    place: int,
    element: Tensor,
    group: Group,
) -> Tensor:
    """Multiply one factor of a segment by a matrix or by numbers, one for every copy of the group."""
    factor = segment.factors[place]
    matrix = group.kind not in SCALINGS
    element = element.to(tensor)
    if factor.dual:
        element = torch.linalg.inv(element).mT if matrix else 1 / element
    # Every position outside the factor: which copy acts on it. `number` comes first, the other axes keep their order.
    positions = segment_positions(segment).to(tensor.device)
    moved = tensor.movedim(number, 0)
    block = moved[positions].movedim(
        place, len(segment.factors) - 1
    )  # (other factors..., units, other axes...)
    own = [f for n, f in enumerate(segment.factors) if n != place]
    names = [f.name for f in own]
    other_axes = [n for n in range(tensor.ndim) if n != number]
    rank = len(own) + len(other_axes)
    copies = []
    for parent in group.within:
        if parent in names:
            at, units = names.index(parent), torch.arange(own[names.index(parent)].size)
        else:
            row = next(n for n in other_axes if any(f.name == parent for s in axes[n] for f in s.factors))
            at, units = len(own) + other_axes.index(row), units_along(axes[row], parent, tensor.shape[row])
        copies.append(units.reshape(-1, *[1] * (rank - at - 1)).to(tensor.device))
    block = block.movedim(len(own), -1)  # (other factors..., other axes..., units)
    if copies:
        element = element[torch.broadcast_tensors(*copies)]  # ((1 or size) for each of them, units[, units])
        element = element.reshape(*[1] * (rank - max(c.ndim for c in copies)), *element.shape)
    block = (
        (element @ block[..., None])[..., 0]
        if matrix and copies
        else block @ element.mT
        if matrix
        else element * block
    )
    block = block.movedim(-1, len(own)).movedim(len(own), place)
    result = moved.clone()
    result[positions] = block
    return result.movedim(0, number).contiguous()


def segment_positions(segment: Segment) -> Tensor:
    """Where the entries of a segment stand on their axis, shape `segment.shape`."""
    positions = torch.full(segment.shape, segment.offset)
    for place, factor in enumerate(segment.factors):
        positions += factor.stride * torch.arange(factor.size).reshape(
            -1, *[1] * (len(segment.factors) - place - 1)
        )
    return positions


def act(network: Network, spec: SymmetrySpec, elements: Elements) -> Network:
    """Return the network moved by an element of its symmetry group; its function is the same.

    Raises:
        ShapeError: an unknown group, or a tensor that is no element of it.
    """
    return network.change_parameters(spec.axes, action(spec, elements))


def action(spec: SymmetrySpec, elements: Elements) -> Callable[[str, Tensor], Tensor]:
    """Return the function from a parameter's name and tensor to the tensor moved by an element.

    Raises:
        ShapeError: an unknown group, or a tensor that is no element of it.
    """
    require_elements(spec, {name: e for name, e in elements.items() if not _is_continuous(spec, name)})
    for name, element in elements.items():
        if _is_continuous(spec, name):
            _require_element(spec.by_name[name], element)

    def moved(name: str, tensor: Tensor) -> Tensor:
        return act_tensor(tensor, spec.axes[name], elements, spec.by_name) if name in spec.axes else tensor

    return moved


def _is_continuous(spec: SymmetrySpec, name: str) -> bool:
    return name in spec.by_name and spec.by_name[name].kind != PERMUTATION


def _require_element(group: Group, element: Tensor) -> None:
    shape = (*group.copies, group.size, *(() if group.kind in SCALINGS else (group.size,)))
    if tuple(element.shape) != shape:
        raise ShapeError(
            f"the element of {group.kind} group {group.name!r} has shape {tuple(element.shape)}, not {shape}"
        )
    if group.kind == "positive":
        fine = bool((element > 0).all())
    elif group.kind == "sign":
        fine = bool((element.abs() == 1).all())
    elif group.kind == "invertible":
        fine = bool(element.isfinite().all()) and bool(
            (torch.linalg.matrix_rank(element) == group.size).all()
        )
    else:
        identity = torch.eye(group.size, dtype=element.dtype, device=element.device)
        slack = 1e3 * torch.finfo(element.dtype).eps * group.size
        fine = bool(((element @ element.mT - identity).abs() <= slack).all())
        if group.kind == "centered":
            fine = fine and bool(((element.sum(-1) - 1).abs() <= slack).all())
    if not fine:
        raise ShapeError(f"the element of group {group.name!r} is not {group.kind}")


def random_elements(spec: SymmetrySpec, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Draw an element of every group, in float64: uniform permutations, signs and rotations, moderate scalings."""
    elements: dict[str, Tensor] = random_permutations(spec, generator)
    for group in spec.continuous:
        shape = (*group.copies, group.size)
        if group.kind == "sign":
            elements[group.name] = torch.randint(0, 2, shape, generator=generator).double() * 2 - 1
        elif group.kind == "positive":
            elements[group.name] = (0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).exp()
        else:
            elements[group.name] = _random_matrix(group, generator)
    return elements


def _random_matrix(group: Group, generator: torch.Generator | None) -> Tensor:
    def rotation(size: int) -> Tensor:
        q, r = torch.linalg.qr(
            torch.randn(*group.copies, size, size, generator=generator, dtype=torch.float64)
        )
        return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)

    if group.kind == "centered":
        basis = centered_basis(group.size)
        return basis @ rotation(group.size - 1) @ basis.mT + 1 / group.size
    if group.kind == "orthogonal":
        return rotation(group.size)
    stretch = (0.3 * torch.randn(*group.copies, group.size, generator=generator, dtype=torch.float64)).exp()
    return rotation(group.size) * stretch.unsqueeze(-2) @ rotation(group.size)


def centered_basis(size: int) -> Tensor:
    """Return an orthonormal basis (size, size - 1), float64, of the vectors whose entries sum to zero."""
    start = torch.cat(
        [torch.ones(size, 1, dtype=torch.float64), torch.eye(size, size - 1, dtype=torch.float64)], 1
    )
    return torch.linalg.qr(start).Q[:, 1:]
