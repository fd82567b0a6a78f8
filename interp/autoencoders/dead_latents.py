"""What becomes of latents that have not fired for long."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from interp.autoencoders.latent_activation import require


@dataclass(frozen=True)
class AuxiliaryLoss:
    r"""Let dead latents explain what the others leave: $\alpha |e - \hat e|^2 / |e - \bar e|^2$.

    $\hat e$ is decoded, without the bias, from the $\min(d/2, \#dead)$ largest dead latents of a sample; e is detached.

    Args:
        coefficient: $\alpha$.
        silent: a latent is dead that has not fired for so many samples.
    Source: Gao et al., Scaling and evaluating sparse autoencoders (2024), appendix A.2.
    """

    coefficient: float = 1 / 32
    silent: int = 10_000_000

    def __post_init__(self):
        require(self.coefficient >= 0, f"AuxiliaryLoss needs a coefficient >= 0; it is {self.coefficient}")
        require(self.silent >= 1, f"AuxiliaryLoss needs silent >= 1 samples; it is {self.silent}")

    def describe(self) -> dict[str, Any]:
        return {"rule": "AuxiliaryLoss", **asdict(self)}


@dataclass(frozen=True)
class Resampling:
    """Every so many steps, point dead latents at samples that are explained badly.

    Samples are drawn with probabilities proportional to the square of their squared error; the decoder feature becomes
    the sample's direction, the encoder the same direction with a fraction of the mean norm of the living, the bias
    and the activation's own parameters what they were at the start, and the optimizer forgets the latent.

    Args:
        every: steps.
        silent: a latent is dead that has not fired for so many samples.
        scale: of the new encoder, as a share of the mean norm of the living encoders.
    Source: Bricken et al., Towards monosemanticity (2023), appendix: neuron resampling.
    """

    every: int = 2500
    silent: int = 1_000_000
    scale: float = 0.2

    def __post_init__(self):
        require(self.every >= 1, f"Resampling needs every >= 1 step; it is {self.every}")
        require(self.silent >= 1, f"Resampling needs silent >= 1 samples; it is {self.silent}")
        require(self.scale > 0, f"Resampling needs a positive scale; it is {self.scale}")

    def describe(self) -> dict[str, Any]:
        return {"rule": "Resampling", **asdict(self)}
