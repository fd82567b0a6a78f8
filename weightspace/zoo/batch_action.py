"""The action of one group element per network on the parameters of many networks at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightspace.group_action import act_tensor, segment_positions
from weightspace.symmetry_spec import PERMUTATION, SCALINGS, Axis, SymmetrySpec


def act_batch(
    parameters: Mapping[str, Tensor], spec: SymmetrySpec, elements: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the parameters of every network moved by its own element.

    Args:
        parameters: name -> tensor (networks, *shape); names that the spec does not move stay.
        elements: group -> elements (networks, *copies, size), as `weightspace.group_action` has them for one
            network; groups not listed rest.
    Raises:
        ShapeError: the spec describes other parameters or shapes.
    """
    spec.require_fits({name: tensor.shape[1:] for name, tensor in parameters.items()})
    moved = {}
    for name, tensor in parameters.items():
        axes = spec.axes.get(name, ())
        acting = {f.name for axis in axes for segment in axis for f in segment.factors}
        acting |= {f.scale for axis in axes for segment in axis for f in segment.factors if f.scale}
        own = {group: element for group, element in elements.items() if group in acting}
        groups = [spec.by_name[group] for group in own]
        if any(group.within or group.kind not in (PERMUTATION, *SCALINGS) for group in groups):
            # A wreath product: the order along one axis may depend on the place along another.
            rows = [
                act_tensor(row, axes, {group: element[i] for group, element in own.items()}, spec.by_name)
                for i, row in enumerate(tensor)
            ]
            moved[name] = torch.stack(rows) if rows else tensor
        else:
            kinds = {group.name: group.kind for group in groups}
            moved[name] = _act_plain(
                tensor,
                axes,
                {group: e for group, e in own.items() if kinds[group] == PERMUTATION},
                {group: e for group, e in own.items() if kinds[group] in SCALINGS},
            )
    return moved


def _act_plain(
    tensor: Tensor, axes: Sequence[Axis], orders: Mapping[str, Tensor], scales: Mapping[str, Tensor]
) -> Tensor:
    """Gather, then scale, along every axis: elements (networks, size) of groups within no other."""
    count = len(tensor)
    for number, axis in enumerate(axes, start=1):
        rest = [1] * (tensor.ndim - number - 1)
        index = torch.arange(tensor.shape[number]).expand(count, -1).clone()
        factors = torch.ones(count, tensor.shape[number], dtype=torch.float64)
        for segment in axis:
            source = torch.full((1, *[1] * len(segment.factors)), segment.offset)
            scale = torch.ones((1, *[1] * len(segment.factors)), dtype=torch.float64)
            for place, factor in enumerate(segment.factors):
                along = [-1, *[1] * len(segment.factors)]
                along[place + 1] = factor.size
                units = orders.get(factor.name, torch.arange(factor.size))
                source = source + factor.stride * units.cpu().reshape(along)
                for name in (factor.scale or "", factor.name):
                    if name in scales:
                        element = scales[name].cpu().double().reshape(along)
                        scale = scale / element if factor.dual else scale * element
            places = segment_positions(segment).flatten()
            index[:, places] = source.expand(count, *segment.shape).flatten(1)
            factors[:, places] = scale.expand(count, *segment.shape).flatten(1)
        shape = (count, *[1] * (number - 1), -1, *rest)
        if any(factor.name in orders for segment in axis for factor in segment.factors):
            tensor = tensor.gather(number, index.reshape(shape).expand(tensor.shape).to(tensor.device))
        if any({factor.name, factor.scale} & scales.keys() for segment in axis for factor in segment.factors):
            tensor = tensor * factors.reshape(shape).to(tensor)
    return tensor
