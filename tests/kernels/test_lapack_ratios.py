"""LAPACK's own acceptance tests for symmetric eigensolvers, on every backend and every instruction set.

Residual, orthogonality and values with against without vectors, in units of the rounding error, on the 18 matrix
types of LAPACK's `ddrvst` and on a list of matrices that broke solvers. LAPACK accepts 60; we fail above 10.
"""

from functools import partial

import pytest
import torch

import kernels
from kernels._backends import simd

LIMIT = 10.0
SIZES = [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 49, 64, 65, 128]


def solvers():
    named = {
        name: (partial(kernels.eigh, backend=name), partial(kernels.eigvalsh, backend=name))
        for name in kernels.available_backends()
        if name != "simd"
    }
    for name in simd.instruction_sets():
        named[f"simd-{name}"] = (
            lambda a, name=name: simd.solve(a, name)[:2],
            lambda a, name=name: simd.solve_values(a, name)[0],
        )
    return named


SOLVERS = solvers()
solver = pytest.mark.parametrize("solver", SOLVERS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def random_orthogonal(n, generator):
    q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()


def lapack_types(n, dtype):
    """The 18 types of `ddrvst`, in its order."""
    generator = torch.Generator().manual_seed(n)
    info = torch.finfo(dtype)
    ulp = info.eps
    large, small = info.max**0.5, info.tiny**0.5
    sign = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    even = torch.linspace(1, ulp, n, dtype=torch.float64) * sign
    geometric = ulp ** (torch.arange(n, dtype=torch.float64) / max(n - 1, 1)) * sign
    clustered = torch.full((n,), ulp, dtype=torch.float64) * sign
    clustered[0] = 1.0
    q = random_orthogonal(n, generator)
    dense = [(q * spectrum) @ q.mT for spectrum in (even, geometric, clustered)]
    uniform = torch.rand(n, n, dtype=torch.float64, generator=generator) * 2 - 1
    uniform = torch.tril(uniform) + torch.tril(uniform, -1).mT
    band = max(n // 4, 1)
    banded = torch.triu(torch.tril(dense[0], band), -band)
    diagonal = [torch.diag(spectrum) for spectrum in (even, geometric, clustered)]
    types = [
        torch.zeros(n, n, dtype=torch.float64),
        torch.eye(n, dtype=torch.float64),
        *diagonal,
        diagonal[1] * large,
        diagonal[1] * small,
        *dense,
        dense[0] * large,
        dense[0] * small,
        uniform,
        uniform * large,
        uniform * small,
        banded,
        banded * large,
        banded * small,
    ]
    assert len(types) == 18
    return torch.stack([(x + x.mT) / 2 for x in types]).to(dtype)


def hard_matrices(n, dtype):
    """What broke first versions of this solver or others; the reason stands beside it."""
    generator = torch.Generator().manual_seed(1000 + n)
    index = torch.arange(n, dtype=torch.float64)
    random = torch.randn(n, n, dtype=torch.float64, generator=generator)
    random = random + random.mT
    q = random_orthogonal(n, generator)
    ones = torch.ones(n, n, dtype=torch.float64)
    signs = torch.randint(-1, 2, (n,), generator=generator).double()
    graded = torch.diag(10.0 ** -(index * 12 / max(n, 1)))
    cycle = torch.eye(n, dtype=torch.float64).roll(1, 0)
    wilkinson = torch.diag((index - (n - 1) / 2).abs())
    wilkinson = wilkinson + torch.diag(torch.ones(n - 1, dtype=torch.float64), 1) if n > 1 else wilkinson
    wilkinson = torch.triu(wilkinson) + torch.triu(wilkinson, 1).mT
    two_clusters = torch.where(index < n / 2, 1.0, -1.0).double()
    half_rank = torch.randn(n, max(n // 2, 1), dtype=torch.float64, generator=generator)
    adjacency = torch.triu((torch.rand(n, n, generator=generator) < 0.3).double(), 1)
    pairs = torch.zeros(n, n, dtype=torch.float64)  # blocks of two that nearly repeat
    for i in range(0, n - 1, 2):
        pairs[i, i], pairs[i + 1, i + 1] = 1.0, 1.0 + 1e-9
        pairs[i, i + 1] = pairs[i + 1, i] = 1e-9
    eps = torch.finfo(dtype).eps
    return torch.stack(
        [
            ones,  # stalls QL at 30 n sweeps without the absolute threshold, and loses orthogonality
            torch.outer(signs, signs),
            -ones,
            1 / (index[:, None] + index[None, :] + 1),  # Hilbert
            graded @ random @ graded,
            (graded @ random @ graded).flip(0, 1),
            wilkinson,
            (q * two_clusters) @ q.mT,
            torch.diag(two_clusters),
            half_rank @ half_rank.mT,
            (q[:, :1] @ q[:, :1].mT),
            torch.eye(n, dtype=torch.float64) + eps * random,
            torch.eye(n, dtype=torch.float64) + 100 * eps * random,
            adjacency + adjacency.mT,
            cycle + cycle.mT,
            torch.eye(n, dtype=torch.float64).flip(0),
            random * 1e30,
            random * 1e-30,
            random * 1e-40,  # subnormal in float32
            random / random.abs().max() * (torch.finfo(dtype).max / (4 * n)),
            pairs,
        ]
    ).to(dtype)


def assert_ratios(a, solver):
    with_vectors, values_only = SOLVERS[solver]
    (values, vectors), alone = with_vectors(a), values_only(a)
    n, eps = a.shape[-1], torch.finfo(a.dtype).eps
    x = torch.tril(a.double()) + torch.tril(a.double(), -1).mT
    largest = x.abs().amax((-2, -1)).clamp(min=1e-320)
    # A result below the smallest normal number can only be written down to the smallest subnormal one.
    floor = torch.finfo(a.dtype).smallest_normal * eps / largest
    x, w, v = x / largest[:, None, None], values.double() / largest[:, None], vectors.double()
    norm = x.abs().sum(-2).amax(-1)
    residual = (x - (v * w[:, None, :]) @ v.mT).abs().sum(-2).amax(-1)
    worst = (residual / (n * (norm * eps + floor))).nan_to_num(nan=0.0).where(norm > 0, residual * torch.inf)
    worst = torch.where((norm == 0) & (residual == 0), 0.0, worst)
    assert worst.max() <= LIMIT, f"residual {worst.max():.1f} in matrix {worst.argmax()}"
    orthogonality = (torch.eye(n, dtype=torch.float64) - v.mT @ v).abs().sum(-2).amax(-1) / (n * eps)
    assert orthogonality.max() <= LIMIT, (
        f"orthogonality {orthogonality.max():.1f} in {orthogonality.argmax()}"
    )
    assert (values.diff(dim=-1) >= 0).all()
    if solver.startswith("simd"):
        assert torch.equal(alone, values)
    else:  # LAPACK has another algorithm for values alone: its own threshold
        difference = (alone.double() / largest[:, None] - w).abs().amax(-1)
        assert (difference <= 60 * (eps * w.abs().amax(-1) + floor)).all()


@solver
@dtypes
@pytest.mark.parametrize("n", SIZES)
def test_lapack_types(n, dtype, solver):
    assert_ratios(lapack_types(n, dtype), solver)


@solver
@dtypes
@pytest.mark.parametrize("n", SIZES)
def test_hard_matrices(n, dtype, solver):
    assert_ratios(hard_matrices(n, dtype), solver)


@solver
@dtypes
@pytest.mark.parametrize("n", [2, 3, 8, 17, 32, 64])
def test_random_batches(n, dtype, solver):
    a = torch.randn(300, n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
    assert_ratios(a, solver)
