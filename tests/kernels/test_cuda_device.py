"""The laws of test_cuda_emulated.py on a GPU, through `kernels.eigh` and the backends themselves."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

import kernels
from kernels._backends import householder_cuda, jacobi_cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
specification = importlib.util.spec_from_file_location("cuda_laws", Path(__file__).parent / "cuda_laws.py")
laws = importlib.util.module_from_spec(specification)
specification.loader.exec_module(laws)

JACOBI_SIZES, HOUSEHOLDER_SIZES = [1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32], [33, 48, 49, 64, 65, 127, 128]
CASES = [("jacobi_cuda", n) for n in JACOBI_SIZES]
CASES += [("householder_cuda", n) for n in HOUSEHOLDER_SIZES]
CASES += [("cusolver", n) for n in (2, 8, 32, 33, 64, 200)]
OWN = [(jacobi_cuda, n) for n in (2, 3, 4, 7, 16, 32)] + [(householder_cuda, n) for n in (33, 64, 128)]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
every = pytest.mark.parametrize(("backend", "n"), CASES)
own = pytest.mark.parametrize(
    ("solver", "n"), OWN, ids=lambda x: getattr(x, "__name__", str(x)).split(".")[-1]
)


def require(backend):
    if backend not in kernels.available_backends():
        pytest.skip(f"the backend {backend} does not exist here: install the extra `cuda`")


@dtypes
@every
def test_hard_matrices(backend, n, dtype):
    require(backend)
    a = laws.hard_matrices(n, dtype)
    values, vectors = kernels.eigh(a.cuda(), backend=backend)
    laws.assert_ratios(a, values.cpu(), vectors.cpu())
    alone = kernels.eigvalsh(a.cuda(), backend=backend)
    largest = values.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(dtype).smallest_normal)
    assert ((alone - values).abs() <= 60 * torch.finfo(dtype).eps * largest).all()


@dtypes
@own
def test_projections_and_sweeps(solver, n, dtype):
    require(solver.__name__.rsplit(".", 1)[-1])
    a = laws.hard_matrices(n, dtype)
    projection, info = solver.project_psd(a.cuda())
    assert not info.any()
    laws.assert_projection(a, projection.cpu())
    assert solver.count_sweeps(a.cuda()).max() <= (20 if solver is jacobi_cuda else 4 * n)


@dtypes
@own
def test_bits_and_layouts(solver, n, dtype):
    require(solver.__name__.rsplit(".", 1)[-1])
    laws.assert_independent(solver, n, dtype, device="cuda")
    laws.assert_layout_free(solver, n, dtype, device="cuda")


@dtypes
@every
def test_a_bad_matrix_is_nan_alone(backend, n, dtype):
    require(backend)
    a = laws.random_matrices(20, n, dtype)
    a[3, -1, 0] = math.nan
    values, vectors = kernels.eigh(a.cuda(), backend=backend)
    good = torch.arange(20) != 3
    assert values[3].isnan().all()
    assert vectors[3].isnan().all()
    laws.assert_ratios(a[good], values.cpu()[good], vectors.cpu()[good])


@every
def test_a_captured_call_replays(backend, n):
    """Nothing in a call waits for the device or allocates apart from torch."""
    require(backend)
    a = laws.random_matrices(50, n, torch.float32).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        kernels.eigh(a, backend=backend)  # compiles, and makes the handles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, vectors = kernels.eigh(a, backend=backend)
    a.copy_(laws.random_matrices(50, n, torch.float32, seed=1))
    graph.replay()
    torch.cuda.synchronize()
    laws.assert_ratios(a.cpu(), values.cpu(), vectors.cpu())


@pytest.mark.parametrize(("backend", "n", "batch"), [("jacobi_cuda", 4, 10**6), ("cusolver", 4, 40000)])
def test_large_batches(backend, n, batch):
    require(backend)
    a = laws.random_matrices(batch, n, torch.float32)
    values, vectors = kernels.eigh(a.cuda(), backend=backend)
    laws.assert_ratios(a, values.cpu(), vectors.cpu())
    if backend == "jacobi_cuda":
        assert torch.equal(kernels.eigh(a[-7:].cuda(), backend=backend).vectors, vectors[-7:])


def test_verification_accepts_the_library():
    from kernels._backends import cusolver

    require("cusolver")
    a = laws.random_matrices(300, 16, torch.float64).cuda()
    assert not cusolver.solve(a, cusolver.torch_platform(), verify=True)[2].any()
