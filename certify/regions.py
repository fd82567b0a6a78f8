"""Regions of the input to which a claim may be restricted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import NonFiniteError, ShapeError


@dataclass(frozen=True)
class Box:
    """All x with lower <= x <= upper, entry by entry of one sample in row-major order.

    Attributes:
        lower, upper: given as arrays, tensors or sequences of one shape; kept as tuples of floats.
    Raises:
        ShapeError: the corners have different shapes, or a lower end is above its upper one.
        NonFiniteError: NaN or infinite ends.

    Examples:
        >>> import certify, torch
        >>> certify.Box(torch.zeros(2), torch.ones(2))
        Box(2 inputs)
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def __init__(
        self,
        lower: Tensor | np.ndarray | Sequence[float],
        upper: Tensor | np.ndarray | Sequence[float],
    ):
        ends = [torch.as_tensor(end, dtype=torch.float64).detach().cpu() for end in (lower, upper)]
        if ends[0].shape != ends[1].shape:
            raise ShapeError(
                f"Box needs corners of one shape; lower is {tuple(ends[0].shape)}, upper {tuple(ends[1].shape)}"
            )
        low, high = (end.flatten() for end in ends)
        for name, end in (("lower", low), ("upper", high)):
            if not bool(end.isfinite().all()):
                entry = int((~end.isfinite()).nonzero()[0])
                raise NonFiniteError(f"Box needs finite ends; {name}[{entry}] is {float(end[entry])}")
        if bool((low > high).any()):
            entry = int((low > high).nonzero()[0])
            raise ShapeError(
                f"Box needs lower <= upper; entry {entry} runs from {float(low[entry])} to {float(high[entry])}; "
                "exchange the two"
            )
        object.__setattr__(self, "lower", tuple(low.tolist()))
        object.__setattr__(self, "upper", tuple(high.tolist()))

    def __repr__(self) -> str:
        return f"Box({len(self.lower)} inputs)"


@dataclass(frozen=True)
class Ball:
    r"""All x with $\|x - center\|_2 \le$ `radius`.

    Attributes:
        center: given as an array, a tensor or a sequence, row-major; kept as a tuple of floats.
        radius: at least 0.
    Raises:
        ShapeError: a negative radius.
        NonFiniteError: NaN or infinite numbers.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> near, network = certify.Ball([0.5] * 64, 0.01), load("digits_mlp_a")
        >>> local = certify.lipschitz(network, region=near, bounder=certify.LipSDP())
        >>> local.upper_bound < certify.lipschitz(network).upper_bound
        True
    """

    center: tuple[float, ...]
    radius: float

    def __init__(self, center: Tensor | np.ndarray | Sequence[float], radius: float):
        middle = torch.as_tensor(center, dtype=torch.float64).detach().cpu().flatten()
        if not bool(middle.isfinite().all()) or not math.isfinite(radius):
            raise NonFiniteError(f"Ball needs a finite center and radius; the radius is {radius}")
        if radius < 0:
            raise ShapeError(f"Ball needs a radius of at least 0, not {radius}")
        object.__setattr__(self, "center", tuple(middle.tolist()))
        object.__setattr__(self, "radius", float(radius))

    def __repr__(self) -> str:
        return f"Ball({len(self.center)} inputs, radius {self.radius:.6g})"


Region = Box | Ball
