"""Our CUDA sources compile for real GPUs without one: no register spills, few registers; and the cache on disk."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kernels._backends import cuda_kernels, householder_cuda, jacobi_cuda
from kernels._backends.cuda_kernels import Program

pytestmark = pytest.mark.skipif(
    not cuda_kernels.can_compile(),
    reason="cuda-core, cuda-bindings and nvidia-cuda-nvrtc are not installed: the CUDA sources are not compiled",
)
REGISTERS = {"float": 128, "double": 255}


def all_programs():
    """What the two solvers ask for, over types, sizes and results; the longest compilations first."""
    programs = []
    for solver, sizes in ((jacobi_cuda, (32, 3)), (householder_cuda, (64,))):
        for n in sizes:
            for dtype in (torch.float64, torch.float32):
                for result in cuda_kernels.RESULTS:
                    programs.append(
                        solver.plan(torch.empty(1, n, n, dtype=dtype, device="meta"), result).program
                    )
    for source in ("sparse_multiply.cu", "sparse_sample.cu"):
        programs += [Program(source, scalar, 0, "values") for scalar in ("double", "float")]
    return programs


@pytest.fixture(scope="module")
def reports():
    """What ptxas says of every program on a Hopper GPU."""

    def compile_one(program):
        log = io.StringIO()
        code = cuda_kernels.compile_program(program, "sm_90", log)
        return code, log.getvalue()

    programs = all_programs()
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(programs, pool.map(compile_one, programs)))


@pytest.mark.parametrize(
    "program", all_programs(), ids=lambda p: f"{p.source[:-3]}-{p.scalar}-{p.lanes}-{p.result}"
)
def test_nothing_spills(program, reports):
    code, report = reports[program]
    assert code[:4] == b"\x7fELF"
    assert "warning" not in report
    assert re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    ) == [("0", "0", "0")]
    (registers,) = re.findall(r"Used (\d+) registers", report)
    assert int(registers) <= REGISTERS[program.scalar]


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_100", "sm_120"])
@pytest.mark.parametrize("source", ["jacobi.cu", "householder.cu"])
def test_other_architectures(source, architecture):
    program = Program(source, "double", 4 if source == "jacobi.cu" else 0, "vectors")
    assert cuda_kernels.compile_program(program, architecture)[:4] == b"\x7fELF"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """An empty cache directory, a program, and the list of compilations that took place."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    compilations = []
    compile_program = cuda_kernels.compile_program

    def recorded(*arguments):
        compilations.append(arguments)
        return compile_program(*arguments)

    monkeypatch.setattr(cuda_kernels, "compile_program", recorded)
    return tmp_path, Program("jacobi.cu", "float", 2, "values"), compilations


def test_a_program_is_compiled_once_per_architecture(cached):
    _, program, compilations = cached
    first = cuda_kernels.compile_or_reuse(program, "sm_90")
    assert cuda_kernels.compile_or_reuse(program, "sm_90") == first
    assert len(compilations) == 1
    cuda_kernels.compile_or_reuse(program, "sm_80")
    cuda_kernels.compile_or_reuse(Program("jacobi.cu", "double", 2, "values"), "sm_90")
    assert len(compilations) == 3


@pytest.mark.parametrize("damage", [lambda code: code[:-10], lambda code: b"", lambda code: b"x" + code[1:]])
def test_a_damaged_entry_is_compiled_anew(damage, cached):
    folder, program, compilations = cached
    first = cuda_kernels.compile_or_reuse(program, "sm_90")
    (entry,) = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    entry.write_bytes(damage(entry.read_bytes()))
    for _ in range(2):
        assert cuda_kernels.compile_or_reuse(program, "sm_90") == first
    assert len(compilations) == 2


def test_without_a_cache_directory_every_process_compiles(cached, monkeypatch):
    folder, program, compilations = cached
    (folder / "file").write_text("no directory")
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(folder / "file"))
    for _ in range(2):
        assert cuda_kernels.compile_or_reuse(program, "sm_90")[:4] == b"\x7fELF"
    assert len(compilations) == 2


def test_sources_travel_with_the_package():
    assert {path.name for path in Path(cuda_kernels.SOURCES).iterdir()} >= {
        "frame.cuh",
        "jacobi.cu",
        "householder.cu",
    }
