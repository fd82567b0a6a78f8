"""The solver of torch: LAPACK, one matrix after the other, on the CPU; cuSOLVER on a GPU."""

import torch
from torch import Tensor


def eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(a, UPLO="L")
    return values, vectors


def eigvalsh(a: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(a, UPLO="L")
