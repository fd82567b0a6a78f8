"""What every autoencoder is: codes of activations, a reconstruction from them, and a loss to train both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.autoencoders.input_scaling import InputScaling
from weightspace.errors import ShapeError


@dataclass(frozen=True, eq=False)
class AutoencoderLoss:
    """The loss of one batch, in scaled units.

    Attributes:
        total: what the optimizer minimizes, ().
        parts: its parts by name, detached: `reconstruction`, then penalties.
        error: squared errors of the reconstruction, summed over the batch, detached, ().
        variance: squared distances of the targets from their mean over the batch, summed, (); error / variance is the
            batch's fraction of variance unexplained (FVU).
        l0: mean number of nonzero codes per sample, ().
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    error: Tensor
    variance: Tensor
    l0: Tensor


@dataclass(frozen=True, eq=False)
class Comparison:
    r"""Targets x and reconstructions $\hat x$ of a batch, in the inner product space where the loss lives.

    Attributes:
        codes: (n, latents), or (n, latents, points) of codes that are functions.
        error: $|x - \hat x|^2$, (n,).
        target: $|x|^2$, (n,).
        cross: $\langle x, \hat x \rangle$, (n,).
        reconstruction: $|\hat x|^2$, (n,).
        target_sum: $\sum_n x$, of any one shape: from it comes the variance of a whole stream.
    """

    codes: Tensor
    error: Tensor
    target: Tensor
    cross: Tensor
    reconstruction: Tensor
    target_sum: Tensor = field(repr=False)

    @classmethod
    def between(cls, codes: Tensor, target: Tensor, reconstruction: Tensor) -> Comparison:
        """Of tensors (n, ...) whose entries are compared one by one, in float64."""
        x, y = target.detach().flatten(1).double(), reconstruction.detach().flatten(1).double()
        squares = ((x - y).square().sum(1), x.square().sum(1), (x * y).sum(1), y.square().sum(1))
        return cls(codes.detach(), *squares, x.sum(0))


class Autoencoder(nn.Module, ABC):
    """Codes of activations, and activations from codes.

    A subclass names the shape of a sample and the number of its latents, computes with scaled samples
    (`encode_scaled`, `decode_scaled`, `loss`), and describes itself by JSON data (`configuration`) from which
    `load_autoencoder` builds it again.

    Attributes:
        sample_shape: of one input, (d,) of vectors.
        latents: how many features there are.
        scaling: what inputs are divided by and centered on before anything else, part of the weights.
    """

    sample_shape: tuple[int, ...]
    latents: int
    scaling: InputScaling

    @abstractmethod
    def encode_scaled(self, x: Tensor) -> Tensor:
        """Codes of scaled samples: (n, *sample_shape) -> (n, latents, ...)."""

    @abstractmethod
    def decode_scaled(self, codes: Tensor) -> Tensor:
        """Scaled samples from codes."""

    @abstractmethod
    def loss(self, x: Tensor, target: Tensor | None = None, *, progress: float = 1.0) -> AutoencoderLoss:
        """Loss of a batch (n, *sample_shape) in the units of the data.

        Args:
            target: what is to be reconstructed where that is not x (transcoders).
            progress: share of the training that is done, for penalties that grow.
        """

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """The arguments of the constructor but dtype, device and generator, as JSON data."""

    @abstractmethod
    def decoder_cosines(self, rows: slice = slice(None), other: Autoencoder | None = None) -> Tensor:
        """Cosines of decoder features `rows` with all features of `other` (None: with its own), (rows, latents)."""

    @abstractmethod
    def encoder_cosines(self, rows: slice = slice(None)) -> Tensor:
        """Cosines of encoder features `rows` with all encoder features, (rows, latents)."""

    def encode(self, x: Tensor) -> Tensor:
        """Codes of samples in the units of the data: (n, *sample_shape) -> (n, latents, ...).

        Raises:
            ShapeError: another shape of a sample.
        """
        return self.encode_scaled(self.scaling.apply(self.checked(x))[0])

    def decode(self, codes: Tensor) -> Tensor:
        """Samples in the units of the data from codes.

        Raises:
            ShapeError: every sample has a scale of its own, which the codes do not hold; call the autoencoder.
        """
        return self.scaling.invert(self.decode_scaled(codes))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct samples: (n, *sample_shape) -> (n, *sample_shape)."""
        scaled, scale = self.scaling.apply(self.checked(x))
        return self.scaling.invert(self.decode_scaled(self.encode_scaled(scaled)), scale)

    def compare(self, x: Tensor, target: Tensor | None = None) -> Comparison:
        """Compare reconstructions with their targets, in the units of the data, without gradients."""
        with torch.no_grad():
            scaled, scale = self.scaling.apply(self.checked(x))
            codes = self.encode_scaled(scaled)
            return Comparison.between(
                codes, x if target is None else target, self.scaling.invert(self.decode_scaled(codes), scale)
            )

    # ---- what training does around the gradient ----------------------------------------------------------

    def make_optimizer(self, learning_rate: float | None = None) -> torch.optim.Optimizer:
        """The optimizer this kind of autoencoder is trained with; None is its usual learning rate."""
        rate = 1e-3 if learning_rate is None else learning_rate
        return torch.optim.Adam(self.parameters(), rate, fused=True)

    def prepare(self, sample: Tensor, target: Tensor | None = None) -> None:
        """Start from the data: scaling and initial biases from a sample (n, *sample_shape) of it."""
        self.scaling.fit(sample)

    def after_backward(self) -> None:
        """Change gradients before the step: projections onto constraints."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Change weights after the step: constraints, latents that died."""

    # ---- the rest ----------------------------------------------------------------------------------------

    def save(self, path: str | Path, format: str = "weightspace") -> None:
        """Write the autoencoder (`load_autoencoder` reads it); whole or not at all.

        Args:
            path: a `.safetensors` file of format "weightspace", a folder of the others.
            format: "weightspace", "sae_lens", "sparsify" or "dictionary_learning", the layouts of those libraries.
        Raises:
            UnsupportedOperationError: the format has no place for this kind of autoencoder; the text says why.
            NonFiniteError: a weight is NaN or infinite.
            OutputError: the file cannot be written.
        """
        from interp.autoencoders.formats.registry import write_autoencoder

        write_autoencoder(self, path, format)

    def checked(self, x: Tensor) -> Tensor:
        """Return x if it holds samples of the right shape.

        Raises:
            ShapeError: it does not.
        """
        if tuple(x.shape[1:]) != self.sample_shape or not x.is_floating_point():
            raise ShapeError(
                f"{type(self).__name__} takes floating-point samples of shape (n, "
                f"{', '.join(map(str, self.sample_shape))}); these are {tuple(x.shape)} {x.dtype}"
            )
        return x

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.configuration().items())
