"""The CUDA kernels on the CPU: builds cuda_emulation.cpp, and a launcher that runs a kernel through it."""

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

from kernels._backends.cuda_kernels import RESULTS, SOURCES, Launch

WITHOUT_LANES = {"householder.cu": 0, "sparse_multiply.cu": -1, "sparse_sample.cu": -2}
CANNOT = "no C++ compiler, or not Linux: the CUDA sources are not emulated"


@cache
def _library() -> ctypes.CDLL | None:
    command = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(command[0]) is None or sys.platform != "linux":
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "emulation.so"
        source = Path(__file__).with_suffix(".cpp")
        # Unfortified: the checked `longjmp` refuses to move between stacks.
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", f"-I{SOURCES}", "-U_FORTIFY_SOURCE"]
        # Products and sums are fused where this processor can, as on a GPU.
        flags += ["-march=native", "-ffp-contract=fast", "-fexpensive-optimizations"]
        built = subprocess.run(
            [*command, *flags, str(source), "-o", str(library)], capture_output=True, text=True
        )
        if built.returncode:
            raise RuntimeError(f"the CUDA sources do not compile as C++: {built.stderr[-3000:]}")
        loaded = ctypes.CDLL(str(library))
    loaded.emulate.restype = ctypes.c_char_p
    return loaded


def exists() -> bool:
    return _library() is not None


class Emulation:
    """A launcher for tensors on the CPU. `reverse` runs the threads of a block in the opposite order."""

    def __init__(self, *, reverse: bool = False) -> None:
        self.reverse = reverse

    def __call__(self, launch: Launch, arguments: tuple[int, ...], device: torch.device) -> None:
        assert device.type == "cpu"
        program, library = launch.program, _library()
        assert library is not None
        assert (program.source == "jacobi.cu") == (program.lanes > 0)
        error = library.emulate(
            ctypes.c_int(program.scalar == "double"),
            ctypes.c_int(WITHOUT_LANES.get(program.source, program.lanes)),
            ctypes.c_int(RESULTS[program.result]),
            ctypes.c_long(launch.grid),
            ctypes.c_int(launch.block),
            ctypes.c_long(launch.shared_bytes),
            ctypes.c_int(self.reverse),
            (ctypes.c_longlong * len(arguments))(*arguments),
        )
        if error is not None:
            raise RuntimeError(f"{program}: {error.decode()}")
