"""The largest entries of every row: what sparse codes keep."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels._backends import simd


def select_largest(a: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest entries of every row and their places, in ascending order of place.

    Of equal entries those that come first are taken (by our own CPU code; torch, which works where that was not built,
    on other devices and on rows with NaN, takes any). NaN counts as larger than all numbers.

    Args:
        a: shape (rows, n), real.
        k: from 1 to n.
    Returns:
        Values (rows, k) and places (rows, k), int32; not differentiated.
    Raises:
        ValueError: `a` has another shape, or k is out of range.

    Examples:
        >>> import torch, kernels
        >>> values, places = kernels.select_largest(torch.tensor([[1.0, 5.0, 3.0, 4.0]]), 2)
        >>> values, places
        (tensor([[5., 4.]]), tensor([[1, 3]], dtype=torch.int32))
    """
    if a.ndim != 2 or not 1 <= k <= a.shape[1]:
        raise ValueError(
            f"select_largest needs a matrix (rows, n) and k from 1 to n; the shape is {tuple(a.shape)}, k is {k}"
        )
    a = a.detach()
    ours = a.device.type == "cpu" and a.dtype in (torch.float32, torch.float64) and len(a) > 0
    if ours and simd.instruction_sets():
        selected = simd.select_largest(a.contiguous().resolve_neg(), k)
        if selected is not None:
            return selected
    places = a.topk(k, sorted=False).indices.sort(1).values
    return a.gather(1, places), places.to(torch.int32)
