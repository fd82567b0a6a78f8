"""`LearnedOptimizer`: a network over weights that says how to change them, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Parameters = Mapping[str, Tensor]

STEP_SCALES = (3.0, 30.0, 300.0)
SQUARE_DECAY, EPSILON = 0.999, 1e-8  # of Adam


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """What a `LearnedOptimizer` remembers.

    Attributes:
        step: number of steps made.
        momenta: name -> averages of the gradients, one for each decay, (networks, decays, *shape).
        squares: name -> averages of their squares, (networks, *shape).
    """

    step: int
    momenta: Parameters
    squares: Parameters


class LearnedOptimizer(nn.Module):
    r"""Steps of Adam that a network over the weights scales and bends, weight by weight.

    $$ w \leftarrow w - \eta_p \, e^{s o_1} \Bigl( \frac{\hat m}{\sqrt{\hat v} + \epsilon} + s o_2 \Bigr) $$

    with the averages $\hat m$ (decay 0.9) and $\hat v$ (0.999) of Adam, learned rates $\eta_p$ and s, and the two
    outputs o of the net for every weight. It reads, for every weight, the gradient and its averages over
    $\sqrt{\hat v}$, the logarithm of $\sqrt{\hat v}$, the weight, and $\tanh(t / \tau)$ of the step t. Where o is
    zero this is Adam. No derivative of a gradient is taken.

    Args:
        net: from name -> (networks, channels, *shape) to name -> (networks, 2, *shape): a `GraphParameterMap`, or a
            `DeepWeightSpaceNet` with the equivariant head; `channels` is `LearnedOptimizer.channels(decays)`.
        names: of the parameters.
        rate: $\eta_p$ at first.
        decays: of the averages of gradients, 0.9 among them.
        scale: s at first.
    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
        (2024), section 4.4; Metz et al., Tasks, stability, architecture, and compute (2020), for the features;
        Harrison, Metz, Sohl-Dickstein, A closer look at learned optimization (2022), for the step of Adam within.
    """

    def __init__(
        self,
        net: Callable[[Parameters], dict[str, Tensor]],
        names: Sequence[str],
        *,
        rate: float = 1e-2,
        decays: Sequence[float] = (0.5, 0.9, 0.99),
        scale: float = 0.1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.net, self.names, self.decays = net, tuple(names), tuple(decays)
        self.followed = self.decays.index(0.9)
        self.log_rates = nn.Parameter(
            torch.full((len(self.names),), math.log(rate), dtype=dtype, device=device)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=dtype, device=device))

    @staticmethod
    def channels(decays: Sequence[float] = (0.5, 0.9, 0.99)) -> int:
        """Return how many numbers the net reads for every weight."""
        return len(decays) + 3 + len(STEP_SCALES)

    def start(self, parameters: Parameters) -> OptimizerState:
        """Return the state before the first step."""
        return OptimizerState(
            0,
            {name: w.new_zeros(len(w), len(self.decays), *w.shape[1:]) for name, w in parameters.items()},
            {name: torch.zeros_like(w) for name, w in parameters.items()},
        )

    def forward(
        self, parameters: Parameters, gradients: Parameters, state: OptimizerState
    ) -> tuple[dict[str, Tensor], OptimizerState]:
        """Return the parameters after a step, name -> (networks, *shape), and the state."""
        step = state.step + 1
        momenta, squares, features, base = {}, {}, {}, {}
        for name in self.names:
            weight, gradient = parameters[name].detach(), gradients[name].detach()
            decays = _beside(gradient.new_tensor(self.decays), gradient)
            momenta[name] = torch.lerp(gradient.unsqueeze(1), state.momenta[name], decays)
            squares[name] = torch.lerp(
                gradient.square(), state.squares[name], gradient.new_tensor(SQUARE_DECAY)
            )
            size = (squares[name] / (1 - SQUARE_DECAY**step)).sqrt()
            averages = momenta[name] / (1 - decays**step) / (size + EPSILON).unsqueeze(1)
            base[name] = averages[:, self.followed]
            features[name] = self._features(weight, gradient, averages, size, step)
        bent = self.net(features)
        scale = self.log_scale.exp()
        moved = {}
        for name, log_rate in zip(self.names, self.log_rates, strict=True):
            stretch, bend = (scale * bent[name]).unbind(1)
            moved[name] = parameters[name] - (log_rate + stretch).exp() * (base[name] + bend)
        return moved, OptimizerState(step, momenta, squares)

    def _features(
        self, weight: Tensor, gradient: Tensor, averages: Tensor, size: Tensor, step: int
    ) -> Tensor:
        normalized = (gradient / (size + EPSILON)).unsqueeze(1)
        spread = weight.square().mean(tuple(range(1, weight.ndim)), keepdim=True).sqrt() + 1e-3
        elapsed = _beside(torch.tanh(step / weight.new_tensor(STEP_SCALES)), weight)
        return torch.cat(
            [
                normalized,
                averages,
                # Typical sizes of gradients, 1e-6 to 1, to numbers around zero.
                ((size + EPSILON).log10().unsqueeze(1) + 3) / 3,
                (weight / spread).unsqueeze(1),
                elapsed.expand(len(weight), -1, *weight.shape[1:]),
            ],
            1,
        )


def _beside(values: Tensor, like: Tensor) -> Tensor:
    """Shape numbers (channels,) to stand beside (networks, *shape): (1, channels, 1, ...)."""
    return values.view(1, -1, *[1] * (like.ndim - 1))
