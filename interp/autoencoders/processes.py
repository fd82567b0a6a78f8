"""Sums over the processes of a distributed training; of a single process nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.distributed
from torch import Tensor


def count_processes() -> int:
    """How many processes train together, 1 where `torch.distributed` is not initialized."""
    return torch.distributed.get_world_size() if _together() else 1


def own_rank() -> int:
    """Which of them this one is."""
    return torch.distributed.get_rank() if _together() else 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over all processes, in place, and return it."""
    return _exchange(tensor, torch.distributed.all_reduce) if _together() else tensor


def copy_from_first(tensor: Tensor) -> Tensor:
    """Replace a tensor by that of the first process, in place, and return it."""
    return _exchange(tensor, partial(torch.distributed.broadcast, src=0)) if _together() else tensor


def _exchange(tensor: Tensor, operation: Callable[[Tensor], Any]) -> Tensor:
    if tensor.is_cuda or torch.distributed.get_backend() != "nccl":
        operation(tensor)
        return tensor
    moved = tensor.cuda()  # NCCL knows no other memory
    operation(moved)
    return tensor.copy_(moved)


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
