r"""Inputs near given ones that a classifier gets wrong, by projected gradient descent; none found proves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from certify import checker
from certify.classifiers import classifier, misclassified, rebuild, require_ball
from weightspace.errors import ShapeError
from weightspace.network import Network

Function = Callable[[Tensor], Tensor]
_LARGEST = 2**24  # numbers in the widest layer of a batch


@dataclass(frozen=True, eq=False)
class AdversarialExamples:
    """What the search found.

    Attributes:
        found: (n,) bool: within `epsilon` of the sample there is an input of another class.
        inputs: (n, ...), in the dtype of the network: the input whose class is wrong by the largest margin, the sample
            itself where none was found.
        epsilon, norm: the ball that was searched.
    """

    found: Tensor
    inputs: Tensor
    epsilon: float
    norm: str

    def __repr__(self) -> str:
        count = int(self.found.sum())
        return f"AdversarialExamples({count} of {len(self.found)}, {self.norm} {self.epsilon:g})"


def find_adversarial_examples(
    model_or_network: nn.Module | Network,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    norm: str = "l2",
    clip: tuple[float, float] | None = None,
    steps: int = 40,
    restarts: int = 4,
    generator: torch.Generator | None = None,
) -> AdversarialExamples:
    r"""Search $\|x' - x\| \le \epsilon$ for inputs with $f_j(x') > f_y(x')$ for some j.

    Every restart descends $f_y - f_j$ by normalized gradients (l2) or their signs (l-infinity) with steps that shrink
    from $\epsilon / 2$ to nothing: the first from x against the best other class of each step, the others from random
    points against the runner-up, the next one, and so on. An input counts when it is in the ball exactly, as
    computed without rounding, is misclassified by the network in its own precision, and is so in real arithmetic.

    Args:
        x: (n, ...), the network's own units.
        y: (n,) integers, the right classes.
        clip: the range of valid inputs, as (0, 1) for images; the search stays inside.
        generator: of the starting points, on the CPU; None is a new one with seed 0.
    Raises:
        ShapeError: x and y do not fit each other or the network, classes that do not exist, a negative epsilon, x
            outside `clip`, no steps.
        NonFiniteError: NaN or infinite x or epsilon.
        UnsupportedOperationError: an operation without a rule, or an unknown norm.
    Source: Madry, Makelov, Schmidt, Tsipras, Vladu, Towards deep learning models resistant to adversarial attacks
    (2018), section 2.1.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import digits, load
        >>> _, _, images, labels = digits()
        >>> network = load("digits_mlp_a")
        >>> found = certify.find_adversarial_examples(network, images[:20], labels[:20], epsilon=2.0, steps=5)
        >>> int(found.found.sum()) > 0
        True
    """
    network = classifier(model_or_network, x, y)
    require_ball(x, epsilon, norm, clip)
    if steps < 1 or restarts < 1:
        raise ShapeError(f"the search needs steps and restarts of at least 1, not {steps} and {restarts}")
    generator = generator or torch.Generator().manual_seed(0)
    module = network.to_module().requires_grad_(False)
    dtype, shape = getattr(torch, network.inputs[0].dtype), x.shape[1:]

    def function(points: Tensor) -> Tensor:
        return module(points.reshape(len(points), *shape)).flatten(1)

    model = rebuild(network)
    widest = max(step.width for step in model.steps)
    centers, y = x.detach().cpu().flatten(1).double(), y.detach().cpu().long()
    searches = []
    for rows in torch.arange(len(x)).split(max(1, _LARGEST // widest)):
        ball = _Ball(centers[rows], epsilon, norm, clip, dtype)
        search = _Search(function, ball, y[rows], model)
        search.run(steps, restarts, generator)
        searches.append(search)
    inputs = torch.cat([search.best for search in searches]).reshape(x.shape)
    return AdversarialExamples(torch.cat([search.found for search in searches]), inputs, float(epsilon), norm)


class _Search:
    def __init__(self, function: Function, ball: _Ball, y: Tensor, model: checker.Model):
        self.function, self.ball, self.y, self.model = function, ball, y, model
        self.best = ball.start.clone()
        self.worst = torch.zeros(
            len(y), dtype=torch.float64
        )  # margin of the best input, 0 where none was found

    @property
    def found(self) -> Tensor:
        return self.worst < 0

    def run(self, steps: int, restarts: int, generator: torch.Generator) -> None:
        with torch.no_grad():
            scores = self.function(self.ball.start).scatter(1, self.y[:, None], -math.inf)
        order = scores.argsort(1, descending=True)
        for restart in range(restarts):
            target = None if restart == 0 else order[:, (restart - 1) % max(1, order.shape[1] - 1)]
            start = self.ball.start if restart == 0 else self.ball.random(generator)
            self.descend(start, target, steps)

    def descend(self, start: Tensor, target: Tensor | None, steps: int) -> None:
        """Go down from `start` against one class per sample (None: the best at each step), keep what is wrong most."""
        points, known = self.ball.project(start), (self.best.clone(), self.worst.clone())
        for step in range(steps + 1):
            points = points.detach().requires_grad_()
            scores = self.function(points)
            own = scores.gather(1, self.y[:, None])[:, 0]
            others = scores.scatter(1, self.y[:, None], -math.inf)
            margin = own - others.amax(1)
            self.keep(points.detach(), margin.detach().double())
            goal = margin if target is None else own - scores.gather(1, target[:, None])[:, 0]
            (gradient,) = torch.autograd.grad(goal.sum(), points)
            size = self.ball.epsilon / 2 * (1 - step / (steps + 1))
            points = self.ball.project(points.detach() - size * self.ball.direction(gradient))
        self.confirm(*known)

    def keep(self, points: Tensor, margin: Tensor) -> None:
        better = (margin < self.worst).nonzero()[:, 0]
        better = better[self.ball.contains(points[better], better)]
        self.best[better], self.worst[better] = points[better], margin[better]

    def confirm(self, best: Tensor, worst: Tensor) -> None:
        """Take back what is new and not misclassified for certain."""
        new = (self.worst < worst).nonzero()[:, 0]
        if not len(new):
            return
        wrong = misclassified(self.model, self.best[new].double().numpy(), self.y[new].numpy())
        back = new[~torch.from_numpy(wrong)]
        self.best[back], self.worst[back] = best[back], worst[back]


class _Ball:
    """The balls around all samples, in the dtype of the network. `center` is (n, inputs), float64."""

    def __init__(
        self, center: Tensor, epsilon: float, norm: str, clip: tuple[float, float] | None, dtype: torch.dtype
    ):
        self.center, self.epsilon, self.norm = center, float(epsilon), norm
        self.start = center.to(dtype)
        self.low, self.high = self.start - self.epsilon, self.start + self.epsilon
        # one step inward leaves no doubt about rounding; what is still outside is refused by `contains`
        inward = torch.nextafter(self.low, self.start), torch.nextafter(self.high, self.start)
        self.low, self.high = (torch.nextafter(end, self.start) for end in inward)
        self.clip = clip
        # what rounding the sum of a sample and a step may add
        unit = torch.finfo(dtype).eps
        self.reach = (
            self.epsilon * (1 - 4 * unit) - unit * (center.norm(dim=1, keepdim=True) + epsilon)
        ).clamp_min(0)

    def direction(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradient.sign()
        return gradient / gradient.norm(dim=1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)

    def random(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.center.shape, generator=generator, dtype=torch.float64)
        if self.norm == "linf":
            noise = 2 * torch.special.ndtr(noise) - 1
        else:
            noise = noise / noise.norm(dim=1, keepdim=True).clamp_min(1e-300)
        return (self.center + self.epsilon * noise).to(self.start.dtype)

    def project(self, points: Tensor) -> Tensor:
        if self.norm == "linf":
            points = torch.minimum(torch.maximum(points, self.low), self.high)
        else:
            step = points.double() - self.center
            length = step.norm(dim=1, keepdim=True).clamp_min(1e-300)
            points = (self.center + step * (self.reach / length).clamp_max(1.0)).to(points.dtype)
        return points if self.clip is None else points.clamp(*self.clip)

    def contains(self, points: Tensor, rows: Tensor) -> Tensor:
        return torch.from_numpy(
            within(self.center[rows].numpy(), points.double().numpy(), self.epsilon, self.norm)
        )


def within(center: np.ndarray, points: np.ndarray, epsilon: float, norm: str) -> np.ndarray:
    r"""Decide $\|p - c\| \le \epsilon$ for the exact difference of two float64 arrays (n, inputs); (n,) bool.

    In l-infinity exactly: the rounded difference is compared, and where it equals epsilon, the sign of what was rounded
    off (Knuth's two-sum). In l2 the norm is rounded up, so that True is certain.
    """
    step = points - center
    back = points - step
    rest = (points - (step + back)) + (back - center)
    if norm == "linf":
        size, rest = np.abs(step), rest * np.sign(step)
        return ((size < epsilon) | ((size == epsilon) & (rest <= 0))).all(axis=1)
    largest = np.abs(step).max(axis=1, initial=0.0, keepdims=True)
    scaled = np.divide(step, largest, out=np.zeros_like(step), where=largest > 0)
    length = largest[:, 0] * np.linalg.norm(scaled, axis=1) * (1 + (step.shape[1] + 16) * 2.0**-52)
    return (length <= epsilon) | (largest[:, 0] == 0)
