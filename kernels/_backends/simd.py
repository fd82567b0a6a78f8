"""Our own solver for many small matrices on the CPU: one matrix per lane of a vector register, threads over the batch.

The C sources in `lanes/` are built when the package is installed, once per instruction set, into libraries
that need neither Python nor torch. Without a compiler there are none, and this backend is not offered.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

_ENTRIES_PER_THREAD = 1 << 20  # about a millisecond of selecting, much more than a thread costs
_CAPABILITIES = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}


def eigh(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Householder tridiagonalization and implicit QL (n > 3) or Jacobi rotations (n <= 3)."""
    return solve(a, instruction_sets()[0])


def eigvalsh(a: Tensor) -> tuple[Tensor, Tensor]:
    """The values of `eigh`, to the last bit."""
    return solve_values(a, instruction_sets()[0])


def project_psd(a: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest positive semidefinite matrices and info; no eigenvector leaves the caches."""
    projection = torch.empty(a.shape, dtype=a.dtype)
    info, _ = run(_best(), a, projection=projection)
    return projection, info


def solve(a: Tensor, instruction_set: str) -> tuple[Tensor, Tensor, Tensor]:
    """`eigh` with one of `instruction_sets()`."""
    values, vectors = torch.empty(a.shape[:-1], dtype=a.dtype), torch.empty(a.shape, dtype=a.dtype)
    info, _ = run(_library(instruction_set), a, values, vectors)
    return values, vectors, info


def solve_values(a: Tensor, instruction_set: str) -> tuple[Tensor, Tensor]:
    """`eigvalsh` with one of `instruction_sets()`."""
    values = torch.empty(a.shape[:-1], dtype=a.dtype)
    info, _ = run(_library(instruction_set), a, values)
    return values, info


def count_sweeps(a: Tensor, instruction_set: str) -> int:
    """The most QL sweeps that `solve` spends on a group of lanes; 0 for n <= 3."""
    return run(_library(instruction_set), a, a.new_empty(a.shape[:-1]))[1]


@cache
def instruction_sets() -> tuple[str, ...]:
    """What was built and runs on this processor, widest first; empty where nothing was built."""
    wanted = _CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
    return tuple(name for name in wanted if _path(name) is not None)


@dataclass(frozen=True)
class Library:
    """The functions of a built library, per dtype."""

    eigh: dict[torch.dtype, Callable[..., int]]
    extent: dict[torch.dtype, Callable[..., int]]
    orient: dict[torch.dtype, Callable[..., None]]
    select: dict[torch.dtype, Callable[..., int]]


def load(path: Path) -> Library:
    """Declare the functions of a library built from `lanes/`."""
    library = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    matrices = [pointer, *5 * [integer]]  # address, batch, n and three strides
    loaded = Library({}, {}, {}, {})
    for dtype, name in ((torch.float32, "float32"), (torch.float64, "float64")):
        eigh, extent, orient, select = (
            library[f"weightspace_{what}_{name}"] for what in ("eigh", "extent", "orient", "select")
        )
        eigh.restype, extent.restype, orient.restype, select.restype = (
            ctypes.c_int,
            ctypes.c_int,
            None,
            integer,
        )
        eigh.argtypes = [*matrices, *4 * [pointer], integer]
        extent.argtypes = [*matrices, ctypes.c_double, ctypes.c_double]
        orient.argtypes = [pointer, integer, integer, pointer]
        select.argtypes = [pointer, *3 * [integer], pointer, pointer]
        loaded.eigh[dtype], loaded.extent[dtype], loaded.orient[dtype] = eigh, extent, orient
        loaded.select[dtype] = select
    return loaded


def _path(instruction_set: str) -> Path | None:
    paths = (Path(__file__).parent / f"_simd_{instruction_set}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)


@cache
def _library(instruction_set: str) -> Library:
    path = _path(instruction_set)
    assert path is not None, instruction_set
    return load(path)


def _best() -> Library:
    return _library(instruction_sets()[0])


def lie_between(a: Tensor, smallest: float, largest: float) -> bool:
    """Whether the largest magnitude of every lower triangle (batch, n, n) lies between two bounds; not for NaN."""
    library = _best()
    batch, n, _ = a.shape
    return bool(library.extent[a.dtype](a.data_ptr(), batch, n, *a.stride(), smallest, largest))


def orient(vectors: Tensor) -> Tensor:
    """Contiguous vectors with the signs of `kernels.scaling.fix_signs`, from vectors as LAPACK leaves them: real, shape
    (batch, n, n), columns contiguous."""
    library = _best()
    batch, n, _ = vectors.shape
    result = vectors.new_empty(vectors.shape)
    library.orient[vectors.dtype](vectors.data_ptr(), batch, n, result.data_ptr())
    return result


def select_largest(a: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The k largest entries of every row of a contiguous (rows, n) and their places, or None where there is NaN."""
    library = _best()
    values, places = a.new_empty(len(a), k), torch.empty(len(a), k, dtype=torch.int32)
    # Threads of an ordinary pool suffice: ctypes gives up the interpreter lock, and rows cost nearly the same.
    parts = min(torch.get_num_threads(), -(-a.numel() // _ENTRIES_PER_THREAD))
    bounds = [len(a) * part // parts for part in range(parts + 1)]

    def select(first: int, last: int) -> bool:
        pointers = values[first:].data_ptr(), places[first:].data_ptr()
        done = library.select[a.dtype](a[first:].data_ptr(), last - first, a.shape[1], k, *pointers)
        if done < 0:
            raise MemoryError(f"no memory to select the {k} largest of {a.shape[1]} entries: free some")
        return done == last - first

    if parts == 1:
        whole = select(0, len(a))
    else:
        with ThreadPoolExecutor(parts) as pool:
            whole = all(list(pool.map(select, bounds[:-1], bounds[1:])))
    return (values, places) if whole else None


def run(
    library: Library,
    a: Tensor,
    values: Tensor | None = None,
    vectors: Tensor | None = None,
    projection: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Fill the tensors that are given, contiguous and shaped like the results; return info and the number of sweeps."""
    batch, n, _ = a.shape
    a = a.resolve_neg()  # a view may store the negative of what it stands for
    info = torch.empty(batch, dtype=torch.int32)
    # ctypes gives up the interpreter lock for the duration of the call.
    sweeps = library.eigh[a.dtype](
        a.data_ptr(),
        batch,
        n,
        *a.stride(),
        *(None if result is None else result.data_ptr() for result in (values, vectors, projection, info)),
        torch.get_num_threads(),
    )
    if sweeps < 0:
        raise MemoryError(
            f"no memory for the workspace of the eigensolver (n = {n}, {a.dtype}): free some, or pass backend='torch'"
        )
    return info, sweeps
