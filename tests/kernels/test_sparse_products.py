"""Laws of sparse products: they are the dense ones, on the CPU and by the CUDA sources, emulated."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch

from kernels._backends import sparse_cuda
from kernels.sparse_products import multiply_sparse, sample_product

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
SHAPES = [(7, 5, 3), (40, 70, 33), (3, 9, 300), (1, 1, 1)]


@cache
def emulation():
    """The module beside this file, loaded and its sources compiled once: the tests are no package."""
    specification = importlib.util.spec_from_file_location(
        "cuda_emulation", Path(__file__).parent / "cuda_emulation.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def problem(rows, columns, width, dtype):
    """A sparse matrix, some of whose rows are empty, in every form that is needed, and two dense ones."""
    generator = torch.Generator().manual_seed(rows)
    a = torch.randn(rows, columns, generator=generator, dtype=dtype)
    a[torch.rand(rows, columns, generator=generator) < 0.5] = 0
    a[rows // 2] = 0
    places = a.nonzero().to(torch.int32)
    starts = torch.cat([torch.zeros(1), (a != 0).sum(1).cumsum(0)]).to(torch.int32)
    left, right = (torch.randn(n, width, generator=generator, dtype=dtype) for n in (rows, columns))
    return a, starts, places[:, 0].contiguous(), places[:, 1].contiguous(), a[a != 0], left, right


def check(shape, dtype, multiply, sample):
    a, starts, rows, columns, values, left, right = problem(*shape, dtype)
    product = multiply(starts, columns, values, right)
    assert torch.allclose(
        product, a @ right, rtol=0, atol=TOLERANCE[dtype] * (1 + float((a @ right).abs().max()))
    )
    sampled = sample(starts, rows, columns, left, right)
    wanted = (left @ right.mT)[a != 0]
    assert torch.allclose(
        sampled, wanted, rtol=0, atol=TOLERANCE[dtype] * (1 + float((left @ right.mT).abs().max()))
    )


@dtypes
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_the_dense_ones(dtype, shape):
    check(shape, dtype, multiply_sparse, sample_product)


@dtypes
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_cuda_sources_are_the_dense_ones(dtype, shape, reverse):
    module = emulation()
    if not module.exists():
        pytest.skip(module.CANNOT)
    launcher = module.Emulation(reverse=reverse)
    check(
        shape,
        dtype,
        lambda *tensors: sparse_cuda.multiply(*tensors, launcher=launcher),
        lambda starts, *tensors: sparse_cuda.sample(*tensors, launcher=launcher),
    )


@pytest.mark.gpu
@pytest.mark.skipif(not sparse_cuda.exist(), reason="no CUDA device, or nothing that compiles for it")
@dtypes
@pytest.mark.parametrize("shape", SHAPES)
def test_a_device_agrees(dtype, shape):
    check(
        shape,
        dtype,
        lambda *tensors: multiply_sparse(*(x.cuda() for x in tensors)).cpu(),
        lambda *tensors: sample_product(*(x.cuda() for x in tensors)).cpu(),
    )
