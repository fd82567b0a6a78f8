"""`run_perceptrons`: the outputs of many perceptrons at once, from their parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.errors import ShapeError


def run_perceptrons(parameters: Mapping[str, Tensor], x: Tensor, *, activation: str = "relu") -> Tensor:
    """Return what perceptrons make of inputs, differentiable in both.

    Args:
        parameters: weight (networks, out, in) and bias (networks, out) of every layer, in the order of the layers, as
            the zoo of a `PerceptronClassifier` has them; the activation is between layers.
        x: shape (n, in), the same for all networks, or (networks, n, in).
        activation: a function of torch by name.
    Returns:
        shape (networks, n, out).
    Raises:
        ShapeError: parameters that are not such pairs.
    """
    tensors = list(parameters.values())
    if len(tensors) % 2 or any(
        w.ndim != 3 or b.ndim != 2 for w, b in zip(tensors[::2], tensors[1::2], strict=True)
    ):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in parameters.items())
        raise ShapeError(f"a perceptron has a weight and a bias for every layer in turn; got {shapes}")
    function = getattr(torch, activation, None) or getattr(F, activation)
    if x.ndim == 2:
        x = x.expand(len(tensors[0]), -1, -1)
    for number in range(0, len(tensors), 2):
        x = torch.baddbmm(tensors[number + 1].unsqueeze(1), x, tensors[number].mT)
        x = function(x) if number + 2 < len(tensors) else x
    return x
