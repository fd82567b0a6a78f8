"""Tensors of node numbers: which axes tell units apart, and which combinations of units occur."""

from __future__ import annotations

import torch
from torch import Tensor


def is_constant(tensor: Tensor, axis: int) -> bool:
    """Whether a tensor is the same at all places of an axis."""
    if tensor.shape[axis] <= 1 or tensor.stride(axis) == 0:
        return True
    return bool((tensor == tensor.narrow(axis, 0, 1)).all())


def collapsed(tensor: Tensor) -> Tensor:
    """Cut every axis along which a tensor is constant down to size 1."""
    for axis in range(tensor.ndim):
        if tensor.shape[axis] > 1 and is_constant(tensor, axis):
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def unique_rows(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows along the last axis, (rows, n), and which one stands where, (...)."""
    leading = tensor.shape[:-1]
    rows, inverse = torch.unique(tensor.reshape(-1, tensor.shape[-1]), dim=0, return_inverse=True)
    return rows, inverse.reshape(leading)


def occurrence(rows: Tensor) -> Tensor:
    """Return for each entry how many equal ones stand before it in its row."""
    order = rows.argsort(dim=1, stable=True)
    ordered = rows.gather(1, order)
    place = torch.arange(rows.shape[1]).expand_as(rows)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = torch.where(first, place, 0).cummax(1).values
    return torch.empty_like(rows).scatter_(1, order, place - start)
