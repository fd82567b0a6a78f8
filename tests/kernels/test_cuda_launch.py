"""What is asked of `cuda.core` and the driver for a launch, with both replaced: no device is needed."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from kernels._backends import cuda_kernels, householder_cuda, jacobi_cuda


class Recorder:
    """Stands for `cuda.core` and `cuda.bindings.driver`."""

    def __init__(self):
        self.launches, self.compiled, self.allowed = [], [], []
        self.core = SimpleNamespace(
            Device=lambda index: SimpleNamespace(set_current=lambda: None),
            LaunchConfig=lambda **options: options,
            launch=lambda stream, config, kernel, *arguments: self.launches.append(
                (stream.__cuda_stream__(), config, kernel, arguments)
            ),
            ObjectCode=SimpleNamespace(from_cubin=lambda code: SimpleNamespace(get_kernel=self.get_kernel)),
        )
        self.status = SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE")
        self.driver = SimpleNamespace(
            CUfunction_attribute=SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8),
            CUresult=SimpleNamespace(CUDA_SUCCESS=0),
            CUdevice=lambda index: index,
            cuKernelSetAttribute=self.set_attribute,
        )
        self.accepts = True

    def get_kernel(self, name):
        assert name == "solve"
        return SimpleNamespace(handle="handle")

    def set_attribute(self, attribute, value, kernel, device):
        self.allowed.append((attribute, value, kernel, device))
        return (0 if self.accepts else self.status,)

    def import_module(self, name):
        return {"cuda.core": self.core, "cuda.bindings.driver": self.driver}[name]

    def compile(self, program, architecture):
        self.compiled.append((program, architecture))
        return b"code"


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(cuda_kernels, "_import", made.import_module)
    monkeypatch.setattr(cuda_kernels, "_kernels", {})
    monkeypatch.setattr(cuda_kernels, "compile_or_reuse", made.compile)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=0x5EED + index)
    )
    return made


def launch(solver, a, device="cuda:1"):
    def launcher(plan, arguments, _):
        cuda_kernels.launch_on_device(plan, arguments, torch.device(device))

    return solver.eigh(a, launcher)


def test_a_launch(recorder):
    a = torch.randn(300, 8, 8)
    values, vectors, info = launch(jacobi_cuda, a)
    ((stream, config, _, arguments),) = recorder.launches
    assert stream == (0, 0x5EED + 1)
    assert config == {"grid": 19, "block": 128, "shmem_size": 0}  # 16 matrices of 8 lanes to a block
    pointers = [x.data_ptr() for x in (values, vectors, info)]
    assert arguments == (a.data_ptr(), 64, 8, 1, 300, 8, *pointers, 0)
    assert all(type(argument) is int for argument in arguments)  # which `cuda.core` passes as 64 bits
    assert [architecture for _, architecture in recorder.compiled] == ["sm_90"]


def test_a_program_is_loaded_once_per_device(recorder):
    for n in (5, 8, 6):
        launch(jacobi_cuda, torch.randn(3, n, n))
    assert len(recorder.compiled) == 1  # the same eight lanes
    launch(jacobi_cuda, torch.randn(3, 8, 8), device="cuda:0")
    launch(jacobi_cuda, torch.randn(3, 8, 8, dtype=torch.float64))
    assert len(recorder.compiled) == 3


def test_much_shared_memory_is_asked_for_once(recorder):
    for n in (64, 128, 100):
        launch(householder_cuda, torch.randn(2, n, n))
    assert recorder.allowed == [
        (8, householder_cuda.shared_bytes(128, 4), "handle", 1)
    ]  # 64 fits into 48 KiB
    recorder.accepts = False
    with pytest.raises(RuntimeError, match=r"shared memory.*'torch'"):
        launch(householder_cuda, torch.randn(2, 128, 128, dtype=torch.float64))


@pytest.mark.parametrize(("solver", "largest"), [(jacobi_cuda, 32), (householder_cuda, 128)])
def test_every_size_fits_a_hopper_gpu(solver, largest):
    assert largest == solver.LARGEST
    for n in range(1, largest + 1):
        for dtype in (torch.float32, torch.float64):
            for result in cuda_kernels.RESULTS:
                plan = solver.plan(torch.empty(1000, n, n, dtype=dtype, device="meta"), result)
                assert plan.shared_bytes <= 227 * 1024
                assert plan.block % 32 == 0
                assert plan.block <= 256
