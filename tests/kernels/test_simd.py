"""What our own CPU solver promises beyond accuracy: that it is the one that runs, and whose bits depend on what."""

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

import kernels
from kernels import dispatch
from kernels._backends import simd

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
instruction_sets = pytest.mark.parametrize("instruction_set", simd.instruction_sets())
needs_simd = pytest.mark.skipif(
    not simd.instruction_sets(), reason="the SIMD backend was not built: no compiler"
)
SOURCES = Path(simd.__file__).parent / "lanes"


def compiler():
    """The command that setuptools would compile with, or None if it does not work."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        return None
    program = subprocess.run(
        [*command, "-x", "c", "-", "-o", os.devnull],
        input="int main(void) { return 0; }",
        text=True,
        capture_output=True,
    )
    return command if program.returncode == 0 else None


def random_matrices(batch, n, dtype, seed=0):
    return torch.randn(batch, n, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_with_a_compiler_the_simd_backend_is_there():
    if compiler() is None:
        pytest.skip("no C compiler: torch solves")
    assert "simd" in kernels.available_backends(), (
        "a C compiler works here, but kernels/_backends holds no built library: "
        "install with `pip install -e .`, and look at its log for why the extension failed"
    )
    assert "baseline" in simd.instruction_sets()


@needs_simd
@dtypes
def test_the_simd_backend_is_the_one_that_ran(dtype, monkeypatch):
    monkeypatch.delenv(dispatch.FORCING_VARIABLE, raising=False)
    for batch, n in [(1, 2), (1, 16), (1000, 8), (64, 64)]:
        a = random_matrices(batch, n, dtype)
        assert dispatch.choose_backend(a) == "simd"
        values, vectors, _ = simd.solve(a, simd.instruction_sets()[0])
        result = kernels.eigh(a)
        assert torch.equal(result.values, values)
        assert torch.equal(result.vectors, vectors)
        # LAPACK rounds elsewhere: equal bits would mean that it ran.
        assert not torch.equal(result.vectors, kernels.eigh(a, backend="torch").vectors)


@dtypes
@instruction_sets
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 16, 17, 40])
def test_bits_do_not_depend_on_the_place_in_the_batch(n, dtype, instruction_set):
    a = random_matrices(71, n, dtype, seed=n)
    values, vectors, _ = simd.solve(a, instruction_set)
    order = torch.randperm(71, generator=torch.Generator().manual_seed(1))
    for rows in (order, order[:5], order[:1], torch.arange(33, 64)):
        some_values, some_vectors, _ = simd.solve(a[rows], instruction_set)
        assert torch.equal(some_values, values[rows])
        assert torch.equal(some_vectors, vectors[rows])


@dtypes
@instruction_sets
@pytest.mark.parametrize("n", [2, 3, 9, 33])
def test_bits_do_not_depend_on_the_neighbors(n, dtype, instruction_set):
    a = random_matrices(8, n, dtype)
    values, vectors, _ = simd.solve(a, instruction_set)
    company = a.clone()
    company[0] = torch.nan
    company[1] = 1e25
    company[2] = 1e-35
    company[3, -1, 0] = -torch.inf
    company[4] = torch.eye(n, dtype=dtype)
    new_values, new_vectors, info = simd.solve(company, instruction_set)
    assert torch.equal(new_values[5:], values[5:])
    assert torch.equal(new_vectors[5:], vectors[5:])
    assert info.tolist() == [-1, 0, 0, -1, 0, 0, 0, 0]
    assert new_values[[0, 3]].isnan().all()
    assert new_vectors[[0, 3]].isnan().all()


@dtypes
@instruction_sets
@pytest.mark.parametrize("n", [3, 8, 40])
def test_bits_do_not_depend_on_the_threads(n, dtype, instruction_set):
    a = random_matrices(3000 if n < 40 else 200, n, dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = simd.solve(a, instruction_set)
        torch.set_num_threads(5)
        together = simd.solve(a, instruction_set)
    finally:
        torch.set_num_threads(threads)
    for x, y in zip(alone, together):
        assert torch.equal(x, y)


@dtypes
@instruction_sets
def test_any_strides_and_the_lower_triangle_alone(dtype, instruction_set):
    plain = random_matrices(20, 6, dtype)
    values, vectors, _ = simd.solve(plain, instruction_set)
    garbage = plain + torch.triu(torch.full((6, 6), torch.nan, dtype=dtype), 1)
    wide = torch.full((20, 2, 9, 13), torch.nan, dtype=dtype)
    wide[:, 1, 1:7, 1::2] = garbage
    layouts = {
        "garbage above": garbage,
        "view": wide[:, 1, 1:7, 1::2],
        "columns first": garbage.mT.contiguous().mT,
        "batch last": garbage.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "reversed twice": garbage.flip(0).flip(0),
    }
    for name, a in layouts.items():
        before = a.clone()
        some_values, some_vectors, _ = simd.solve(a, instruction_set)
        assert torch.equal(some_values, values), name
        assert torch.equal(some_vectors, vectors), name
        assert some_vectors.is_contiguous()
        assert torch.equal(a.nan_to_num(7.0), before.nan_to_num(7.0)), name
    negated = (
        torch.complex(torch.zeros_like(garbage), -garbage).conj().imag
    )  # a view with torch's negative bit
    assert negated.is_neg()
    assert torch.equal(simd.solve(negated, instruction_set)[1], vectors)
    expanded = plain[:1].expand(20, 6, 6)
    assert torch.equal(simd.solve(expanded, instruction_set)[1], vectors[:1].expand(20, 6, 6))


@dtypes
@instruction_sets
def test_signs(dtype, instruction_set):
    for n in (1, 2, 3, 8, 33):
        vectors = simd.solve(random_matrices(50, n, dtype), instruction_set)[1]
        size = vectors.abs()
        pivot = (size >= (1 - 2**-10) * size.amax(-2, keepdim=True)).to(torch.uint8).argmax(-2, keepdim=True)
        assert (torch.take_along_dim(vectors, pivot, -2) > 0).all()


@dtypes
@instruction_sets
@pytest.mark.parametrize("n", [4, 8, 16, 32, 64])
def test_few_sweeps(n, dtype, instruction_set):
    ones = torch.ones(1, n, n, dtype=dtype)
    signs = torch.randint(-1, 2, (n,), generator=torch.Generator().manual_seed(n)).to(dtype)
    batch = torch.cat(
        [
            random_matrices(60, n, dtype),
            ones,
            -ones,
            torch.outer(signs, signs)[None],
            ones * torch.nan,
            1e-30 * ones,
        ]
    )
    assert 0 < simd.count_sweeps(batch, instruction_set) <= 4 * n


@dtypes
def test_bits_do_not_depend_on_the_width_of_the_registers(dtype, tmp_path):
    """Built without intrinsics for 16, 32 and 64 bytes: the lanes of AVX-512 on any processor."""
    command = compiler()
    if command is None:
        pytest.skip("no C compiler")
    a = random_matrices(45, 11, dtype)
    results = []
    for width in (16, 32, 64):
        path = tmp_path / f"simd_{width}.so"
        flags = ["-std=gnu11", "-O1", "-ffp-contract=off", "-Wno-psabi", "-shared", "-fPIC"]
        sources = [SOURCES / "float32.c", SOURCES / "float64.c"]
        built = subprocess.run(
            [*command, *flags, f"-DVECTOR_BYTES={width}", *sources, "-o", path, "-lm", "-lpthread"],
            capture_output=True,
            text=True,
        )
        assert built.returncode == 0, built.stderr
        values, vectors, projection = a.new_empty(45, 11), torch.empty_like(a), torch.empty_like(a)
        library = simd.load(path)
        info, _ = simd.run(library, a, values, vectors)
        simd.run(library, a, projection=projection)
        results.append((values, vectors, projection, info))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(other, results[0]))


@needs_simd
@dtypes
@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 40])
def test_projection(n, dtype):
    """Symmetric to the last bit, semidefinite, and the nearest such matrix by its optimality conditions."""
    a = random_matrices(70, n, dtype, seed=n)
    a[3] = torch.eye(n, dtype=dtype)
    a[4] = -torch.eye(n, dtype=dtype)
    a[5] = 0
    a[6, -1, 0] = torch.nan
    a[7:] *= torch.logspace(-30, 30, 63, dtype=torch.float64).to(dtype)[:, None, None]
    p, info = simd.project_psd(a)
    assert info.tolist() == [0, 0, 0, 0, 0, 0, -1, *63 * [0]]
    assert p[6].isnan().all()
    a, p = (torch.cat([x[:6], x[7:]]) for x in (a, p))
    a = torch.tril(a) + torch.tril(a, -1).mT
    assert torch.equal(p, p.mT)
    scale = a.abs().amax((-2, -1), keepdim=True).clamp(min=1e-30).double()
    a, p = a.double() / scale, p.double() / scale
    tolerance = 10 * n * torch.finfo(dtype).eps
    assert torch.linalg.eigvalsh(p).min() >= -tolerance
    assert torch.linalg.eigvalsh(p - a).min() >= -tolerance
    assert (p * (p - a)).sum((-2, -1)).abs().max() <= n * tolerance
