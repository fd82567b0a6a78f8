"""Weights of a sparse autoencoder in the units of the data, and the changes of them that leave its map alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.autoencoders.batch_top_k import BatchTopK
from interp.autoencoders.jump_relu import JumpReLU
from interp.autoencoders.latent_activation import LatentActivation
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder


@dataclass(frozen=True, eq=False)
class AffineForm:
    r"""$h = (x - [b_{dec}]) W_{enc} + b_{enc}$ and $\hat x = f W_{dec} + b_{dec} + W_{skip} x$, with any codes f(h).

    A map has many such forms, and every layout prescribes one: whether the decoder bias is subtracted, what samples are
    scaled by. Products with matrices are formed in float64, so that a fold costs one rounding.

    Attributes:
        encoder, decoder: (latents, d) and (latents, d_out): features in rows.
        encoder_bias, decoder_bias: (latents,), that of the gate where there is one, and (d_out,).
        subtracts: whether the decoder bias is subtracted before encoding.
        skip: (d_out, d), or None.
        threshold: of a JumpReLU, (latents,), or of a BatchTopK, ().
        gate_scale, magnitude_bias: r and $b_{mag}$ of a gated autoencoder, (latents,).
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    subtracts: bool = True
    skip: Tensor | None = None
    threshold: Tensor | None = None
    gate_scale: Tensor | None = None
    magnitude_bias: Tensor | None = None

    @classmethod
    def of(cls, autoencoder: SparseAutoencoder) -> AffineForm:
        """The form of an autoencoder; scalings that are the same for all samples are folded into the weights.

        Others ("unit_norm", ...) are left, so that x is then a scaled sample. Codes stay as they are.
        """
        tensors = {name: value.detach().cpu() for name, value in autoencoder.state_dict().items()}
        threshold = tensors.get("threshold")
        if "log_threshold" in tensors:
            threshold = tensors["log_threshold"].exp()
        form = cls(
            tensors["encoder_weight"],
            tensors["encoder_bias"],
            tensors["decoder_weight"],
            tensors["decoder_bias"],
            autoencoder.subtract_decoder_bias,
            tensors.get("skip_weight"),
            threshold,
            tensors.get("gate_scale"),
            tensors.get("magnitude_bias"),
        )
        if autoencoder.scaling.kind not in ("mean", "standard"):
            return form
        center, scale = (tensors[f"scaling.{name}"] for name in ("center", "scale"))
        out_center, out_scale = (tensors[f"output_scaling.{name}"] for name in ("center", "scale"))
        if autoencoder.transcoder or not form.subtracts:
            form = form.subtracting(False)._moved(-center / scale)
        bias = form.decoder_bias.double() * out_scale + out_center
        skip = None
        if form.skip is not None:
            skip = form.skip.double() * out_scale / scale
            bias = bias - skip @ center.double()
            skip = skip.to(form.skip.dtype)
        return replace(
            form,
            encoder=form.encoder / scale,
            decoder=form.decoder * out_scale,
            decoder_bias=bias.to(form.decoder_bias.dtype),
            skip=skip,
        )

    def to_autoencoder(
        self,
        activation: LatentActivation,
        *,
        matryoshka: Sequence[int] = (),
        transcoder: bool = False,
        scaling: str = "none",
    ) -> SparseAutoencoder:
        """The autoencoder with these weights and codes.

        The decoder is kept normalized in later training if it is normalized now. A JumpReLU holds the logarithm of
        its thresholds, whose exponentials lie above the thresholds by at most some units of rounding.
        """
        autoencoder = SparseAutoencoder(
            self.encoder.shape[1],
            len(self.encoder),
            activation,
            matryoshka=matryoshka,
            output_features=self.decoder.shape[1] if transcoder else None,
            skip=self.skip is not None,
            normalize_decoder=self._is_normalized(),
            subtract_decoder_bias=self.subtracts,
            scaling=scaling,
            dtype=self.encoder.dtype,
        )
        parts = {
            "encoder_weight": self.encoder,
            "encoder_bias": self.encoder_bias,
            "decoder_weight": self.decoder,
            "decoder_bias": self.decoder_bias,
            "skip_weight": self.skip,
            "gate_scale": self.gate_scale,
            "magnitude_bias": self.magnitude_bias,
        }
        stored = {name: value.to(self.encoder.dtype) for name, value in parts.items() if value is not None}
        if isinstance(activation, JumpReLU):
            assert self.threshold is not None
            stored["log_threshold"] = _logarithm(self.threshold)
        elif isinstance(activation, BatchTopK):
            assert self.threshold is not None
            dtype = torch.promote_types(self.encoder.dtype, torch.float32)
            autoencoder.register_buffer("threshold", self.threshold.to(dtype))
        for name, value in stored.items():  # not in the map of a file, nor in memory that two of them share
            autoencoder.get_parameter(name).data = value.clone(memory_format=torch.contiguous_format)
        return autoencoder

    def subtracting(self, subtracts: bool) -> AffineForm:
        """The form of the same map in which the decoder bias is, or is not, subtracted before encoding."""
        if subtracts == self.subtracts:
            return self
        moved = self._moved(self.decoder_bias if subtracts else -self.decoder_bias)
        return replace(moved, subtracts=subtracts)

    def rescaled(self, scale: float) -> AffineForm:
        r"""The form whose map is $x \mapsto g(s x) / s$, g that of this form; codes are those of s x."""
        return replace(
            self,
            encoder=self.encoder * scale,
            decoder=self.decoder / scale,
            decoder_bias=self.decoder_bias / scale,
        )

    def in_units(self, unit: float) -> AffineForm:
        r"""The form whose map is $x \mapsto u\,g(x / u)$; codes are u times those of x / u, features the same."""

        def scaled(value: Tensor | None) -> Tensor | None:
            return None if value is None else value * unit

        return replace(
            self,
            encoder_bias=self.encoder_bias * unit,
            decoder_bias=self.decoder_bias * unit,
            threshold=scaled(self.threshold),
            magnitude_bias=scaled(self.magnitude_bias),
        )

    def with_unit_features(self) -> AffineForm:
        """Features of norm 1, codes times their norms: the same map unless codes are selected by comparing them.

        A zero feature stays as it is.
        """
        norms = torch.linalg.vector_norm(self.decoder, dim=1)
        norms = torch.where(norms > 0, norms, 1.0)

        def folded(value: Tensor | None) -> Tensor | None:
            return None if value is None else value * norms

        return replace(
            self,
            encoder=self.encoder * norms[:, None],
            encoder_bias=self.encoder_bias * norms,
            decoder=self.decoder / norms[:, None],
            threshold=folded(self.threshold),
            magnitude_bias=folded(self.magnitude_bias),
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> AffineForm:
        """Every tensor changed, its dtype say."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})

    def _moved(self, shift: Tensor) -> AffineForm:
        """The form that does to x what this one does to x + shift, in its codes."""
        moved = self.encoder.double() @ shift.double()
        dtype = self.encoder_bias.dtype
        magnitude = self.magnitude_bias
        if magnitude is not None:
            assert self.gate_scale is not None
            magnitude = (magnitude.double() + self.gate_scale.double().exp() * moved).to(dtype)
        bias = (self.encoder_bias.double() + moved).to(dtype)
        return replace(self, encoder_bias=bias, magnitude_bias=magnitude)

    def _is_normalized(self) -> bool:
        norms = torch.linalg.vector_norm(self.decoder.float(), dim=1)
        tolerance = max(1e-4, 4 * torch.finfo(self.decoder.dtype).eps)
        return bool((norms - 1).abs().max() <= tolerance)


def _logarithm(threshold: Tensor) -> Tensor:
    """Numbers whose exponentials, as they are rounded here, are the least that are no less than the thresholds.

    A code at its threshold is then cut, as it would be by the threshold itself, and of thresholds that are exponentials
    the logarithm is found again. In float32 at least: logarithms in bfloat16 would move thresholds by percents. A
    threshold at or below 0 cuts nothing that a ReLU leaves; so does the smallest positive number.
    """
    threshold = threshold.to(torch.promote_types(threshold.dtype, torch.float32))
    info = torch.finfo(threshold.dtype)
    threshold = threshold.clamp_min(info.tiny)
    best = threshold.double().log().to(threshold.dtype)
    tried = [best, best + info.eps, best + 2 * info.eps]
    for direction in (-torch.inf, torch.inf):
        neighbor = best
        for _ in range(4):
            neighbor = torch.nextafter(neighbor, torch.full_like(neighbor, direction))
            tried.append(neighbor)
    candidates = torch.stack(tried)
    excess = candidates.exp() - threshold
    nearest = torch.where(excess >= 0, excess, torch.inf).argmin(0, keepdim=True)
    return candidates.gather(0, nearest)[0]
