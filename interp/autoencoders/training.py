"""Training of autoencoders: one pass over the data for several of them, continued to the same result after a kill."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.autoencoders.autoencoder import Autoencoder, AutoencoderLoss
from interp.autoencoders.processes import copy_from_first, count_processes, own_rank, sum_over_processes
from interp.autoencoders.sources import ActivationSource, Position, Rows, as_source, shuffled_batches
from weightspace.checkpoint import read_training_state, write_training_state
from weightspace.errors import CheckpointError, NonFiniteError, ShapeError
from weightspace.result import check_writable, write_text

SAMPLE = 65536
"""At most so many samples fit the scaling and the biases an autoencoder starts from."""


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """Trained autoencoders and how they got there.

    Attributes:
        autoencoders: those that were given, trained in place, in inference mode.
        history: for every autoencoder its entries: step, loss, its parts, fvu (fraction of variance unexplained since
            the last entry, on training batches), l0, and dead (share of latents silent since the last entry) where the
            autoencoder counts them.
        samples: seen in the whole.
        seconds: of wall time, that of earlier parts of a continued run included.

    Examples:
        >>> import interp, torch
        >>> autoencoder = interp.SparseAutoencoder(8, 32, interp.TopK(4))
        >>> run = interp.train(autoencoder, torch.randn(512, 8), steps=5, batch_size=64, progress=False)
        >>> run.samples, [entry["step"] for entry in run.history[0]]
        (320, [1, 2, 3, 4, 5])
    """

    autoencoders: tuple[Autoencoder, ...]
    history: tuple[tuple[dict[str, float], ...], ...]
    samples: int
    seconds: float

    @property
    def autoencoder(self) -> Autoencoder:
        """The first of them."""
        return self.autoencoders[0]

    def save_history(self, path: str | Path) -> None:
        """Write history, samples and seconds as JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        history = [
            [
                {name: value if math.isfinite(value) else None for name, value in entry.items()}
                for entry in entries
            ]
            for entries in self.history
        ]
        content = {"samples": self.samples, "seconds": self.seconds, "history": history}
        write_text(path, json.dumps(content, indent=1) + "\n")

    def __repr__(self) -> str:
        ends = "; ".join(_listed(entries[-1]) for entries in self.history)
        return f"TrainingRun({self.samples:,} samples in {self.seconds:.1f} s; {ends})"


def train(
    autoencoder: Autoencoder | Sequence[Autoencoder],
    activations: Tensor | ActivationSource,
    *,
    steps: int,
    batch_size: int,
    targets: Tensor | None = None,
    learning_rate: float | None = None,
    warmup: int = 0,
    decay: float = 0.2,
    clip: float | None = None,
    entries: int = 50,
    progress: bool = True,
    prepare: bool = True,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    seconds_between_checkpoints: float = 60.0,
    keep_checkpoint: bool = False,
) -> TrainingRun:
    """Train an autoencoder, or several on the same batches.

    Batches are drawn without replacement, pass after pass; activations are converted to the dtype and device of each
    autoencoder. Under `torch.distributed` (`torchrun`) every process takes its part of each batch, gradients are
    averaged and weights stay equal; the result is that of one process up to rounding, but for activations that select
    from a whole batch (`BatchTopK`), which select from their part.

    Args:
        activations: (n, *sample_shape), `open_activations(files)`, or `interp.activations(module, name, loader)`.
        steps: optimizer steps, each on `batch_size` samples (of all processes together).
        targets: of a transcoder, with a tensor of activations.
        learning_rate: None is what each kind of autoencoder is usually trained with (`make_optimizer`).
        warmup: steps in which the rate grows linearly.
        decay: share of the steps, at the end, in which it falls linearly to 0.
        clip: the largest norm of the gradient of an autoencoder; None does not clip.
        entries: how many entries the history gets.
        prepare: start from the data: scaling, initial biases (`Autoencoder.prepare`); False keeps what is there, to
            train on.
        generator: on the CPU, draws the order of the samples; None is a new one with seed 0.
        checkpoint: a file that is written every `seconds_between_checkpoints` and read if it exists: the run goes on
            where it was, to the same result, to the last bit on the same machine. Ctrl-C ends a step, writes it and
            then interrupts.
        keep_checkpoint: leave that file when the training is complete; given again, it returns the result.
    Returns:
        TrainingRun.
    Raises:
        ShapeError: samples, batch size and processes do not fit each other.
        NonFiniteError: activations or a loss are NaN or infinite; the last checkpoint stays.
        CheckpointError: the checkpoint belongs to another training, or a file of activations is broken.
        OutputError: the checkpoint cannot be written; the one before stays.

    Examples:
        >>> import interp, torch
        >>> autoencoder = interp.SparseAutoencoder(8, 32, interp.TopK(4))
        >>> x = torch.randn(512, 8)
        >>> run = interp.train(autoencoder, x, steps=10, batch_size=64, progress=False)
        >>> (entries,) = run.history
        >>> entries[-1]["fvu"] < entries[0]["fvu"]  # fraction of variance unexplained
        True
    """
    from tqdm import tqdm

    models = (autoencoder,) if isinstance(autoencoder, Autoencoder) else tuple(autoencoder)
    source = as_source(activations, targets)
    _check(
        models, source, steps, batch_size, learning_rate=learning_rate, clip=clip, warmup=warmup, decay=decay
    )
    generator = generator or torch.Generator().manual_seed(0)
    seed = int(copy_from_first(torch.randint(2**62, (), generator=generator)))
    path = None if checkpoint is None else check_writable(checkpoint)
    optimizers = [model.make_optimizer(learning_rate) for model in models]
    plan = {
        "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "warmup": warmup, "decay": decay,
        "clip": clip, "seed": seed, "data": repr(source),
    }  # fmt: skip
    held = _Held(models, optimizers, plan)
    if path is not None and path.exists():
        state = held.restored(path)
    else:
        state = _State(history=[[] for _ in models])
        if prepare:
            _prepare(models, source, seed)
        for model in models:
            for tensor in model.state_dict().values():
                copy_from_first(tensor)
        state.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    sums = [_Sums(state.sums[i] if state.sums else None) for i in range(len(models))]
    rank, processes = own_rank(), count_processes()
    every = -(-steps // max(entries, 1))
    started, saved = time.perf_counter() - state.seconds, time.perf_counter()
    batches = shuffled_batches(source, batch_size, seed, Position(*state.position))
    quiet = rank != 0 or not progress
    for model in models:
        model.train()
    bar = tqdm(total=steps, initial=state.step, disable=True if quiet else None, desc="training", leave=False)
    with bar, _Interruption() as interruption:
        while state.step < steps and not interruption.asked:
            rows, position = next(batches)
            rows = tuple(x[rank::processes] for x in rows)
            factor = _schedule(state.step, steps, warmup, decay)
            for model, optimizer, rate, total in zip(models, optimizers, state.rates, sums, strict=True):
                for group, base in zip(optimizer.param_groups, rate, strict=True):
                    group["lr"] = base * factor
                total.add(_step(model, optimizer, rows, state.step, steps, clip))
            interruption.agree()
            state.step += 1
            state.position = tuple(asdict(position).values())
            state.seconds = time.perf_counter() - started
            bar.update()
            if state.step % every == 0 or state.step == steps:
                state.enter(models, sums, batch_size)
                bar.set_postfix_str(_listed(state.history[0][-1]))
            due = time.perf_counter() - saved >= seconds_between_checkpoints or interruption.asked
            if path is not None and rank == 0 and (due or (keep_checkpoint and state.step == steps)):
                state.sums = [total.numbers() for total in sums]
                held.save(path, state)
                saved = time.perf_counter()
    if interruption.asked:
        raise KeyboardInterrupt
    for model in models:
        model.eval()
    if path is not None and rank == 0 and not keep_checkpoint:
        path.unlink(missing_ok=True)
    return TrainingRun(models, tuple(map(tuple, state.history)), steps * batch_size, state.seconds)


def _check(
    models: Sequence[Autoencoder],
    source: ActivationSource,
    steps: int,
    batch_size: int,
    *,
    learning_rate: float | None,
    clip: float | None,
    warmup: int,
    decay: float,
) -> None:
    if not models or steps < 1 or batch_size < 1:
        raise ShapeError(
            "training needs autoencoders, steps >= 1 and batch_size >= 1; "
            f"there are {len(models)}, {steps} and {batch_size}"
        )
    for name, value, fits in (
        ("learning_rate", learning_rate, learning_rate is None or 0 < learning_rate < math.inf),
        ("clip", clip, clip is None or clip > 0),
        ("warmup", warmup, warmup >= 0),
        ("decay", decay, 0 <= decay <= 1),
    ):
        if not fits:
            raise ShapeError(f"{name} is {value}; it is positive, warmup may be 0, decay is from 0 to 1")
    if batch_size % count_processes():
        raise ShapeError(
            f"{count_processes()} processes cannot share {batch_size} samples evenly; change batch_size"
        )
    for model in models:
        model.checked(torch.empty(1, *source.sample_shape, device="meta"))


def _prepare(models: Sequence[Autoencoder], source: ActivationSource, seed: int) -> None:
    """Let every autoencoder see some samples of the first piece."""
    rows = next(source.pieces(0, seed))()
    if len(rows[0]) > SAMPLE:
        chosen = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(seed % 2**32))[:SAMPLE]
        rows = tuple(x[chosen] for x in rows)
    for model in models:
        model.prepare(*_placed(rows, model))


def _placed(rows: Rows, model: nn.Module) -> Rows:
    parameter = next(model.parameters())
    return tuple(x.to(parameter.device, parameter.dtype) for x in rows)


def _step(
    model: Autoencoder,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    step: int,
    steps: int,
    clip: float | None,
) -> AutoencoderLoss:
    loss = model.loss(*_placed(rows, model), progress=step / steps)
    broken = sum_over_processes((~loss.total.detach().isfinite()).to(torch.int32))
    if bool(broken):  # before the weights have taken it in, in all processes alike
        raise NonFiniteError(
            f"the loss of a {type(model).__name__} is {loss.total.item()} at step {step} (in {int(broken)} of "
            f"{count_processes()} processes NaN or infinite); lower learning_rate or scale the activations "
            "(scaling='standard')"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    processes = count_processes()
    if processes > 1:
        for parameter in model.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = sum_over_processes(gradient).div_(processes)
    model.after_backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    model.after_step(optimizer)
    return loss


def _schedule(step: int, steps: int, warmup: int, decay: float) -> float:
    """The share of the learning rate at a step: a linear rise, a constant, a linear fall that ends behind the last."""
    rise = min((step + 1) / (warmup + 1), 1.0) if warmup else 1.0
    fall = min((steps - step) / (decay * steps), 1.0) if decay > 0 else 1.0
    return min(rise, fall)


def _dead(model: Autoencoder, samples: int) -> dict[str, float]:
    silent = getattr(model, "silent_for", None)
    return {} if silent is None else {"dead": float((silent >= samples).double().mean())}


def _listed(entry: dict[str, float]) -> str:
    return ", ".join(f"{name} {entry[name]:.4g}" for name in ("fvu", "l0", "dead", "loss") if name in entry)


class _Sums:
    """Sums over the batches since the last entry, where the losses are: a sum read is a wait for the device."""

    def __init__(self, values: dict[str, float] | None = None):
        self.values: dict[str, Any] = dict(values or {})

    def add(self, loss: AutoencoderLoss) -> None:
        parts = {
            "loss": loss.total,
            "l0": loss.l0,
            "error": loss.error,
            "variance": loss.variance,
            **loss.parts,
        }
        self.values["count"] = self.values.get("count", 0.0) + 1.0
        for name, value in parts.items():
            self.values[name] = value.detach().double() + self.values.get(name, 0.0)

    def numbers(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.values.items()}

    def entry(self) -> dict[str, float]:
        sums = self.numbers()
        count = sums.pop("count")
        error, variance = sums.pop("error"), sums.pop("variance")
        return {
            **{name: value / count for name, value in sums.items()},
            "fvu": error / variance if variance else math.nan,
        }

    def clear(self) -> None:
        self.values = {}


class _Interruption:
    """Ctrl-C as a question that is asked between two steps; only the main thread can hear it."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def agree(self) -> None:
        """Stop in all processes after the same step, or one would wait for the others for ever."""
        if count_processes() > 1:
            self.asked = bool(sum_over_processes(torch.tensor(int(self.asked))))


@dataclass
class _State:
    """How far a training has come."""

    history: list[list[dict[str, float]]]
    step: int = 0
    entered: int = 0  # the step of the last entry
    position: tuple[int, ...] = (0, 0, 0)
    seconds: float = 0.0
    rates: list[list[float]] = field(default_factory=list)  # before the schedule
    sums: list[dict[str, float]] = field(default_factory=list)

    def enter(self, models: Sequence[Autoencoder], sums: Sequence[_Sums], batch_size: int) -> None:
        """Add an entry for every autoencoder, of the steps since the last."""
        samples = batch_size * (self.step - self.entered)
        for model, total, entries in zip(models, sums, self.history, strict=True):
            entries.append({"step": self.step, **total.entry(), **_dead(model, samples)})
            total.clear()
        self.entered = self.step


@dataclass(frozen=True)
class _Held:
    """What else a training needs to go on."""

    models: Sequence[Autoencoder]
    optimizers: Sequence[torch.optim.Optimizer]
    plan: dict[str, Any]

    def _description(self) -> str:
        kinds = [
            [type(model).__name__, str(next(model.parameters()).dtype), model.configuration()]
            for model in self.models
        ]
        return json.dumps([self.plan, kinds], sort_keys=True)

    def save(self, path: Path, state: _State) -> None:
        content = {
            "training": self._description(),
            "state": vars(state),
            "models": [model.state_dict() for model in self.models],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_training_state(path, content)

    def restored(self, path: Path) -> _State:
        try:
            content = read_training_state(path)
            if content["training"] != self._description():
                raise ValueError(
                    "it is of another autoencoder, other data, or other arguments of the training"
                )
            state = _State(**content["state"])
            for model, weights in zip(self.models, content["models"], strict=True):
                model.load_state_dict(weights)
            for optimizer, moments in zip(self.optimizers, content["optimizers"], strict=True):
                optimizer.load_state_dict(moments)
        except (CheckpointError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{str(path)!r} cannot be continued from ({type(error).__name__}: {str(error)[:200]}); remove it to "
                "start anew"
            ) from error
        return state
