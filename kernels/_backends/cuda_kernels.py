"""Our CUDA sources: compiled by NVRTC on first use, kept on disk and in memory, launched on torch's current stream.

`cuda.core` (the extra `cuda`) compiles and launches; nothing of it is imported before a CUDA tensor arrives. A
program is one kernel for one type, size class and kind of result, so that a first call waits for one compilation.
"""

import hashlib
import importlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "cuda"
RESULTS = {"values": 0, "vectors": 1, "projection": 2}
"""What a kernel returns, as `enum Output` of frame.cuh counts it."""
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Program:
    """A kernel to compile."""

    source: str
    """File below `SOURCES`."""
    scalar: str
    """"float" or "double"."""
    lanes: int
    """Lanes per matrix; 0 where the source needs no such number."""
    result: str
    """A key of `RESULTS`."""


@dataclass(frozen=True)
class Launch:
    """How a program is run."""

    program: Program
    grid: int
    """Number of blocks."""
    block: int
    """Threads per block."""
    shared_bytes: int
    """Dynamic shared memory per block."""


Launcher = Callable[[Launch, tuple[int, ...], torch.device], None]
"""Runs a kernel on 64-bit arguments, pointers among them, on a device; tests pass an emulation."""


def exist() -> bool:
    """Whether there is a CUDA device to run on and what compiles for it."""
    return torch.version.cuda is not None and torch.cuda.is_available() and can_compile()


def can_compile() -> bool:
    """Whether `cuda.core`, `cuda.bindings` and NVRTC are installed; no device is needed."""
    try:
        _import("cuda.core")
        _import("cuda.bindings.nvrtc").nvrtcVersion()
    except (ImportError, RuntimeError):  # the loader of a missing library raises a RuntimeError
        return False
    return True


def solve(
    a: Tensor, launch: Launch, launcher: Launcher | None = None, *, sweeps: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the results through torch, so that CUDA graphs can capture the call, and run the kernel.

    Args:
        a: shape (batch, n, n), any strides, batch and n at least 1.
        launch: for this batch.
        launcher: None for the device of `a`.
        sweeps: int32, shape (batch,): receives how many sweeps each matrix needed.
    Returns:
        values (batch, n), but empty where a projection is asked; vectors or projections (batch, n, n), but empty
        where only values are asked; and info (batch,) as in `kernels.dispatch.Solver`.
    """
    a = a.resolve_neg()  # a view that torch negates on reading
    result = launch.program.result
    values = a.new_empty(0 if result == "projection" else a.shape[:-1])
    matrices = a.new_empty(0 if result == "values" else a.shape)
    info = a.new_empty(a.shape[:1], dtype=torch.int32)
    outputs = [
        values.data_ptr(),
        matrices.data_ptr(),
        info.data_ptr(),
        0 if sweeps is None else sweeps.data_ptr(),
    ]
    arguments = (a.data_ptr(), *a.stride(), a.shape[0], a.shape[-1], *outputs)
    (launcher or launch_on_device)(launch, arguments, a.device)
    return values, matrices, info


@dataclass(frozen=True)
class KernelSolver:
    """The functions of a backend, see `kernels.dispatch.Solver` and `Projector`, for a way to plan its launches."""

    plan: Callable[[Tensor, str], Launch]
    """The launch for a batch (batch, n, n) and a key of `RESULTS`."""

    def eigh(self, a: Tensor, launcher: Launcher | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Values, vectors and info."""
        return solve(a, self.plan(a, "vectors"), launcher)

    def eigvalsh(self, a: Tensor, launcher: Launcher | None = None) -> tuple[Tensor, Tensor]:
        """The values of `eigh` by the same rotations, and info."""
        values, _, info = solve(a, self.plan(a, "values"), launcher)
        return values, info

    def project_psd(self, a: Tensor, launcher: Launcher | None = None) -> tuple[Tensor, Tensor]:
        """The projection onto the positive semidefinite cone, and info; no eigenvectors are written."""
        _, projection, info = solve(a, self.plan(a, "projection"), launcher)
        return projection, info

    def count_sweeps(self, a: Tensor, launcher: Launcher | None = None) -> Tensor:
        """The sweeps that `eigh` spends on each matrix, shape (batch,)."""
        sweeps = a.new_zeros(a.shape[:1], dtype=torch.int32)
        solve(a, self.plan(a, "vectors"), launcher, sweeps=sweeps)
        return sweeps


def scalar_name(a: Tensor) -> str:
    """The C type of float32 or float64."""
    return {torch.float32: "float", torch.float64: "double"}[a.dtype]


def launch_on_device(launch: Launch, arguments: tuple[int, ...], device: torch.device) -> None:
    """Queue a kernel on torch's current stream, and wait for nothing."""
    core = _import("cuda.core")
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        core.Device(index).set_current()  # the context that torch uses too
        kernel = _load(launch.program, launch.shared_bytes, index)
        config = core.LaunchConfig(grid=launch.grid, block=launch.block, shmem_size=launch.shared_bytes)
        core.launch(_TorchStream(index), config, kernel, *arguments)


def compile_program(program: Program, architecture: str, log: io.StringIO | None = None) -> bytes:
    """Compile for an architecture such as "sm_90"; no device is needed. `log` receives what ptxas reports."""
    options = _options(program, architecture, verbose=log is not None)
    return bytes(
        _import("cuda.core").Program(_source(program.source), "c++", options).compile("cubin", logs=log).code
    )


def compile_or_reuse(program: Program, architecture: str) -> bytes:
    """`compile_program`, kept in the user's cache directory.

    The key holds the sources, the options and the NVRTC version. Behind the code stands its digest: an entry that
    was cut short or changed is compiled anew. Without a directory that can be written, nothing is kept.
    """
    utilities = _import("cuda.core.utils")
    key = utilities.make_program_cache_key(
        code=_source(program.source),
        code_type="c++",
        options=_options(program, architecture),
        target_type="cubin",
        extra_digest=hashlib.sha256(_source("frame.cuh").encode()).digest(),
    )
    try:
        with utilities.FileStreamProgramCache() as directory:
            entry = directory.get(key)
            if (
                entry is not None
                and hashlib.sha256(entry[:-_DIGEST_BYTES]).digest() == entry[-_DIGEST_BYTES:]
            ):
                return entry[:-_DIGEST_BYTES]
            code = compile_program(program, architecture)
            directory[key] = code + hashlib.sha256(code).digest()
            return code
    except OSError:
        return compile_program(program, architecture)


class _TorchStream:
    """Torch's current stream on a device, by the protocol that `cuda.core` reads."""

    def __init__(self, index: int) -> None:
        self.handle = torch.cuda.current_stream(index).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


_kernels: dict[tuple[Program, int], Any] = {}
_kernels_lock = threading.Lock()


def _load(program: Program, shared_bytes: int, index: int) -> Any:
    with _kernels_lock:
        if (program, index) not in _kernels:
            _kernels[program, index] = _load_now(program, index)
        kernel, allowed = _kernels[program, index]
        if shared_bytes > allowed:
            _allow_shared_memory(kernel, shared_bytes, index)
            _kernels[program, index] = kernel, shared_bytes
        return kernel


def _load_now(program: Program, index: int) -> tuple[Any, int]:
    major, minor = torch.cuda.get_device_capability(index)
    kernel = (
        _import("cuda.core")
        .ObjectCode.from_cubin(compile_or_reuse(program, f"sm_{major}{minor}"))
        .get_kernel("solve")
    )
    return kernel, 48 * 1024  # what a block gets unasked


def _allow_shared_memory(kernel: Any, shared_bytes: int, index: int) -> None:
    # `cuda.core` shows this attribute but does not set it.
    driver = _import("cuda.bindings.driver")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(attribute, shared_bytes, kernel.handle, driver.CUdevice(index))
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(
            f"the GPU gives a block less than the {shared_bytes} bytes of shared memory that this matrix size needs "
            f"({status.name}): pass backend='torch'"
        )


def _options(program: Program, architecture: str, *, verbose: bool = False) -> Any:
    macros = [
        ("SCALAR", program.scalar),
        ("LANES", str(program.lanes)),
        ("RESULT", str(RESULTS[program.result])),
    ]
    return _import("cuda.core").ProgramOptions(
        name=program.source,
        arch=architecture,
        std="c++17",
        define_macro=macros,
        include_path=str(SOURCES),
        ptxas_options=["-v"] if verbose else None,
    )


_import_lock = threading.Lock()


def _import(name: str) -> Any:
    # While it is imported, `cuda.core` replaces itself by what fits the installed toolkit: one thread at a time.
    with _import_lock:
        return importlib.import_module(name)


@cache
def _source(name: str) -> str:
    return (SOURCES / name).read_text()
