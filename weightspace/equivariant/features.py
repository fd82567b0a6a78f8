"""Features of weights, name -> (batch, channels, *shape): how the symmetries of a spec move them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.permutation import permute_tensor
from weightspace.symmetry_spec import SymmetrySpec


def permute_features(
    features: Mapping[str, Tensor], spec: SymmetrySpec, permutations: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return features with their entries moved as the permutations move the entries of parameters.

    Args:
        features: name -> (batch, channels, *shape).
        permutations: group name -> gather index, as `weightspace.permutation.permute` takes it.
    """
    order = entry_order(spec, permutations)
    sizes = [math.prod(shape) for shape in spec.shapes.values()]
    moved = flatten_features(features, spec).index_select(2, order.to(next(iter(features.values())).device))
    return {
        name: part.unflatten(2, shape) if shape else part[..., 0]
        for (name, shape), part in zip(spec.shapes.items(), moved.split(sizes, 2), strict=True)
    }


def flatten_features(features: Mapping[str, Tensor], spec: SymmetrySpec) -> Tensor:
    """Concatenate features to (batch, channels, entries), parameters in the order of the spec."""
    parts = [features[name].reshape(*features[name].shape[:2], -1) for name in spec.shapes]
    return torch.cat(parts, 2)


def entry_order(spec: SymmetrySpec, permutations: Mapping[str, Tensor]) -> Tensor:
    """Return for every entry of the concatenated parameters the entry that a permutation brings there, int64."""
    start, orders = 0, []
    for name, shape in spec.shapes.items():
        entries = torch.arange(start, start + math.prod(shape)).reshape(shape)
        if name in spec.axes:
            entries = permute_tensor(entries, spec.axes[name], permutations, spec.by_name)
        orders.append(entries.reshape(-1))
        start += math.prod(shape)
    return torch.cat(orders)
