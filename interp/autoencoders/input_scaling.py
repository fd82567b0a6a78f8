"""Centering and scaling of activations, fitted once and kept with the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightspace.errors import NonFiniteError, ShapeError

KINDS = ("none", "mean", "standard", "unit_norm", "root_norm", "layer_norm", "sae_lens_layer_norm")
EPSILON = 1e-5  # of SAE Lens


class InputScaling(nn.Module):
    r"""The map $x \mapsto (x - c) / s$ before an autoencoder and its inverse after it.

    Args:
        kind: what c and s are.
            "none": 0 and 1. "mean": the mean of the data and 1. "standard": the mean of the data, and one number s
            such that $E|x - c|^2 / s^2$ is the number of entries.
            Every sample has a scale of its own: "unit_norm", c = 0 and $s = |x|$; "root_norm", c = 0 and
            $s = |x| / \sqrt d$; "layer_norm", mean and standard deviation of the sample's entries.
            "sae_lens_layer_norm" is that of SAE Lens, for its checkpoints: the unbiased standard deviation s, samples
            divided by $s + 10^{-5}$, and multiplied by s on the way back, which undoes it up to $10^{-5} / s$.
        shape: of the center, broadcast against a sample: (d,), or (channels, 1) of functions.

    `center` and `scale` are buffers: training fits them, a checkpoint holds them.
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        kind: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        if kind not in KINDS:
            raise ShapeError(f"the scaling is {kind!r}; it is one of {', '.join(KINDS)}")
        self.kind = kind
        self.register_buffer("center", torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("scale", torch.ones((), dtype=dtype, device=device))

    @property
    def per_sample(self) -> bool:
        """Whether every sample has its own scale, so that codes alone cannot be decoded to the units of the data."""
        return self.kind in ("unit_norm", "root_norm", "layer_norm", "sae_lens_layer_norm")

    def apply(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the scaled samples and (center, scale), with which `invert` undoes it.

        Zero samples (constant ones for "layer_norm") stay zero: their scale is taken as 1.
        """
        center, scale = self.center, self.scale
        if self.kind == "none":
            return x, (center, scale)
        if self.per_sample:
            axes = tuple(range(1, x.ndim))
            entries = x[0].numel() if len(x) else 1
            centered = self.kind.endswith("layer_norm")
            center = x.mean(axes, keepdim=True) if centered else torch.zeros_like(self.center)
            norm = torch.linalg.vector_norm(x - center, dim=axes, keepdim=True)
            if self.kind == "sae_lens_layer_norm":
                scale = norm / max(entries - 1, 1) ** 0.5
                return (x - center) / (scale + EPSILON), (center, scale)
            norm = norm if self.kind == "unit_norm" else norm / entries**0.5
            scale = torch.where(norm > 0, norm, 1.0)
        return (x - center) / scale, (center, scale)

    def invert(self, x: Tensor, scale: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Undo `apply`; `scale` is what it returned, None for a scaling that is the same for all samples.

        Raises:
            ShapeError: every sample has its own scale and none is given.
        """
        if self.kind == "none":
            return x
        if scale is None and self.per_sample:
            raise ShapeError(
                f"the scaling {self.kind!r} is different for every sample, so codes alone do not say it; call the "
                "autoencoder on the samples, or decode_scaled for scaled ones"
            )
        center, factor = (self.center, self.scale) if scale is None else scale
        return x * factor + center

    @torch.no_grad()
    def fit(self, sample: Tensor) -> None:
        """Set center and scale from a sample (n, ...) of the data.

        Raises:
            NonFiniteError: the sample has NaN or infinite entries, or does not vary ("standard").
        """
        if self.kind in ("none",) or self.per_sample:
            return
        axes = tuple(axis for axis in range(sample.ndim) if axis == 0 or self.center.shape[axis - 1] == 1)
        center = sample.double().mean(axes, keepdim=True)[0]
        if not bool(center.isfinite().all()):
            raise NonFiniteError("the activations have NaN or infinite entries; remove those samples")
        self.center.copy_(center)
        if self.kind == "standard":
            entries = sample[0].numel()
            spread = (sample.double() - center).square().flatten(1).sum(1).mean() / entries
            if not 0 < float(spread) < float("inf"):
                raise NonFiniteError("the activations are all the same: there is nothing to scale by")
            self.scale.copy_(spread.sqrt())

    def extra_repr(self) -> str:
        return repr(self.kind)
