r"""One representative of all the weights that give a sine unit the same function.

$\sin(z + k\pi) = (-1)^k \sin z$ and $\sin(-z) = -\sin z$: a unit $\sin(\omega (w x + b))$ whose results are multiplied
by $v$ is also the one with $b - k \pi / \omega$ and $(-1)^k v$, and the one with $-w, -b, -v$. With $\omega = 30$ and
the usual initial weights a bias can stand for any of some twenty others; a network that reads weights would have
to learn all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.symmetry_spec import Factor, SymmetrySpec


def canonicalize_sine_units(
    parameters: Mapping[str, Tensor], spec: SymmetrySpec, *, omega: float
) -> dict[str, Tensor]:
    r"""Return the networks with the bias of every sine unit in $[0, \pi / 2\omega]$; same functions.

    Does not depend on the signs the units had and commutes with permutations, up to units whose bias is a multiple
    of $\pi / 2\omega$ exactly.

    Args:
        parameters: name -> (networks, *shape).
        spec: derived with `continuous=True`; its signs say which parameters go into a unit and which read it.
        omega: $\omega$, by which the phases are multiplied before the sine.
    Raises:
        ShapeError: the spec has no signs; the units have no bias or share an axis with others.
    Source: the periodicity of the sine; signs as in Godfrey et al., On the symmetries of deep learning models (2022).
    """
    signs = [group for group in spec.continuous if group.kind == "sign"]
    if not signs:
        raise ShapeError("the spec has no signs; derive it with symmetry(network, continuous=True)")
    result = dict(parameters)
    for group in signs:
        carriers = [
            (name, axis, _whole(spec, name, axis, group.name)) for name, axis, _ in spec.carriers[group.name]
        ]
        incoming = [(name, axis) for name, axis, factor in carriers if not factor.dual]
        biases = [name for name, _ in incoming if len(spec.axes[name]) == 1]
        if len(biases) != 1:
            raise ShapeError(
                f"the units of {group.name!r} have {len(biases)} biases; canonical phases need one"
            )
        bias = result[biases[0]]
        turns = (bias * (omega / math.pi)).round()
        rest = bias - turns * (math.pi / omega)
        flip = torch.where(rest < 0, -1.0, 1.0).to(bias)
        parity = 1 - 2 * (turns % 2)
        result[biases[0]] = rest.abs()
        for name, axis in incoming:
            if name != biases[0]:
                result[name] = _scaled(result[name], axis, flip)
        for name, axis, factor in carriers:
            if factor.dual:
                result[name] = _scaled(result[name], axis, flip * parity)
    return result


def _whole(spec: SymmetrySpec, name: str, axis: int, group: str) -> Factor:
    segments = spec.axes[name][axis]
    factors = segments[0].factors
    if len(segments) != 1 or len(factors) != 1 or factors[0].scale != group:
        raise ShapeError(f"axis {axis} of {name!r} holds more than the units of {group!r}")
    return factors[0]


def _scaled(tensor: Tensor, axis: int, scale: Tensor) -> Tensor:
    """Multiply an axis (the batch not counted) by numbers (networks, size)."""
    return tensor * scale.reshape(
        len(scale), *[-1 if number == axis else 1 for number in range(tensor.ndim - 1)]
    )
