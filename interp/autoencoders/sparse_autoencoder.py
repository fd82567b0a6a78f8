"""Sparse autoencoders, transcoders and crosscoders: many linear features, few of which explain a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.autoencoders import sparse_codes
from interp.autoencoders.autoencoder import Autoencoder, AutoencoderLoss, Comparison
from interp.autoencoders.batch_top_k import BatchTopK
from interp.autoencoders.dead_latents import AuxiliaryLoss, Resampling
from interp.autoencoders.gated import Gated
from interp.autoencoders.group_max import GroupMax
from interp.autoencoders.input_scaling import InputScaling
from interp.autoencoders.jump_relu import JumpReLU
from interp.autoencoders.latent_activation import (
    DenseActivation,
    LatentActivation,
    SelectingActivation,
    require,
)
from interp.autoencoders.processes import copy_from_first, sum_over_processes
from interp.autoencoders.relu import ReLU
from interp.autoencoders.sparse_codes import Pattern
from interp.autoencoders.top_k import TopK

ACTIVATIONS = {rule.__name__: rule for rule in (ReLU, TopK, BatchTopK, GroupMax, JumpReLU, Gated)}
DEAD_LATENTS = {rule.__name__: rule for rule in (AuxiliaryLoss, Resampling)}


class SparseAutoencoder(Autoencoder):
    r"""$\hat x = f W_{dec} + b_{dec}$ with codes f of $h = (x - b_{dec}) W_{enc} + b_{enc}$.

    The loss is the mean over samples of $|x - \hat x|^2$, in scaled units; of nested dictionaries (`matryoshka`) the
    mean over the prefixes, each with $b_{dec}$; plus what the activation and the dead latents add.

    Args:
        d: entries of a sample.
        latents: m, how many features.
        activation: the sparsity rule: `TopK`, `BatchTopK`, `ReLU`, `JumpReLU`, `Gated`, or another `LatentActivation`.
        matryoshka: numbers of leading latents, ascending, that must explain samples on their own; all of them is added.
        output_features: a transcoder, whose targets have so many entries; nothing is subtracted from its inputs.
        skip: $\hat x$ of a transcoder gets $W_{skip}\,x$ on top.
        sites: a crosscoder: sizes of the layers or models whose activations stand side by side in a sample; the norm of
            a feature in the penalties is the sum of its norms at the sites.
        tied: $W_{enc} = W_{dec}^\top$.
        normalize_decoder: features have norm 1: gradients along them are projected out, and rows are rescaled.
        subtract_decoder_bias: whether codes are those of $x - b_{dec}$; None: unless it is a transcoder.
        dead: `AuxiliaryLoss`, `Resampling` or None.
        scaling: of the samples, see `InputScaling`; targets of a transcoder get one of the same kind.
        dtype, device: of the weights.
        generator: on the CPU, draws the features; None is a new one with seed 0.

    Attributes:
        encoder_weight, decoder_weight: $W_{enc}^\top$ (latents, d) and $W_{dec}$ (latents, d_out): features in rows.
        encoder_bias, decoder_bias: $b_{enc}$ (latents,) and $b_{dec}$ (d_out,).
        skip_weight: (d_out, d), or None.
        silent_for: samples since a latent fired in training, (latents,).
    Raises:
        ShapeError: the sizes do not fit each other.
    Source: Bricken et al., Towards monosemanticity (2023); Gao et al., Scaling and evaluating sparse autoencoders
        (2024); Bussmann et al., Learning multi-level features with Matryoshka sparse autoencoders (2025), whose losses
        differ among implementations (SAE Lens sums the prefixes); Dunefsky et al., Transcoders find interpretable LLM
        feature circuits (2024); Paulo et al., Transcoders beat sparse autoencoders for interpretability (2025), for the
        skip; Lindsey et al., Sparse crosscoders for cross-layer features and model diffing (2024).

    Examples:
        >>> import interp, torch
        >>> autoencoder = interp.SparseAutoencoder(8, 32, interp.TopK(4), matryoshka=(16,))
        >>> codes = autoencoder.encode(torch.randn(10, 8))
        >>> codes.shape, int((codes != 0).sum(1).max()) <= 4
        (torch.Size([10, 32]), True)
    """

    silent_for: Tensor
    encoder_bias: Tensor
    decoder_weight: Tensor
    decoder_bias: Tensor

    def __init__(
        self,
        d: int,
        latents: int,
        activation: LatentActivation | Mapping[str, Any] = TopK(32),  # noqa: B008  # frozen
        *,
        matryoshka: Sequence[int] = (),
        output_features: int | None = None,
        skip: bool = False,
        sites: Sequence[int] = (),
        tied: bool = False,
        normalize_decoder: bool = True,
        subtract_decoder_bias: bool | None = None,
        dead: AuxiliaryLoss | Resampling | Mapping[str, Any] | None = AuxiliaryLoss(),  # noqa: B008
        scaling: str = "none",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        require(
            d >= 1 and latents >= 1, f"an autoencoder needs d and latents >= 1; they are {d} and {latents}"
        )
        transcoder = output_features is not None
        outputs = d if output_features is None else output_features
        self.activation = _made(activation, ACTIVATIONS)
        require(
            isinstance(self.activation, LatentActivation),
            f"the activation is a LatentActivation such as TopK(32); it is {self.activation!r}",
        )
        matryoshka = [int(width) for width in matryoshka]
        self.dead = None if dead is None else _made(dead, DEAD_LATENTS)
        k = getattr(self.activation, "k", 1)
        require(k <= latents, f"{self.activation} keeps more than the {latents} latents there are")
        prefixes = (
            tuple(matryoshka) if not matryoshka or matryoshka[-1] == latents else (*matryoshka, latents)
        )
        require(
            all(a < b for a, b in zip((0, *prefixes), prefixes, strict=False))
            and prefixes[-1:] in ((), (latents,)),
            f"matryoshka needs ascending numbers of latents, at most {latents}; it is {tuple(matryoshka)}",
        )
        require(transcoder or not skip, "only a transcoder has a skip: name output_features")
        require(
            not tied or outputs == d,
            f"tied weights need as many outputs as inputs; they are {outputs} and {d}",
        )
        require(
            not sites or sum(sites) == outputs, f"the sites {tuple(sites)} must add up to {outputs} entries"
        )
        subtract = not transcoder if subtract_decoder_bias is None else subtract_decoder_bias
        require(
            not transcoder or scaling in ("none", "mean", "standard"),
            f"the scaling {scaling!r} is another for every sample, which a transcoder cannot know of its targets",
        )
        require(
            not subtract or outputs == d, f"the decoder bias has {outputs} entries, the samples {d}: leave it"
        )
        self.sample_shape, self.latents, self.output_features = (d,), latents, outputs
        self.prefixes, self.sites, self.tied = prefixes, tuple(sites), tied
        self.transcoder, self.normalize_decoder, self.subtract_decoder_bias = (
            transcoder,
            normalize_decoder,
            subtract,
        )
        place: Any = {"dtype": dtype or torch.get_default_dtype(), "device": device}
        self.scaling = InputScaling(scaling, (d,), **place)
        self.output_scaling = InputScaling(scaling, (outputs,), **place) if transcoder else self.scaling
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        features = F.normalize(torch.randn(latents, outputs, generator=generator, dtype=torch.float64))
        readers = features
        if transcoder:  # inputs and targets live in different spaces
            readers = F.normalize(torch.randn(latents, d, generator=generator, dtype=torch.float64))
        self.decoder_weight = nn.Parameter(features.to(**place))
        self.encoder_weight = self.decoder_weight if tied else nn.Parameter(readers.to(**place, copy=True))
        self.encoder_bias = nn.Parameter(torch.zeros(latents, **place))
        self.decoder_bias = nn.Parameter(torch.zeros(outputs, **place))
        self.skip_weight = nn.Parameter(torch.zeros(outputs, d, **place)) if skip else None
        for name, value in self.activation.parameters(latents).items():
            self.register_parameter(name, nn.Parameter(value.to(**place)))
        for name, value in self.activation.buffers().items():
            self.register_buffer(name, value.to(device))
        self.register_buffer("silent_for", torch.zeros(latents, dtype=torch.int64, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self._seen: _Seen | None = None

    # ---- the map -----------------------------------------------------------------------------------------

    @property
    def input_center(self) -> Tensor | None:
        """What is subtracted before encoding, or None."""
        return self.decoder_bias if self.subtract_decoder_bias else None

    def preactivations(self, x: Tensor) -> Tensor:
        """h (n, latents) of scaled samples from which the decoder bias, if any, is already subtracted."""
        return F.linear(x, self.encoder_weight, self.encoder_bias)

    def encode_scaled(self, x: Tensor) -> Tensor:
        return self.activation.infer(self._centered(x), self)

    def decode_scaled(self, codes: Tensor) -> Tensor:
        require(
            self.skip_weight is None,
            "codes of a transcoder with a skip do not decode without the samples: call it",
        )
        return codes @ self.decoder_weight + self.decoder_bias

    def decode(self, codes: Tensor) -> Tensor:
        return self.output_scaling.invert(self.decode_scaled(codes))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct samples or predict targets: (n, d) -> (n, output_features)."""
        scaled, scale = self.scaling.apply(self.checked(x))
        return self._outputs(scaled, self.encode_scaled(scaled), scale)

    def compare(self, x: Tensor, target: Tensor | None = None) -> Comparison:
        wanted = self._target(x, target)
        with torch.no_grad():
            scaled, scale = self.scaling.apply(self.checked(x))
            codes = self.encode_scaled(scaled)
            return Comparison.between(codes, wanted, self._outputs(scaled, codes, scale))

    def _outputs(self, x: Tensor, codes: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
        made = codes @ self.decoder_weight + self.decoder_bias
        if self.skip_weight is not None:
            made = made + F.linear(x, self.skip_weight)
        if not self.transcoder:
            return self.scaling.invert(made, scale)
        return self.output_scaling.invert(made)

    def _centered(self, x: Tensor) -> Tensor:
        return x if self.input_center is None else x - self.input_center

    def _target(self, x: Tensor, target: Tensor | None) -> Tensor:
        if not self.transcoder:
            require(target is None, "only a transcoder (output_features=...) has targets of its own")
            return x
        require(target is not None, "a transcoder is trained on samples and targets; no targets are given")
        assert target is not None
        require(
            target.shape == (len(x), self.output_features),
            f"targets of this transcoder have shape ({len(x)}, {self.output_features}), not {tuple(target.shape)}",
        )
        return target

    # ---- training ----------------------------------------------------------------------------------------

    def loss(self, x: Tensor, target: Tensor | None = None, *, progress: float = 1.0) -> AutoencoderLoss:
        scaled = self.scaling.apply(self.checked(x))[0]
        wanted = self._target(x, target)
        wanted = self.output_scaling.apply(wanted)[0] if self.transcoder else scaled
        bounds = self.prefixes or (self.latents,)
        base = self.decoder_bias
        if self.skip_weight is not None:
            base = base + F.linear(scaled, self.skip_weight)
        penalties: dict[str, Tensor] = {}
        if isinstance(self.activation, SelectingActivation):
            centered = self._centered(scaled).detach()
            selected = self.activation.select(
                centered, self.encoder_weight.detach(), self.encoder_bias.detach()
            )
            values = self._encode(scaled, slice(None), selected)
            pattern = selected[1]
            if len(bounds) == 1:
                parts = [sparse_codes.decode(values, self.decoder_weight, pattern)]
            else:
                groups = pattern.split(bounds)
                parts = [
                    sparse_codes.decode(values[kept], self.decoder_weight, part) for part, kept in groups
                ]
            positive = selected[0] > 0
            fired = pattern.column_sums(positive.to(torch.float32)) > 0
            l0 = positive.sum() / len(x)
            if self.training:
                self.activation.observe(selected[0][positive], self)
        else:
            assert isinstance(self.activation, DenseActivation)
            h = self.preactivations(self._centered(scaled))
            codes = self.activation.codes(h, self)
            edges = zip((0, *bounds), bounds, strict=False)
            parts = [codes[:, first:last] @ self.decoder_weight[first:last] for first, last in edges]
            penalties.update(self.activation.penalties(h, codes, wanted - base.detach(), self))
            active = codes.detach() != 0
            fired, l0 = active.any(0), active.sum() / len(x)
        errors, residual = [], wanted
        for part in parts:
            base = part + base
            residual = wanted - base
            errors.append(residual.square().sum() / len(x))
        reconstruction = errors[0] if len(errors) == 1 else torch.stack(errors).mean()
        if isinstance(self.dead, AuxiliaryLoss) and (dead := self.silent_for >= self.dead.silent).any():
            penalties["auxiliary"] = self._auxiliary(scaled, residual.detach(), dead)
        residual = residual.detach()
        if self.training:
            keeps = isinstance(self.dead, Resampling)
            self._seen = _Seen(fired, len(x), self._centered(scaled).detach() if keeps else None, residual)
        total = (
            reconstruction if not penalties else reconstruction + torch.stack(list(penalties.values())).sum()
        )
        return AutoencoderLoss(
            total,
            {name: part.detach() for name, part in {"reconstruction": reconstruction, **penalties}.items()},
            residual.square().sum(),
            (wanted - wanted.mean(0)).square().sum(),
            l0,
        )

    def _encode(self, x: Tensor, latents: slice | Tensor, selected: tuple[Tensor, Pattern]) -> Tensor:
        weight, bias = self.encoder_weight[latents], self.encoder_bias[latents]
        return sparse_codes.encode(x, self.input_center, weight, bias, selected)

    def _auxiliary(self, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        assert isinstance(self.dead, AuxiliaryLoss)
        variance = (residual - residual.mean(0)).square().sum()
        places = dead.nonzero()[:, 0]
        k = min(max(x.shape[1] // 2, 1), len(places))
        centered = self._centered(x).detach()
        selected = sparse_codes.select_top(
            centered, self.encoder_weight.detach()[places], self.encoder_bias.detach()[places], k
        )
        values = self._encode(x, places, selected)
        explained = sparse_codes.decode(values, self.decoder_weight[places], selected[1])
        floor = torch.finfo(variance.dtype).tiny
        share = (residual - explained).square().sum() / variance.clamp_min(floor)
        return self.dead.coefficient * torch.where(variance > 0, share, 0.0)  # one sample has no variance

    def make_optimizer(self, learning_rate: float | None = None) -> torch.optim.Optimizer:
        r"""Adam with $2 \cdot 10^{-4} / (m / 2^{14})^{1/2}$ (Gao et al., 2024) where no rate is given."""
        rate = 2e-4 / (self.latents / 2**14) ** 0.5 if learning_rate is None else learning_rate
        return torch.optim.Adam(self.parameters(), rate, fused=True)

    @torch.no_grad()
    def prepare(self, sample: Tensor, target: Tensor | None = None) -> None:
        """Fit the scaling, and set the decoder bias to the mean of the targets."""
        target = self._target(sample, target)
        self.scaling.fit(sample)
        if self.transcoder:
            self.output_scaling.fit(target)
        self.decoder_bias.copy_(self.output_scaling.apply(target)[0].double().mean(0))

    @torch.no_grad()
    def after_backward(self) -> None:
        gradient = self.decoder_weight.grad
        if self.normalize_decoder and gradient is not None:  # rows have norm 1 between steps
            along = (gradient * self.decoder_weight).sum(1, keepdim=True)
            gradient.addcmul_(along, self.decoder_weight, value=-1)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.normalize_decoder:
            norms = torch.linalg.vector_norm(self.decoder_weight, dim=1, keepdim=True)
            self.decoder_weight.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))
        self.steps += 1
        seen, self._seen = self._seen, None
        if seen is None:
            return
        counts = sum_over_processes(torch.cat([seen.fired, seen.fired.new_ones(1)]).to(torch.int64))
        self.silent_for += seen.samples * counts[-1]
        self.silent_for[counts[:-1] > 0] = 0
        if isinstance(self.dead, Resampling) and int(self.steps) % self.dead.every == 0:
            self._resample(seen, optimizer)

    def _resample(self, seen: _Seen, optimizer: torch.optim.Optimizer) -> None:
        assert isinstance(self.dead, Resampling)
        assert seen.centered is not None
        dead = self.silent_for >= self.dead.silent
        places = dead.nonzero()[:, 0]
        if not len(places):
            return
        weights = seen.residual.square().sum(1).double().square().clamp_min(1e-300).cpu()
        generator = torch.Generator().manual_seed(int(self.steps))
        drawn = torch.multinomial(weights, len(places), len(places) > len(weights), generator=generator).to(
            places.device
        )
        readers = F.normalize(seen.centered[drawn])
        features = F.normalize(seen.residual[drawn]) if self.transcoder else readers.clone()
        copy_from_first(readers)
        copy_from_first(features)
        living = self.encoder_weight[~dead]
        norm = torch.linalg.vector_norm(living, dim=1).mean() if len(living) else 1.0
        self.encoder_weight[places] = self.dead.scale * norm * readers
        self.decoder_weight[places] = features  # last: tied weights keep the norm of features
        self.encoder_bias[places] = 0
        own = self.activation.parameters(self.latents)
        for name, initial in own.items():
            self.get_parameter(name)[places] = initial.to(self.encoder_bias)[places]
        for parameter in (
            self.encoder_weight,
            self.decoder_weight,
            self.encoder_bias,
            *map(self.get_parameter, own),
        ):
            for name, state in optimizer.state.get(parameter, {}).items():
                if isinstance(state, Tensor) and state.shape == parameter.shape:
                    optimizer.state[parameter][name][places] = 0
        self.silent_for[places] = 0

    # ---- what it is --------------------------------------------------------------------------------------

    def configuration(self) -> dict[str, Any]:
        return {
            "d": self.sample_shape[0],
            "latents": self.latents,
            "activation": self.activation.describe(),
            "matryoshka": list(self.prefixes),
            "output_features": self.output_features if self.transcoder else None,
            "skip": self.skip_weight is not None,
            "sites": list(self.sites),
            "tied": self.tied,
            "normalize_decoder": self.normalize_decoder,
            "subtract_decoder_bias": self.subtract_decoder_bias,
            "dead": None if self.dead is None else self.dead.describe(),
            "scaling": self.scaling.kind,
        }

    def site_norms(self) -> Tensor:
        """The norm of every feature at every site, (latents, sites): what two models share, and what is one's own."""
        parts = self.decoder_weight.split(self.sites or (self.output_features,), 1)
        return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts], 1)

    def feature_norms(self) -> Tensor:
        """The sum of the norms of every feature over the sites, (latents,)."""
        return self.site_norms().sum(1)

    def decoder_cosines(self, rows: slice = slice(None), other: Autoencoder | None = None) -> Tensor:
        other = self if other is None else other
        require(
            isinstance(other, SparseAutoencoder) and other.output_features == self.output_features,
            f"features of a {type(other).__name__} {other.sample_shape} cannot be compared with these of "
            f"{self.output_features} entries",
        )
        return _cosines(self.decoder_weight[rows], other.decoder_weight)  # type: ignore[union-attr]

    def encoder_cosines(self, rows: slice = slice(None)) -> Tensor:
        return _cosines(self.encoder_weight[rows], self.encoder_weight)


class _Seen:
    """What a step leaves for `after_step`."""

    def __init__(self, fired: Tensor, samples: int, centered: Tensor | None, residual: Tensor):
        self.fired, self.samples, self.centered, self.residual = fired, samples, centered, residual


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a.detach()) @ F.normalize(b.detach()).mT


def _made(rule: Any, known: Mapping[str, Any]) -> Any:
    """A rule from its description."""
    if not isinstance(rule, Mapping):
        return rule
    name = str(rule.get("rule"))
    require(name in known, f"no rule is named {name!r}; there are {', '.join(known)}")
    return known[name](**{key: value for key, value in rule.items() if key != "rule"})
