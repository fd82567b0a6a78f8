"""The solver of torch in a pool of threads over the batch, each with one inner thread.

LAPACK on small matrices gains nothing from threads inside a call, and its barriers collapse when a
core is shared; threads over the batch do not wait for each other.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from kernels._backends import lapack

_CHUNKS_PER_THREAD = 4  # uneven progress (a core shared with others) evens out over several chunks

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
_this_thread = threading.local()
T = TypeVar("T")


def eigh(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, vectors, info = zip(*_map_over_batch(lapack.eigh, a), strict=True)
    return _join(values), _join(vectors), _join(info)


def eigvalsh(a: Tensor) -> tuple[Tensor, Tensor]:
    values, info = zip(*_map_over_batch(lapack.eigvalsh, a), strict=True)
    return _join(values), _join(info)


def _join(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _map_over_batch(solve: Callable[[Tensor], T], a: Tensor) -> list[T]:
    if getattr(_this_thread, "is_worker", False):
        return [solve(a)]
    threads = torch.get_num_threads()
    chunks = a.tensor_split(min(a.shape[0], _CHUNKS_PER_THREAD * threads))
    return list(_pool(threads).map(solve, chunks))


def _pool(threads: int) -> ThreadPoolExecutor:
    with _pools_lock:
        if threads not in _pools:
            _pools[threads] = _start_pool(threads)
        return _pools[threads]


def _start_pool(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="kernels-eigh", initializer=_prepare_worker)
    # A worker starts when work arrives and none is idle: a barrier makes all of them start now, ...
    everyone = threading.Barrier(threads)
    list(pool.map(lambda _: everyone.wait(), range(threads)))
    # ... because `set_num_threads` in a worker also changes the default of threads that start later.
    torch.set_num_threads(threads)
    return pool


def _prepare_worker() -> None:
    # The first question fixes this thread's own count; without it a later change of the default,
    # such as the one above, would still reach a worker that has not used its count yet.
    torch.get_num_threads()
    torch.set_num_threads(1)
    _this_thread.is_worker = True


def _forget_pools() -> None:
    """In a forked child the threads of the parent do not exist, and the lock may be held by one of them."""
    global _pools_lock
    _pools_lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
