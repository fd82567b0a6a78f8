"""The largest latents of a whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.autoencoders.latent_activation import SelectingActivation, require
from interp.autoencoders.processes import sum_over_processes
from interp.autoencoders.sparse_codes import Pattern, select_batch_top

if TYPE_CHECKING:
    from interp.autoencoders.sparse_autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class BatchTopK(SelectingActivation):
    r"""f keeps the n k largest positive entries of a training batch of n samples, so that samples may differ.

    Once trained, $f = h\,1[h > \theta]$ with $\theta$ the running mean of the smallest kept value of a batch; the codes
    of a sample do not depend on the others any more. Before the first training step, batches are selected from.

    Args:
        k: kept per sample, in the mean.
        momentum: of the running mean, after the first $1 / (1 - momentum)$ steps, which count alike.
    Source: Bussmann, Leask, Nanda, BatchTopK sparse autoencoders (2024).

    Examples:
        >>> import interp, torch
        >>> codes = interp.SparseAutoencoder(8, 32, interp.BatchTopK(4)).encode(torch.randn(10, 8))
        >>> int((codes != 0).sum()) <= 40  # of ten samples together
        True
    """

    k: int
    momentum: float = 0.99

    def __post_init__(self):
        require(self.k >= 1, f"BatchTopK needs k >= 1; it is {self.k}")
        require(0 <= self.momentum < 1, f"BatchTopK needs momentum in [0, 1); it is {self.momentum}")

    def buffers(self) -> dict[str, Tensor]:
        return {"threshold": torch.tensor(-1.0), "threshold_steps": torch.tensor(0)}

    def select(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Pattern]:
        return select_batch_top(x, weight, bias, self.k)

    def infer(self, x: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        threshold = autoencoder.get_buffer("threshold")
        if threshold < 0:
            return super().infer(x, autoencoder)
        h = autoencoder.preactivations(x)
        return torch.where(h > threshold, h, 0.0)

    def observe(self, values: Tensor, autoencoder: SparseAutoencoder) -> None:
        steps, threshold = autoencoder.get_buffer("threshold_steps"), autoencoder.get_buffer("threshold")
        smallest = values.min() if len(values) else values.new_zeros(())
        seen = sum_over_processes(torch.stack([smallest, smallest.new_tensor(len(values) > 0)]))
        if seen[1] > 0:
            steps += 1
            mean = (seen[0] / seen[1]).to(threshold.dtype)
            threshold.lerp_(mean, max(1 - self.momentum, 1 / float(steps)))
