"""Laws of the eigensolvers under what torch does to functions: operators, vmap, compilation, both modes."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

import kernels
from kernels import operators

# Torch warns about its own use of jit scripts in forward mode, and about autograd functions that Dynamo inspects.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
backends = pytest.mark.parametrize("backend", kernels.available_backends())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def random_symmetric(*shape, dtype=torch.float64, seed=0):
    a = torch.randn(*shape, shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return ((a + a.mT) / 2).to(dtype)


def eigh(backend):
    return lambda a: kernels.eigh(a, backend=backend)


def eigvalsh(backend):
    return lambda a: kernels.eigvalsh(a, backend=backend)


def top_eigh(backend):
    return lambda a: kernels.top_eigh(a, 2, backend=backend)


def exponential(backend):
    return lambda a: kernels.spectral_function(a, "exp", backend=backend)


def projection(backend):
    return lambda a: kernels.project_psd(a, backend=backend)


def learned_filter(backend):
    return lambda a: kernels.spectral_function(a, lambda x: torch.tanh(3 * x), backend=backend)


FUNCTIONS = [eigh, eigvalsh, top_eigh, exponential, projection, learned_filter]
functions = pytest.mark.parametrize("function", FUNCTIONS)


def scalar(function):
    """A smooth number that does not depend on the signs of vectors."""
    return lambda a: sum(
        (x.square() * torch.linspace(-1, 2, x.shape[-1], dtype=x.dtype)).sum()
        for x in torch.utils._pytree.tree_leaves(function(a))
    )


def assert_equal(one, other):
    for x, y in zip(torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(other)):
        assert torch.equal(x, y)


@dtypes
@backends
@pytest.mark.parametrize("operator", ["eigh", "eigvalsh"])
@pytest.mark.parametrize(
    "a",
    [
        random_symmetric(2, 3),
        random_symmetric(4, 2, 3).permute(1, 0, 3, 2),
        random_symmetric(5),
        torch.zeros(0, 3, 3),
        torch.zeros(2, 0, 0),
    ],
    ids=["batch", "strided", "one", "no matrix", "no entry"],
)
def test_operators_tell_torch_the_truth(operator, a, backend, dtype):
    function = getattr(torch.ops.weightspace_kernels, operator).default
    for requires_grad in (False, True):
        torch.library.opcheck(function, (a.to(dtype).detach().requires_grad_(requires_grad), backend))
    a = a.to(dtype).detach()
    assert_equal(function(a, backend), getattr(operators, operator)(a, backend))


@backends
@pytest.mark.parametrize("operator", ["eigh", "eigvalsh"])
def test_operators_are_differentiable_in_reverse_mode(operator, backend):
    function = getattr(torch.ops.weightspace_kernels, operator)
    a = random_symmetric(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function((x + x.mT) / 2, backend)[:-1], a)


@dtypes
@backends
@functions
def test_vmap_is_a_loop(function, backend, dtype):
    a = random_symmetric(2, 3, 4, dtype=dtype)
    f = function(backend)
    looped = [[f(x) for x in row] for row in a]
    nested = torch.vmap(torch.vmap(f))(a)
    for i in range(2):
        for j in range(3):
            leaves = torch.utils._pytree.tree_leaves(nested)
            if function in (eigh, eigvalsh, top_eigh):
                assert_equal([leaf[i, j] for leaf in leaves], looped[i][j])
            else:  # a batched product of matrices rounds in its own way
                torch.testing.assert_close(leaves[0][i, j], looped[i][j])
    assert_equal(torch.vmap(f, in_dims=2)(a.movedim(0, 2)), torch.vmap(f)(a))
    assert_equal(torch.vmap(f, in_dims=-1)(a.movedim(0, -1)), torch.vmap(f)(a))


@backends
@functions
def test_gradients_of_transformed_functions_agree(function, backend):
    f = scalar(function(backend))
    a = random_symmetric(3, 4, seed=1)
    leaf = a.clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(leaf), leaf)
    torch.testing.assert_close(torch.vmap(torch.func.grad(f))(a), expected)
    torch.testing.assert_close(torch.func.jacrev(f)(a), expected)
    torch.testing.assert_close(torch.func.jacfwd(f)(a), (expected + expected.mT) / 2)
    _, pull = torch.func.vjp(lambda x: torch.vmap(function(backend))(x), a)
    outputs = function(backend)(a)
    leaves, spec = torch.utils._pytree.tree_flatten(outputs)
    cotangent = torch.utils._pytree.tree_unflatten([torch.ones_like(x) for x in leaves], spec)
    (mapped,) = pull(cotangent)
    (direct,) = torch.func.vjp(function(backend), a)[1](cotangent)
    torch.testing.assert_close(mapped, direct)


@backends
@functions
def test_forward_and_reverse_mode_are_adjoint(function, backend):
    a, direction = random_symmetric(2, 4), torch.randn(2, 4, 4, dtype=torch.float64)
    outputs, tangents = torch.func.jvp(function(backend), (a,), (direction,))
    leaves, spec = torch.utils._pytree.tree_flatten(outputs)
    pushed = torch.utils._pytree.tree_leaves(tangents)
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in leaves]
    (pulled,) = torch.func.vjp(function(backend), a)[1](torch.utils._pytree.tree_unflatten(cotangents, spec))
    forward = sum((x * y).sum() for x, y in zip(pushed, cotangents))
    torch.testing.assert_close(forward, (pulled * direction).sum())
    assert forward.abs() > 1e-3
    with forward_ad.dual_level():
        dual = function(backend)(forward_ad.make_dual(a, direction))
        for leaf, tangent in zip(torch.utils._pytree.tree_leaves(dual), pushed):
            torch.testing.assert_close(forward_ad.unpack_dual(leaf).tangent, tangent)


@backends
@functions
def test_hessians_agree(function, backend):
    f = scalar(function(backend))
    a = random_symmetric(3, seed=2)

    def symmetric(x):
        return f((x + x.mT) / 2)

    expected = torch.autograd.functional.hessian(symmetric, a)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(torch.func.hessian(symmetric)(a), expected)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(symmetric))(a), expected)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacfwd(symmetric))(a), expected)
    if function in (eigh, eigvalsh, top_eigh):
        torch.testing.assert_close(torch.func.jacfwd(torch.func.jacfwd(symmetric))(a), expected)
    else:
        with pytest.raises(NotImplementedError, match="hessian"):
            torch.func.jacfwd(torch.func.jacfwd(symmetric))(a)


@functions
def test_compiled_functions_agree_in_one_graph(function):
    torch.compiler.reset()
    f = function(None)
    a = random_symmetric(2, 4)

    def compile(g):
        return torch.compile(g, fullgraph=True, backend="aot_eager")

    if function is projection:  # an eager call needs no eigenvectors, and rounds differently
        torch.testing.assert_close(compile(f)(a), f(a))
    else:
        assert_equal(compile(f)(a), f(a))
    leaf = a.clone().requires_grad_()
    gradients = [torch.autograd.grad(g(leaf), leaf)[0] for g in (compile(scalar(f)), scalar(f))]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(compile(torch.func.grad(scalar(f)))(a), gradients[1])
    torch.testing.assert_close(compile(torch.vmap(scalar(f)))(a), torch.vmap(scalar(f))(a))
    torch.compiler.reset()


def test_compiled_shapes_may_change():
    torch.compiler.reset()
    compiled = torch.compile(kernels.eigh, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, n in ((2, 3), (5, 7), (3, 4)):
        a = random_symmetric(batch, n)
        assert_equal(compiled(a), kernels.eigh(a))
    torch.compiler.reset()


def test_fake_tensors_have_the_strides_of_real_ones():
    real = random_symmetric(2, 5, 3).transpose(0, 1)
    made = tuple(kernels.eigh(real))
    with torch._subclasses.FakeTensorMode() as mode:
        for fake, true in zip(kernels.eigh(mode.from_tensor(real)), made):
            assert (fake.shape, fake.stride(), fake.dtype) == (true.shape, true.stride(), true.dtype)
