"""How much of a model's loss survives when an activation is replaced by its reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.autoencoders.autoencoder import Autoencoder
from interp.autoencoders.recording import in_inference_mode, run
from weightspace.errors import ArchitectureError, NonFiniteError, ShapeError


@dataclass(frozen=True)
class LossRecovered:
    r"""Losses of a model with one activation as it is, reconstructed, or ablated.

    Attributes:
        ce_clean, ce_reconstructed, ce_zero, ce_mean: the loss with the activation as it is, reconstructed by
            the autoencoder, replaced by zeros, and by its mean over the data.
        ce_loss_score: $(L_\mathrm{zero} - L_\mathrm{sae}) / (L_\mathrm{zero} - L_\mathrm{clean})$; NaN where ablation
            changes nothing.
        ce_loss_score_mean_ablation: the same with the mean in place of zeros, a harder baseline.
        kl_div_score: $1 - KL_\mathrm{sae} / KL_\mathrm{zero}$, divergences from the clean predictions; None with a
            loss of one's own, whose outputs need not be logits.
    """

    ce_clean: float
    ce_reconstructed: float
    ce_zero: float
    ce_mean: float
    ce_loss_score: float
    ce_loss_score_mean_ablation: float
    kl_div_score: float | None


def measure_loss_recovered(
    autoencoder: Autoencoder,
    model: nn.Module,
    loader: Iterable[Any],
    *,
    hook: str,
    loss: Callable[[Any, Any], Tensor] | None = None,
    axis: int = -1,
    transcodes: bool = False,
) -> LossRecovered:
    """Run a model with one activation as it is, reconstructed and ablated.

    Args:
        autoencoder: of that activation.
        model: run in inference mode like the autoencoder, the modes of both restored.
        loader: batches (inputs, labels), or mappings of arguments with one named `labels`; read twice.
        hook: name of a module, whose output is replaced, or "name:input", its first input; of a tuple the first entry.
        loss: (what the model returns, labels) -> mean over the batch; default cross entropy of logits
            (..., classes), or of the `.logits` of what it returns, with labels (...), label -100 left out.
        axis: of the features in the activation, for autoencoders of vectors; as for `interp.activations`.
        transcodes: the autoencoder maps the module's input to its output.
    Raises:
        ArchitectureError: there is no such module, or the model does not call it exactly once.
        ShapeError: the activation does not hold samples of the autoencoder, or the loader can be read only once, has no
            labels or is empty.
        NonFiniteError: the loss of the model is NaN or infinite as it is.
    Source: ablation by zeros as in Karvonen et al., SAEBench (2025).
    """
    if isinstance(loader, Iterator):
        raise ShapeError(
            "the loader is read twice, and this is an iterator, which can be read once; give a list"
        )
    modules = dict(model.named_modules())
    if hook.removesuffix(":input") not in modules:
        raise ArchitectureError(
            f"the model has no module {hook!r}; name one of: {', '.join(list(modules)[1:21])}"
        )
    site = _Site(autoencoder, model, hook, axis, transcodes)
    with torch.no_grad(), in_inference_mode(autoencoder), in_inference_mode(model):
        return _measure(site, loader, loss)


def _measure(site: _Site, loader: Iterable[Any], loss: Callable[[Any, Any], Tensor] | None) -> LossRecovered:
    mean = site.mean(loader)
    replacements: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "clean": lambda x, y: y,
        "reconstructed": site.reconstruct,
        "zero": lambda x, y: torch.zeros_like(y),
        "mean": lambda x, y: site.restore(mean.to(y).expand_as(site.samples(y)), y),
    }
    losses, divergences = dict.fromkeys(replacements, 0.0), dict.fromkeys(replacements, 0.0)
    weight = 0
    for batch in loader:
        labels, size, clean = _labels(batch), 0, None
        for name, replacement in replacements.items():
            output = site.run(batch, replacement)
            if loss is not None:
                size = len(labels)
                losses[name] += size * float(loss(output, labels))
                continue
            logits, wanted = _labeled(output, labels)
            size = len(wanted)
            losses[name] += float(nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            predictions = logits.log_softmax(1)
            clean = predictions if clean is None else clean
            divergences[name] += float((clean.exp() * (clean - predictions)).sum())
        weight += size
    if not weight:
        raise ShapeError("the loader has no labels; there is no loss to measure")
    losses = {name: value / weight for name, value in losses.items()}
    if not math.isfinite(losses["clean"]):
        raise NonFiniteError(
            f"the loss of the model as it is is {losses['clean']}; check its weights and the labels"
        )
    lost = losses["reconstructed"] - losses["clean"]

    def score(lost: float, baseline: float) -> float:
        return 1 - lost / baseline if baseline else math.nan

    return LossRecovered(
        ce_clean=losses["clean"],
        ce_reconstructed=losses["reconstructed"],
        ce_zero=losses["zero"],
        ce_mean=losses["mean"],
        ce_loss_score=score(lost, losses["zero"] - losses["clean"]),
        ce_loss_score_mean_ablation=score(lost, losses["mean"] - losses["clean"]),
        kl_div_score=None if loss is not None else score(divergences["reconstructed"], divergences["zero"]),
    )


class _Site:
    """The place in a model where an autoencoder puts its reconstruction."""

    def __init__(self, autoencoder: Autoencoder, model: nn.Module, name: str, axis: int, transcodes: bool):
        self.autoencoder, self.model, self.name, self.axis = autoencoder, model, name, axis
        self.transcodes = transcodes

    def run(self, batch: Any, replacement: Callable[[Tensor, Tensor], Tensor]) -> Any:
        """Run the model with its activation y replaced by replacement(x, y), x the input of the module."""
        calls = 0

        def replace(x: Any, y: Any) -> Any:
            nonlocal calls
            calls += 1
            first = y[0] if isinstance(y, tuple) else y
            changed = replacement(x[0] if x else first, first)
            return (changed, *y[1:]) if isinstance(y, tuple) else changed

        module = self.model.get_submodule(self.name.removesuffix(":input"))

        def before(_: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
            if arguments:
                return (replace(arguments, arguments), keywords)
            name = next(iter(keywords))  # called by keyword: the first is the input
            return arguments, {**keywords, name: replace((keywords[name],), keywords[name])}

        def after(_: nn.Module, arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
            return replace(arguments or tuple(keywords.values()), output)

        if self.name.endswith(":input"):
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(after, with_kwargs=True)
        try:
            result = run(self.model, batch)
        finally:
            handle.remove()
        if calls != 1:
            raise ArchitectureError(
                f"the model calls its module {self.name!r} {calls} times for one batch; name a module that is called "
                "once"
            )
        return result

    def mean(self, loader: Iterable[Any]) -> Tensor:
        """The mean of the activation over all samples, float64."""
        total, count = torch.zeros(()), 0

        def record(x: Tensor, y: Tensor) -> Tensor:
            nonlocal total, count
            samples = self.samples(y)
            total, count = total.to(y.device) + samples.double().sum(0), count + len(samples)
            return y

        for batch in loader:
            self.run(batch, record)
        if not count:
            raise ShapeError("the loader is empty; there is no loss to measure")
        return total / count

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        samples = self.samples(x if self.transcodes else y)
        shape = tuple(self.autoencoder.sample_shape)  # -1 in it stands for any size
        if len(shape) != samples.ndim - 1 or any(
            size not in (-1, found) for size, found in zip(shape, samples.shape[1:], strict=True)
        ):
            raise ShapeError(
                f"the autoencoder takes samples of shape {shape}; at {self.name!r} they are {tuple(samples.shape[1:])}"
            )
        reconstruction = self.autoencoder(samples.to(next(self.autoencoder.parameters()))).to(y)
        wanted = self.samples(y).shape
        if reconstruction.shape != wanted:
            raise ShapeError(
                f"the autoencoder reconstructs {tuple(reconstruction.shape)} in place of {tuple(wanted)} at "
                f"{self.name!r}"
            )
        return self.restore(reconstruction, y)

    def samples(self, activation: Tensor) -> Tensor:
        """An activation as samples (n, ...): vectors at all positions, or its entries along the batch as they are."""
        if len(self.autoencoder.sample_shape) > 1:
            return activation
        return activation.movedim(self.axis, -1).flatten(0, -2)

    def restore(self, samples: Tensor, activation: Tensor) -> Tensor:
        """Undo `samples`."""
        if len(self.autoencoder.sample_shape) > 1:
            return samples
        return samples.reshape(activation.movedim(self.axis, -1).shape).movedim(-1, self.axis)


def _labels(batch: Any) -> Any:
    if isinstance(batch, Mapping) and "labels" in batch:
        return batch["labels"]
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1]
    raise ShapeError(
        "the loader has no labels to measure a loss with; its batches are (inputs, labels), or mappings with labels"
    )


def _labeled(output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != labels.shape:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ShapeError(
            f"cross entropy needs logits (..., classes) and labels (...); the model returns {found}, labels are "
            f"{tuple(labels.shape)}; give a loss of your own"
        )
    wanted = labels.flatten().to(logits.device)
    known = wanted != -100
    return logits.flatten(0, -2)[known].double(), wanted[known]
