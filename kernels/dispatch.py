"""Which backend solves which problem: one table, read from the top, and a way to ask it."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from kernels._backends import cuda_table

FORCING_VARIABLE = "WEIGHTSPACE_EIGH_BACKEND"
"""Environment variable that names the backend for every call that names none itself."""


class Solver(Protocol):
    """What a backend module offers, for `a` of shape (batch, n, n) with batch and n at least 1, any strides.

    A backend returns what the user gets: it scales, isolates matrices that are not finite (NaN results),
    sorts the values and fixes the signs. It reads the lower triangle only, does not change `a`, is not
    differentiated, and returns contiguous tensors that share no memory with `a`.

    `info` is int32, shape (batch,), as LAPACK has it: 0, or -1 for a matrix that is not finite, or the number
    of off-diagonal entries that did not converge; the values of such a matrix are the best ones reached.
    """

    def eigh(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values (batch, n), vectors (batch, n, n) and info."""
        ...

    def eigvalsh(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and info."""
        ...


@runtime_checkable
class Projector(Protocol):
    """What a backend may offer besides: the projection onto the positive semidefinite cone, without derivatives."""

    def project_psd(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projection (batch, n, n), symmetric to the last bit, and info."""
        ...


@dataclass(frozen=True)
class Backend:
    """A row of the table."""

    name: str
    module: str
    devices: tuple[str, ...]
    """Device types it runs on; empty for every device."""
    dtypes: tuple[torch.dtype, ...]
    """The dtypes it solves; empty for every one that torch solves."""
    pays: Callable[[int, int, bool, int], bool]
    """Whether it is chosen unasked for a batch of matrices of size n that it can solve, with vectors or without, on so
    many threads."""
    largest: int | None = None
    """The largest n it solves; None for any."""
    exists: Callable[[], bool] = lambda: True
    """Whether it was built, and this machine can run it."""


def _simd_exists() -> bool:
    from kernels._backends import simd

    return bool(simd.instruction_sets())


def _simd_pays(batch: int, n: int, vectors: bool, threads: int) -> bool:
    # Small matrices always, also one alone, so that their bits do not depend on the batch. Larger ones need neighbors
    # to fill a vector register, or LAPACK is faster (benchmarks/eigh.py); without vectors, fewer.
    if not vectors:
        return n <= 16 or (n <= 256 and batch >= 4)
    from kernels._backends import simd

    largest = 64 if simd.instruction_sets()[0] == "baseline" else 128
    return n <= 16 or (n <= largest and batch >= 8)


def _threads_pay(batch: int, n: int, vectors: bool, threads: int) -> bool:
    # Below about 2^22 multiplications, handing out chunks costs more than the second core gains.
    return threads > 1 and batch >= 2 * threads and batch * n**3 >= 2**22


def _cuda(name: str, largest: int | None) -> Backend:
    # Chosen where the table of measurements says so, see `_best`.
    module = f"kernels._backends.{name}"
    return Backend(
        name,
        module,
        ("cuda",),
        (torch.float32, torch.float64),
        lambda batch, n, vectors, threads: False,
        largest=largest,
        exists=lambda: torch.cuda.is_available() and import_module(module).exist(),
    )


_BACKENDS = (
    Backend(
        "simd",
        "kernels._backends.simd",
        ("cpu",),
        (torch.float32, torch.float64),
        _simd_pays,
        exists=_simd_exists,
    ),
    Backend("threaded", "kernels._backends.threaded", ("cpu",), (), _threads_pay),
    _cuda("jacobi_cuda", 32),
    _cuda("householder_cuda", 128),
    _cuda("cusolver", None),
    Backend("torch", "kernels._backends.lapack", (), (), lambda batch, n, vectors, threads: True),
)


def available_backends() -> tuple[str, ...]:
    """Names of the eigensolver backends that run on this machine, in order of preference.

    Examples:
        >>> import kernels
        >>> "torch" in kernels.available_backends()
        True
    """
    return tuple(row.name for row in _BACKENDS if _exists(row))


def choose_backend(a: Tensor, backend: str | None = None, *, vectors: bool = True) -> str:
    """Name the backend that a call with these arguments uses.

    Args:
        a: shape (..., n, n); only its shape, dtype and device matter.
        backend: a name from `available_backends()`, or None for the environment variable
            `WEIGHTSPACE_EIGH_BACKEND` where it is set and otherwise for the first row of the table that pays.
        vectors: whether eigenvectors are wanted.
    Raises:
        ValueError: no backend has this name, or it does not run on the device of `a`.
    """
    name, asked_by = backend, "argument `backend`"
    if name is None:
        name, asked_by = os.environ.get(FORCING_VARIABLE) or None, f"environment variable {FORCING_VARIABLE}"
    *batch, n, _ = a.shape
    if name is None:
        return _best(a.device, a.dtype, math.prod(batch), n, vectors, torch.get_num_threads())
    candidates = [row.name for row in _candidates(a.device.type, a.dtype, n)]
    if name not in candidates:
        raise ValueError(
            f"no eigensolver backend {name!r} for {a.dtype} matrices of size {n} on device {a.device.type!r} "
            f"({asked_by}); choose one of {candidates}, or None for the best one"
        )
    return name


@lru_cache(maxsize=1024)  # the question comes with every call
def _best(device: torch.device, dtype: torch.dtype, batch: int, n: int, vectors: bool, threads: int) -> str:
    candidates = _candidates(device.type, dtype, n)
    if device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
        fastest = cuda_table.find_fastest(gpu, dtype, n, batch=batch, vectors=vectors)
        if fastest is not None and fastest in (row.name for row in candidates):
            return fastest
    return next(row.name for row in candidates if row.pays(batch, n, vectors, threads))


def _candidates(device: str, dtype: torch.dtype, n: int) -> list[Backend]:
    """The rows that can solve such matrices here."""
    return [
        row
        for row in _BACKENDS
        if device in (row.devices or (device,))
        and dtype in (row.dtypes or (dtype,))
        and n <= (row.largest or n)
        and _exists(row)
    ]


@cache
def _exists(row: Backend) -> bool:
    return row.exists()


@cache
def load_backend(name: str) -> Solver:
    """Import the module behind a name, on first use, so that no toolkit is loaded before it is needed."""
    module = next(row.module for row in _BACKENDS if row.name == name)
    return cast(Solver, import_module(module))
