"""Learn to optimize: a network over the weights of perceptrons as their optimizer, beside Adam.

Claim (benchmarks/README.md quotes the numbers): after `HORIZON` steps, the length it was trained for, the loss is below
that of Adam with the best constant learning rate of a grid and of Adam with the best cosine schedule; what happens on a
longer run, at a width that was never seen, and on a task that was never seen (pixels and classes shuffled: an optimizer
may have learned by heart what networks for digits look like) is reported as it is. Steps are compared, not seconds: one
of Adam costs far less.

    python benchmarks/learned_optimizer.py

Inner task: digits of scikit-learn, perceptrons 64-16-10 from random initial weights, minibatches of 64. The optimizer
is trained by backpropagation through windows of steps that begin anywhere in a run, gradients of the inner loss taken
as constants. Tests use initial weights and minibatches never seen, equal for all optimizers; rates of Adam are chosen
on those very tests, for every width and horizon anew, which is to Adam's advantage.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor, nn

from weightspace import trace
from weightspace.graph import GraphParameterMap, NeuralGraphNet, describe_graphs, encode, widen_vocabulary
from weightspace.zoo import LearnedOptimizer, PerceptronClassifier, run_perceptrons, run_training

FAMILIES = ("neural graph", "weight by weight")
WIDTH = 16
SETTINGS = {  # width and whether pixels and classes are shuffled; the optimizer knows the first alone
    "16 hidden": (WIDTH, False),
    "32 hidden": (32, False),
    "16 hidden, shuffled": (WIDTH, True),
}
HORIZON, LONG_HORIZON = 100, 400
BATCH = 64  # of images
FIRST_RATE = 2e-2  # of the learned optimizers, before they are trained
RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
FIGURE = Path(__file__).parent.parent / "docs" / "learned_optimizer.png"

Parameters = dict[str, Tensor]
Step = Callable[[Parameters, Parameters, Any], tuple[Parameters, Any]]


class WeightByWeight(nn.Module):
    """A perceptron on the features of each weight alone, one for every parameter: no weight knows of another."""

    def __init__(self, names: tuple[str, ...], channels: int, width: int = 32):
        super().__init__()
        self.names = names
        self.maps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
            )
            for _ in names
        )

    def forward(self, features: Parameters) -> Parameters:
        return {
            name: own(features[name].movedim(1, -1)).movedim(-1, 1)
            for name, own in zip(self.names, self.maps, strict=True)
        }


class Task:
    """Training perceptrons of a width on digits, several at once; `shuffled`: pixels and classes in another order."""

    def __init__(self, width: int, shuffled: bool = False):
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        self.x, self.y = torch.as_tensor(images, dtype=torch.float32) / 16, torch.as_tensor(labels)
        if shuffled:
            generator = torch.Generator().manual_seed(7)
            self.x = self.x[:, torch.randperm(64, generator=generator)]
            self.y = torch.randperm(10, generator=generator)[self.y]
        self.network = trace(PerceptronClassifier((width,))((64,), 10).eval(), self.x[:3])
        parameters, buffers = self.network.parameters, self.network.buffers
        self.shapes = {
            name: tuple(tensor.shape) for name, tensor in parameters.items() if name not in buffers
        }

    def start(self, networks: int, generator: torch.Generator) -> Parameters:
        return {
            name: torch.randn(networks, *shape, generator=generator) / math.sqrt(shape[-1])
            if len(shape) > 1
            else torch.zeros(networks, *shape)
            for name, shape in self.shapes.items()
        }

    def losses(self, parameters: Parameters, generator: torch.Generator | None) -> Tensor:
        """Of every network, (networks,): on minibatches of their own, or (None) on all images."""
        networks = len(next(iter(parameters.values())))
        x, y = self.x, self.y.expand(networks, -1)
        if generator is not None:
            rows = torch.randint(len(self.x), (networks, BATCH), generator=generator)
            x, y = self.x[rows], self.y[rows]
        logits = run_perceptrons(parameters, x)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)

    def follow(
        self, step: Step, parameters: Parameters, state: Any, steps: int, generator: torch.Generator
    ) -> tuple[Parameters, Any, list[Tensor]]:
        """Make steps with gradients of minibatches; the losses of those are returned, with their graph if any."""
        found = []
        for _ in range(steps):
            with torch.enable_grad():
                live = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
                losses = self.losses(live, generator)
                gradients = torch.autograd.grad(losses.sum(), list(live.values()), retain_graph=True)
            found.append(losses)
            parameters, state = step(live, dict(zip(live, gradients, strict=True)), state)
        return parameters, state, found


def learned(family: str, task: Task, options: argparse.Namespace) -> LearnedOptimizer:
    channels, names = LearnedOptimizer.channels(), tuple(task.shapes)
    if family == "weight by weight":
        return LearnedOptimizer(WeightByWeight(names, channels), names, rate=FIRST_RATE)
    graph = encode(task.network)
    layers = NeuralGraphNet(
        widen_vocabulary(describe_graphs([graph]), channels), level="edge", width=options.width,
        layers=options.layers, aggregators=("mean", "std"),
    )  # fmt: skip
    return LearnedOptimizer(GraphParameterMap(layers, graph.structure, 2), names, rate=FIRST_RATE)


def train(family: str, task: Task, options: argparse.Namespace) -> tuple[LearnedOptimizer, dict[str, Any]]:
    name = f"optimizer {family} {options.steps} steps"
    torch.manual_seed(0)
    model = learned(family, task, options)
    weights, result = options.folder / f"{name} weights.pt", options.folder / f"{name}.json"
    if result.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval(), json.loads(result.read_text())

    def loss(generator: torch.Generator) -> Tensor:
        parameters = task.start(options.networks, generator)
        before = int(torch.randint(HORIZON - options.window + 1, (), generator=generator))
        with torch.no_grad():
            parameters, state, _ = task.follow(model, parameters, model.start(parameters), before, generator)
        parameters = {key: tensor.detach() for key, tensor in parameters.items()}
        parameters, _, losses = task.follow(model, parameters, state, options.window, generator)
        losses = [*losses[1:], task.losses(parameters, generator)]
        return torch.stack(losses).log().mean()

    def final() -> dict[str, float]:
        generator = torch.Generator().manual_seed(1)
        parameters = task.start(8, generator)
        parameters, *_ = task.follow(model, parameters, model.start(parameters), HORIZON, generator)
        return {"validation_log_loss": float(task.losses(parameters, None).log().mean())}

    run = run_training(
        model, loss, final, steps=options.steps, objective="validation_log_loss", maximize=False,
        learning_rate=options.learning_rate, warmup=20, evaluations=10,
        generator=torch.Generator().manual_seed(0), checkpoint=options.folder / f"{name}.pt",
    )  # fmt: skip
    row = {
        "family": family, "parameters": sum(p.numel() for p in model.parameters()), "meta_steps": options.steps,
        "window": options.window, "networks": options.networks, "threads": torch.get_num_threads(),
        "seconds": run.history[-1]["seconds"],
        "curve": [[entry["step"], entry["validation_log_loss"]] for entry in run.history],
    }  # fmt: skip
    torch.save(model.state_dict(), weights)
    result.write_text(json.dumps(row))
    return model, row


def adam(task: Task, rate: float, cosine_over: int | None = None) -> LearnedOptimizer:
    """Adam, as a learned optimizer whose net says nothing but the logarithm of the schedule."""
    steps = itertools.count()

    def silent(features: Mapping[str, Tensor]) -> Parameters:
        done = next(steps)
        factor = 0.5 + 0.5 * math.cos(math.pi * done / cosine_over) if cosine_over else 1.0
        said = torch.tensor([math.log(factor), 0.0])
        return {
            name: said.view(1, 2, *[1] * (x.ndim - 2)).expand(len(x), 2, *x.shape[2:])
            for name, x in features.items()
        }

    return LearnedOptimizer(silent, tuple(task.shapes), rate=rate, scale=1.0)


@torch.no_grad()
def curve(task: Task, optimizer: LearnedOptimizer, horizon: int, options: argparse.Namespace) -> Tensor:
    """Losses on all images every tenth step, (networks, points), from weights and minibatches of the test."""
    generator = torch.Generator().manual_seed(1000)
    parameters = task.start(options.tests, generator)
    state, found = optimizer.start(parameters), [task.losses(parameters, None)]
    for _ in range(0, horizon, 10):
        parameters, state, _ = task.follow(optimizer, parameters, state, 10, generator)
        parameters = {name: tensor.detach() for name, tensor in parameters.items()}
        found.append(task.losses(parameters, None))
    return torch.stack(found, 1)


def compare(
    setting: str, models: dict[str, LearnedOptimizer], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per optimizer and horizon: loss at its end, and geometric means of the ratios to both Adams."""
    name = f"comparison {setting} {' + '.join(models)} {options.steps} steps {options.tests} tests.json"
    if (options.folder / name).exists():
        return json.loads((options.folder / name).read_text())
    task, rows = Task(*SETTINGS[setting]), []
    constant = {rate: curve(task, adam(task, rate), LONG_HORIZON, options) for rate in RATES}
    own = {name: curve(task, fitted(model, task), LONG_HORIZON, options) for name, model in models.items()}
    for horizon in (HORIZON, LONG_HORIZON):
        points = horizon // 10 + 1
        decaying = {rate: curve(task, adam(task, rate, horizon), horizon, options) for rate in RATES}
        found: dict[str, tuple[float | None, Tensor]] = {
            "Adam": best({rate: losses[:, :points] for rate, losses in constant.items()}),
            "Adam, cosine": best(decaying),
            **{name: (None, losses[:, :points]) for name, losses in own.items()},
        }
        for name, (rate, losses) in found.items():
            ends = losses[:, -1]
            row = {
                "optimizer": name, "setting": setting, "steps": horizon, "rate": rate, "tests": options.tests,
                "loss": float(ends.mean()), "standard_error": float(ends.std() / len(ends) ** 0.5),
            }  # fmt: skip
            for other in ("Adam", "Adam, cosine"):
                row[f"ratio to {other}"] = float((ends.log() - found[other][1][:, -1].log()).mean().exp())
            row["curve"] = [[10 * point, float(loss)] for point, loss in enumerate(losses.mean(0))]
            rows.append(row)
    (options.folder / name).write_text(json.dumps(rows))
    return rows


def best(tried: dict[float, Tensor]) -> tuple[float, Tensor]:
    """Return the rate whose mean loss is lowest at the end, with its curves."""
    rate = min(tried, key=lambda entry: float(tried[entry][:, -1].mean().nan_to_num(math.inf)))
    return rate, tried[rate]


def fitted(model: LearnedOptimizer, task: Task) -> LearnedOptimizer:
    """Return the same optimizer for networks of the task's width."""
    if not isinstance(model.net, GraphParameterMap):
        return model
    other = LearnedOptimizer(model.net.with_structure(encode(task.network).structure), model.names)
    other.log_rates, other.log_scale = model.log_rates, model.log_scale
    return other.eval()


def draw(rows: list[dict[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(SETTINGS), figsize=(3.4 * len(SETTINGS), 6), layout="constrained")
    places = [(steps, setting) for steps in (HORIZON, LONG_HORIZON) for setting in SETTINGS]
    for axis, (steps, setting) in zip(axes.flat, places, strict=True):
        for row in (row for row in rows if (row["setting"], row["steps"]) == (setting, steps)):
            label = row["optimizer"] if row["rate"] is None else f"{row['optimizer']}, rate {row['rate']:g}"
            axis.semilogy(*zip(*row["curve"], strict=True), label=label)
        axis.set(title=setting, xlabel="step", ylabel="loss on all images")
        axis.axvline(HORIZON, color="gray", lw=0.8, ls=":")
        axis.legend(fontsize=6)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--steps", type=int, default=250, help="of training the optimizer")
    parser.add_argument("--window", type=int, default=20, help="inner steps that gradients flow through")
    parser.add_argument("--networks", type=int, default=4, help="trained at once")
    parser.add_argument("--tests", type=int, default=12, help="initial weights")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zoos"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True, parents=True)
    models, rows = {}, []
    for family in options.family or FAMILIES:
        models[family], row = train(family, Task(WIDTH), options)
        rows.append(row)
    found = [row for setting in SETTINGS for row in compare(setting, models, options)]
    write("learned_optimizer", [*rows, *found], "torch")
    draw(found)


if __name__ == "__main__":
    main()
