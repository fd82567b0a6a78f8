"""Laws of the iterative eigensolver: it finds the ends of the spectrum of the dense matrix."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings, strategies as st

import kernels

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
ENDS = ["largest", "smallest", "both", "magnitude"]
N = 600  # large enough that nothing is decomposed densely


def expected_values(spectrum, k, which):
    ordered = spectrum.double().sort().values
    if which == "magnitude":
        return ordered[ordered.abs().argsort(descending=True)[:k]].sort().values
    low = {"largest": 0, "smallest": k, "both": k // 2}[which]
    return torch.cat([ordered[:low], ordered[len(ordered) - (k - low) :]])


def householder(spectrum, seed=0):
    """A reflected diagonal matrix as an operator: dense, its spectrum known, cheap to apply."""
    v = torch.randn(len(spectrum), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    v = (v / v.norm()).to(spectrum.dtype)

    def reflect(x):
        return x - 2 * v @ (v.mT @ x)

    return lambda x: reflect(spectrum[:, None] * reflect(x))


def assert_extreme_pairs(operator, spectrum, found, k, which, limit=1e-10):
    """Orthonormal vectors, honest residuals, and the right eigenvalues: none is missed."""
    n, eps = len(spectrum), torch.finfo(spectrum.dtype).eps
    norm = spectrum.abs().amax().double()
    assert found.converged.all()
    assert found.verified
    assert found.values.shape == found.residuals.shape == found.converged.shape == (k,)
    assert found.vectors.shape == (n, k)
    assert found.values.dtype == found.vectors.dtype == spectrum.dtype
    v = found.vectors.double()
    assert ((v.mT @ v - torch.eye(k, dtype=torch.float64)).abs() <= 1000 * eps).all()
    true = (operator(found.vectors) - found.vectors * found.values).double().norm(dim=0)
    assert ((true - found.residuals).abs() <= 1000 * eps * norm).all()
    values, expected = found.values.double(), expected_values(spectrum, k, which)
    if which == "magnitude":  # of w and -w either may be found
        values, expected = values.abs().sort().values, expected.abs().sort().values
    assert ((values - expected).abs() <= max(limit, 1000 * eps) * norm).all()
    magnitude = found.vectors.abs()
    first = (magnitude >= (1 - 2.0**-10) * magnitude.amax(0)).to(torch.uint8).argmax(0, keepdim=True)
    assert (found.vectors.take_along_dim(first, 0) > 0).all()


def hard_spectra():
    line = torch.linspace(-1, 1, N, dtype=torch.float64)
    return {
        "zero": torch.zeros(N, dtype=torch.float64),
        "identity": torch.ones(N, dtype=torch.float64),
        "two values": torch.where(torch.arange(N) < 250, -1.0, 1.0).double(),
        "projector of rank 7": torch.where(torch.arange(N) < 7, 1.0, 0.0).double(),
        "multiplicities above a tail": torch.cat(
            [torch.tensor([3.0] * 4 + [2.0] * 3).double(), line.abs()[7:]]
        ),
        "clusters": torch.cat([2 + 1e-9 * torch.arange(4).double(), 1.5 + 1e-5 * line[:5], line[9:]]),
        "singular": torch.cat([line[:100].abs(), torch.zeros(N - 100, dtype=torch.float64)]),
        "decaying": 0.97 ** torch.arange(N).double(),
        "indefinite": line.sign() * (1 + 3 * line.abs()) ** 2,
        "signs in pairs": torch.cat([line[:300], -line[:300]]),
        "huge": 1e30 * line.sign() * (1 + 3 * line.abs()) ** 2,
        "tiny": 1e-30 * line.sign() * (1 + 3 * line.abs()) ** 2,
    }


@dtypes
@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("name", hard_spectra())
def test_hard_spectra(name, which, dtype):
    spectrum = hard_spectra()[name].to(dtype)
    operator = householder(spectrum)
    found = kernels.extreme_eigh(operator, N, 5, which=which, dtype=dtype)
    assert_extreme_pairs(operator, spectrum, found, 5, which)


@pytest.mark.parametrize("multiplicity", [1, 2, 6])
@pytest.mark.parametrize("seed", range(5))
def test_no_copy_of_a_repeated_eigenvalue_is_missed(multiplicity, seed):
    """From one start vector Lanczos sees one copy; the search from random vectors finds the others."""
    spectrum = torch.linspace(0, 1, N, dtype=torch.float64)
    spectrum[-multiplicity:] = 1.2
    operator = householder(spectrum, seed)
    start = torch.randn(N, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = kernels.extreme_eigh(operator, N, 6, initial=start)
    assert_extreme_pairs(operator, spectrum, found, 6, "largest")


def test_the_search_matters_at_loose_tolerances():
    wrong = {True: 0, False: 0}
    for seed in range(12):
        spectrum = torch.rand(2500, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        spectrum[:6] = torch.tensor([1.1, 1.1, 1.15, 1.2, 1.2, 1.3])
        for verify in wrong:
            found = kernels.extreme_eigh(
                lambda x, spectrum=spectrum: spectrum[:, None] * x,
                2500,
                6,
                tolerance=1e-3,
                verify=verify,
                generator=torch.Generator().manual_seed(seed),
            )
            error = (found.values - expected_values(spectrum, 6, "largest")).abs().amax()
            wrong[verify] += bool(error > 1e-2)
    assert wrong[True] == 0 < wrong[False]


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(0, 40) | st.integers(257, 400),
    k=st.integers(0, 40),
    which=st.sampled_from(ENDS),
    block=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_size(n, k, which, block, seed):
    k = min(n, k)
    spectrum = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if n == 0:
        found = kernels.extreme_eigh(lambda x: x, 0, 0, which=which)
        assert found.values.shape == (0,)
        assert found.vectors.shape == (0, 0)
        return
    operator = householder(spectrum, seed)
    found = kernels.extreme_eigh(operator, n, k, which=which, block=block)
    assert_extreme_pairs(operator, spectrum, found, k, which)


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("k", [4, 12])
def test_agrees_with_arpack(k, which):
    factor = torch.randn(1500, 90, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(-1, 1, 90, dtype=torch.float64)

    def operator(x):
        return factor @ (weights[:, None] * (factor.mT @ x))

    linear = scipy.sparse.linalg.LinearOperator(
        (1500, 1500), matvec=lambda x: operator(torch.from_numpy(x.reshape(-1, 1)))[:, 0].numpy(), dtype=float
    )
    names = {"largest": "LA", "smallest": "SA", "both": "BE", "magnitude": "LM"}
    trusted = scipy.sparse.linalg.eigsh(
        linear, k, which=names[which], v0=np.ones(1500), return_eigenvectors=False
    )
    found = kernels.extreme_eigh(operator, 1500, k, which=which)
    np.testing.assert_allclose(found.values.numpy(), np.sort(trusted), rtol=1e-9)
    assert (operator(found.vectors) - found.vectors * found.values).norm(dim=0).amax() <= 1e-9 * abs(
        trusted
    ).max()


@dtypes
def test_an_interval_of_the_residual_holds_an_eigenvalue(dtype):
    """Weyl: also where the iteration was stopped early."""
    spectrum = torch.randn(N, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = kernels.extreme_eigh(householder(spectrum), N, 6, dtype=dtype, max_iterations=25)
    assert not found.converged.all()
    assert not found.verified
    assert found.iterations == 25
    nearest = (found.values[:, None] - spectrum).abs().amin(1)
    assert (nearest <= found.residuals + 1000 * torch.finfo(dtype).eps).all()
    with pytest.raises(torch.linalg.LinAlgError, match=r"25 calls.*raise max_iterations \(now 25\)"):
        kernels.extreme_eigh(householder(spectrum), N, 6, dtype=dtype, max_iterations=25, check=True)


def test_fewer_calls_than_pairs_still_return_all_pairs():
    found = kernels.extreme_eigh(lambda x: x, N, 6, max_iterations=2)
    assert found.values.shape == (6,)


def test_moderate_sizes_are_rescued():
    """Eigenvalues that crowd at 0: Lanczos does not get there, the matrix does."""
    spectrum = 0.97 ** torch.arange(N, dtype=torch.float64)
    found = kernels.extreme_eigh(householder(spectrum), N, 5, which="smallest")
    assert_extreme_pairs(householder(spectrum), spectrum, found, 5, "smallest")
    assert 2 * N <= found.iterations <= 2 * N + 1


def test_equal_calls_give_equal_results():
    spectrum = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operator = householder(spectrum)
    first, second = (kernels.extreme_eigh(operator, N, 4) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)
    seeded = kernels.extreme_eigh(operator, N, 4, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(seeded.values, first.values)
    torch.testing.assert_close(seeded.vectors, first.vectors, rtol=1e-6, atol=1e-6)


def test_good_start_vectors_and_preconditioners_save_products():
    spectrum = torch.linspace(0.5, 300, N, dtype=torch.float64)
    operator = householder(spectrum)
    cold = kernels.extreme_eigh(operator, N, 3, which="smallest", verify=False, tolerance=1e-9)
    warm = kernels.extreme_eigh(
        operator, N, 3, which="smallest", verify=False, tolerance=1e-9, initial=cold.vectors
    )
    assert warm.iterations < cold.iterations / 2
    inverse = householder(1 / spectrum)
    helped = kernels.extreme_eigh(
        operator, N, 3, which="smallest", verify=False, tolerance=1e-9, preconditioner=inverse
    )
    assert helped.iterations < cold.iterations / 2
    for found in (warm, helped):
        torch.testing.assert_close(found.values, spectrum[:3], rtol=1e-6, atol=1e-6)


def test_hessian_of_a_network():
    """Products by automatic differentiation work in any gradient mode of the caller."""
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(30, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    flat = torch.randn(400, generator=generator, dtype=torch.float64) / 5

    def loss(parameters):
        return ((x @ parameters.view(20, 20)).tanh() - target).square().mean()

    def times_hessian(columns):
        parameters = flat.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(parameters), parameters, create_graph=True)
        return torch.stack(
            [torch.autograd.grad(gradient, parameters, v, retain_graph=True)[0] for v in columns.mT], 1
        )

    found = kernels.extreme_eigh(times_hessian, 400, 4, which="both")
    hessian = torch.autograd.functional.hessian(loss, flat)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(hessian)[[0, 1, -2, -1]])
    assert not found.vectors.requires_grad


def test_matrices_are_operators():
    a = torch.randn(N, N, generator=torch.Generator().manual_seed(0))
    a = a + a.mT
    found = kernels.extreme_eigh(a, N, 3)
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(a)[-3:], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("n", [20, N])
@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (lambda x: x * torch.nan, "returned nan"),
        (lambda x: torch.where(x > 0, torch.inf, x), r"returned inf at entry \(\d+, \d+\) in call 1"),
        (lambda x: x[:-1], r"maps \(n, m\) to \(n, m\)"),
        (lambda x: x[:, 0], r"apply it to every column"),
        (lambda x: x.float(), "torch.float32.*pass the dtype="),
        (lambda x: x.numpy(), "ndarray"),
        (lambda x: x.cumsum(0), "symmetric operator.*A' x"),
        (lambda x: x.roll(1, 0), "symmetric operator"),
    ],
    ids=["nan", "inf", "rows", "columns", "dtype", "numpy", "cumsum", "roll"],
)
def test_operators_that_break_the_contract(operator, text, n):
    with pytest.raises((ValueError), match=text):
        kernels.extreme_eigh(operator, n, 2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"k": 9}, "k = 9"),
        ({"k": -1}, "k = -1"),
        ({"which": "middle"}, "'middle'"),
        ({"dtype": torch.float16}, "float16"),
        ({"block": 0}, "block = 0"),
        ({"initial": torch.ones(8)}, r"v\[:, None\]"),
        ({"operator": torch.ones(8, 7)}, r"\(8, 7\)"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError, match=text):
        kernels.extreme_eigh(**{"operator": lambda x: x, "n": 8, "k": 2, **arguments})
