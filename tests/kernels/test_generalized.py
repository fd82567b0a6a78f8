"""Laws of the generalized eigensolver: A V = B V W and V' B V = I."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings, strategies as st

import kernels

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def random_pencil(*batch, n=6, condition=100.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(*batch, n, n, generator=generator, dtype=torch.float64)

    a, (q, _) = draw(), torch.linalg.qr(draw())
    b = (q * torch.logspace(0, -np.log10(condition), n, dtype=torch.float64)) @ q.mT
    return (a + a.mT).to(dtype), ((b + b.mT) / 2).to(dtype)


def assert_generalized_eigenpairs(a, b, values, vectors, limit=10.0):
    """Residuals in units of n eps, the first times the condition number of b; all in float64."""
    n, eps = a.shape[-1], torch.finfo(a.dtype).eps
    a, b, w, v = a.double(), b.double(), values.double(), vectors.double()
    assert (values.diff(dim=-1) >= 0).all()

    def norm(x):
        return torch.linalg.matrix_norm(x, 1)

    condition = torch.linalg.cond(b)
    residual = norm(a @ v - (b @ v) * w[..., None, :])
    scale = (norm(a) + norm(b) * w.abs().amax(-1)) * norm(v)
    assert (residual <= limit * n * eps * condition**0.5 * scale).all()
    orthogonality = norm(v.mT @ b @ v - torch.eye(n, dtype=torch.float64))
    assert (orthogonality <= limit * n * eps * condition).all()


@dtypes
@settings(deadline=None, max_examples=30)
@given(
    batch=st.lists(st.integers(0, 3), max_size=2),
    n=st.integers(0, 9),
    exponents=st.tuples(st.integers(-15, 15), st.integers(-15, 15)),
    seed=st.integers(0, 99),
)
def test_any_shape_and_scale(batch, n, exponents, seed, dtype):
    a, b = random_pencil(*batch, n=n, dtype=dtype, seed=seed)
    a, b = a * 2.0 ** exponents[0], b * 2.0 ** exponents[1]
    values, vectors = kernels.generalized_eigh(a, b, check=True)
    assert values.shape == (*batch, n)
    assert vectors.shape == (*batch, n, n)
    assert values.dtype == vectors.dtype == dtype
    if a.numel():
        assert_generalized_eigenpairs(a, b, values, vectors)
    # Powers of two are exact: nothing else changes.
    other = kernels.generalized_eigh(4 * a, b / 16)
    assert torch.equal(other.values, 64 * values)
    assert torch.equal(other.vectors, 4 * vectors)


@pytest.mark.parametrize("exponent", [2, 6, 10])
@pytest.mark.parametrize("n", [3, 16, 40])
def test_ill_conditioned_b(n, exponent):
    a, b = random_pencil(4, n=n, condition=10.0**exponent)
    values, vectors = kernels.generalized_eigh(a, b, check=True)
    assert_generalized_eigenpairs(a, b, values, vectors)
    trusted = np.stack([scipy.linalg.eigh(x, y, eigvals_only=True) for x, y in zip(a.numpy(), b.numpy())])
    error = (values - torch.from_numpy(trusted)).abs().amax(-1)
    assert (error <= 2 * n * 10.0**exponent * 2.3e-16 * values.abs().amax(-1)).all()


@dtypes
def test_badly_scaled_pencils_lose_nothing(dtype):
    """A diagonal congruence by powers of two only scales the vectors: units of the variables do not matter."""
    a, b = random_pencil(3, n=7, dtype=dtype)
    units = 2.0 ** torch.tensor([-20, 14, 0, 7, -3, 20, -11], dtype=dtype)
    expected = kernels.generalized_eigh(a, b)
    found = kernels.generalized_eigh(a * units[:, None] * units, b * units[:, None] * units)
    torch.testing.assert_close(found.values, expected.values)
    torch.testing.assert_close(
        (found.vectors * units[:, None]).abs(), expected.vectors.abs(), rtol=1e-3, atol=1e-4
    )


@dtypes
def test_identity_b_is_the_ordinary_problem(dtype):
    a, _ = random_pencil(5, dtype=dtype)
    expected = kernels.eigh(a)
    found = kernels.generalized_eigh(a, torch.eye(6, dtype=dtype))
    tolerance = 20 * torch.finfo(dtype).eps * expected.values.abs().amax()
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=0, atol=100 * tolerance)


def test_signs_strides_and_triangles():
    a, b = random_pencil(4)
    values, vectors = kernels.generalized_eigh(a, b)
    magnitude = vectors.abs()
    first = (magnitude >= (1 - 2.0**-10) * magnitude.amax(-2, keepdim=True)).to(torch.uint8).argmax(-2, True)
    assert (vectors.take_along_dim(first, -2) > 0).all()
    upper = torch.ones(6, 6).triu(1) > 0
    spoiled = kernels.generalized_eigh(a.masked_fill(upper, torch.nan), b.masked_fill(upper, torch.nan))
    assert torch.equal(spoiled.values, values)
    assert torch.equal(spoiled.vectors, vectors)
    strided = kernels.generalized_eigh(a.repeat_interleave(2, -1)[..., ::2], b.mT)
    assert torch.equal(strided.values, values)


@pytest.mark.parametrize("bad", ["a nan", "a inf", "b nan", "b inf", "b indefinite", "b singular"])
def test_a_bad_pencil_stays_alone(bad):
    a, b = random_pencil(2, 2)
    clean = kernels.generalized_eigh(a, b)
    matrix = {"a": a, "b": b}[bad[0]]
    if bad == "b singular":
        matrix[1, 0] = 0.0
    else:
        matrix[1, 0, 2, 2] = {"nan": torch.nan, "inf": torch.inf, "indefinite": -1.0}[bad[2:]]
    shared = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    values, vectors = kernels.generalized_eigh(a + shared, b + shared)
    assert values[1, 0].isnan().all()
    assert vectors[1, 0].isnan().all()
    torch.testing.assert_close(values[:, 1], clean.values[:, 1])
    torch.testing.assert_close(vectors[0], clean.vectors[0])
    (values.nan_to_num().sum() + vectors.nan_to_num().sum()).backward()
    assert shared.grad is not None
    assert shared.grad.isfinite().all()
    with pytest.raises(torch.linalg.LinAlgError, match=rf"`{bad[0]}` at batch index \(1, 0\)"):
        kernels.generalized_eigh(a, b, check=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    a, b = random_pencil(3, dtype=dtype)
    b = b + torch.eye(6, dtype=dtype)
    values, vectors = kernels.generalized_eigh(a, b)
    wide = kernels.generalized_eigh(a.float(), b.float())
    assert torch.equal(values, wide.values.to(dtype))
    assert torch.equal(vectors, wide.vectors.to(dtype))


def symmetric_pencil(a, b):
    return kernels.generalized_eigh((a + a.mT) / 2, (b + b.mT) / 2)


def test_derivatives():
    a, b = (x.requires_grad_() for x in random_pencil(2, n=4, condition=10.0))

    def outputs(a, b):
        values, vectors = symmetric_pencil(a, b)
        return values, vectors

    assert torch.autograd.gradcheck(outputs, (a, b))
    assert torch.autograd.gradgradcheck(outputs, (a, b), fast_mode=True)


def test_vmap():
    a, b = random_pencil(3)
    found = torch.func.vmap(lambda a, b: tuple(kernels.generalized_eigh(a, b)))(a, b)
    expected = kernels.generalized_eigh(a, b)
    torch.testing.assert_close(found[0], expected.values)
    torch.testing.assert_close(found[1], expected.vectors)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"b": torch.eye(5, dtype=torch.float64)}, ValueError, r"one size.*\(5, 5\)"),
        ({"b": torch.eye(6)}, ValueError, "float32"),
        ({"a": torch.eye(6, dtype=torch.complex128)}, ValueError, "complex128.*H.real"),
        ({"a": torch.ones(6, 5, dtype=torch.float64)}, ValueError, r"\(6, 5\)"),
        ({"b": np.eye(6)}, TypeError, "ndarray"),
        ({"backend": "abacus"}, ValueError, "abacus"),
    ],
)
def test_refusals(change, error, text):
    a, b = random_pencil()
    with pytest.raises(error, match=text):
        kernels.generalized_eigh(**{"a": a, "b": b, **change})
