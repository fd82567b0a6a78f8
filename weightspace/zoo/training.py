"""A training loop that can be killed at any moment and continued with the same result."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from weightspace.checkpoint import read_training_state, write_training_state
from weightspace.errors import CheckpointError, NonFiniteError, ShapeError
from weightspace.result import write_text


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What a training reached.

    Attributes:
        model: the module that was given, with the weights of the best evaluation, in inference mode.
        history: one entry per evaluation: step, seconds of training so far, loss (its mean since the last entry)
            and what `evaluate` returned.
        best: the entry whose weights the model has.
    """

    model: nn.Module
    history: tuple[dict[str, float], ...]
    best: dict[str, float]

    def __repr__(self) -> str:
        shown = ", ".join(f"{key} {value:.4g}" for key, value in self.best.items())
        return f"TrainingRun({len(self.history)} evaluations; best: {shown})"

    def save_metrics(self, path: str | Path) -> None:
        """Write history and best entry as JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        write_text(path, json.dumps({"best": self.best, "history": self.history}, indent=1) + "\n")


def run_training(
    model: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    evaluate: Callable[[], Mapping[str, float]],
    *,
    steps: int,
    objective: str,
    maximize: bool = True,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-2,
    warmup: int = 100,
    clip: float = 1.0,
    evaluations: int = 20,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    seconds_between_checkpoints: float = 60.0,
    progress: bool = True,
) -> TrainingRun:
    r"""Minimize a loss with AdamW, a linear warm-up and a cosine schedule, and keep the best weights.

    Args:
        model: trained in place, on its own device.
        loss: of one batch that it draws itself, with the generator it is given and no other randomness but that of
            dropout, which is seeded from the same generator.
        evaluate: measures on validation data; the model is in inference mode and no gradients are kept.
        objective: the measure by which the best weights are chosen.
        evaluations: how often, evenly spread.
        generator: on the CPU; None is a new one with seed 0.
        checkpoint: a file that is written every `seconds_between_checkpoints`, and read if it exists: the run goes on
            where it was, to the same result. It is removed when the run is complete.
    Raises:
        ShapeError: no steps, or `evaluate` does not measure the objective.
        NonFiniteError: the loss became NaN or infinite.
        CheckpointError: the checkpoint belongs to another model or another number of steps.
        OutputError: the checkpoint cannot be written.
    Source: Loshchilov and Hutter, Decoupled weight decay regularization (2019), for AdamW.
    """
    from tqdm import tqdm

    if steps < 1:
        raise ShapeError(f"run_training needs at least one step; steps is {steps}")
    generator = generator or torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1))),
    )
    held = _Held(model, optimizer, schedule, generator, steps)
    path = None if checkpoint is None else Path(checkpoint)
    state = _State() if path is None or not path.exists() else held.restored(path)
    every = max(steps // evaluations, 1)
    started, saved = time.perf_counter() - state.seconds, time.perf_counter()
    bar = tqdm(
        total=steps, initial=state.step, disable=None if progress else True, desc="training", leave=False
    )
    with (
        bar,
        torch.random.fork_rng(),
    ):  # dropout draws from the global generator, which is given back as it was
        while state.step < steps:
            model.train()
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            value = loss(generator)
            if not bool(value.isfinite()):
                raise NonFiniteError(
                    f"the loss is {value.item()} at step {state.step}; lower learning_rate ({learning_rate})"
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            state.step += 1
            state.losses.append(value.item())
            bar.update()
            state.seconds = time.perf_counter() - started
            if state.step % every == 0 or state.step == steps:
                model.eval()
                with torch.no_grad():
                    measures = {key: float(measure) for key, measure in evaluate().items()}
                state.enter(measures, objective if maximize else f"-{objective}", model)
                bar.set_postfix({key: f"{measure:.4g}" for key, measure in measures.items()})
            if path is not None and time.perf_counter() - saved >= seconds_between_checkpoints:
                held.save(path, state)
                saved = time.perf_counter()
    assert state.weights is not None
    assert state.best is not None
    model.load_state_dict(state.weights)
    if path is not None:
        path.unlink(missing_ok=True)
    return TrainingRun(model.eval(), tuple(state.history), state.best)


@dataclass
class _State:
    """How far a training has come."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    weights: dict[str, Tensor] | None = None  # of the best evaluation

    def enter(self, measures: Mapping[str, float], objective: str, model: nn.Module) -> None:
        """Add an evaluation; `objective` is the measure to maximize, behind a minus sign to minimize it."""
        loss = math.fsum(self.losses) / len(self.losses)
        entry = {"step": self.step, "seconds": self.seconds, "loss": loss, **measures}
        self.losses = []
        self.history.append(entry)
        name, sign = objective.removeprefix("-"), -1 if objective.startswith("-") else 1
        if name not in entry:
            raise ShapeError(
                f"evaluate returned {', '.join(measures) or 'nothing'}, not the objective {name!r}"
            )
        if self.best is None or sign * entry[name] > sign * self.best[name]:
            self.best = entry
            self.weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class _Held:
    """What else a training needs to go on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    generator: torch.Generator
    steps: int

    def save(self, path: Path, state: _State) -> None:
        content = {
            "state": vars(state),
            "steps": self.steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
        }
        write_training_state(path, content)

    def restored(self, path: Path) -> _State:
        try:
            content = read_training_state(path)
            if content["steps"] != self.steps:
                raise ValueError("another number of steps")
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            self.generator.set_state(content["generator"])
            return _State(**content["state"])
        except (CheckpointError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{str(path)!r} cannot be continued from ({type(error).__name__}: {str(error)[:200]}); remove it to "
                "start anew"
            ) from error
