"""Laws of the eigensolvers, over backends, precisions and hard matrices."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings, strategies as st

import kernels
from kernels import dispatch, operators

LIMIT = 10.0  # of the LAPACK test ratios; LAPACK itself passes at 60
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64]

backends = pytest.mark.parametrize("backend", kernels.available_backends())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def random_symmetric(*shape, dtype, seed=0):
    a = torch.randn(*shape, shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return ((a + a.mT) / 2).to(dtype)


def from_spectrum(values, seed=0):
    n = len(values)
    q, _ = torch.linalg.qr(
        torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )
    a = (q * torch.as_tensor(values, dtype=torch.float64)) @ q.mT
    return (a + a.mT) / 2


def wilkinson(n):
    off = torch.ones(n - 1, dtype=torch.float64)
    return torch.diag((torch.arange(n, dtype=torch.float64) - (n - 1) / 2).abs()) + off.diag(1) + off.diag(-1)


def glued_wilkinson():
    a = torch.block_diag(wilkinson(21), wilkinson(21))
    a[20, 21] = a[21, 20] = 1e-8
    return a


def hard_matrices():
    n = 16
    line = torch.linspace(-1, 1, n, dtype=torch.float64)
    graded = torch.diag(10.0 ** -torch.arange(n, dtype=torch.float64))
    dense = random_symmetric(n, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0, 0.0, 1.0] * 4, dtype=torch.float64)
    hilbert = 1 / (torch.arange(n)[:, None] + torch.arange(n)[None, :] + 1).double()
    cycle = torch.eye(n, dtype=torch.float64).roll(1, 0)
    return {
        "zero": torch.zeros(n, n, dtype=torch.float64),
        "identity": torch.eye(n, dtype=torch.float64),
        "diagonal": torch.diag(line.flip(0)),
        "all-ones": torch.ones(32, 32, dtype=torch.float64),
        "rank one": torch.outer(signs, signs),
        "low rank": from_spectrum([3.0, -2.0] + [0.0] * 14),
        "wilkinson": wilkinson(21),
        "glued wilkinson": glued_wilkinson(),
        "hilbert": hilbert,
        "graded down": graded @ dense @ graded,
        "graded up": graded.flip(0, 1) @ dense @ graded.flip(0, 1),
        "even": from_spectrum(line),
        "geometric": from_spectrum(10.0 ** (-12 * torch.arange(n) / n).double()),
        "one cluster": from_spectrum([1.0] * 15 + [1e-6]),
        "two clusters": from_spectrum([1.0] * 8 + [-1.0] * 8),
        "projector": from_spectrum([1.0] * 5 + [0.0] * 11),
        "near identity": torch.eye(n, dtype=torch.float64) + 1e-9 * dense,
        "cycle graph": cycle + cycle.mT,
        "reversal": torch.eye(n, dtype=torch.float64).flip(0),
        "huge": dense * 1e30,
        "tiny": dense * 1e-30,
        "subnormal in float32": dense * 1e-40,
        "nearly equal pair": torch.tensor([[1.0, 1e-9], [1e-9, 1.0 + 1e-9]], dtype=torch.float64),
        "nearly equal triple": torch.eye(3, dtype=torch.float64) + 1e-8 * dense[:3, :3],
    }


def assert_eigenpairs(a, values, vectors):
    """The test ratios of LAPACK's `ddrvst`, in float64 on data divided by max|a|; fail above `LIMIT`."""
    n, info = a.shape[-1], torch.finfo(a.dtype)
    largest = a.double().abs().amax((-2, -1), keepdim=True).clamp(min=5e-324)
    # Where the matrix is subnormal, the eigenvalues can only be written down to the smallest number there is.
    floor = (info.smallest_normal * info.eps / largest)[..., 0, 0]
    x, w, v = a.double() / largest, values.double() / largest[..., 0], vectors.double()
    norm = x.abs().sum(-2).amax(-1)
    residual = (x - (v * w[..., None, :]) @ v.mT).abs().sum(-2).amax(-1)
    assert (residual <= LIMIT * n * (norm * info.eps + floor)).all()
    orthogonality = (torch.eye(n, dtype=torch.float64) - v.mT @ v).abs().sum(-2).amax(-1)
    assert (orthogonality <= LIMIT * n * info.eps).all()
    assert (values.diff(dim=-1) >= 0).all()


@dtypes
@backends
@pytest.mark.parametrize("name", hard_matrices())
def test_hard_matrices(name, backend, dtype):
    a = hard_matrices()[name].to(dtype).expand(3, -1, -1)
    values, vectors = kernels.eigh(a, backend=backend)
    assert_eigenpairs(a, values, vectors)
    alone = kernels.eigvalsh(a, backend=backend)
    largest = max(values.abs().max().item(), torch.finfo(dtype).smallest_normal)
    assert (alone - values).abs().max() <= LIMIT * torch.finfo(dtype).eps * largest


@dtypes
@backends
@pytest.mark.parametrize("n", SIZES)
def test_random_matrices_agree_with_scipy(n, backend, dtype):
    a = random_symmetric(37, n, dtype=dtype, seed=n)
    values, vectors = kernels.eigh(a, backend=backend)
    assert_eigenpairs(a, values, vectors)
    trusted = np.stack([scipy.linalg.eigh(x, eigvals_only=True) for x in a.double().numpy()])
    tolerance = LIMIT * n * torch.finfo(dtype).eps * np.abs(trusted).max()
    np.testing.assert_allclose(values.double().numpy(), trusted, rtol=0, atol=tolerance)


@backends
@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.integers(0, 4), max_size=3),
    n=st.integers(0, 9),
    exponent=st.integers(-30, 30),
    rank=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape_scale_and_rank(batch, n, exponent, rank, dtype, backend):
    factor = torch.randn(*batch, n, min(rank, n), dtype=torch.float64)
    a = (factor @ factor.mT * 10.0**exponent).to(dtype)
    a = torch.tril(a) + torch.tril(a, -1).mT
    before = a.clone()
    values, vectors = kernels.eigh(a, backend=backend)
    assert values.shape == (*batch, n)
    assert vectors.shape == (*batch, n, n)
    assert values.dtype == vectors.dtype == dtype
    assert vectors.is_contiguous()
    assert torch.equal(a, before)
    if a.numel():
        assert_eigenpairs(a, values, vectors)


@dtypes
@backends
def test_only_the_lower_triangle_is_read(backend, dtype):
    a = random_symmetric(9, 6, dtype=dtype)
    garbage = torch.where(torch.ones(6, 6).triu(1).bool(), torch.nan, a)
    for clean, dirty in zip(kernels.eigh(a, backend=backend), kernels.eigh(garbage, backend=backend)):
        assert torch.equal(clean, dirty)
    assert torch.equal(kernels.eigvalsh(a, backend=backend), kernels.eigvalsh(garbage, backend=backend))


@dtypes
@backends
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_matrix_leaves_its_neighbors_alone(bad, backend, dtype):
    a = random_symmetric(11, 5, dtype=dtype)
    spoiled = a.clone()
    spoiled[4, 3, 1] = bad
    others = torch.arange(11) != 4
    for clean, dirty in zip(kernels.eigh(a, backend=backend), kernels.eigh(spoiled, backend=backend)):
        assert torch.equal(clean[others], dirty[others])
        assert dirty[4].isnan().all()
    assert kernels.eigvalsh(spoiled, backend=backend)[4].isnan().all()


@backends
def test_scale_of_a_neighbor_changes_no_bit(backend):
    a = random_symmetric(8, 6, dtype=torch.float32)
    mixed = a.clone()
    mixed[3] *= 2.0**80
    others = torch.arange(8) != 3
    for plain, scaled in zip(kernels.eigh(a, backend=backend), kernels.eigh(mixed, backend=backend)):
        assert torch.equal(plain[others], scaled[others])


@dtypes
@backends
@pytest.mark.parametrize("power", [-100, -40, 0, 40, 100])
def test_powers_of_two_pass_through_exactly(power, backend, dtype):
    a = random_symmetric(4, 7, dtype=dtype)
    values, vectors = kernels.eigh(a, backend=backend)
    scaled_values, scaled_vectors = kernels.eigh(a * 2.0**power, backend=backend)
    assert torch.equal(scaled_values, values * 2.0**power)
    assert torch.equal(scaled_vectors, vectors)


@dtypes
def test_ends_of_the_range(dtype):
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    for entry in (info.max, smallest):
        values = kernels.eigvalsh(torch.diag(torch.tensor([entry, -entry, 0.0], dtype=dtype)))
        assert values.tolist() == [-entry, 0.0, entry]
    assert kernels.eigvalsh(torch.full((2, 2), info.max, dtype=dtype))[1].isinf()  # the true value overflows


@dtypes
@backends
def test_strides_do_not_matter(backend, dtype):
    a = random_symmetric(5, 4, 6, dtype=dtype)
    strided = a.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    assert not strided.is_contiguous()
    for one, other in zip(kernels.eigh(a, backend=backend), kernels.eigh(strided, backend=backend)):
        assert torch.equal(one, other)
        assert other.is_contiguous()


@dtypes
@backends
def test_the_first_of_the_largest_entries_is_positive(backend, dtype):
    vectors = kernels.eigh(random_symmetric(50, 6, dtype=dtype), backend=backend).vectors
    magnitude = vectors.abs()
    first = (magnitude >= (1 - 2.0**-10) * magnitude.amax(-2, keepdim=True)).int().argmax(-2, keepdim=True)
    assert (vectors.gather(-2, first) > 0).all()
    tie = kernels.eigh(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=dtype), backend=backend).vectors
    assert (tie[0] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    a = random_symmetric(3, 5, dtype=torch.float32).to(dtype)
    for half, single in zip(kernels.eigh(a), kernels.eigh(a.float())):
        assert half.dtype == dtype
        assert torch.equal(half, single.to(dtype))
    assert kernels.eigvalsh(a).dtype == dtype


def test_complex_matrices_are_hermitian():
    a = torch.randn(4, 5, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    a = ((a + a.mH) / 2).requires_grad_()
    values, vectors = kernels.eigh(a)
    assert values.dtype == torch.float64
    torch.testing.assert_close((vectors * values[..., None, :]) @ vectors.mH, a)
    assert torch.autograd.gradcheck(lambda x: kernels.eigvalsh((x + x.mH) / 2), a)
    assert torch.autograd.gradcheck(lambda x: kernels.eigh((x + x.mH) / 2).vectors.abs(), a)


@dtypes
@backends
@pytest.mark.parametrize("n", [3, 16, 20])
def test_results_do_not_depend_on_the_rest_of_the_batch(n, backend, dtype):
    a = random_symmetric(41, n, dtype=dtype, seed=n)
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0))
    whole, permuted = kernels.eigh(a, backend=backend), kernels.eigh(a[order], backend=backend)
    for one, other in zip(whole, permuted):
        assert torch.equal(one[order], other)
    for size in (1, 9, 17):
        for one, other in zip(whole, kernels.eigh(a[:size], backend=backend)):
            assert torch.equal(one[:size], other)
    if n <= 16:  # also where the choice of the backend is free
        for one, other in zip(kernels.eigh(a), kernels.eigh(a[:1])):
            assert torch.equal(one[:1], other)


@dtypes
@backends
def test_failures_are_named_when_asked(backend, dtype):
    a = random_symmetric(2, 3, 4, dtype=dtype)
    assert kernels.eigvalsh(a, backend=backend, check=True).isfinite().all()
    a[1, 2, 3, 0] = a[0, 1, 2, 2] = math.nan
    assert kernels.eigh(a, backend=backend).values.isnan().sum() == 8
    for function in (kernels.eigh, kernels.eigvalsh):
        with pytest.raises(torch.linalg.LinAlgError, match=r"2 of 6 .*\(0, 1\), \(1, 2\).*NaN or infinite"):
            function(a, backend=backend, check=True)
    with pytest.raises(torch.linalg.LinAlgError, match=r"1 of 1 .*at batch index \(\)"):
        kernels.eigh(a[1, 2], backend=backend, check=True)


def test_a_failure_to_converge_is_named():
    info = torch.tensor([0, 3, -1], dtype=torch.int32)
    with pytest.raises(torch.linalg.LinAlgError, match=r"2 of 3 .*\(1,\), \(2,\).*3 off-diagonal"):
        operators.raise_failures(info, "eigh")


@dtypes
@pytest.mark.parametrize("k", [0, 1, 3, 8])
def test_top_pairs_are_the_best_approximation(k, dtype):
    a = random_symmetric(6, 8, dtype=dtype)
    values, vectors = kernels.top_eigh(a, k)
    assert values.shape == (6, k)
    assert vectors.shape == (6, 8, k)
    assert (values.abs().diff(dim=-1) <= 0).all()
    error = torch.linalg.matrix_norm(a - (vectors * values[..., None, :]) @ vectors.mT)
    discarded = torch.linalg.eigvalsh(a).abs().sort(-1).values[..., : 8 - k]
    torch.testing.assert_close(error, discarded.norm(dim=-1), rtol=1e-4, atol=50 * torch.finfo(dtype).eps)
    by_value = kernels.top_eigh(a, k, by="value")
    assert torch.equal(by_value.values, kernels.eigh(a).values.flip(-1)[..., :k])


def test_threads_agree_with_torch_and_keep_its_count():
    a = random_symmetric(301, 8, dtype=torch.float64)
    before = torch.get_num_threads()
    threaded = kernels.eigh(a, backend="threaded")
    for one, other in zip(threaded, kernels.eigh(a, backend="torch")):
        torch.testing.assert_close(one, other)
    assert torch.get_num_threads() == before
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [before]


def test_calls_from_many_threads_and_from_a_worker():
    from kernels._backends import threaded

    a = random_symmetric(64, 6, dtype=torch.float64)
    expected = kernels.eigvalsh(a, backend="threaded")
    with ThreadPoolExecutor(4) as callers:
        results = list(callers.map(lambda _: kernels.eigvalsh(a, backend="threaded"), range(16)))
    assert all(torch.equal(result, expected) for result in results)
    workers = threaded._pool(torch.get_num_threads())
    nested = [
        workers.submit(lambda: (torch.get_num_threads(), kernels.eigvalsh(a, backend="threaded")))
        for _ in range(8)
    ]
    for future in nested:
        inner_threads, values = future.result(timeout=60)
        assert inner_threads == 1
        assert torch.equal(values, expected)


def test_the_choice_can_be_asked_and_forced(monkeypatch):
    a = random_symmetric(2, 3, dtype=torch.float32)
    monkeypatch.delenv(dispatch.FORCING_VARIABLE, raising=False)
    assert {"threaded", "torch"} <= set(kernels.available_backends())
    assert (
        dispatch.choose_backend(a)
        == kernels.available_backends()[0 if "simd" in kernels.available_backends() else -1]
    )
    monkeypatch.setenv(dispatch.FORCING_VARIABLE, "threaded")
    assert dispatch.choose_backend(a) == "threaded"
    assert dispatch.choose_backend(a, "torch") == "torch"
    monkeypatch.setenv(dispatch.FORCING_VARIABLE, "abacus")
    with pytest.raises(ValueError, match=rf"'abacus'.*{dispatch.FORCING_VARIABLE}"):
        kernels.eigh(a)


@pytest.mark.parametrize("function", [kernels.eigh, kernels.eigvalsh, lambda a: kernels.top_eigh(a, 1)])
@pytest.mark.parametrize(
    ("a", "message"),
    [
        (torch.zeros(3), r"\(\.\.\., n, n\).*\(3,\)"),
        (torch.zeros(2, 3, 4), r"\(2, 3, 4\).*Gram"),
        (torch.zeros(3, 3, dtype=torch.int64), r"torch\.int64.*torch\.float64"),
        (torch.zeros(3, 3, dtype=torch.bool), r"torch\.bool"),
    ],
)
def test_refusals_name_the_value_and_the_remedy(function, a, message):
    with pytest.raises(ValueError, match=message):
        function(a)


def test_refused_arguments():
    a = torch.eye(3)
    with pytest.raises(ValueError, match="'abacus'"):
        kernels.eigh(a, backend="abacus")
    with pytest.raises(ValueError, match="gradient = 'fuzzy'"):
        kernels.eigh(a, gradient="fuzzy")
    with pytest.raises(ValueError, match="k = 4"):
        kernels.top_eigh(a, 4)
    with pytest.raises(ValueError, match="'size'"):
        kernels.top_eigh(a, 1, by="size")
    with pytest.raises(TypeError, match="ndarray"):
        kernels.eigh(np.eye(3))  # pyright: ignore[reportArgumentType]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@dtypes
@pytest.mark.parametrize("n", [2, 8, 33, 64])
def test_gpu_obeys_the_same_laws(n, dtype):
    a = random_symmetric(20, n, dtype=dtype)
    a[3, 1, 0] = math.nan
    values, vectors = kernels.eigh(a.cuda())
    good = torch.arange(20) != 3
    assert values[3].isnan().all()
    assert_eigenpairs(a[good], values.cpu()[good], vectors.cpu()[good])
