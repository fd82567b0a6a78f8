"""Laws of our CUDA eigensolvers, on the CPU: the unmodified sources, every thread of a block emulated.

The same laws on a GPU stand in test_cuda_device.py.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels._backends import householder_cuda, jacobi_cuda
from kernels._backends.cuda_kernels import solve


def sibling(name):
    """A module beside this file: the tests are no package."""
    specification = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


emulation = sibling("cuda_emulation")
laws = sibling("cuda_laws")
pytestmark = pytest.mark.skipif(not emulation.exists(), reason=emulation.CANNOT)
JACOBI_SIZES, HOUSEHOLDER_SIZES = [1, 2, 3, 4, 5, 8, 16, 32], [1, 2, 3, 33, 64, 65]
CASES = [(jacobi_cuda, n) for n in JACOBI_SIZES] + [(householder_cuda, n) for n in HOUSEHOLDER_SIZES]
FEW = [(jacobi_cuda, n) for n in (2, 3, 4, 7, 16, 32)] + [(householder_cuda, n) for n in (33, 40)]


def name_case(value):
    return value.__name__.rsplit(".", 1)[-1] if hasattr(value, "__name__") else str(value)


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
every = pytest.mark.parametrize(("solver", "n"), CASES, ids=name_case)
few = pytest.mark.parametrize(("solver", "n"), FEW, ids=name_case)


@pytest.fixture
def launcher():
    return emulation.Emulation()


@dtypes
@every
def test_hard_matrices(solver, n, dtype, launcher):
    a = laws.hard_matrices(n, dtype)
    values, vectors, info = solver.eigh(a, launcher)
    assert info.tolist() == [0] * len(a)
    laws.assert_ratios(a, values, vectors)
    alone, _ = solver.eigvalsh(a, launcher)
    assert torch.equal(alone, values)
    limit = 20 if solver is jacobi_cuda else 4 * n
    assert solver.count_sweeps(a, launcher).max() <= limit


@dtypes
@every
def test_projections(solver, n, dtype, launcher):
    a = laws.hard_matrices(n, dtype)
    projection, info = solver.project_psd(a, launcher)
    assert info.tolist() == [0] * len(a)
    laws.assert_projection(a, projection)


@dtypes
@few
def test_bits_do_not_depend_on_the_place_or_the_neighbors(solver, n, dtype, launcher):
    laws.assert_independent(solver, n, dtype, launcher)


@dtypes
@few
def test_any_strides_and_the_lower_triangle_alone(solver, n, dtype, launcher):
    laws.assert_layout_free(solver, n, dtype, launcher)


@dtypes
@few
def test_powers_of_two_pass_through_exactly(solver, n, dtype, launcher):
    a = laws.random_matrices(3, n, dtype)
    values, vectors, _ = solver.eigh(a, launcher)
    for power in (-100.0, 100.0):
        scaled_values, scaled_vectors, _ = solver.eigh(a * 2.0**power, launcher)
        assert torch.equal(scaled_values, values * 2.0**power)
        assert torch.equal(scaled_vectors, vectors)


@dtypes
def test_ends_of_the_range(dtype, launcher):
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    for size, solver in ((3, jacobi_cuda), (4, jacobi_cuda), (33, householder_cuda)):
        for entry in (info.max, smallest):
            diagonal = torch.zeros(size, dtype=dtype)
            diagonal[:2] = torch.tensor([entry, -entry], dtype=dtype)
            values, _ = solver.eigvalsh(torch.diag(diagonal)[None], launcher)
            assert values[0].tolist() == [-entry, *[0.0] * (size - 2), entry]
        overflowing = torch.full((1, size, size), info.max, dtype=dtype)
        assert solver.eigvalsh(overflowing, launcher)[0][0, -1].isinf()  # as the true value does


@dtypes
@few
def test_signs(solver, n, dtype, launcher):
    vectors = solver.eigh(laws.random_matrices(8, n, dtype), launcher)[1]
    size = vectors.abs()
    pivot = (size >= (1 - 2**-10) * size.amax(-2, keepdim=True)).to(torch.uint8).argmax(-2, keepdim=True)
    assert (torch.take_along_dim(vectors, pivot, -2) > 0).all()


@dtypes
@few
def test_the_order_of_threads_changes_no_bit(solver, n, dtype, launcher):
    """A missing barrier shows as a difference: threads run in turn between barriers, either way round."""
    a = laws.hard_matrices(n, dtype)[:12]
    for call in (solver.eigh, solver.eigvalsh, solver.project_psd):
        for one, other in zip(call(a, launcher), call(a, emulation.Emulation(reverse=True))):
            assert torch.equal(one, other)


# --- what decided in the first versions of the Jacobi kernel, a case each -------------------------------------------


@dtypes
@pytest.mark.parametrize("n", [8, 16, 32])
def test_clusters_keep_their_vectors_orthogonal(n, dtype, launcher):
    """Two lanes that rotate by their own copies of an entry lose orthogonality by factors of 10^5 and more."""
    for spectrum in ([1.0] * (n - 1) + [1e-6], [1.0] * (n // 2) + [-1.0] * (n // 2)):
        a = laws.from_spectrum(spectrum).to(dtype)[None]
        values, vectors, _ = jacobi_cuda.eigh(a, launcher)
        laws.assert_ratios(a, values, vectors)


@dtypes
@pytest.mark.parametrize(("n", "limit"), [(4, 6), (8, 7), (16, 8), (32, 9)])
def test_random_matrices_meet_the_stopping_rule(n, limit, dtype, launcher):
    """Without writing zero for the annihilated entry, the rule is never met for n >= 8."""
    sweeps = jacobi_cuda.count_sweeps(laws.random_matrices(12, n, dtype), launcher)
    assert sweeps.max() <= limit


@dtypes
def test_ordering_keeps_clusters_from_trading_places(dtype, launcher):
    """Without the smaller value going to the lower index, two clusters take 28 sweeps, half rank 16."""
    two = laws.from_spectrum([1.0] * 16 + [-1.0] * 16)
    factor = torch.randn(32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = torch.stack([two, factor @ factor.mT]).to(dtype)
    sweeps = jacobi_cuda.count_sweeps(batch, launcher)
    assert sweeps[0] <= 8
    assert sweeps[1] <= 11


@dtypes
@pytest.mark.parametrize("n", [2, 3, 4, 8, 16, 32])
def test_a_negligible_entry_makes_no_nan(n, dtype, launcher):
    """Tiny entries between equal diagonal ones have squares that vanish: 0 / 0 without a threshold."""
    pair = torch.eye(n, dtype=dtype)
    pair[:-2, :-2] = laws.random_matrices(1, n, dtype)[0, 2:, 2:]
    pair[-1, -2] = torch.finfo(dtype).tiny ** 0.7
    a = torch.stack([torch.ones(n, n, dtype=dtype), pair])
    values, vectors, info = jacobi_cuda.eigh(a, launcher)
    assert info.tolist() == [0, 0]
    laws.assert_ratios(a, values, vectors)


@dtypes
@pytest.mark.parametrize("solver", [jacobi_cuda, householder_cuda], ids=name_case)
def test_unscaled_matrices_and_rank_one(solver, dtype, launcher):
    """1e30, 1e-30 and 1e-40 unscaled gave NaN; all ones and rank one with entries 0, 1, -1 stalled at 30 n sweeps."""
    n = 32 if solver is jacobi_cuda else 64
    signs = torch.randint(-1, 2, (n,), generator=torch.Generator().manual_seed(n)).double()
    dense = laws.random_matrices(1, n, torch.float64)
    ones = torch.ones(1, n, n, dtype=torch.float64)
    batch = torch.cat([dense * 1e30, dense * 1e-30, dense * 1e-40, ones, torch.outer(signs, signs)[None]])
    a = batch.to(dtype)
    values, vectors, info = solver.eigh(a, launcher)
    assert not info.any()
    laws.assert_ratios(a, values, vectors)
    assert solver.count_sweeps(a, launcher).max() <= (20 if solver is jacobi_cuda else 4 * n)


# --- that the emulation notices what it is for -----------------------------------------------------------------------


def test_the_emulation_refuses_too_little_shared_memory(launcher):
    for solver, n in ((jacobi_cuda, 3), (householder_cuda, 40)):
        a = laws.random_matrices(2, n, torch.float32)
        launch = solver.plan(a, "vectors")
        with pytest.raises(RuntimeError, match="behind the shared memory"):
            solve(a, replace(launch, shared_bytes=launch.shared_bytes - 64), launcher)


def test_the_emulation_survives_an_access_outside_memory(launcher):
    a = laws.random_matrices(2, 4, torch.float32)
    launch = jacobi_cuda.plan(a, "vectors")
    arguments = (a.data_ptr(), *a.stride(), 2, 4, 0, 0, 0, 0)  # no memory for the results
    with pytest.raises(RuntimeError, match="not there"):
        launcher(launch, arguments, a.device)
    assert not jacobi_cuda.eigh(a, launcher)[2].any()
