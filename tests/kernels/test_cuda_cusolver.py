"""The call of cuSOLVER's batched eigensolver, run against a library of our own with the same functions."""

import ctypes
import os
import shlex
import shutil
import subprocess
import sysconfig
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from kernels._backends import cusolver

STREAM = 0x5EED
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


class Fake:
    """The library built from cusolver_fake.c, its switches and counters, and a platform around it."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.set("expected_stream", STREAM, ctypes.c_void_p)
        self.guarded = []

    def set(self, name, value, kind=ctypes.c_int64):
        kind.in_dll(self.library, f"fake_{name}").value = value

    def count(self, name):
        return ctypes.c_int64.in_dll(self.library, f"fake_{name}").value

    def platform(self, *, version=(11, 7, 5), **options):
        (ctypes.c_int * 3).in_dll(self.library, "fake_version")[:] = version

        @contextmanager
        def guard(device):
            self.guarded.append(device)
            yield

        return cusolver.Platform(self.library, lambda device: STREAM, guard, **options)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        pytest.skip("no C compiler: the fake cuSOLVER is not built")
    path = tmp_path_factory.mktemp("cusolver") / "fake.so"
    source = Path(__file__).with_name("cusolver_fake.c")
    subprocess.run(
        [*command, "-std=gnu11", "-O1", "-shared", "-fPIC", str(source), "-o", str(path), "-lm"], check=True
    )
    return path


@pytest.fixture
def fake(library, tmp_path):
    # A copy is a library of its own, with counters at zero.
    return Fake(shutil.copy(library, tmp_path / "fake.so"))


def random_matrices(batch, n, dtype, seed=0):
    return torch.randn(batch, n, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_eigenpairs(a, values, vectors):
    lower = torch.tril(a.double())
    x = lower + torch.tril(lower, -1).mT
    v, n = vectors.double(), a.shape[-1]
    tolerance = 10 * n * torch.finfo(a.dtype).eps
    scale = x.abs().amax((-2, -1), keepdim=True)
    assert ((x @ v - v * values.double()[..., None, :]).abs() <= tolerance * n * scale).all()
    torch.testing.assert_close(v.mT @ v, torch.eye(n).double().expand_as(v), rtol=0, atol=tolerance)
    assert (values.diff(dim=-1) >= 0).all()


@dtypes
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_the_lower_triangle_is_decomposed(n, dtype, fake):
    a = random_matrices(7, n, dtype)
    garbage = a + torch.triu(torch.full((n, n), torch.nan, dtype=dtype), 1)
    before = garbage.clone()
    values, vectors, info = cusolver.solve(garbage, fake.platform())
    assert_eigenpairs(a, values, vectors)
    assert info.dtype == torch.int32
    assert info.tolist() == [0] * 7
    assert vectors.is_contiguous()
    assert torch.equal(garbage.nan_to_num(7.0), before.nan_to_num(7.0))
    alone, _ = cusolver.solve_values(garbage, fake.platform())
    torch.testing.assert_close(alone, values)
    assert fake.guarded == [a.device] * 2


@dtypes
def test_strides_scale_signs_and_bad_matrices(dtype, fake):
    platform = fake.platform()
    a = random_matrices(6, 5, dtype)
    values, vectors, _ = cusolver.solve(a, platform)
    for strided in (a.mT.contiguous().mT, a.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        assert torch.equal(cusolver.solve(strided, platform)[1], vectors)
    repeated = cusolver.solve(a[:1].expand(6, 5, 5), platform)[1]
    assert torch.equal(repeated, vectors[:1].expand(6, 5, 5))
    scaled_values, scaled_vectors, _ = cusolver.solve(a * 2.0**-100, platform)
    assert torch.equal(scaled_values, values * 2.0**-100)
    assert torch.equal(scaled_vectors, vectors)
    size = vectors.abs()
    pivot = (size >= (1 - 2**-10) * size.amax(-2, keepdim=True)).to(torch.uint8).argmax(-2, keepdim=True)
    assert (torch.take_along_dim(vectors, pivot, -2) > 0).all()
    spoiled = a.clone()
    spoiled[2, 3, 1] = torch.inf
    new_values, new_vectors, info = cusolver.solve(spoiled, platform)
    good = torch.arange(6) != 2
    assert torch.equal(new_vectors[good], vectors[good])
    assert new_vectors[2].isnan().all()
    assert new_values[2].isnan().all()
    assert info.tolist() == [0, 0, -1, 0, 0, 0]


def test_no_chunk_exceeds_a_limit():
    for n in (1, 2, 8, 64, 512, 4096, 20000, 40000, 70000):
        for element_size in (4, 8):
            chunk = cusolver.chunk_size(n, element_size)
            assert 1 <= chunk <= 16384
            assert chunk == 1 or chunk * n * n * element_size <= 2**31 - 1
    assert cusolver.chunk_size(70000, 4) == 1  # never zero


def test_large_batches_go_in_chunks(fake):
    """The library fails at 32 000 matrices already when asked for the workspace."""
    fake.set("bytes_per_matrix", 8)
    a = random_matrices(40000, 2, torch.float32)
    values, vectors, info = cusolver.solve(a, fake.platform())
    assert fake.count("largest_batch") == 16384
    assert fake.count("calls") == 3
    assert_eigenpairs(a, values, vectors)
    assert not info.any()


def test_the_workspace_is_asked_for_once_per_shape_and_bounded(fake):
    fake.set("bytes_per_matrix", 1000)
    platform = fake.platform(workspace_limit=5000)
    a = random_matrices(30, 3, torch.float64)
    values, vectors, _ = cusolver.solve(a, platform)
    assert_eigenpairs(a, values, vectors)
    assert fake.count("largest_batch") == 4  # 30, 15, 8, 4 matrices
    queries = fake.count("queries")
    cusolver.solve(a, platform)
    assert fake.count("queries") == queries


@pytest.mark.parametrize("version", [(11, 7, 1), (11, 6, 0)])
def test_old_releases_get_a_zeroed_workspace(version, fake):
    a = random_matrices(20, 3, torch.float32)
    platform = fake.platform(version=version, workspace_limit=6000)
    assert platform.version == version
    assert_eigenpairs(a, *cusolver.solve(a, platform)[:2])
    assert fake.count("calls") > 1  # each call leaves it dirty


def test_no_host_workspace_is_a_null_pointer(fake):
    fake.set("host_bytes", 0)
    a = random_matrices(3, 4, torch.float64)
    assert_eigenpairs(a, *cusolver.solve(a, fake.platform())[:2])


def test_every_thread_has_its_handle(fake):
    platform = fake.platform()
    a = random_matrices(4, 3, torch.float32)
    for _ in range(3):
        cusolver.solve(a, platform)
    assert fake.count("handles") == 1
    thread = threading.Thread(target=lambda: cusolver.solve(a, platform))
    thread.start()
    thread.join()
    assert fake.count("handles") == 2


def test_verification_finds_what_the_library_does_not_report(fake):
    a = random_matrices(9, 4, torch.float32)
    a[1, 0, 0] = torch.nan
    platform = fake.platform()
    assert cusolver.solve(a, platform, verify=True)[2].tolist() == [0, -1, 0, 0, 0, 0, 0, 0, 0]
    fake.set("wrong_from", 6)
    assert cusolver.solve(a, platform)[2].tolist() == [0, -1, 0, 0, 0, 0, 0, 0, 0]
    assert cusolver.solve(a, platform, verify=True)[2].tolist() == [0, -1, 0, 0, 0, 0, 4, 4, 4]


def test_what_did_not_converge_is_reported(fake):
    fake.set("not_converged", 2)
    assert cusolver.solve(random_matrices(4, 3, torch.float32), fake.platform())[2].tolist() == [0, 0, 3, 0]
    assert cusolver.solve_values(random_matrices(4, 3, torch.float32), fake.platform())[1].tolist() == [
        0,
        0,
        3,
        0,
    ]


def test_a_refusal_names_the_function_and_the_remedy(fake):
    fake.set("expected_stream", STREAM + 1, ctypes.c_void_p)
    with pytest.raises(
        RuntimeError, match=r"cusolverDnXsyevBatched_bufferSize.*2 matrices of size 3.*'torch'"
    ):
        cusolver.solve(random_matrices(2, 3, torch.float32), fake.platform())


def test_a_library_without_the_function_is_no_backend(fake):
    assert cusolver.has_functions(fake.library)
    assert not cusolver.has_functions(ctypes.CDLL(None))
    if not torch.cuda.is_available():
        assert not cusolver.exist()
        with pytest.raises(RuntimeError, match="'torch'"):
            cusolver.torch_platform()
