"""Signed gradient descent of a function over a box, many points at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def descend(
    function: Callable[[Tensor], Tensor], start: Tensor, lower: Tensor, upper: Tensor, *, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    r"""Yield $x_t$ and $g(x_t)$ for t = 0 to T = `steps`, with steps that shrink from a quarter of the box to nothing.

    $x_{t+1} = \Pi(x_t - \tfrac14 (1 - t/(T+1)) (u - l) \operatorname{sign} \nabla g(x_t))$; $\Pi$ clips into [l, u].

    Args:
        function: g from points (n, inputs) to values (n,), each of its own point.
        start: (n, inputs).
        lower, upper: (inputs,).
    Source: Madry, Makelov, Schmidt, Tsipras, Vladu, Towards deep learning models resistant to adversarial attacks
    (2018), for signed steps.
    """
    x = start
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        values = function(x)
        yield x.detach(), values.detach()
        (gradient,) = torch.autograd.grad(values.sum(), x)
        size = 0.25 * (1 - step / (steps + 1)) * (upper - lower)
        x = (x - size * gradient.sign()).clamp(lower, upper)
