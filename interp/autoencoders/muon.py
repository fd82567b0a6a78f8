"""Muon without bfloat16, for processors that have no arithmetic of that type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class GramMuon(torch.optim.Muon):
    """`torch.optim.Muon`, computed in the dtype of the parameters and on the smaller of the two Gram matrices.

    The library's iterates on the whole matrix in bfloat16, which takes seconds per step where a processor emulates
    that type. Arguments, state and meaning are the same, so that a training may go from one to the other.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; see `torch.optim.Muon`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        moment = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(moment, group["momentum"]) if group["nesterov"] else moment
        rows, columns = parameter.shape
        factor = (rows / columns) ** 0.5 if rows > columns else 1.0
        if group["adjust_lr_fn"] == "match_rms_adamw":
            factor = 0.2 * max(rows, columns) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        flattened = flatten_spectrum(direction, group["ns_coefficients"], group["ns_steps"], group["eps"])
        parameter.add_(flattened, alpha=-group["lr"] * factor)


def flatten_spectrum(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float = 1e-7
) -> Tensor:
    r"""Bring all singular values of a matrix near 1 by Newton-Schulz steps, (a, b) -> (a, b).

    $X \leftarrow X\,p(X^\top X)$ with $p(G) = \alpha + \beta G + \gamma G^2$, from $X = M / \|M\|_F$. Since $X^\top X$
    becomes $G\,p(G)^2$, the steps are taken on G, of the smaller side of M, and applied to M once.

    Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024).
    """
    if matrix.shape[0] < matrix.shape[1]:
        return flatten_spectrum(matrix.mT, coefficients, steps, eps).mT
    constant, linear, square = coefficients
    matrix = matrix / torch.linalg.matrix_norm(matrix).clamp_min(eps)
    gram = matrix.mT @ matrix
    total = identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(steps):
        step = constant * identity + linear * gram + square * (gram @ gram)
        total = total @ step
        gram = step @ gram @ step
    return matrix @ total
