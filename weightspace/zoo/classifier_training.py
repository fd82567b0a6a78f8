"""`train_classifiers`: a zoo of small classifiers trained in many ways at once, from bad to good."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from weightspace.errors import ShapeError, UnsupportedOperationError
from weightspace.tracing import trace
from weightspace.zoo.classifiers import ConvolutionalClassifier, Dropout
from weightspace.zoo.collection import WeightZoo, concatenate_zoos

OPTIMIZERS = ("sgd", "adam", "rmsprop")  # measures["optimizer"] counts them
_EVALUATED = 500  # training images of a network that its training accuracy is taken from


@dataclass(frozen=True)
class HyperparameterRanges:
    """Where the hyperparameters of each network are drawn from, (low, high).

    Attributes:
        learning_rate, initial_scale, weight_decay: log-uniform. Weights are drawn normal with standard deviation
            initial_scale / sqrt(inputs of a unit), biases are zero; weight decay adds weight_decay * w to the gradient.
        dropout: rate, uniform; used by modules made of `weightspace.zoo.classifiers.Dropout`.
        fraction: of the training data that the network sees, uniform.
        optimizers: of "sgd" (momentum 0.9), "adam", "rmsprop", one of them for each network.
    """

    learning_rate: tuple[float, float] = (5e-4, 5e-2)
    initial_scale: tuple[float, float] = (0.2, 3.0)
    weight_decay: tuple[float, float] = (1e-6, 1e-2)
    dropout: tuple[float, float] = (0.0, 0.7)
    fraction: tuple[float, float] = (0.1, 1.0)
    optimizers: Sequence[str] = OPTIMIZERS

    def draw(self, networks: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return name -> one number for each network; "optimizer" is a place in `OPTIMIZERS`.

        Raises:
            ShapeError: an optimizer of another name.
        """
        unknown = [name for name in self.optimizers if name not in OPTIMIZERS]
        if unknown or not self.optimizers:
            raise ShapeError(f"optimizers are {', '.join(OPTIMIZERS)}; got {tuple(self.optimizers)}")
        drawn = {}
        for entry in fields(self)[:-1]:
            low, high = getattr(self, entry.name)
            share = torch.rand(networks, generator=generator, dtype=torch.float64)
            uniform = entry.name in ("dropout", "fraction")
            drawn[entry.name] = low + (high - low) * share if uniform else low * (high / low) ** share
        kinds = torch.tensor([OPTIMIZERS.index(name) for name in self.optimizers])
        drawn["optimizer"] = kinds[torch.randint(len(kinds), (networks,), generator=generator)].double()
        return drawn


def train_classifiers(
    x: Tensor,
    y: Tensor,
    test: tuple[Tensor, Tensor],
    *,
    networks: int,
    architecture: Callable[[Sequence[int], int], nn.Module] | None = None,
    ranges: HyperparameterRanges | None = None,
    epochs: int = 6,
    keep_epochs: Sequence[int] = (),
    batch_size: int = 64,
    batch: int = 128,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> WeightZoo:
    r"""Train classifiers that differ in hyperparameters, initial weights, data and their order.

    All networks of a batch go through one vectorized forward and backward pass. An epoch is as many steps for every
    network, whatever fraction of the data it sees; its samples are drawn from that fraction with replacement. The
    gradient of a network is clipped to norm 1, so that none diverges.

    Args:
        x, y: inputs (n, *shape), floating, and classes (n,), int64.
        test: inputs and classes that are only looked at to measure.
        architecture: from the shape of an input and the number of classes to a module without BatchNorm; default
            `ConvolutionalClassifier()`.
        ranges: of the hyperparameters; default `HyperparameterRanges()`.
        keep_epochs: further epochs (0: before training) at which all networks are kept.
        batch_size: samples per step.
        batch: networks trained at once.
        generator: of everything random, on the CPU; None is a new one with seed 0. The global generator, which
            dropout needs, is seeded from it and restored.
    Returns:
        WeightZoo of networks * kept epochs, run by run; `sources` is the run. Measures: "test_accuracy", "test_loss",
        "train_accuracy" (on up to 500 images of its own), "epoch" and the hyperparameters.
    Raises:
        ShapeError: x, y or test do not fit each other.
        UnsupportedOperationError: the module keeps running statistics.
    Source: Unterthiner, Keysers, Gelly, Bousquet, Tolstikhin, Predicting neural network accuracy from weights
        (2020), section 3 and appendix A.
    """
    if len(x) != len(y) or len(test[0]) != len(test[1]) or x.shape[1:] != test[0].shape[1:]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (x, y, *test))
        raise ShapeError(f"x, y and the test inputs and classes do not fit; their shapes are {shapes}")
    from tqdm import tqdm

    generator = generator or torch.Generator().manual_seed(0)
    drawn = (ranges or HyperparameterRanges()).draw(networks, generator)
    kept = sorted({*keep_epochs, epochs})
    snapshots: list[WeightZoo] = []
    total = networks * kept[-1]
    with (
        torch.random.fork_rng(),
        tqdm(total=total, desc="training", unit="epoch", disable=None if progress else True) as bar,
    ):
        _seed(generator)
        classes = int(max(y.max(), test[1].max())) + 1
        module = (architecture or ConvolutionalClassifier())(tuple(x.shape[1:]), classes).to(x)
        _require_stateless(module)
        template = trace(module.eval(), x[:3])
        for rows in torch.arange(networks).split(batch):
            _seed(generator)
            own = {name: values[rows].to(x) for name, values in drawn.items()}
            run = _Run(module, own, x, y, generator)
            for epoch in range(kept[-1] + 1):
                if epoch in kept:
                    measures = {**run.measure(test), "epoch": torch.full_like(own["dropout"], epoch), **own}
                    snapshots.append(
                        WeightZoo(run.state(), template, sources=rows.to(x.device), measures=measures)
                    )
                if epoch < kept[-1]:
                    for _ in range(math.ceil(len(x) / batch_size)):
                        run.step(batch_size)
                    bar.update(len(rows))
    zoo = concatenate_zoos(snapshots)
    assert zoo.sources is not None
    zoo = zoo[zoo.sources.argsort(stable=True)]
    return replace(zoo, template=zoo.network(0))


class _Run:
    """A batch of networks in training, all weights of a network in one row."""

    def __init__(
        self,
        module: nn.Module,
        hyperparameters: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        generator: torch.Generator,
    ):
        count = len(hyperparameters["dropout"])
        self.module, self.x, self.y, self.generator = module, x, y, generator
        self.shapes = {name: tensor.shape for name, tensor in module.named_parameters()}
        columns = {name: values[:, None] for name, values in hyperparameters.items()}
        self.rate, self.decay = columns["learning_rate"], columns["weight_decay"]
        self.rates = {
            f"{name}.rate" if name else "rate": columns["dropout"][:, 0]
            for name, child in module.named_modules()
            if isinstance(child, Dropout)
        }
        self.seen = (columns["fraction"].cpu().double() * len(x)).round().clamp(1, len(x))
        self.order = torch.stack([torch.randperm(len(x), generator=generator) for _ in range(count)])
        kind = columns["optimizer"]
        self.adaptive = kind != OPTIMIZERS.index("sgd")
        # Adam's averages start at zero and are corrected for it; RMSprop has no momentum.
        self.momentum = torch.where(kind == OPTIMIZERS.index("rmsprop"), 0.0, 0.9).to(x.dtype)
        self.flat = self._initial(hyperparameters["initial_scale"].cpu())
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.steps = 0
        self.forward = vmap(self._forward, randomness="different")

    def _initial(self, scale: Tensor) -> Tensor:
        parts = []
        for name, tensor in self.module.named_parameters():
            if tensor.ndim > 1:
                noise = torch.randn(
                    len(scale), *tensor.shape, generator=self.generator, dtype=torch.float64
                ).flatten(1)
                parts.append(noise * scale[:, None] / math.sqrt(tensor[0].numel()))
            else:  # gains of a normalization stay as the module has them
                start = torch.zeros_like(tensor) if name.endswith("bias") else tensor.detach()
                parts.append(start.cpu().expand(len(scale), -1))
        return torch.cat([part.to(self.x) for part in parts], 1).requires_grad_()

    def state(self) -> dict[str, Tensor]:
        """Return name -> copies of the parameters, shape (networks, *shape)."""
        return {name: tensor.detach().clone() for name, tensor in self._parameters().items()}

    def _parameters(self) -> dict[str, Tensor]:
        parts = self.flat.split([math.prod(shape) for shape in self.shapes.values()], 1)
        return {
            name: part.unflatten(1, shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _forward(self, parameters: Mapping[str, Tensor], rates: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.module, {**parameters, **rates}, (x,))

    def step(self, batch_size: int) -> None:
        """Draw samples for every network and move all by one step of their optimizers."""
        self.steps += 1
        share = torch.rand(len(self.flat), batch_size, generator=self.generator, dtype=torch.float64)
        rows = self.order.gather(1, (share * self.seen).long()).to(self.x.device)
        self.module.train()
        logits = self.forward(self._parameters(), self.rates, self.x[rows])
        loss = F.cross_entropy(logits.flatten(0, 1), self.y[rows].flatten(), reduction="sum") / batch_size
        (gradient,) = torch.autograd.grad(loss, self.flat)
        with torch.no_grad():
            gradient.addcmul_(self.decay, self.flat)
            gradient.div_(gradient.norm(dim=1, keepdim=True).clamp_min(1.0))
            self.first.mul_(self.momentum).addcmul_(1 - self.momentum, gradient)
            self.second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            correction = 1 - self.momentum**self.steps
            scale = (self.second / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
            # Averages of gradients are a tenth of the sums that SGD with momentum follows.
            moved = torch.where(self.adaptive, self.first / correction / scale, 10 * self.first)
            self.flat.addcmul_(self.rate, moved, value=-1)

    @torch.no_grad()
    def measure(self, test: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return accuracies and the test loss of every network, without dropout."""
        self.module.eval()
        logits, classes = self._logits(test[0].expand(len(self.flat), *test[0].shape)), test[1]
        wanted = classes.expand(len(self.flat), -1)
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        own = self.order[:, :_EVALUATED].to(self.x.device)
        counted = torch.arange(own.shape[1])[None] < self.seen
        right = (self._logits(self.x[own]).argmax(-1) == self.y[own]).cpu() & counted
        return {
            "test_accuracy": (logits.argmax(-1) == classes).to(self.x).mean(1),
            "test_loss": loss.view(wanted.shape).mean(1),
            "train_accuracy": (right.sum(1) / counted.sum(1)).to(self.x),
        }

    def _logits(self, x: Tensor) -> Tensor:
        """Run inputs (networks, n, ...) in parts, since activations are larger than they are."""
        parameters = self._parameters()
        return torch.cat([self.forward(parameters, self.rates, part) for part in x.split(64, 1)], 1)


def _seed(generator: torch.Generator) -> None:
    """Seed the global generator, which modules and dropout use."""
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))


def _require_stateless(module: nn.Module) -> None:
    own = {f"{name}.rate" if name else "rate" for name, m in module.named_modules() if isinstance(m, Dropout)}
    for name, _ in module.named_buffers():
        if name not in own:
            raise UnsupportedOperationError(
                f"train_classifiers cannot train {type(module).__name__} with buffer {name!r}, which networks trained "
                "at once would share; use a module without running statistics"
            )
