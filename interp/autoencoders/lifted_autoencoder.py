"""Sparse autoencoders that encode and decode in a lifted space, which preconditions their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from interp.autoencoders.autoencoder import Autoencoder, AutoencoderLoss
from interp.autoencoders.dead_latents import AuxiliaryLoss
from interp.autoencoders.input_scaling import InputScaling
from interp.autoencoders.latent_activation import LatentActivation
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.autoencoders.top_k import TopK
from weightspace.errors import ShapeError, UnsupportedOperationError

LIFTS = ("isometry", "whitening", "given")


class LiftedAutoencoder(Autoencoder):
    r"""$y = Lx$, codes f of $W y + b$, and $\hat x = P D f + b_{dec}$ with $P = L^+$; the lift L (D, d) is fixed.

    As a function it is the sparse autoencoder with weights $W L$ and $P D$ (`fold` returns that), but gradient steps
    on W and D move these effective weights by $\nabla_{WL}\, L^\top L$ and $P P^\top \nabla_{PD}$: the lift is a
    preconditioner. Where $L^\top L = 1$ and $P = L^\top$, a step of SGD is that of the plain autoencoder; one of Adam
    is not. As there, the bias $b_{dec}$ is subtracted from x.

    Args:
        d: entries of a sample.
        latents: how many features.
        activation, matryoshka, normalize_decoder, scaling: see `SparseAutoencoder`; the features of norm 1 are those of
            $P D$.
        lifted: D >= d; default d, or what a given lift has.
        lift: "isometry": random orthonormal columns. "whitening": that after $C^{-1/2}$ with the covariance C of the
            sample that `prepare` gets, times a number such that $E|L(x - \bar x)|^2 = E|x - \bar x|^2$ and
            $\mathrm{tr}\, P P^\top = d$; an isometry until then. A Tensor (D, d) of rank d. "given": what the
            checkpoint loaded next has.
        dead: `AuxiliaryLoss` or None.
        generator: on the CPU, draws the features and the isometry; None is a new one with seed 0.
    Raises:
        ShapeError: D < d, a lift that is not (D, d) of rank d, or sizes that do not fit each other.
        UnsupportedOperationError: latents that died are to be resampled.
    Source: Tolooshams, Shen, Anandkumar (arXiv:2509.03738), reconstructed from the abstracts of its versions; details
        may differ from the authors' code, which was not public.

    Examples:
        >>> import interp, torch
        >>> autoencoder = interp.LiftedAutoencoder(8, 32, interp.TopK(4), lifted=16)
        >>> x = torch.randn(10, 8)
        >>> torch.allclose(autoencoder.fold()(x), autoencoder(x), atol=1e-4)
        True
    """

    def __init__(
        self,
        d: int,
        latents: int,
        activation: LatentActivation | Mapping[str, Any] = TopK(32),  # noqa: B008  # frozen
        *,
        lifted: int | None = None,
        lift: Tensor | str = "isometry",
        matryoshka: Sequence[int] = (),
        normalize_decoder: bool = True,
        dead: AuxiliaryLoss | Mapping[str, Any] | None = AuxiliaryLoss(),  # noqa: B008
        scaling: str = "none",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        place: Any = {"dtype": dtype or torch.get_default_dtype(), "device": device}
        self.sample_shape, self.latents = (d,), latents
        self.scaling = InputScaling(scaling, (d,), **place)
        self.folded = SparseAutoencoder(
            d,
            latents,
            activation,
            matryoshka=matryoshka,
            normalize_decoder=normalize_decoder,
            dead=dead,
            generator=generator,
            **place,
        )
        if not isinstance(self.folded.dead, AuxiliaryLoss | None):
            raise UnsupportedOperationError(
                f"a LiftedAutoencoder does not replace latents that died, {self.folded.dead} asks for it; "
                "give dead=AuxiliaryLoss() or None"
            )
        given = isinstance(lift, Tensor)
        self.lift_kind = "given" if given else lift
        rows = (len(lift) if given and lift.ndim == 2 else d) if lifted is None else lifted
        if self.lift_kind not in LIFTS:
            raise ShapeError(f"the lift is {lift!r}; it is a Tensor or one of {', '.join(LIFTS)}")
        if rows < d:
            raise ShapeError(f"a lift goes to {d} entries or more; lifted={rows} loses some")
        draw = torch.linalg.qr(torch.randn(rows, d, generator=generator, dtype=torch.float64))[0]
        matrix = lift.detach().double() if given else draw
        fits = matrix.shape == (rows, d) and bool(matrix.isfinite().all())
        rank = int(torch.linalg.matrix_rank(matrix)) if fits else None
        if rank != d:
            raise ShapeError(
                f"the lift must be a finite ({rows}, {d}) matrix of rank {d}; it is {tuple(matrix.shape)}"
                + (f" of rank {rank}" if fits else "")
            )
        maps = {"encoder_weight": matrix, "decoder_weight": torch.linalg.pinv(matrix).mT}
        for name, right in maps.items():
            parametrize.register_parametrization(self.folded, name, _RightMultiply(right.to(**place)))

    @property
    def lift(self) -> Tensor:
        """L, (D, d)."""
        return self._map("encoder_weight").matrix

    @property
    def encoder_weight(self) -> Tensor:
        """The effective encoder $W L$, (latents, d)."""
        return self.folded.encoder_weight

    @property
    def decoder_weight(self) -> Tensor:
        r"""The effective decoder $(P D)^\top$, (latents, d): features in rows."""
        return self.folded.decoder_weight

    @property
    def silent_for(self) -> Tensor:
        """Samples since a latent fired in training, (latents,)."""
        return self.folded.silent_for

    def lifted_weight(self, name: str) -> nn.Parameter:
        r"""What is trained: W for "encoder_weight", $D^\top$ for "decoder_weight", (latents, D)."""
        return self.folded.parametrizations[name].original  # type: ignore[union-attr, index]

    def encode_scaled(self, x: Tensor) -> Tensor:
        """Codes of scaled samples: (n, d) -> (n, latents)."""
        return self.folded.encode_scaled(x)

    def decode_scaled(self, codes: Tensor) -> Tensor:
        """Scaled samples from codes: (n, latents) -> (n, d)."""
        return self.folded.decode_scaled(codes)

    def loss(self, x: Tensor, target: Tensor | None = None, *, progress: float = 1.0) -> AutoencoderLoss:
        """The loss of the effective autoencoder, for samples (n, d)."""
        return self.folded.loss(self.scaling.apply(self.checked(x))[0], target, progress=progress)

    def make_optimizer(self, learning_rate: float | None = None) -> torch.optim.Optimizer:
        """That of a `SparseAutoencoder`."""
        return self.folded.make_optimizer(learning_rate)

    @torch.no_grad()
    def prepare(self, sample: Tensor, target: Tensor | None = None) -> None:
        """Start as a `SparseAutoencoder` does; a whitening lift is made from the sample, features stay.

        Raises:
            ShapeError: too few samples, or entries without variance, to whiten by.
        """
        self.scaling.fit(self.checked(sample))
        scaled = self.scaling.apply(sample)[0]
        self.folded.prepare(scaled, target)
        if self.lift_kind == "whitening":
            self._set_lift(_whitening(scaled))

    def _set_lift(self, whitening: Tensor) -> None:
        effective = {name: getattr(self.folded, name) for name in ("encoder_weight", "decoder_weight")}
        isometry = torch.linalg.qr(self.lift.double())[0]
        matrix = isometry @ whitening.to(isometry)
        for name, right in (("encoder_weight", matrix), ("decoder_weight", torch.linalg.pinv(matrix).mT)):
            self._map(name).matrix.copy_(right)
            setattr(self.folded, name, effective[name])

    @torch.no_grad()
    def after_backward(self) -> None:
        """Take from the gradient what would change the norms of the effective features."""
        weight = self.lifted_weight("decoder_weight")
        if self.folded.normalize_decoder and weight.grad is not None:
            normal = self.decoder_weight @ self._map("decoder_weight").matrix.mT
            along = (weight.grad * normal).sum(1, keepdim=True) / normal.square().sum(1, keepdim=True)
            weight.grad.addcmul_(along, normal, value=-1)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale the effective features back to norm 1, and count for how long latents are silent."""
        self.folded.after_step(optimizer)
        if self.folded.normalize_decoder:
            norms = torch.linalg.vector_norm(self.decoder_weight, dim=1, keepdim=True)
            self.lifted_weight("decoder_weight").div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))

    def fold(self) -> SparseAutoencoder:
        """The plain sparse autoencoder with the effective weights: the same function, writable in every format."""
        weight = self.decoder_weight
        plain = SparseAutoencoder(
            **{**self.folded.configuration(), "scaling": self.scaling.kind},
            dtype=weight.dtype,
            device=weight.device,
        )
        state = {
            name: value for name, value in self.folded.state_dict().items() if "parametrizations" not in name
        }
        state |= {name: getattr(self.folded, name) for name in ("encoder_weight", "decoder_weight")}
        plain.load_state_dict({name: value.detach().clone() for name, value in state.items()}, assign=True)
        plain.scaling.load_state_dict(self.scaling.state_dict())
        return plain

    def decoder_cosines(self, rows: slice = slice(None), other: Autoencoder | None = None) -> Tensor:
        """Cosines of effective decoder features, with those of another lifted or sparse autoencoder."""
        return self.folded.decoder_cosines(
            rows, other.folded if isinstance(other, LiftedAutoencoder) else other
        )

    def encoder_cosines(self, rows: slice = slice(None)) -> Tensor:
        """Cosines of effective encoder features."""
        return self.folded.encoder_cosines(rows)

    def configuration(self) -> dict[str, Any]:
        """The arguments of the constructor as JSON data; a given lift is part of the weights."""
        plain = self.folded.configuration()
        shared = ("d", "latents", "activation", "matryoshka", "normalize_decoder", "dead")
        return {
            **{name: plain[name] for name in shared},
            "lifted": len(self.lift),
            "lift": self.lift_kind,
            "scaling": self.scaling.kind,
        }

    def _map(self, name: str) -> _RightMultiply:
        return self.folded.parametrizations[name][0]  # type: ignore[union-attr, index, return-value]


class _RightMultiply(nn.Module):
    """Weights W (m, D) that act as W M (m, d)."""

    matrix: Tensor

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, weight: Tensor) -> Tensor:
        return weight @ self.matrix

    def right_inverse(self, effective: Tensor) -> Tensor:
        return effective @ torch.linalg.pinv(self.matrix.double()).to(effective)


def _whitening(sample: Tensor) -> Tensor:
    r"""$C^{-1/2}$ times a number such that samples keep their mean square."""
    centered = sample.double() - sample.double().mean(0)
    values, vectors = torch.linalg.eigh(centered.mT @ centered / max(len(sample), 1))
    floor = 1e-8 * values[-1]
    if not bool(values[0] > floor):
        raise ShapeError(
            f"the covariance of the {len(sample)} samples has {int((values <= floor).sum())} directions of no "
            "variance: give more samples, or a lift of your own"
        )
    return (vectors * (values.mean() / values).sqrt()) @ vectors.mT
