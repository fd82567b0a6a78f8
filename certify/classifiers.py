"""Classifiers and their samples: what must fit, and margins enclosed in real arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certify import checker
from certify.checking import network_arrays
from weightspace.errors import NonFiniteError, ShapeError, UnsupportedOperationError
from weightspace.network import Network
from weightspace.reading import as_network


def classifier(model_or_network: nn.Module | Network, x: Any, y: Any) -> Network:
    """Return the network; x (n, ...) are inputs and y (n,) classes of it, else an error names what is wrong.

    Raises:
        as `find_adversarial_examples`.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise ShapeError("x must be a floating-point tensor (n, ...) and y a tensor (n,) of integers")
    if y.ndim != 1 or len(x) != len(y) or y.is_floating_point() or y.dtype == torch.bool or not len(y):
        raise ShapeError(
            f"y must be one integer for each of {len(x)} samples; it is {y.dtype} {tuple(y.shape)}"
        )
    example = None
    if isinstance(model_or_network, nn.Module):
        own = next((one for one in model_or_network.parameters() if one.is_floating_point()), x)
        example = x[:1].expand(2, *x.shape[1:]).to(own)
    network = as_network(model_or_network, example)
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise UnsupportedOperationError(
            f"a classifier has one input and one output; this network has {len(network.inputs)} and "
            f"{len(network.outputs)}"
        )
    wanted, classes = network.inputs[0].shape[1:], network.node(network.outputs[0]).shape[-1]
    if len(wanted) != x.ndim - 1 or any(n not in (None, m) for n, m in zip(wanted, x.shape[1:], strict=True)):
        raise ShapeError(
            f"the network takes samples of shape {tuple(wanted)}; those of x are {tuple(x.shape[1:])}"
        )
    least, most = int(y.min()), int(y.max())
    if classes is not None and (least < 0 or most >= classes):
        outside = least if least < 0 else most
        raise ShapeError(f"y has class {outside}; the network has classes 0 to {classes - 1}")
    if not bool(x.isfinite().all()):
        sample = int((~x.flatten(1).isfinite().all(1)).nonzero()[0, 0])
        raise NonFiniteError(f"sample {sample} of x has an entry that is NaN or infinite")
    return network


def require_ball(x: Tensor, epsilon: float, norm: str, clip: tuple[float, float] | None) -> None:
    """Raise unless epsilon, norm and clip describe balls around x."""
    if norm not in ("l2", "linf"):
        raise UnsupportedOperationError(f"norm={norm!r} is not 'l2' or 'linf'")
    if not math.isfinite(epsilon):
        raise NonFiniteError(f"epsilon={epsilon} is not finite")
    if epsilon < 0:
        raise ShapeError(f"epsilon={epsilon} is negative; a radius is at least 0")
    if clip is not None and not (clip[0] <= float(x.min()) and float(x.max()) <= clip[1]):
        raise ShapeError(
            f"x runs from {float(x.min()):.6g} to {float(x.max()):.6g}, outside clip={tuple(clip)}; give the range of "
            "valid inputs in the network's own units"
        )


def rebuild(network: Network) -> checker.Model:
    """Return the network as the rigorous check sees it.

    Raises:
        UnsupportedOperationError: an operation without a rule there.
    """
    try:
        return checker.rebuild(*network_arrays(network))
    except checker.Refused as error:
        raise UnsupportedOperationError(f"no certificate of this network can be checked: {error}") from error


def enclose_outputs(model: checker.Model, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an enclosure of the network's values in real arithmetic at points (n, inputs), two arrays (n, outputs).

    Raises:
        UnsupportedOperationError: an operation without a rule, or values out of range.
    """
    if model.tokens > 1:
        raise UnsupportedOperationError(
            "a network that acts on each row of features gives no class to a sample"
        )
    widest = max(step.width for step in model.steps)
    parts = np.array_split(points, max(1, len(points) * widest // 2**22))
    try:
        with np.errstate(all="ignore"):
            bounds = [checker.Bounds(model, checker.boxes(part, part), backward=False) for part in parts]
    except checker.Refused as error:
        raise UnsupportedOperationError(f"the values at the samples cannot be enclosed: {error}") from error
    low, high = ([getattr(one, side)[-1] for one in bounds] for side in ("low", "high"))
    return np.concatenate(low), np.concatenate(high)


def misclassified(model: checker.Model, points: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return where some other output is above that of y for certain, in real arithmetic; points (n, inputs)."""
    low, high = enclose_outputs(model, points)
    own = high[np.arange(len(y)), y]
    low = low.copy()
    low[np.arange(len(y)), y] = -np.inf
    return low.max(axis=1, initial=-np.inf) > own


def lower_margins(model: checker.Model, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Return rigorous lower bounds of $f_y - f_j$ at points (n, inputs), infinite for j = y; (n, outputs)."""
    low, high = enclose_outputs(model, points)
    rows = np.arange(len(labels))
    margins = np.nextafter(low[rows, labels][:, None] - high, -np.inf)
    margins[rows, labels] = np.inf
    return margins
