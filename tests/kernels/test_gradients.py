"""Laws of derivatives: exact ones against finite differences, at distinct, close and equal eigenvalues."""

import math
from decimal import Decimal, localcontext
from itertools import pairwise, product

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import kernels
from kernels.divided_differences import NAMED, from_callable

# Torch warns about its own use of jit scripts in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
backends = pytest.mark.parametrize("backend", kernels.available_backends())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

POSITIVE = ["sqrt", "inv_sqrt", "inverse", "log"]
CALLABLES = {
    "sin": torch.sin,
    "tanh": lambda x: torch.tanh(3 * x),
    "relu": torch.relu,
    "cube": lambda x: x**3,
}
FUNCTIONS = {**{name: name for name in NAMED}, **CALLABLES}
functions = pytest.mark.parametrize("name", FUNCTIONS)


def random_symmetric(*shape, seed=0):
    a = torch.randn(*shape, shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (a + a.mT) / 2


def from_spectrum(values, rotated=True, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    if not rotated:
        return torch.diag(values)
    q, _ = torch.linalg.qr(random_symmetric(len(values), seed=seed))
    a = (q * values) @ q.mT
    return (a + a.mT) / 2


def symmetric(function):
    return lambda x: function((x + x.mT) / 2)


SPECTRA = {
    "distinct": [1.0, -0.5, 2.0],
    "two pairs": [1.0, 1.0, -1.0, -1.0],
    "identity": [1.0, 1.0, 1.0],
    **{f"gap 1e-{k}": [1.0, 1.0 + 10.0**-k, -1.0] for k in (3, 6, 9, 14)},
}


@functions
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_first_and_second_derivatives_of_spectral_functions(name, spectrum):
    values = [abs(x) + (x < 0) for x in SPECTRA[spectrum]] if name in POSITIVE else SPECTRA[spectrum]
    a = from_spectrum(values, rotated=spectrum != "two pairs").requires_grad_()
    function = symmetric(lambda x: kernels.spectral_function(x, FUNCTIONS[name]))
    assert gradcheck(function, a, check_forward_ad=True, check_batched_grad=spectrum == "two pairs")
    assert gradgradcheck(function, a, check_fwd_over_rev=True, check_rev_over_rev=True)


@backends
def test_every_backend_has_the_gradients(backend):
    a = torch.stack([from_spectrum([1.0, 1.0, -1.0, -1.0]), random_symmetric(4)]).requires_grad_()
    for function in (
        lambda x: kernels.project_psd(x, backend=backend),
        lambda x: kernels.spectral_function(x, "exp", backend=backend),
    ):
        assert gradcheck(symmetric(function), a)
    a = random_symmetric(3, 4).requires_grad_()
    for function in (
        lambda x: tuple(kernels.eigh(x, backend=backend)),
        lambda x: kernels.eigvalsh(x, backend=backend),
        lambda x: tuple(kernels.top_eigh(x, 2, backend=backend)),
    ):
        assert gradcheck(symmetric(function), a, check_forward_ad=True)
        assert gradgradcheck(symmetric(function), a, check_fwd_over_rev=True)


@dtypes
@pytest.mark.parametrize("power", [-100, 100])
@pytest.mark.parametrize("name", ["abs", "positive_part"])
def test_gradients_of_homogeneous_functions_do_not_depend_on_scale(name, power, dtype):
    a, weight = from_spectrum([2.0, 1.0, -1.0, -3.0]).to(dtype), random_symmetric(4).to(dtype)
    gradients = []
    for scale in (1.0, 2.0**power):
        x = (a * scale).requires_grad_()
        gradients += torch.autograd.grad((kernels.spectral_function(x, name) * weight).sum(), x)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: kernels.eigh(x).vectors.pow(2),
        lambda x: kernels.eigh(x, gradient="mask").vectors.pow(2),
        lambda x: kernels.eigh(x, gradient="lorentz").vectors.pow(2),
        kernels.eigvalsh,
        kernels.project_psd,
        lambda x: kernels.spectral_function(x, "exp"),
        lambda x: kernels.spectral_function(x, torch.sin),
    ],
)
def test_gradients_are_symmetric_and_pass_by_bad_matrices(function):
    a = random_symmetric(3, 4)
    a[1, 3, 0] = math.nan
    a.requires_grad_()
    outputs = function(a)
    weight = torch.linspace(-1, 2, outputs[0].numel(), dtype=torch.float64).reshape(outputs[0].shape)
    (gradient,) = torch.autograd.grad((outputs.square() * weight).sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), a)
    for result in (gradient, second):
        assert result.isfinite().all()
        torch.testing.assert_close(result, result.mT)
        assert (result[1] == 0).all()
    clean = a[::2].detach().requires_grad_()
    (expected,) = torch.autograd.grad((function(clean).square() * weight).sum(), clean, create_graph=True)
    torch.testing.assert_close(gradient[::2], expected)
    torch.testing.assert_close(second[::2], torch.autograd.grad(expected.square().sum(), clean)[0])


@pytest.mark.parametrize("gradient", ["mask", "lorentz"])
def test_regularized_gradients_of_vectors(gradient):
    # They are the exact ones where eigenvalues are far apart,
    a = random_symmetric(4).requires_grad_()
    squares = symmetric(lambda x: kernels.eigh(x, gradient=gradient).vectors.square())
    exact = symmetric(lambda x: kernels.eigh(x).vectors.square())
    for i in range(4):
        expected, found = (torch.autograd.grad(f(a)[i].sum() + f(a)[i, 0], a)[0] for f in (exact, squares))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    # right for projectors onto whole clusters,
    a = from_spectrum([1.0, 1.0, 1.0, 3.0, 5.0]).requires_grad_()
    weight = random_symmetric(5, seed=1)

    def projector(x):
        v = kernels.eigh(x, gradient=gradient).vectors[:, :3]
        return (v @ v.mT * weight).sum()

    assert gradcheck(symmetric(projector), a)
    # and finite, but wrong, for functions of the matrix: the term f' is lost.
    a = torch.eye(3, dtype=torch.float64).requires_grad_()
    values, vectors = kernels.eigh(a, gradient=gradient)
    (lost,) = torch.autograd.grad(((vectors * values.exp()) @ vectors.mT * weight[:3, :3]).sum(), a)
    (true,) = torch.autograd.grad((kernels.spectral_function(a, "exp") * weight[:3, :3]).sum(), a)
    assert lost.isfinite().all()
    torch.testing.assert_close(true, math.e * weight[:3, :3])
    assert (lost - true).abs().max() > 0.1


def test_tensors_held_by_a_callable_get_gradients():
    a = from_spectrum([1.0, 1.0, -1.0, 2.0]).requires_grad_()
    w = torch.tensor([0.7, 0.3], dtype=torch.float64, requires_grad=True)

    def filtered(x, w):
        return kernels.spectral_function((x + x.mT) / 2, lambda t: torch.tanh(w[0] * t) + w[1] * t**2)

    assert gradcheck(filtered, (a, w), check_forward_ad=True)
    assert gradgradcheck(lambda w: filtered(a.detach(), w), w)
    assert gradgradcheck(lambda x: filtered(x, w.detach()), a)
    # a penalty on the gradient with respect to the matrix reaches w, ...
    assert gradcheck(lambda w: torch.autograd.grad(filtered(a, w).square().sum(), a, create_graph=True)[0], w)
    # ... while the opposite order is refused.
    (by_w,) = torch.autograd.grad(filtered(a, w).sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="held by a callable"):
        torch.autograd.grad(by_w.sum(), a)


def test_third_derivatives_are_refused():
    a = random_symmetric(3).requires_grad_()
    (first,) = torch.autograd.grad(kernels.project_psd(a).square().sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third one"):
        torch.autograd.grad(second.sum(), a)


EXACT = {
    "sqrt": lambda x: x.sqrt(),
    "inv_sqrt": lambda x: 1 / x.sqrt(),
    "inverse": lambda x: 1 / x,
    "log": lambda x: x.ln(),
    "exp": lambda x: x.exp(),
    "abs": abs,
    "sign": lambda x: Decimal(1).copy_sign(x),
    "positive_part": lambda x: max(x, Decimal(0)),
}
NEAR = [1.0, 1 + 1e-3, 1 + 1e-6, 1 + 1e-9, 1 + 1e-13, 1.2, 2.0, 40.0, 1e-3, 1e-6]


def divided_difference(f, points):
    # Equal points are set apart by far less than the precision tested for, and far more than that of Decimal.
    points = [Decimal(x) * (1 + i * Decimal(10) ** -35) for i, x in enumerate(points)]
    values = [f(x) for x in points]
    while len(values) > 1:
        order = len(points) - len(values) + 1
        values = [(v - u) / (points[i + order] - points[i]) for i, (u, v) in enumerate(pairwise(values))]
    return values[0]


SOURCES = {f"named {name}": (name, NAMED[name]) for name in EXACT} | {
    # A callable with a kink is only as good as its difference quotient.
    f"callable {name}": (name, from_callable(f))
    for name, f in (
        ("sqrt", torch.sqrt),
        ("inv_sqrt", torch.rsqrt),
        ("inverse", torch.reciprocal),
        ("log", torch.log),
        ("exp", torch.exp),
    )
}


@dtypes
@pytest.mark.parametrize("source", SOURCES)
def test_divided_differences_have_no_cancellation(source, dtype):
    name, function = SOURCES[source]
    points = NEAR if name in POSITIVE else [*NEAR[:-1], -1.0, -1 - 1e-7, -2.0, -1e-6]
    x = torch.tensor(points, dtype=dtype)
    first = function.first(x[:, None], x[None])
    table = first[:, :, None], first[None], first[:, None]
    second = function.second(x[:, None, None], x[None, :, None], x[None, None], table)
    limit = torch.finfo(dtype).eps * (1000 if source.startswith("callable") else 30)
    with localcontext() as context:
        context.prec = 110
        for found, order in ((first, 2), (second, 3)):
            for index in product(range(len(points)), repeat=order):
                true = float(divided_difference(EXACT[name], [x[i].item() for i in index]))
                if abs(true) > 1e-30:
                    assert abs(found[index].item() - true) <= limit * abs(true)
                else:
                    assert found[index] == 0
