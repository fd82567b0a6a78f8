"""The solver of torch: LAPACK, one matrix after the other, on the CPU; cuSOLVER on a GPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels._backends import simd
from kernels.scaling import fix_signs, scale


def eigh(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if _is_plain(a):
        values, vectors = torch.linalg.eigh(a, UPLO="L")
        return values, _orient(vectors), _solved(a)
    return solve(a, lambda scaled: torch.linalg.eigh(scaled, UPLO="L"))


def eigvalsh(a: Tensor) -> tuple[Tensor, Tensor]:
    if _is_plain(a):
        return torch.linalg.eigvalsh(a, UPLO="L"), _solved(a)
    return solve_values(a, lambda scaled: torch.linalg.eigvalsh(scaled, UPLO="L"))


def solve(a: Tensor, decompose: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Put the frame of `kernels.scaling` around a decomposition of finite matrices scaled to max 1."""
    scaled = scale(a)
    values, vectors = decompose(scaled.matrices)
    vectors = scaled.mark(fix_signs(vectors)).contiguous()
    return scaled.restore(values), vectors, scaled.info()


def solve_values(a: Tensor, decompose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """As `solve`, without vectors."""
    scaled = scale(a)
    return scaled.restore(decompose(scaled.matrices)), scaled.info()


def _is_plain(a: Tensor) -> bool:
    """Whether LAPACK may have the matrices as they are: of a moderate size, so that scaling changes no bit.

    Only on the CPU, where asking means one look at the matrices and no wait.
    """
    if a.device.type != "cpu" or a.is_complex() or not simd.instruction_sets():
        return False
    return simd.lie_between(a, 2**-16, 2**16)


def _solved(a: Tensor) -> Tensor:
    return torch.zeros(a.shape[0], dtype=torch.int32)


def _orient(vectors: Tensor) -> Tensor:
    if vectors.mT.is_contiguous():
        return simd.orient(vectors)
    return fix_signs(vectors).contiguous()
