"""Which backend solves which problem: one table, read from the top, and a way to ask it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

import torch
from torch import Tensor

FORCING_VARIABLE = "WEIGHTSPACE_EIGH_BACKEND"
"""Environment variable that names the backend for every call that names none itself."""


class Solver(Protocol):
    """What a backend module offers, for finite matrices (batch, n, n) scaled to max 1, none of them empty.

    Only the lower triangle may be read. Values ascend; eigenvectors are columns of any sign.
    """

    def eigh(self, a: Tensor) -> tuple[Tensor, Tensor]: ...

    def eigvalsh(self, a: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """A row of the table."""

    name: str
    module: str
    devices: tuple[str, ...]
    """Device types it runs on; empty for every device."""
    pays: Callable[[int, int], bool]
    """Whether it is chosen unasked for a batch of matrices of size n."""


def _threads_pay(batch: int, n: int) -> bool:
    # Below about 2^22 multiplications, handing out chunks costs more than the second core gains: see
    # benchmarks/eigh.py, where many tiny matrices lose.
    threads = torch.get_num_threads()
    return threads > 1 and batch >= 2 * threads and batch * n**3 >= 2**22


_BACKENDS = (
    Backend("threaded", "kernels._backends.threaded", ("cpu",), _threads_pay),
    Backend("torch", "kernels._backends.lapack", (), lambda batch, n: True),
)


def available_backends() -> tuple[str, ...]:
    """Names of the eigensolver backends that run on this machine, in order of preference."""
    return tuple(backend.name for backend in _BACKENDS)


def choose_backend(a: Tensor, backend: str | None = None) -> str:
    """Name the backend that a call with these arguments uses.

    Args:
        a: shape (..., n, n); only its shape and device matter.
        backend: a name from `available_backends()`, or None for the environment variable
            `WEIGHTSPACE_EIGH_BACKEND` where it is set and otherwise for the first row of the table that pays.
    Raises:
        ValueError: no backend has this name, or it does not run on the device of `a`.
    """
    name, asked_by = backend, "argument `backend`"
    if name is None:
        name, asked_by = os.environ.get(FORCING_VARIABLE) or None, f"environment variable {FORCING_VARIABLE}"
    device = a.device.type
    candidates = [row for row in _BACKENDS if not row.devices or device in row.devices]
    if name is None:
        n = a.shape[-1]
        batch = a.shape[:-2].numel()
        return next(row.name for row in candidates if row.pays(batch, n))
    if name not in (row.name for row in candidates):
        raise ValueError(
            f"no eigensolver backend {name!r} for device {device!r} ({asked_by}); "
            f"choose one of {[row.name for row in candidates]}, or None for the best one"
        )
    return name


def load_backend(name: str) -> Solver:
    """Import the module behind a name, on first use, so that no toolkit is loaded before it is needed."""
    module = next(row.module for row in _BACKENDS if row.name == name)
    return cast(Solver, import_module(module))
