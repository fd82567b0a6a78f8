"""What can be said about networks from the statistics of their weights alone: the baseline of reading networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.zoo.collection import WeightZoo

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class WeightStatistics:
    """Numbers that describe networks.

    Attributes:
        names: of the columns, "layers.0.weight mean", "layers.0.weight quantile 0.25", ...
        values: (networks, columns), float64, on the CPU.
    """

    names: tuple[str, ...]
    values: Tensor


def summarize_weights(
    parameters: Mapping[str, Tensor] | WeightZoo,
    *,
    pooled: bool = False,
    quantiles: Sequence[float] = QUANTILES,
) -> WeightStatistics:
    r"""Return mean, variance and quantiles of every parameter of many networks.

    They are invariant under all permutations, also those that change the function: which weight meets which is lost.
    A quantile $q$ of $n$ sorted entries stands at place $q (n - 1)$, interpolated.

    Args:
        parameters: name -> tensor (networks, *shape), or a zoo, in the order of the layers.
        pooled: columns that do not depend on the architecture, so that networks of several can be compared: the
            statistics of the first and the last of the weights (tensors of two axes or more) and of the biases (one
            axis), their means over the layers, the number of layers and the logarithm of that of all entries.
        quantiles: which, from 0 to 1.
    Raises:
        ShapeError: no parameters, an empty one, quantiles outside [0, 1]; pooled without weights or biases.
    Source: Unterthiner, Keysers, Gelly, Bousquet, Tolstikhin, Predicting neural network accuracy from weights
        (2020), section 4.
    """
    if isinstance(parameters, WeightZoo):
        parameters = parameters.parameters
    if not parameters or not all(tensor.numel() for tensor in parameters.values()):
        empty = [name for name, tensor in parameters.items() if not tensor.numel()]
        raise ShapeError(f"summarize_weights needs entries in every parameter; empty: {empty or 'all'}")
    if not all(0 <= quantile <= 1 for quantile in quantiles):
        raise ShapeError(f"quantiles lie between 0 and 1; got {tuple(quantiles)}")
    labels = ("mean", "variance", *(f"quantile {quantile:g}" for quantile in quantiles))
    found = {name: _statistics(tensor, quantiles) for name, tensor in parameters.items()}
    if pooled:
        found = _pooled(found, parameters)
    names = [f"{name} {label}" for name in found for label in labels]
    values = torch.cat(list(found.values()), 1)
    if pooled:
        layers = sum(tensor.ndim > 2 for tensor in parameters.values())
        entries = sum(math.prod(tensor.shape[1:]) for tensor in parameters.values())
        size = values.new_tensor([layers, math.log(entries)])
        names += ["layers", "log entries"]
        values = torch.cat([values, size.expand(len(values), -1)], 1)
    return WeightStatistics(tuple(names), values)


def _statistics(tensor: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Return mean, variance and quantiles of the rows, (networks, 2 + quantiles)."""
    ordered = tensor.detach().double().cpu().flatten(1).sort(1).values
    variance, mean = torch.var_mean(ordered, 1, correction=0)
    place = torch.tensor(tuple(quantiles), dtype=torch.float64) * (ordered.shape[1] - 1)
    low, high = ordered[:, place.floor().long()], ordered[:, place.ceil().long()]
    return torch.cat([torch.stack([mean, variance], 1), low + (high - low) * place.frac()], 1)


def _pooled(found: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the statistics of the first and last tensors of a kind and their means over all of them."""
    result = {}
    for kind, wanted in (("weight", True), ("bias", False)):
        own = [values for name, values in found.items() if (parameters[name].ndim > 2) == wanted]
        if not own:
            raise ShapeError(f"pooled statistics compare weights and biases; there is no {kind}")
        result |= {
            f"first {kind}": own[0],
            f"last {kind}": own[-1],
            f"average {kind}": torch.stack(own).mean(0),
        }
    return result
