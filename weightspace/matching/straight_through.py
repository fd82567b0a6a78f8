"""Straight-through matching: move the target of the matching so that the loss at the midpoint falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from weightspace.errors import ArchitectureError
from weightspace.matching.activation_matching import cast
from weightspace.matching.alignment import Matcher, Problem
from weightspace.matching.weight_matching import WeightMatching
from weightspace.module import NetworkModule
from weightspace.permutation import permute_tensor


@dataclass(frozen=True, eq=False)
class StraightThroughMatching(Matcher):
    r"""Learn what to match with, by the loss at the midpoint of reference and permuted model.

    $\tilde\theta$ starts at the reference $\theta_A$. Repeat: $\pi$ = match($\tilde\theta$, $\theta_B$); the loss at
    $\frac12 (\theta_A + \tilde\theta + \mathrm{sg}[\pi\theta_B - \tilde\theta])$, which has the value at the
    midpoint and, sg being the stop-gradient, passes half its gradient on to $\tilde\theta$; one step of Adam. The
    $\pi$ with the lowest loss over all data is returned, hence never one worse than weight matching by that measure.

    Args:
        data: batches (inputs, targets); inputs are a tensor or a tuple of them.
        loss: outputs of the network, targets -> a scalar tensor.
        steps: number of optimizer steps; one batch each, in turn.
        learning_rate: of Adam.
        seed: of the matching.
    Source: Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023), section 3.3.

    Examples:
        >>> import torch, weightspace
        >>> from weightspace.bundled import digits, load
        >>> images, labels, _, _ = digits()
        >>> batches = [(images[:128], labels[:128])]
        >>> matcher = weightspace.StraightThroughMatching(batches, torch.nn.functional.cross_entropy, steps=2)
        >>> found = weightspace.align(load("digits_mlp_a"), load("digits_mlp_b"), matcher=matcher)
        >>> found.distance < found.distance_before
        True
    """

    data: Sequence[tuple[Tensor | tuple[Tensor, ...], Tensor]] = field(repr=False)
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int = 20
    learning_rate: float = 3e-3
    seed: int = 0

    def match(self, problem: Problem) -> dict[str, Tensor]:
        if problem.networks is None:
            raise ArchitectureError("StraightThroughMatching runs the networks; use it through `align`")
        middle = _Midpoint(problem)
        matcher = WeightMatching(seed=self.seed)
        target = {name: tensor.detach().clone() for name, tensor in problem.reference.items()}
        optimizer = torch.optim.Adam(list(target.values()), lr=self.learning_rate)
        lowest, best, previous = float("inf"), None, None
        for step in range(self.steps + 1):
            elements = matcher.match(replace(problem, reference=target))
            if previous is None or any(not torch.equal(e, previous[name]) for name, e in elements.items()):
                middle.place(elements)
                with torch.no_grad():
                    height = sum(float(middle.loss(self.loss, *batch)) for batch in self.data) / len(
                        self.data
                    )
                if best is None or height < lowest:
                    lowest, best = height, elements
                previous = elements
            if step < self.steps:
                middle.loss(self.loss, *self.data[step % len(self.data)]).backward()
                for name, tensor in target.items():
                    tensor.grad = middle.half_gradient(name, tensor)
                optimizer.step()
        assert best is not None
        return best


class _Midpoint:
    """The reference's module with parameters halfway to the permuted model."""

    def __init__(self, problem: Problem):
        assert problem.networks is not None
        self.spec, self.names = problem.spec, problem.names
        self.a, self.b = problem.networks
        self.module = NetworkModule(self.a)

    def place(self, elements: dict[str, Tensor]) -> None:
        """Go to the midpoint; running statistics are averaged too."""
        with torch.no_grad():
            for name, other in self.names.items():
                first, second = self.a.parameters[name], self.b.parameters[other]
                if first.is_floating_point():
                    if name in self.spec.axes:
                        second = permute_tensor(second, self.spec.axes[name], elements, self.spec.by_name)
                    self.module.tensor(name).copy_((first + second) / 2)

    def loss(
        self, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor | tuple[Tensor, ...], targets: Tensor
    ) -> Tensor:
        self.module.zero_grad()
        given = cast((inputs,) if isinstance(inputs, Tensor) else inputs, self.a)
        return loss(self.module.to(given[0].device)(*given), targets)

    def half_gradient(self, name: str, like: Tensor) -> Tensor:
        gradient = self.module.tensor(name).grad
        return torch.zeros_like(like) if gradient is None else gradient.to(like) / 2
