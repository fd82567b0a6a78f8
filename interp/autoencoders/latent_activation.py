"""What makes codes of pre-activations: the abstract class of the sparsity rules."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from interp.autoencoders.sparse_codes import Pattern, encode

if TYPE_CHECKING:
    from interp.autoencoders.sparse_autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class LatentActivation(ABC):
    r"""Codes f from pre-activations $h = p W_{enc} + b_{enc}$ of a `SparseAutoencoder`.

    A rule that keeps a known number of latents (`selects`) names them by `select`, and training goes through sparse
    codes; any other computes `codes` densely, and its gradients are autograd's.
    """

    selects: ClassVar[bool] = False

    def parameters(self, latents: int) -> dict[str, Tensor]:
        """Initial values of what is trained besides weights and biases, by name, each (latents,)."""
        return {}

    def buffers(self) -> dict[str, Tensor]:
        """Initial values of what is kept besides, by name."""
        return {}

    def select(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Pattern]:
        """Values and pattern of the codes of centered samples x (n, d), without derivatives."""
        raise NotImplementedError(f"{type(self).__name__} computes dense codes")

    def codes(self, h: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        """Codes (n, latents) of pre-activations h (n, latents)."""
        raise NotImplementedError(f"{type(self).__name__} selects codes")

    def infer(self, x: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
        """Codes (n, latents) of centered samples x (n, d) once training is over."""
        if not self.selects:
            return self.codes(autoencoder.preactivations(x), autoencoder)
        weight, bias = autoencoder.encoder_weight, autoencoder.encoder_bias
        selected = self.select(x.detach(), weight.detach(), bias.detach())
        return selected[1].dense(encode(x, None, weight, bias, selected))

    def penalties(
        self, h: Tensor, codes: Tensor, residual: Tensor, autoencoder: SparseAutoencoder
    ) -> Mapping[str, Tensor]:
        """What dense codes add to the loss, by name, each a mean over samples; `residual`: targets without the bias."""
        return {}

    def observe(self, values: Tensor, autoencoder: SparseAutoencoder) -> None:  # noqa: B027
        """See the selected values of a training step, to keep a running threshold."""

    def describe(self) -> dict[str, Any]:
        """The rule as JSON data; `latent_activation` makes it again."""
        return {"rule": type(self).__name__, **asdict(self)}


def require(condition: bool, message: str) -> None:
    """Refuse an argument.

    Raises:
        ShapeError: the condition does not hold.
    """
    from weightspace.errors import ShapeError

    if not condition:
        raise ShapeError(message)
