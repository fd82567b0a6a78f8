"""`standardize`: the mean and standard deviation of weights, in a form that commutes with the symmetries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from weightspace.errors import ArchitectureError, ShapeError
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.zoo.collection import WeightZoo


@dataclass(frozen=True, eq=False)
class Standardization:
    """Mean and standard deviation of every parameter, float64, of shapes that broadcast over (networks, *shape)."""

    mean: Mapping[str, Tensor]
    deviation: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for field in ("mean", "deviation"):
            object.__setattr__(self, field, MappingProxyType(dict(getattr(self, field))))

    def apply(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Return $(w - \mu) / \sigma$ for parameters (networks, *shape), differentiable.

        Raises:
            ShapeError: a parameter that was not there when this was fitted.
        """
        self._require(parameters)
        return {
            name: (tensor - self.mean[name].to(tensor)) / self.deviation[name].to(tensor)
            for name, tensor in parameters.items()
        }

    def invert(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Return $\sigma w + \mu$, the inverse of `apply`.

        Raises:
            ShapeError: a parameter that was not there when this was fitted.
        """
        self._require(parameters)
        return {
            name: tensor * self.deviation[name].to(tensor) + self.mean[name].to(tensor)
            for name, tensor in parameters.items()
        }

    def _require(self, parameters: Mapping[str, Tensor]) -> None:
        unknown = [name for name in parameters if name not in self.mean]
        if unknown:
            raise ShapeError(
                f"parameter {unknown[0]!r} was not standardized; known are {', '.join(self.mean) or 'none'}"
            )

    def to_json(self) -> str:
        """Return both as JSON: parameter name -> nested lists."""
        return json.dumps(
            {
                "format": "weightspace.standardization",
                "version": 1,
                "mean": {name: tensor.tolist() for name, tensor in self.mean.items()},
                "deviation": {name: tensor.tolist() for name, tensor in self.deviation.items()},
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Standardization:
        """Read `to_json()`.

        Raises:
            ArchitectureError: not such a JSON.
        """
        try:
            data = json.loads(text)
            if (data["format"], data["version"]) != ("weightspace.standardization", 1):
                raise ValueError(f"format {data['format']!r} version {data['version']!r}")
            mean, deviation = (
                {name: torch.tensor(values, dtype=torch.float64) for name, values in data[key].items()}
                for key in ("mean", "deviation")
            )
            if {n: t.shape for n, t in mean.items()} != {n: t.shape for n, t in deviation.items()}:
                raise ValueError("mean and deviation have different shapes")
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise ArchitectureError(
                f"this is not the JSON of a standardization: {type(error).__name__} {error}"
            ) from error
        return cls(mean, deviation)


def standardize(
    parameters: Mapping[str, Tensor] | WeightZoo, spec: SymmetrySpec | None = None
) -> Standardization:
    r"""Fit the mean $\mu$ and standard deviation $\sigma$ of weights over many networks; of the training part only.

    Without a spec each tensor has one mean and one deviation; with a spec, one for each entry of its fixed axes
    (pixels, classes). Entries that a group may exchange share theirs, so that standardizing commutes with
    permutations. What never varies keeps its scale: $\sigma = 1$.

    Args:
        parameters: name -> tensor (networks, *shape), or a zoo.
    Raises:
        ShapeError: no networks, or a spec of other parameters.
    """
    if isinstance(parameters, WeightZoo):
        parameters = parameters.parameters
    if not all(tensor.numel() for tensor in parameters.values()):
        raise ShapeError("standardize needs at least one network and one weight in every tensor")
    if spec is not None:
        spec.require_fits({name: tensor.shape[1:] for name, tensor in parameters.items()})
    mean, deviation = {}, {}
    for name, tensor in parameters.items():
        moved = range(tensor.ndim - 1)
        if spec is not None:
            moved = [number for number, axis in enumerate(spec.axes.get(name, ())) if axis]
        pooled = [0, *(number + 1 for number in moved)]
        values = tensor.detach().double().cpu()
        mean[name] = values.mean(pooled, keepdim=True)
        spread = values.std(pooled, correction=0, keepdim=True)
        # Rounding of the mean alone makes equal numbers differ by this much.
        constant = spread <= 1e-12 * mean[name].abs()
        deviation[name] = torch.where(constant, 1.0, spread)
    return Standardization(mean, deviation)
