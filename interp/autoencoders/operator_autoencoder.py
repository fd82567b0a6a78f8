"""Autoencoders of functions: concepts are convolution kernels of few modes, codes say where each is active."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.autoencoders.autoencoder import Autoencoder, AutoencoderLoss, Comparison
from interp.autoencoders.fourier_operator import FourierOperator, check_points, shift_cosines
from interp.autoencoders.input_scaling import InputScaling
from weightspace.errors import ShapeError, UnsupportedOperationError

Thresholds = Literal["learned", "proximal"]


class OperatorAutoencoder(Autoencoder):
    r"""Codes that are functions, for functions on the circle sampled at any resolution.

    $$z_c(t) = \mathrm{relu}\big((Ex)_c(t) - \theta_c\big), \qquad \hat x = Az = \sum_c a_c * z_c,$$

    with Fourier operators E and A of modes $|\xi| \le K$. Every norm and inner product is an integral over the circle,
    the mean over the points, so neither the loss nor the weights depend on the resolution: what was trained at 64
    points encodes at 256. Codes of functions with modes below K agree across resolutions at shared points;
    reconstructions do up to the aliasing of the relu, and so do codes that need it (refined, or with proximal
    thresholds and $\lambda_2 > 0$). The loss is
    $$E\Big[\|x - \hat x\|^2 + \lambda_1 \sum_c \|z_c\|_1 + \lambda_2 \sum_c \|z_c\|_2\Big];$$
    $\lambda_1$ says where a concept is active, $\lambda_2$ which concepts are. Atoms $a_c$ have norm 1, so that codes
    cannot shrink at the cost of the decoder.

    `unrolled` times the codes are refined by $z \leftarrow \sigma(z + \eta A^*(x - Az))$, $\eta = 1 / \|A\|^2$. With
    thresholds "learned", $\sigma$ is the relu with thresholds of its own in each refinement. With "proximal" it is
    everywhere the proximal map of $\eta / 2$ times the penalties on codes $\ge 0$ (soft thresholds, then a shrinkage
    of the norm of each $z_c$). Tied as well, which makes $E = \eta A^*$, that is the proximal gradient method: every
    refinement lowers the loss of every sample, and few of them leave codes too small. Tied with learned thresholds,
    $E = \mathrm{diag}(g) A^*$ with g learned.

    Args:
        channels: of the functions.
        concepts: how many kernels.
        modes: K; kernels are smooth where it is small, arbitrary at K = points / 2.
        concept_sparsity: $\lambda_2$.
        domain_sparsity: $\lambda_1$.
        unrolled, thresholds, tied: see above.
        scaling: see `InputScaling`, with one center per channel; not "unit_norm".
    Raises:
        ShapeError: a size, a penalty or a scaling that makes no sense.
    Source: Tolooshams, Shen, Anandkumar (arXiv:2509.03738), reconstructed from the abstracts of its versions; details
        may differ from the authors' code, which was not public.

    Examples:
        >>> import interp, torch
        >>> autoencoder = interp.OperatorAutoencoder(1, 16, modes=8)
        >>> [tuple(autoencoder(torch.randn(4, 1, points)).shape) for points in (64, 256)]
        [(4, 1, 64), (4, 1, 256)]
    """

    def __init__(
        self,
        channels: int,
        concepts: int,
        *,
        modes: int,
        concept_sparsity: float = 0.0,
        domain_sparsity: float = 0.05,
        unrolled: int = 0,
        thresholds: Thresholds = "learned",
        tied: bool = False,
        scaling: str = "none",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if (
            min(channels, concepts) < 1
            or min(modes, unrolled) < 0
            or min(concept_sparsity, domain_sparsity) < 0
        ):
            raise ShapeError(
                "an operator autoencoder needs at least one channel and one concept, and modes, unrolled, "
                f"concept_sparsity and domain_sparsity of 0 or more; got {channels}, {concepts}, {modes}, {unrolled}, "
                f"{concept_sparsity} and {domain_sparsity}"
            )
        if thresholds not in ("learned", "proximal"):
            raise ShapeError(f"thresholds are 'learned' or 'proximal'; got {thresholds!r}")
        if scaling == "unit_norm":
            raise ShapeError(
                "the scaling 'unit_norm' depends on the number of points; 'root_norm' is the norm of functions"
            )
        options = {"dtype": dtype, "device": device}
        self.sample_shape = (channels, -1)  # any number of points
        self.channels, self.latents, self.modes = channels, concepts, modes
        self.concept_sparsity, self.domain_sparsity = concept_sparsity, domain_sparsity
        self.unrolled, self.thresholds, self.tied = unrolled, thresholds, tied
        self.scaling = InputScaling(scaling, (channels, 1), **options)
        self.decoder = FourierOperator(concepts, channels, modes, generator=generator, **options)
        self.encoder = None if tied else FourierOperator(channels, concepts, modes, **options)
        learned = thresholds == "learned"
        self.gain = nn.Parameter(torch.ones(concepts, **options)) if tied and learned else None
        self.threshold = nn.Parameter(torch.zeros(1 + unrolled, concepts, **options)) if learned else None
        with torch.no_grad():
            self._normalize_decoder()
            if self.encoder is not None:
                signs = torch.ones(2 * modes + 1, **options)
                signs[modes + 1 :] = -1  # the adjoint has reflected kernels
                size = 1.0 if learned else self.decoder.norm() ** -2
                self.encoder.weight.copy_(self.decoder.weight.transpose(0, 1) * signs * size)

    # ---- codes and reconstructions -----------------------------------------------------------------------

    def encode_scaled(self, x: Tensor) -> Tensor:
        """Codes of scaled functions: (n, channels, points) -> (n, concepts, points)."""
        step = self.decoder.norm() ** -2 if self.threshold is None or self.unrolled else x.new_ones(())
        if self.encoder is not None:
            response = self.encoder(x)
        else:
            gain = step if self.gain is None else self.gain[:, None]
            response = gain * self.decoder.adjoint(x)
        codes = self._shrink(response, 0, step)
        for refinement in range(1, self.unrolled + 1):
            residual = x - self.decoder(codes)
            codes = self._shrink(codes + step * self.decoder.adjoint(residual), refinement, step)
        return codes

    def decode_scaled(self, codes: Tensor) -> Tensor:
        """Scaled functions from codes: (n, concepts, points) -> (n, channels, points).

        Raises:
            ShapeError: codes of another number of concepts, or of points that do not resolve the modes.
        """
        if codes.ndim != 3 or codes.shape[1] != self.latents:
            raise ShapeError(
                f"codes have the shape (n, {self.latents} concepts, points); these are {tuple(codes.shape)}"
            )
        return self.decoder(codes)

    def kernels(self, points: int) -> Tensor:
        """Decoder atoms on a grid, of unit mean square, (concepts, channels, points).

        Raises:
            ShapeError: the points do not resolve the modes.
        """
        return self.decoder.kernels(points).transpose(0, 1)

    def _shrink(self, response: Tensor, refinement: int, step: Tensor) -> Tensor:
        if self.threshold is not None:
            return torch.relu(response - self.threshold[refinement][:, None])
        codes = torch.relu(response - step / 2 * self.domain_sparsity)
        norms = _norms(codes)
        kept = 1 - step / 2 * self.concept_sparsity / norms.clamp(min=torch.finfo(codes.dtype).tiny)
        return codes * torch.relu(kept)[..., None]

    # ---- training ----------------------------------------------------------------------------------------

    def penalties(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        r"""$\lambda_1 \sum_c \|z_c\|_1$ and $\lambda_2 \sum_c \|z_c\|_2$ of every sample, (n,) each."""
        where = codes.abs().mean(-1).sum(1)
        return self.domain_sparsity * where, self.concept_sparsity * _norms(codes).sum(1)

    def loss(self, x: Tensor, target: Tensor | None = None, *, progress: float = 1.0) -> AutoencoderLoss:
        """Loss of functions (n, channels, points); `l0` is the mean number of concepts active at a point.

        Raises:
            UnsupportedOperationError: a target that is not x.
        """
        _refuse(target)
        scaled, _ = self.scaling.apply(self.checked(x))
        points = x.shape[-1]
        codes = self.encode_scaled(scaled)
        error = (scaled - self.decoder(codes)).square().sum() / points
        domain, concept = (penalty.mean() for penalty in self.penalties(codes))
        reconstruction = error / len(x)
        with torch.no_grad():
            variance = (scaled - scaled.mean(0)).square().sum() / points
            l0 = (codes > 0).sum() / (len(x) * points)
        parts = {"reconstruction": reconstruction, "domain_sparsity": domain, "concept_sparsity": concept}
        return AutoencoderLoss(
            reconstruction + domain + concept,
            {name: part.detach() for name, part in parts.items()},
            error.detach(),
            variance,
            l0,
        )

    def compare(self, x: Tensor, target: Tensor | None = None) -> Comparison:
        """Compare reconstructions with functions in the inner product of functions, the mean over points.

        Raises:
            UnsupportedOperationError: a target that is not x.
        """
        _refuse(target)
        comparison, points = super().compare(x), x.shape[-1]
        return replace(
            comparison,
            error=comparison.error / points,
            target=comparison.target / points,
            cross=comparison.cross / points,
            reconstruction=comparison.reconstruction / points,
            target_sum=comparison.target_sum / math.sqrt(points),
        )

    @torch.no_grad()
    def prepare(self, sample: Tensor, target: Tensor | None = None) -> None:
        """Fit the scaling, and the gain of the encoder such that the first reconstructions have the right size."""
        _refuse(target)
        super().prepare(self.checked(sample))
        scale = self.gain if self.encoder is None else self.encoder.weight
        if scale is None or self.threshold is None or self.unrolled:  # steps of known length find the size
            return
        scaled, _ = self.scaling.apply(sample)
        reconstruction = self.decoder(self.encode_scaled(scaled))
        energy = reconstruction.square().sum()
        best = (scaled * reconstruction).sum() / energy
        if bool(best > 0):  # not where no code is active
            scale.mul_(best)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Take from the gradient what would change the norms of the atoms."""
        weight, gradient = self.decoder.weight, self.decoder.weight.grad
        if gradient is not None:
            radial = (gradient * weight).sum((0, 2), keepdim=True)
            gradient.sub_(radial * weight)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale the atoms back to norm 1."""
        self._normalize_decoder()

    def _normalize_decoder(self) -> None:
        weight = self.decoder.weight
        norms = weight.square().sum((0, 2), keepdim=True).sqrt()
        weight.div_(norms.clamp(min=torch.finfo(weight.dtype).tiny))

    # ---- the rest ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def decoder_cosines(self, rows: slice = slice(None), other: Autoencoder | None = None) -> Tensor:
        """Largest cosines of atoms under circular shifts, (rows, concepts); shifts by 1/16 of the shortest wave.

        Raises:
            UnsupportedOperationError: `other` is no operator autoencoder.
            ShapeError: `other` has another number of channels.
        """
        other = self if other is None else other
        if not isinstance(other, OperatorAutoencoder):
            raise UnsupportedOperationError(
                f"atoms that are functions are not comparable with those of a {type(other).__name__}; compare two "
                "operator autoencoders"
            )
        if other.channels != self.channels:
            raise ShapeError(
                f"the functions have {self.channels} and {other.channels} channels; compare autoencoders of one layer"
            )
        points = 16 * max(self.modes, other.modes, 1)
        return shift_cosines(self.kernels(points)[rows], other.kernels(points))

    @torch.no_grad()
    def encoder_cosines(self, rows: slice = slice(None)) -> Tensor:
        """Largest cosines of encoder kernels under circular shifts, (rows, concepts)."""
        if self.encoder is None:
            return self.decoder_cosines(rows)
        kernels = self.encoder.kernels(16 * max(self.modes, 1))
        return shift_cosines(kernels[rows], kernels)

    def checked(self, x: Tensor) -> Tensor:
        """Return x if it holds functions of the right channels, at any number of points that resolves the modes.

        Raises:
            ShapeError: it does not.
        """
        if x.ndim != 3 or x.shape[1] != self.channels or not x.is_floating_point():
            raise ShapeError(
                f"OperatorAutoencoder takes floating-point functions of shape (n, {self.channels} channels, points); "
                f"these are {tuple(x.shape)} {x.dtype}"
            )
        check_points(x.shape[-1], self.modes)
        return x

    def configuration(self) -> dict[str, Any]:
        """The arguments of the constructor but dtype, device and generator, as JSON data."""
        return {
            "channels": self.channels,
            "concepts": self.latents,
            "modes": self.modes,
            "concept_sparsity": self.concept_sparsity,
            "domain_sparsity": self.domain_sparsity,
            "unrolled": self.unrolled,
            "thresholds": self.thresholds,
            "tied": self.tied,
            "scaling": self.scaling.kind,
        }


def _norms(codes: Tensor) -> Tensor:
    return torch.linalg.vector_norm(codes, dim=-1) / math.sqrt(codes.shape[-1])


def _refuse(target: Tensor | None) -> None:
    if target is not None:
        raise UnsupportedOperationError(
            "an OperatorAutoencoder reconstructs its input and has no other target; train it without targets"
        )
