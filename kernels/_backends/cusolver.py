"""cuSOLVER's batched eigensolver, cusolverDnXsyevBatched, in the library that torch has loaded.

torch itself calls it for some sizes only, and older releases call slower routines one matrix after the other. Chunks
keep the batch below the sizes where it fails. It promises no bitwise reproducibility.
"""

import ctypes
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels.scaling import fix_signs, scale

LARGEST_CHUNK = 16384
"""Half of the undocumented batch size, about 32 000, at which even the query for the workspace fails."""
LARGEST_BYTES = 2**31 - 1
ZEROED_BEFORE = (11, 7, 3)
"""Older releases need a zeroed workspace: from a used one come wrong vectors with info = 0."""
VERIFICATION_LIMIT = 1000.0
"""In units of n times the rounding error: far above what a working solver leaves, far below a wrong vector."""

_FUNCTIONS = (
    "cusolverGetProperty",
    "cusolverDnCreate",
    "cusolverDnCreateParams",
    "cusolverDnSetStream",
    "cusolverDnXsyevBatched_bufferSize",
    "cusolverDnXsyevBatched",
)
_VALUES_ONLY, _WITH_VECTORS = 0, 1  # cusolverEigMode_t
_UPPER = 1  # cublasFillMode_t
_DATA_TYPES = {torch.float32: 0, torch.float64: 1}  # cudaDataType_t


@dataclass(frozen=True, eq=False)
class Platform:
    """Where the solver runs: the library, and what torch says of a device."""

    library: ctypes.CDLL
    stream: Callable[[torch.device], int]
    """The handle of torch's current stream."""
    guard: Callable[[torch.device], AbstractContextManager[object]]
    """Makes a device the current one."""
    workspace_limit: int = 2**29
    """Bytes; chunks are halved until their workspace fits."""
    version: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        _declare(self.library)
        number = ctypes.c_int()
        parts = []
        for part in range(3):
            _require(self.library.cusolverGetProperty(part, ctypes.byref(number)), "cusolverGetProperty")
            parts.append(number.value)
        object.__setattr__(self, "version", tuple(parts))


def exist() -> bool:
    """Whether there is a CUDA device, and torch's cuSOLVER has the batched routine (11.7.1 and later)."""
    return torch.version.cuda is not None and torch.cuda.is_available() and _torch_library() is not None


def eigh(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return solve(a, torch_platform())


def eigvalsh(a: Tensor) -> tuple[Tensor, Tensor]:
    return solve_values(a, torch_platform())


def solve(a: Tensor, platform: Platform, *, verify: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """`eigh` on a platform.

    Args:
        verify: check every residual and every basis on the device; a matrix that fails gets info = n. For a new
            driver, GPU or release: the library has returned wrong vectors without saying so.
    """
    scaled = scale(a)
    # The call overwrites its input, which is ours: `scale` made it.
    held = scaled.matrices.clone() if verify else scaled.matrices
    held, values, info = _run(held, platform, vectors=True)
    vectors = fix_signs(held.mT)  # column-major: each row of what torch sees is a vector
    if verify:
        info = torch.where(_fails(scaled.matrices, values, vectors), max(a.shape[-1], 1), info)
    info = torch.where(scaled.finite, info, -1).to(torch.int32)
    return scaled.restore(values), scaled.mark(vectors).contiguous(), info


def solve_values(a: Tensor, platform: Platform) -> tuple[Tensor, Tensor]:
    """`eigvalsh` on a platform."""
    scaled = scale(a)
    _, values, info = _run(scaled.matrices, platform, vectors=False)
    return scaled.restore(values), torch.where(scaled.finite, info, -1).to(torch.int32)


@cache
def torch_platform() -> Platform:
    """The library and the streams of torch."""
    library = _torch_library()
    if library is None:
        raise RuntimeError(
            f"torch {torch.__version__} has no cuSOLVER with cusolverDnXsyevBatched loaded: pass backend='torch'"
        )
    return Platform(library, lambda device: torch.cuda.current_stream(device).cuda_stream, torch.cuda.device)


def has_functions(library: ctypes.CDLL) -> bool:
    """Whether a library has all that is called here."""
    return all(hasattr(library, name) for name in _FUNCTIONS)


def chunk_size(n: int, element_size: int) -> int:
    """Matrices per call: below the documented limit on the elements and the undocumented one on the batch."""
    return max(1, min(LARGEST_CHUNK, LARGEST_BYTES // (n * n * element_size)))


def _run(matrices: Tensor, platform: Platform, *, vectors: bool) -> tuple[Tensor, Tensor, Tensor]:
    # The row-major lower triangle is the column-major upper one.
    held = matrices.contiguous()
    batch, n, _ = held.shape
    values = held.new_empty(held.shape[:-1])
    info = held.new_empty(held.shape[:1], dtype=torch.int32)
    with platform.guard(held.device):
        handle, parameters = _handles(platform, held.device)
        stream = ctypes.c_void_p(platform.stream(held.device))
        _require(platform.library.cusolverDnSetStream(handle, stream), "cusolverDnSetStream")
        mode = _WITH_VECTORS if vectors else _VALUES_ONLY
        kind = _DATA_TYPES[held.dtype]

        def problem(first: int) -> tuple[object, ...]:
            a, w = held[first:].data_ptr(), values[first:].data_ptr()
            return handle, parameters, mode, _UPPER, n, kind, a, n, kind, w, kind

        def query(count: int) -> tuple[int, int]:
            return _workspace_bytes(platform, problem(0), count, held.dtype)

        chunk = min(batch, chunk_size(n, held.element_size()))
        while chunk > 1 and query(chunk)[0] > platform.workspace_limit:
            chunk = -(-chunk // 2)
        counts = {min(chunk, batch - first) for first in range(0, batch, chunk)}
        device_bytes, host_bytes = map(max, zip(*map(query, counts), strict=True))
        # From torch's allocator, which knows the stream: nothing here waits, and a CUDA graph can capture it.
        workspace = held.new_empty(max(device_bytes, 1), dtype=torch.uint8)
        host_workspace = ctypes.create_string_buffer(host_bytes) if host_bytes else None
        for first in range(0, batch, chunk):
            if platform.version < ZEROED_BEFORE:
                workspace.zero_()
            count = min(chunk, batch - first)
            needed, needed_on_host = query(count)
            status = platform.library.cusolverDnXsyevBatched(
                *problem(first),
                workspace.data_ptr(),
                needed,
                host_workspace,
                needed_on_host,
                info[first:].data_ptr(),
                count,
            )
            _require(status, "cusolverDnXsyevBatched", n, count)
    return held, values, info


_this_thread = threading.local()


def _handles(platform: Platform, device: torch.device) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    # A handle holds a stream: threads must not share one.
    known = _this_thread.__dict__.setdefault("handles", {})
    if (platform, device) not in known:
        handle, parameters = ctypes.c_void_p(), ctypes.c_void_p()
        _require(platform.library.cusolverDnCreate(ctypes.byref(handle)), "cusolverDnCreate")
        _require(platform.library.cusolverDnCreateParams(ctypes.byref(parameters)), "cusolverDnCreateParams")
        known[platform, device] = handle, parameters
    return known[platform, device]


_workspaces: dict[object, tuple[int, int]] = {}


def _workspace_bytes(
    platform: Platform, problem: tuple[object, ...], count: int, dtype: torch.dtype
) -> tuple[int, int]:
    mode, n = problem[2], problem[4]
    key = platform, mode, n, count, dtype
    if key not in _workspaces:
        on_device, on_host = ctypes.c_size_t(), ctypes.c_size_t()
        status = platform.library.cusolverDnXsyevBatched_bufferSize(
            *problem, ctypes.byref(on_device), ctypes.byref(on_host), count
        )
        _require(status, "cusolverDnXsyevBatched_bufferSize", n, count)
        _workspaces[key] = on_device.value, on_host.value
    return _workspaces[key]


def _require(status: int, function: str, n: object = None, count: object = None) -> None:
    if status:
        size = "" if n is None else f" for {count} matrices of size {n}"
        raise RuntimeError(f"{function} returned status {status}{size}: pass backend='torch'")


def _fails(matrices: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    n = matrices.shape[-1]
    lower = torch.tril(matrices)
    a = lower + torch.tril(matrices, -1).mT
    limit = VERIFICATION_LIMIT * n * torch.finfo(a.dtype).eps
    residual = (a @ vectors - vectors * values[..., None, :]).abs().amax((-2, -1))
    basis = (vectors.mT @ vectors - torch.eye(n, dtype=a.dtype, device=a.device)).abs().amax((-2, -1))
    # The matrices are scaled to max 1. Written so that NaN fails.
    return ~((residual <= limit) & (basis <= limit))


@cache
def _torch_library() -> ctypes.CDLL | None:
    for name in _library_names():
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if has_functions(library):
            return library
    return None


def _library_names() -> list[str]:
    # What this process has loaded, so that no second release joins it; otherwise what torch will load.
    maps = Path("/proc/self/maps")
    loaded = re.findall(r"(/\S*libcusolver\.so\S*)", maps.read_text()) if maps.exists() else []
    number = 12 if int((torch.version.cuda or "0").split(".")[0]) >= 13 else 11
    return [*dict.fromkeys(loaded), f"libcusolver.so.{number}", f"cusolver64_{number}.dll"]


def _declare(library: ctypes.CDLL) -> None:
    """The C signatures; every pointer, also one to host memory, is a void pointer."""
    integer, long, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p
    problem = [pointer, pointer, integer, integer, long, integer, pointer, long, integer, pointer, integer]
    signatures = {
        "cusolverGetProperty": [integer, pointer],
        "cusolverDnCreate": [pointer],
        "cusolverDnCreateParams": [pointer],
        "cusolverDnSetStream": [pointer, pointer],
        "cusolverDnXsyevBatched_bufferSize": [*problem, pointer, pointer, long],
        "cusolverDnXsyevBatched": [*problem, pointer, size, pointer, size, pointer, long],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, integer
