"""Training of classifiers whose weights are to be read: input noise and weight decay as regularizers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import NonFiniteError, ShapeError


@dataclass(frozen=True, eq=False)
class ClassifierRun:
    """A trained classifier and how it got there.

    Attributes:
        model: the module that was given, trained in place, in inference mode.
        losses: mean training loss of every epoch, shape (epochs,).
        train_accuracy, test_accuracy: share of right predictions, without noise; the latter None without
            test data.
        seconds: of wall time.
    """

    model: nn.Module
    losses: Tensor
    train_accuracy: float
    test_accuracy: float | None
    seconds: float

    def __repr__(self) -> str:
        test = "" if self.test_accuracy is None else f", test {self.test_accuracy:.4f}"
        return f"ClassifierRun({len(self.losses)} epochs, train {self.train_accuracy:.4f}{test})"


def train_classifier(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    test: tuple[Tensor, Tensor] | None = None,
    epochs: int = 20,
    batch_size: int | None = 2048,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.5,
    noise: float = 0.4,
    betas: tuple[float, float] = (0.9, 0.999),
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    progress: bool = True,
    generator: torch.Generator | None = None,
) -> ClassifierRun:
    r"""Minimize a loss with AdamW, a cosine schedule per epoch and Gaussian noise on the input.

    The defaults are the published recipe for bilinear networks on MNIST, $x + \mathcal{N}(0, 0.4^2)$ and
    weight decay 0.5. The model is trained in place, in its own dtype, on its own device.

    Args:
        x: inputs, shape (n, ...); floating, or integers (tokens), which get no noise.
        y: classes, shape (n,), or (n, ...) for a model that returns logits (n, ..., classes).
        test: inputs and classes that are only looked at after training.
        batch_size: None is one batch of everything, in order.
        noise: standard deviation $\sigma$ of the noise that every batch gets anew.
        betas: of AdamW. A second below 0.999 forgets old gradients sooner: late in training without noise it
            lets weight decay, rather than the size of past steps, decide between weights.
        loss: of the logits and the classes of a batch, its mean; None is the cross-entropy.
        generator: of the order of the samples and of the noise, on the CPU; None is a new one with seed 0.
    Raises:
        ShapeError: x and y have different lengths, or noise is asked of tokens.
        NonFiniteError: the loss became NaN or infinite.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
        interpretability (2024), section 4 and appendix on training.
    """
    if len(x) != len(y) or not len(x):
        raise ShapeError(f"train_classifier needs as many inputs as classes; got {len(x)} and {len(y)}")
    if noise and not x.is_floating_point():
        raise ShapeError(f"input noise needs floating inputs; x has dtype {x.dtype}: pass noise=0")
    from tqdm import tqdm

    start = time.perf_counter()
    device = next(model.parameters()).device
    x, y = x.to(device), y.to(device)
    generator = generator or torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
    )
    criterion = loss or _cross_entropy
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = torch.zeros(epochs)
    model.train()
    bar = tqdm(range(epochs), desc="training", unit="epoch", disable=None if progress else True)
    for epoch in bar:
        batches = _batches(len(x), batch_size, generator)
        total = torch.zeros((), device=device)
        for rows in batches:
            inputs = x[rows]
            if noise:
                inputs = inputs + noise * torch.randn(
                    inputs.shape, dtype=inputs.dtype, generator=generator
                ).to(device)
            value = criterion(model(inputs), y[rows])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            total += value.detach() * (len(inputs) / len(x))
        schedule.step()
        losses[epoch] = total.cpu()
        if not bool(losses[epoch].isfinite()):
            raise NonFiniteError(
                f"the loss became {losses[epoch]:.3g} in epoch {epoch}; lower learning_rate "
                f"(now {learning_rate:g})"
            )
        bar.set_postfix(loss=f"{losses[epoch]:.4f}")
    model.eval()
    tested = None if test is None else accuracy(model, test[0].to(device), test[1].to(device))
    return ClassifierRun(model, losses, accuracy(model, x, y), tested, time.perf_counter() - start)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of inputs (n, ...) whose largest logit is that of their class y, (n,) or (n, ...)."""
    with torch.no_grad():
        right = [
            (model(part).argmax(-1) == classes).double().mean() * len(part)
            for part, classes in zip(x.split(8192), y.split(8192), strict=True)
        ]
    return float(sum(right)) / len(x)


def _batches(
    count: int, batch_size: int | None, generator: torch.Generator
) -> list[slice] | tuple[Tensor, ...]:
    if batch_size is None or batch_size >= count:
        return [slice(None)]
    return torch.randperm(count, generator=generator).split(batch_size)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())
