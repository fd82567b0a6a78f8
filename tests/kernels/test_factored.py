"""Laws of `eigh_factored`: it is `eigh` of the matrices it does not form."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

import kernels
from kernels import factored

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def random_factors(hidden, size, directions=3, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (hidden, size), (hidden, size), (directions, hidden)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes)


def dense(left, right, weights):
    products = torch.einsum("hi,uh,hj->uij", left.double(), weights.double(), right.double())
    return (products + products.mT) / 2


def assert_same_decomposition(left, right, weights):
    hidden, size = left.shape
    values, vectors = kernels.eigh_factored(left, right, weights)
    rank = min(size, 2 * hidden)
    assert values.shape == (len(weights), rank)
    assert vectors.shape == (len(weights), size, rank)
    assert values.dtype == vectors.dtype == left.dtype
    assert (values.diff(dim=-1) >= 0).all()
    expected = dense(left, right, weights)
    v, w = vectors.double(), values.double()
    terms = left.double().norm() * right.double().norm() * weights.double().abs().amax()
    tolerance = 20 * size * torch.finfo(left.dtype).eps
    assert ((v * w[:, None, :]) @ v.mT - expected).abs().max() <= tolerance * terms
    assert (v.mT @ v - torch.eye(rank, dtype=torch.float64)).abs().max() <= tolerance
    # The spectrum is that of the dense matrix, the values left out being zeros.
    trusted = torch.linalg.eigvalsh(expected)
    filled = torch.cat([w, w.new_zeros(len(w), size - rank)], 1).sort(1).values
    assert (filled - trusted).abs().max() <= tolerance * terms


@dtypes
@pytest.mark.parametrize(
    ("hidden", "size"), [(1, 1), (1, 2), (1, 9), (3, 20), (7, 15), (8, 15), (8, 16), (30, 9), (5, 90)]
)
@pytest.mark.parametrize("directions", [1, 40])
def test_agrees_with_dense(hidden, size, directions, dtype):
    assert_same_decomposition(*random_factors(hidden, size, directions, dtype=dtype))


@dtypes
@pytest.mark.parametrize(("hidden", "size"), [(3, 20), (10, 60)])
def test_both_ways_give_the_same_pairs(hidden, size, dtype, monkeypatch):
    factors = random_factors(hidden, size, dtype=dtype)
    results = []
    for pays in (True, False):
        monkeypatch.setattr(factored, "_reduction_pays", lambda *_, pays=pays: pays)
        assert_same_decomposition(*factors)
        results.append(kernels.eigh_factored(*factors))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-10)


@dtypes
@pytest.mark.parametrize("size", [4, 12, 40])
@pytest.mark.parametrize("rows", ["zero", "duplicate", "parallel", "left is right", "all zero"])
def test_dependent_rows_do_no_harm(rows, size, dtype):
    left, right, weights = random_factors(6, size, dtype=dtype)
    if rows == "zero":
        left[2] = right[3] = 0.0
    elif rows == "duplicate":
        left[4], right[5] = left[1], left[1]
    elif rows == "parallel":
        left[3], right[3] = 2.5 * left[0], -0.3 * left[0]
    elif rows == "left is right":
        right = left
    else:
        left, right = torch.zeros_like(left), torch.zeros_like(right)
    assert_same_decomposition(left, right, weights)


@settings(deadline=None, max_examples=40)
@given(
    hidden=st.integers(0, 9),
    size=st.integers(1, 24),
    directions=st.integers(0, 4),
    exponent=st.integers(-8, 8),
    seed=st.integers(0, 99),
)
def test_any_shape_and_scale(hidden, size, directions, exponent, seed):
    left, right, weights = random_factors(hidden, size, directions, seed=seed)
    if directions and hidden:
        assert_same_decomposition(left * 10.0**exponent, right, weights)
    else:
        values, vectors = kernels.eigh_factored(left, right, weights)
        assert values.shape == (directions, min(size, 2 * hidden))
        assert vectors.shape == (directions, size, min(size, 2 * hidden))


@pytest.mark.parametrize("size", [10, 30])
def test_sign_rule_holds_for_the_returned_vectors(size):
    vectors = kernels.eigh_factored(*random_factors(6, size)).vectors
    magnitude = vectors.abs()
    first = (
        (magnitude >= (1 - 2.0**-10) * magnitude.amax(-2, keepdim=True))
        .to(torch.uint8)
        .argmax(-2, keepdim=True)
    )
    assert (vectors.take_along_dim(first, -2) > 0).all()


@pytest.mark.parametrize("size", [10, 30])
def test_factors_are_interchangeable(size):
    left, right, weights = random_factors(6, size)
    values, vectors = kernels.eigh_factored(left, right, weights)
    swapped = kernels.eigh_factored(right, left, weights)
    torch.testing.assert_close(swapped.values, values, rtol=0, atol=1e-11)
    torch.testing.assert_close(swapped.vectors, vectors, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [10, 30])
def test_nan_weights_leave_other_rows_alone(size):
    left, right, weights = random_factors(6, size)
    clean = kernels.eigh_factored(left, right, weights)
    weights[1, 2] = torch.nan
    values, vectors = kernels.eigh_factored(left, right, weights)
    assert values[1].isnan().all()
    assert vectors[1].isnan().all()
    torch.testing.assert_close(values[[0, 2]], clean.values[[0, 2]])


@pytest.mark.parametrize("size", [10, 30])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_factors_that_are_not_finite_give_nan(value, size):
    left, right, weights = random_factors(6, size)
    right[2, 3] = value
    values, vectors = kernels.eigh_factored(left, right, weights)
    assert values.isnan().all()
    assert vectors.isnan().all()


@pytest.mark.parametrize("size", [8, 14])
def test_gradient_of_the_values(size):
    left, right, weights = (t.requires_grad_() for t in random_factors(4, size, 2))
    assert torch.autograd.gradcheck(
        lambda *factors: kernels.eigh_factored(*factors).values, (left, right, weights)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    factors = random_factors(3, 10, dtype=dtype)
    values, vectors = kernels.eigh_factored(*factors)
    assert values.dtype == vectors.dtype == dtype
    expected = kernels.eigh_factored(*(t.float() for t in factors)).values
    assert torch.equal(values, expected.to(dtype))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"weights": torch.ones(4, dtype=torch.float64)}, ValueError, "w\\[None\\]"),
        ({"right": torch.ones(4, 9, dtype=torch.float64)}, ValueError, "right \\(h, d\\)"),
        ({"weights": torch.ones(2, 5, dtype=torch.float64)}, ValueError, "weights \\(u, h\\)"),
        ({"left": torch.ones(4, 8, dtype=torch.int64)}, ValueError, "int64"),
        ({"right": torch.ones(4, 8)}, ValueError, "float32"),
        ({"left": [[1.0]]}, TypeError, "list"),
    ],
)
def test_refusals(change, error, text):
    left, right, weights = random_factors(4, 8)
    with pytest.raises(error, match=text):
        kernels.eigh_factored(**{"left": left, "right": right, "weights": weights, **change})
