"""Laws of the block-tridiagonal Cholesky factorization: it is the dense one, on the blocks only."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.autograd import gradcheck, gradgradcheck

import kernels
from kernels import BlockTridiagonal

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
SIZES = (3, 1, 4, 2)


def random_matrix(sizes=SIZES, batch=(), *, condition=10.0, dtype=torch.float64, seed=0):
    """G G' for block-bidiagonal G: Schur complements have the given condition number, the matrix its square."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)

    diagonal, lower = [], []
    for k, n in enumerate(sizes):
        basis, _ = torch.linalg.qr(draw(n, n))
        root = basis * torch.logspace(0, -math.log10(condition) / 2, n, dtype=torch.float64)
        diagonal.append(root @ root.mT)
        if k:
            coupling = draw(n, sizes[k - 1]) / (2 * max(n, 1) ** 0.5)
            diagonal[-1] = diagonal[-1] + coupling @ coupling.mT
            lower.append(coupling @ before.mT)  # noqa: F821
        before = root  # noqa: F841
    return BlockTridiagonal([block.to(dtype) for block in diagonal], [block.to(dtype) for block in lower])


def blocks_of(dense, sizes):
    """The blocks of a dense matrix that a block-tridiagonal one keeps."""
    rows = [row.split(sizes, -1) for row in dense.split(sizes, -2)]
    return [rows[k][k] for k in range(len(sizes))], [rows[k + 1][k] for k in range(len(sizes) - 1)]


def assert_near(found, expected, factor=50.0):
    scale = expected.abs().amax() if expected.numel() else 1.0
    size = max(expected.shape[-2:]) if expected.ndim > 1 else 1
    tolerance = factor * max(size, 1) * torch.finfo(found.dtype).eps * scale
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= tolerance).all()


@dtypes
@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any),
    batch=st.lists(st.integers(0, 3), max_size=2),
    columns=st.integers(0, 3),
    exponent=st.integers(-5, 5),
    seed=st.integers(0, 99),
)
def test_agrees_with_dense(sizes, batch, columns, exponent, seed, dtype):
    matrix = random_matrix(sizes, batch, dtype=dtype, seed=seed)
    matrix = BlockTridiagonal(
        [block * 10.0**exponent for block in matrix.diagonal],
        [block * 10.0**exponent for block in matrix.lower],
    )
    dense = matrix.to_dense().double()
    size = sum(sizes)
    assert matrix.shape == dense.shape == (*batch, size, size)
    x = torch.randn(*batch, size, columns, dtype=dtype)
    assert_near(matrix @ x, dense @ x.double())
    factor = kernels.factorize(matrix, check=True)
    assert (factor.info == 0).all()
    expected = torch.linalg.inv(dense)
    assert_near(factor.solve(x), expected @ x.double(), 500)
    assert_near(factor.solve(x, refinements=1), expected @ x.double(), 500)
    inverse = factor.inverse()
    assert_near(inverse, expected, 500)
    assert torch.equal(inverse, inverse.mT)
    selected = factor.selected_inverse()
    assert selected.sizes == matrix.sizes
    kept = blocks_of(expected, sizes)
    for found, block in zip((*selected.diagonal, *selected.lower), (*kept[0], *kept[1])):
        assert_near(found, block, 500 * size)
    log_determinant = torch.linalg.slogdet(dense).logabsdet
    scale = 1 + dense.diagonal(dim1=-2, dim2=-1).log().abs().sum(-1)
    assert ((factor.log_determinant() - log_determinant).abs() <= 500 * torch.finfo(dtype).eps * scale).all()


@dtypes
def test_factors_reproduce_the_matrix(dtype):
    matrix = random_matrix(batch=(2,), dtype=dtype)
    factor = kernels.factorize(matrix)
    corners = [torch.linalg.inv(x.double()) for x in factor.inverse_factors]
    for k, (block, corner) in enumerate(zip(matrix.diagonal, corners)):
        assert torch.equal(factor.inverse_factors[k], factor.inverse_factors[k].tril())
        product = corner @ corner.mT
        if k:
            coupling = factor.couplings[k - 1].double()
            assert_near((coupling @ corners[k - 1].mT).to(dtype), matrix.lower[k - 1].double())
            product = product + coupling @ coupling.mT
        assert_near(product.to(dtype), block.double())


def test_vectors_and_batches_broadcast():
    matrix = random_matrix(batch=(2, 1))
    shared = BlockTridiagonal([4 * torch.eye(3, dtype=torch.float64), *matrix.diagonal[1:]], matrix.lower)
    assert shared.shape == matrix.shape
    factor = kernels.factorize(shared)
    vector = torch.randn(10, dtype=torch.float64)
    assert factor.solve(vector).shape == (2, 1, 10)
    torch.testing.assert_close(factor.solve(vector), factor.solve(vector[:, None])[..., 0])
    many = torch.randn(3, 10, 2, dtype=torch.float64)
    assert factor.solve(many).shape == (2, 3, 10, 2)
    torch.testing.assert_close(shared @ factor.solve(many), many.expand(2, 3, 10, 2))
    torch.testing.assert_close(matrix @ vector, matrix.to_dense() @ vector)


def test_upper_triangles_are_not_read():
    matrix = random_matrix()
    garbage = [torch.where(torch.ones_like(block).tril() > 0, block, torch.nan) for block in matrix.diagonal]
    other = BlockTridiagonal(garbage, matrix.lower)
    assert torch.equal(other.to_dense(), matrix.to_dense())
    assert torch.equal(kernels.factorize(other).inverse(), kernels.factorize(matrix).inverse())


@pytest.mark.parametrize(("dtype", "conditions"), [(torch.float64, (2, 4, 6)), (torch.float32, (1, 2, 2.5))])
@pytest.mark.parametrize("smooth", [True, False], ids=["b = A x", "random b"])
def test_ill_conditioned_blocks(smooth, dtype, conditions):
    """Inverse triangles lose little, and one refinement loses nothing, against a dense Cholesky solve."""
    for exponent in conditions:
        for seed in range(3):
            matrix = random_matrix((8, 5, 12), condition=10.0**exponent, dtype=dtype, seed=seed)
            dense = matrix.to_dense()
            b = torch.randn(25, 2, dtype=dtype, generator=torch.Generator().manual_seed(seed))
            if smooth:
                b = dense @ b
            factor = kernels.factorize(matrix, check=True)

            def backward_error(x, dense=dense, b=b):
                residual = (dense.double() @ x.double() - b.double()).abs().amax()
                norm = dense.abs().sum(-1).amax() * x.abs().amax() + b.abs().amax()
                return residual / (norm * torch.finfo(dtype).eps)

            trusted = backward_error(torch.cholesky_solve(b, torch.linalg.cholesky(dense)))
            assert backward_error(factor.solve(b)) <= 10 + 10 * trusted
            assert backward_error(factor.solve(b, refinements=1)) <= 1 + 4 * trusted


@dtypes
@pytest.mark.parametrize("how", ["indefinite", "singular", "nan", "inf", "nan below"])
@pytest.mark.parametrize("block", [0, 2])
def test_a_bad_matrix_stays_alone(block, how, dtype):
    matrix = random_matrix((3, 2, 4, 2), (2, 2), dtype=dtype)
    clean = kernels.factorize(matrix)
    spoiled = [part.clone() for part in matrix.diagonal]
    lower = [part.clone() for part in matrix.lower]
    failing = block + 1
    if how == "nan below":
        lower[block][1, 0, 0, 0] = torch.nan
        failing += 1
    elif how == "singular":
        spoiled[block][1, 0] = 0.0
    else:
        spoiled[block][1, 0, 1, 1] = {"indefinite": -1.0, "nan": torch.nan, "inf": torch.inf}[how]
    spoiled = [part.requires_grad_() for part in spoiled]
    factor = kernels.factorize(BlockTridiagonal(spoiled, lower))
    assert factor.info.tolist() == [[0, 0], [failing, 0]]
    b = torch.randn(11, 2, dtype=dtype, requires_grad=True)
    selected = factor.selected_inverse()
    results = {
        "solve": (factor.solve(b), clean.solve(b)),
        "refined": (factor.solve(b, refinements=1), clean.solve(b, refinements=1)),
        "log_determinant": (factor.log_determinant(), clean.log_determinant()),
        "inverse": (factor.inverse(), clean.inverse()),
        "selected": (selected.lower[1], clean.selected_inverse().lower[1]),
    }
    total = 0.0
    for found, expected in results.values():
        assert found[1, 0].isnan().all()
        torch.testing.assert_close(found[:, 1], expected[:, 1])
        torch.testing.assert_close(found[0, 0], expected[0, 0])
        total = total + found.nan_to_num(nan=0.0).sum()
    for gradient in torch.autograd.grad(total, [*spoiled, b]):
        assert gradient.isfinite().all()
        assert gradient.ndim < 4 or (gradient[1, 0] == 0).all()
    with pytest.raises(torch.linalg.LinAlgError, match=rf"1 of 4 .* \(1, 0\) at block {failing - 1}"):
        kernels.factorize(BlockTridiagonal(spoiled, lower), check=True)


def outputs(*blocks):
    """Everything the factorization gives, as functions of symmetric diagonal blocks."""
    diagonal = [(block + block.mT) / 2 for block in blocks[: len(SIZES)]]
    matrix = BlockTridiagonal(diagonal, blocks[len(SIZES) : -1])
    factor = kernels.factorize(matrix)
    selected = factor.selected_inverse()
    return (
        factor.solve(blocks[-1]),
        factor.log_determinant(),
        factor.inverse(),
        *selected.diagonal,
        *selected.lower,
        factor.inverse_factors[-1],
        factor.couplings[0],
    )


def differentiable_blocks(batch=()):
    matrix = random_matrix(batch=batch)
    b = torch.randn(*batch, 10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [part.requires_grad_() for part in (*matrix.diagonal, *matrix.lower, b)]


def test_first_derivatives():
    assert gradcheck(outputs, differentiable_blocks((2,)))


# torch builds its forward-mode rules for triangular solves with `torch.jit.script`, which it deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode():
    assert gradcheck(outputs, differentiable_blocks(), check_forward_ad=True, check_backward_ad=False)


def test_second_derivatives():
    def some(*blocks):
        return outputs(*blocks)[0], outputs(*blocks)[1], outputs(*blocks)[3]

    assert gradgradcheck(some, differentiable_blocks())
    assert gradgradcheck(
        lambda *blocks: outputs(*blocks[:-1], blocks[-1].detach())[2], differentiable_blocks(), fast_mode=True
    )


def test_the_gradient_of_the_log_determinant_is_the_selected_inverse():
    blocks = differentiable_blocks((3,))[:-1]
    factor = kernels.factorize(BlockTridiagonal(blocks[:4], blocks[4:]))
    gradients = torch.autograd.grad(factor.log_determinant().sum(), blocks)
    selected = factor.selected_inverse()
    for gradient, block in zip(gradients, (*selected.diagonal, *(2 * block for block in selected.lower))):
        torch.testing.assert_close(gradient, block, rtol=1e-11, atol=1e-11)


def test_functional_transforms():
    blocks = [block.detach() for block in differentiable_blocks((3,))]

    def log_determinant(*blocks):
        return kernels.factorize(BlockTridiagonal(blocks[:4], blocks[4:])).log_determinant()

    mapped = torch.func.vmap(log_determinant)(*blocks[:-1])
    torch.testing.assert_close(mapped, log_determinant(*blocks[:-1]))
    gradient = torch.func.vmap(torch.func.grad(log_determinant, argnums=1))(*blocks[:-1])
    selected = kernels.factorize(BlockTridiagonal(blocks[:4], blocks[4:-1])).selected_inverse()
    torch.testing.assert_close(gradient, selected.diagonal[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu():
    matrix = random_matrix(batch=(3,))
    on_device = BlockTridiagonal([b.cuda() for b in matrix.diagonal], [b.cuda() for b in matrix.lower])
    found, expected = kernels.factorize(on_device), kernels.factorize(matrix)
    torch.testing.assert_close(found.inverse().cpu(), expected.inverse())
    torch.testing.assert_close(found.log_determinant().cpu(), expected.log_determinant())


@pytest.mark.parametrize(
    ("diagonal", "lower", "error", "text"),
    [
        ([], [], ValueError, "K >= 1"),
        ([torch.eye(2), torch.eye(2)], [], ValueError, "2 and 0"),
        ([torch.eye(2), [[1.0]]], [torch.ones(1, 2)], TypeError, r"diagonal\[1\] is a list"),
        ([torch.eye(2).int()], [], ValueError, "int32"),
        ([torch.eye(2).half()], [], ValueError, "float16"),
        (
            [torch.eye(2), torch.eye(3).double()],
            [torch.ones(3, 2)],
            ValueError,
            r"diagonal\[1\] torch.float64",
        ),
        ([torch.ones(2, 3)], [], ValueError, r"diagonal\[0\] has shape"),
        ([torch.ones(2)], [], ValueError, r"diagonal\[0\] has shape"),
        ([torch.eye(2), torch.eye(3)], [torch.ones(2, 3)], ValueError, r"lower\[0\].*\(\.\.\., 3, 2\).*\.mT"),
    ],
)
def test_refusals(diagonal, lower, error, text):
    with pytest.raises(error, match=text):
        BlockTridiagonal(diagonal, lower)


@pytest.mark.parametrize("shape", [(9, 1), (9,), (10, 9, 2), ()])
def test_right_hand_sides_of_another_size_are_refused(shape):
    matrix = random_matrix()
    with pytest.raises(ValueError, match="10 rows"):
        kernels.factorize(matrix).solve(torch.ones(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="10 rows"):
        matrix @ torch.ones(shape, dtype=torch.float64)
