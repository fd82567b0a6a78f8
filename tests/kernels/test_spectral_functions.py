"""Laws of functions of symmetric matrices, first of all of the projection onto the positive semidefinite cone."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

import kernels

backends = pytest.mark.parametrize("backend", kernels.available_backends())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def from_spectrum(values, dtype=torch.float64, seed=0):
    n = len(values)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    a = (q * torch.as_tensor(values, dtype=torch.float64)) @ q.mT
    return ((a + a.mT) / 2).to(dtype)


def assert_nearest(a, projected):
    """P is nearest to A exactly when P and P - A are positive semidefinite and <P - A, P> = 0 (Moreau)."""
    n = a.shape[-1]
    scale = a.double().abs().amax((-2, -1)).clamp(min=1e-300)
    x, p = a.double() / scale[..., None, None], projected.double() / scale[..., None, None]
    tolerance = 10 * n * torch.finfo(a.dtype).eps * max(1, n)
    assert torch.equal(projected, projected.mT)
    assert (torch.linalg.eigvalsh(p) >= -tolerance).all()
    assert (torch.linalg.eigvalsh(p - x) >= -tolerance).all()
    assert (((p - x) * p).sum((-2, -1)).abs() <= tolerance * n).all()


SPECTRA = {
    "zero": [0.0] * 5,
    "positive": [1.0, 2.0, 3.0, 4.0, 5.0],
    "negative": [-1.0, -2.0, -3.0, -4.0, -5.0],
    "mostly positive": [1.0, 2.0, 3.0, -1.0, 4.0],
    "mostly negative": [-1.0, -2.0, 3.0, -1.0, -4.0],
    "balanced": [1.0, 1.0, -1.0, -1.0],
    "singular": [1.0, 0.0, 0.0, -1.0],
    "nearly positive": [1.0, 1.0, 1.0, -1e-5],
    "one": [-3.0],
}


@dtypes
@backends
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_projection_is_nearest(name, scale, backend, dtype):
    a = (from_spectrum(SPECTRA[name]) * scale).to(dtype)
    projected = kernels.project_psd(a, backend=backend)
    assert projected.dtype == dtype
    assert_nearest(a, projected)
    again = kernels.project_psd(projected, backend=backend)
    largest = max(a.abs().max().item(), torch.finfo(dtype).smallest_normal)
    assert (again - projected).abs().max() <= 100 * torch.finfo(dtype).eps * largest


@backends
@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.integers(0, 3), max_size=3),
    n=st.integers(0, 8),
    shift=st.floats(-3, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_projection_of_any_shape_is_nearest(batch, n, shift, dtype, backend):
    a = torch.randn(*batch, n, n, dtype=dtype)
    a = (a + a.mT) / 2 + shift * torch.eye(n, dtype=dtype)
    before = a.clone()
    projected = kernels.project_psd(a, backend=backend)
    assert projected.shape == a.shape
    assert torch.equal(a, before)
    if a.numel():
        assert_nearest(a, projected)


@dtypes
@backends
def test_projections_mixed_in_a_batch(backend, dtype):
    spectra = [SPECTRA[name] for name in SPECTRA if len(SPECTRA[name]) == 5]
    a = torch.stack([from_spectrum(values, dtype) for values in spectra])
    projected = kernels.project_psd(a, backend=backend)
    assert_nearest(a, projected)
    alone = torch.stack([kernels.project_psd(x, backend=backend) for x in a])
    assert torch.equal(projected, alone)


@dtypes
@backends
def test_garbage_and_bad_neighbors(backend, dtype):
    a = torch.stack([from_spectrum([1.0, 2.0, -1.0, -3.0], dtype, seed) for seed in range(5)])
    expected = kernels.project_psd(a, backend=backend)
    dirty = torch.where(torch.ones(4, 4).triu(1).bool(), math.nan, a)
    assert torch.equal(kernels.project_psd(dirty, backend=backend), expected)
    dirty[2, 3, 0] = math.inf
    spoiled = kernels.project_psd(dirty, backend=backend)
    others = torch.arange(5) != 2
    assert spoiled[2].isnan().all()
    assert torch.equal(spoiled[others], expected[others])


# Repeated eigenvalues on either side and on both; none is zero, where the projection has no derivative.
@backends
@pytest.mark.parametrize(
    "values",
    [[1, 1, -1, -1], [1, 1, 1, 1], [-1, -1, -1], [2, -2], [3, 1, -1, -2], [1, 1 + 1e-9, -1, -1 - 1e-9]],
)
@pytest.mark.parametrize("rotated", [False, True])
def test_gradient_at_repeated_eigenvalues(values, rotated, backend):
    values = torch.tensor(values, dtype=torch.float64)
    a = (from_spectrum(values) if rotated else torch.diag(values)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernels.project_psd((x + x.mT) / 2, backend=backend), a)


def test_gradient_at_zero_and_in_a_batch():
    a = torch.stack([torch.zeros(4, 4, dtype=torch.float64), from_spectrum([2.0, 1.0, -1.0, -3.0])])
    a.requires_grad_()
    kernels.project_psd(a).sum().backward()
    assert a.grad is not None
    assert torch.equal(a.grad[0], torch.zeros(4, 4, dtype=torch.float64))
    assert a.grad[1].isfinite().all()
    assert torch.autograd.gradcheck(
        lambda x: kernels.project_psd((x + x.mT) / 2), a[1:].detach().requires_grad_()
    )


@dtypes
@pytest.mark.parametrize("power", [-120, 120])
def test_gradient_does_not_depend_on_the_scale(power, dtype):
    a = from_spectrum([2.0, 1.0, -1.0, -3.0], dtype)
    weight = from_spectrum([1.0, 2.0, 3.0, 4.0], dtype, seed=1)

    def gradient(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad((kernels.project_psd(x) * weight).sum(), x)[0]

    assert torch.equal(gradient(a * 2.0**power), gradient(a))


def test_complex_projection_and_gradient():
    a = torch.randn(3, 4, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    a = ((a + a.mH) / 2).requires_grad_()
    projected = kernels.project_psd(a)
    torch.testing.assert_close(projected, projected.mH)
    assert (torch.linalg.eigvalsh(projected) >= -1e-12).all()
    assert torch.autograd.gradcheck(lambda x: kernels.project_psd((x + x.mH) / 2), a)


@backends
def test_projection_under_transforms(backend):
    a = torch.stack([from_spectrum([2.0, 1.0, -1.0, -3.0], seed=seed) for seed in range(3)])
    mapped = torch.vmap(lambda x: kernels.project_psd(x, backend=backend))(a)
    torch.testing.assert_close(mapped, kernels.project_psd(a))
    per_matrix = torch.vmap(
        torch.func.grad(lambda x: kernels.project_psd(x, backend=backend).square().sum())
    )(a)
    torch.testing.assert_close(per_matrix, 2 * kernels.project_psd(a))  # gradient of |P|^2 is 2 P


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    a = from_spectrum([1.0, -1.0, 2.0], torch.float32).to(dtype).requires_grad_()
    projected = kernels.project_psd(a)
    assert projected.dtype == dtype
    projected.sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == dtype


FUNCTIONS = {
    "sqrt": (torch.sqrt, True),
    "inv_sqrt": (torch.rsqrt, True),
    "inverse": (torch.reciprocal, False),
    "log": (torch.log, True),
    "exp": (torch.exp, False),
    "abs": (torch.abs, False),
    "sign": (torch.sign, False),
    "positive_part": (torch.relu, False),
}


@dtypes
@backends
@pytest.mark.parametrize("name", FUNCTIONS)
def test_spectral_functions_map_the_eigenvalues(name, backend, dtype):
    f, positive = FUNCTIONS[name]
    spectra = [[1.0, 2.0, 3.0], [0.5, 0.5, 2.0]] + ([] if positive else [[-1.0, 1.0, 1.0], [-2.0, -2.0, 0.5]])
    a = torch.stack([from_spectrum(values, dtype, seed) for seed, values in enumerate(spectra)])
    for function in (name, f):
        result = kernels.spectral_function(a, function, backend=backend)
        assert result.dtype == dtype
        assert torch.equal(result, result.mT)
        wide = a.double()
        mapped = f(torch.tensor(spectra, dtype=torch.float64)).sort(-1).values
        scale = mapped.abs().amax() * 100 * torch.finfo(dtype).eps
        assert (torch.linalg.eigvalsh(result.double()) - mapped).abs().max() <= scale
        commutator = result.double() @ wide - wide @ result.double()
        assert commutator.abs().max() <= scale * 5


@dtypes
def test_spectral_functions_obey_their_equations(dtype):
    a = from_spectrum([0.3, 1.0, 1.0, 2.5], dtype)
    eye = torch.eye(4, dtype=dtype)

    def apply(x, f):
        return kernels.spectral_function(x, f)

    def close(x, y):
        torch.testing.assert_close(x, y, rtol=0, atol=200 * torch.finfo(dtype).eps)

    close(apply(a, "sqrt") @ apply(a, "sqrt"), a)
    close(apply(a, "inv_sqrt") @ a @ apply(a, "inv_sqrt"), eye)
    close(apply(a, "inverse") @ a, eye)
    close(apply(apply(a, "log"), "exp"), a)
    close(apply(a - eye, "sign") @ apply(a - eye, "abs"), a - eye)
    close(apply(a, "exp"), torch.linalg.matrix_exp(a))
    assert torch.equal(apply(a - eye, "positive_part"), kernels.project_psd(a - eye))


@dtypes
def test_root_of_a_singular_matrix(dtype):
    factor = torch.randn(20, 6, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    gram = factor @ factor.mT
    root = kernels.spectral_function(gram, "sqrt")
    torch.testing.assert_close(root @ root, gram, rtol=0, atol=1000 * torch.finfo(dtype).eps)
    assert kernels.spectral_function(from_spectrum([1.0, -1.0], dtype), "sqrt").isnan().all()


def test_spectral_functions_of_hermitian_matrices():
    a = torch.randn(2, 3, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    a = ((a + a.mH) / 2).requires_grad_()
    torch.testing.assert_close(kernels.spectral_function(a, "exp"), torch.linalg.matrix_exp(a))
    for f in ("exp", torch.sin):
        function = lambda x, f=f: kernels.spectral_function((x + x.mH) / 2, f)  # noqa: E731
        assert torch.autograd.gradcheck(function, a)
        assert torch.autograd.gradgradcheck(function, a)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 0), (1, 1)])
def test_spectral_functions_of_any_shape(shape):
    for f in ("exp", "sqrt", "positive_part", torch.cos):
        a = torch.ones(shape, requires_grad=True)
        result = kernels.spectral_function(a, f)
        assert result.shape == shape
        result.sum().backward()


def test_refusals():
    with pytest.raises(ValueError, match=r"'cosh'.*callable"):
        kernels.spectral_function(torch.eye(2), "cosh")
    with pytest.raises(ValueError, match=r"elementwise.*\(2,\).*\(\)"):
        kernels.spectral_function(torch.eye(2), torch.sum)
    with pytest.raises(ValueError, match=r"`project_psd`.*\(2, 3\)"):
        kernels.project_psd(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="'abacus'"):
        kernels.project_psd(torch.zeros(0, 0), backend="abacus")
