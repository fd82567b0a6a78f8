"""What makes codes of pre-activations: the abstract classes of the sparsity rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.autoencoders.sparse_codes import Pattern, encode

if TYPE_CHECKING:
    from interp.autoencoders.sparse_autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class LatentActivation(ABC):
    r"""Codes f from pre-activations $h = p W_{enc} + b_{enc}$ of a `SparseAutoencoder`.

    A rule that keeps a known number of latents is a `SelectingActivation`, which trains through sparse codes; any other
    is a `DenseActivation`, whose gradients are autograd's.
    """

    def parameters(self, latents: int) -> dict[str, Tensor]:
        """Initial values of what is trained besides weights and biases, by name, each (latents,)."""
        return {}

    def buffers(self) -> dict[str, Tensor]:
        """Initial values of what is kept besides, by name."""
        return {}

    @abstractmethod
    def infer(self, x: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        """Codes (n, latents) of centered samples x (n, d) once training is over."""

    def describe(self) -> dict[str, Any]:
        """The rule as JSON data, from which a `SparseAutoencoder` makes it again."""
        return {"rule": type(self).__name__, **asdict(self)}


class DenseActivation(LatentActivation):
    """A rule that looks at every pre-activation on its own."""

    @abstractmethod
    def codes(self, h: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        """Codes (n, latents) of pre-activations h (n, latents)."""

    @abstractmethod
    def penalties(
        self, h: Tensor, codes: Tensor, residual: Tensor, autoencoder: SparseAutoencoder
    ) -> Mapping[str, Tensor]:
        """What the rule adds to the loss, by name, each a mean over samples; `residual`: targets without the bias."""

    def infer(self, x: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        return self.codes(autoencoder.preactivations(x), autoencoder)


class SelectingActivation(LatentActivation):
    """A rule that keeps some of the largest positive pre-activations."""

    @abstractmethod
    def select(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Pattern]:
        """Values and pattern of the codes of centered samples x (n, d), without derivatives."""

    def infer(self, x: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        weight, bias = autoencoder.encoder_weight, autoencoder.encoder_bias
        selected = self.select(x.detach(), weight.detach(), bias.detach())
        return selected[1].dense(encode(x, None, weight, bias, selected))

    def observe(self, values: Tensor, autoencoder: SparseAutoencoder) -> None:
        """See the positive values of a training step, to keep a running threshold."""


def require(condition: bool, message: str) -> None:
    """Refuse an argument.

    Raises:
        ShapeError: the condition does not hold.
    """
    from weightspace.errors import ShapeError

    if not condition:
        raise ShapeError(message)
