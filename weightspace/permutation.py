"""Elements of a `SymmetrySpec`'s group: gather indices, one per group, and their action on parameters.

Convention: `new[i] = old[p[i]]`, so a matrix becomes P W P' with P[i, p[i]] = 1; first p then q is `p[q]`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.network import Network
from weightspace.symmetry_spec import Axis, SymmetrySpec

Permutations = Mapping[str, Tensor]  # group name -> gather index, int64, shape (size,)


def permute_tensor(tensor: Tensor, axes: tuple[Axis | None, ...], permutations: Permutations) -> Tensor:
    """Apply the permutations of the groups on each axis; groups that are not listed act as the identity."""
    for number, axis in enumerate(axes):
        if axis is None or axis.group not in permutations:
            continue
        index = permutations[axis.group]
        if axis.block > 1:
            index = (index[:, None] * axis.block + torch.arange(axis.block)).reshape(-1)
        tensor = tensor.index_select(number, index)
    return tensor


def permute(network: Network, spec: SymmetrySpec, permutations: Permutations) -> Network:
    """Return the network with its hidden units in another order; its function is the same.

    Raises:
        ShapeError: an unknown group, or an index that is no permutation of the group's units.
    """
    sizes = {group.name: group.size for group in spec.groups}
    for name, index in permutations.items():
        if name not in sizes:
            raise ShapeError(f"the spec has no group {name!r}; its groups are {', '.join(sizes) or 'none'}")
        if not torch.equal(index.sort().values, torch.arange(sizes[name])):
            raise ShapeError(f"the index of group {name!r} is no permutation of its {sizes[name]} units")
    return network.replace_parameters(
        {
            name: permute_tensor(network.parameters[name], axes, permutations)
            for name, axes in spec.axes.items()
        }
    )


def random_permutations(spec: SymmetrySpec, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Draw an element of the whole group uniformly."""
    return {group.name: torch.randperm(group.size, generator=generator) for group in spec.groups}


def identity(spec: SymmetrySpec) -> dict[str, Tensor]:
    """Return the element that moves nothing."""
    return {group.name: torch.arange(group.size) for group in spec.groups}


def inverse(permutations: Permutations) -> dict[str, Tensor]:
    """Return the element that undoes `permutations`."""
    return {name: index.argsort() for name, index in permutations.items()}


def compose(first: Permutations, second: Permutations) -> dict[str, Tensor]:
    """Return the element that acts as `first`, then `second`."""
    return {name: index[second[name]] for name, index in first.items()}
