"""Named tensors that are made when they are asked for, so that a changed copy of a large network takes no memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType

from torch import Tensor


class DeferredTensors(Mapping[str, Tensor]):
    """Immutable name -> tensor; every look-up makes the tensor anew and keeps nothing.

    Args:
        templates: name -> tensor of the shape and dtype that `make` will return; nothing else of it is used.
        make: from a name to its tensor; the same at every call.
    """

    def __init__(self, templates: Mapping[str, Tensor], make: Callable[[str], Tensor]):
        self.templates = MappingProxyType({name: tensor.to("meta") for name, tensor in templates.items()})
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.templates:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self.templates

    def __iter__(self) -> Iterator[str]:
        return iter(self.templates)

    def __len__(self) -> int:
        return len(self.templates)


def templates(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return name -> a tensor of the right shape and dtype, without making any that is deferred."""
    return tensors.templates if isinstance(tensors, DeferredTensors) else tensors


def chosen(
    like: Mapping[str, Tensor], make: Callable[[str], Tensor], *, deferred: bool
) -> Mapping[str, Tensor]:
    """Return name -> make(name), of the shape and dtype that `like` has under that name; at once or deferred."""
    return DeferredTensors(like, make) if deferred else {name: make(name) for name in like}


def return_freed_memory() -> None:
    """Make this process return every freed block of more than 1 MB to the system: for programs, not for libraries.

    glibc keeps blocks of up to 32 MB and cannot always use them again for tensors, which are aligned: making one
    tensor after the other would take many times the memory of one. Other C libraries are left as they are.
    """
    threshold = -3  # M_MMAP_THRESHOLD in malloc.h
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(threshold, 1 << 20)
