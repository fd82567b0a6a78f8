"""Codes above a trained threshold, with pseudo-gradients of its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.autoencoders.latent_activation import DenseActivation, require

if TYPE_CHECKING:
    from interp.autoencoders.sparse_autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class JumpReLU(DenseActivation):
    r"""$f = \mathrm{relu}(h)\,1[h > \theta_j]$ with $\lambda E|f|_0$, or $\lambda (E|f|_0 / t - 1)^2$ with a target t.

    The step has no useful gradient; with $z = (h - \theta)/\beta$ and $K = 1[|z| < 1/2]$ it gets
    $\partial f/\partial\theta = -(\theta/\beta) K$ and $\partial 1[h > \theta]/\partial\theta = -K/\beta$, and none to
    h through the step. $\log\theta$ is trained.

    Args:
        l0: $\lambda$, for squared errors summed over the entries of a sample.
        target_l0: t, or None for the linear penalty.
        bandwidth: $\beta$, in the units of the codes: data are best scaled ("standard").
        initial_threshold: $\theta$ at the start.
    Source: Rajamanoharan et al., Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders
        (2024), sections 3 and 4; the target: its appendix.

    Examples:
        >>> import interp, torch
        >>> activation = interp.JumpReLU(target_l0=4.0, initial_threshold=0.1)
        >>> codes = interp.SparseAutoencoder(8, 32, activation).encode(torch.randn(10, 8))
        >>> bool((codes[codes > 0] > 0.0999).all())  # at or below the threshold codes are 0
        True
    """

    l0: float = 1.0
    target_l0: float | None = None
    bandwidth: float = 0.05
    initial_threshold: float = 0.01

    def __post_init__(self):
        require(self.l0 >= 0, f"JumpReLU needs l0 >= 0; it is {self.l0}")
        require(self.bandwidth > 0, f"JumpReLU needs a positive bandwidth; it is {self.bandwidth}")
        require(
            self.initial_threshold > 0, f"JumpReLU needs a positive threshold; it is {self.initial_threshold}"
        )
        require(
            self.target_l0 is None or self.target_l0 > 0,
            f"JumpReLU needs a positive target_l0; it is {self.target_l0}",
        )

    def parameters(self, latents: int) -> dict[str, Tensor]:
        return {"log_threshold": torch.full((latents,), self.initial_threshold).log()}

    def codes(self, h: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        threshold = autoencoder.get_parameter("log_threshold").exp()
        return _Jump.apply(h, threshold, self.bandwidth)  # type: ignore[return-value]

    def penalties(
        self, h: Tensor, codes: Tensor, residual: Tensor, autoencoder: SparseAutoencoder
    ) -> Mapping[str, Tensor]:
        threshold = autoencoder.get_parameter("log_threshold").exp()
        fired = _Step.apply(h.detach(), threshold, self.bandwidth)
        l0 = fired.sum(1).mean()  # type: ignore[attr-defined]
        return {"l0": self.l0 * (l0 if self.target_l0 is None else (l0 / self.target_l0 - 1).square())}


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, threshold, bandwidth):
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return torch.where((h > threshold) & (h > 0), h, 0.0)

    @staticmethod
    def backward(ctx, *gradients):
        h, threshold = ctx.saved_tensors
        passed = torch.where((h > threshold) & (h > 0), gradients[0], 0.0)
        near = torch.where((h - threshold).abs() < ctx.bandwidth / 2, gradients[0], 0.0)
        return passed, -(threshold / ctx.bandwidth) * near.sum(0), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, threshold, bandwidth):
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return (h > threshold).to(h.dtype)

    @staticmethod
    def backward(ctx, *gradients):
        h, threshold = ctx.saved_tensors
        near = torch.where((h - threshold).abs() < ctx.bandwidth / 2, gradients[0], 0.0)
        return None, -near.sum(0) / ctx.bandwidth, None
