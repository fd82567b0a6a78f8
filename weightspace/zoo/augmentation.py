"""Augmentation of weights: other weights of the same function, and weights of nearly the same function.

All functions take parameters as name -> tensor (networks, *shape), draw independently for every network, and return
new tensors; they are differentiable in the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.zoo.batch_action import act_batch

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Augmentation:
    """What is done to a batch of networks in a training loop, in this order.

    Attributes:
        spec: the symmetries, `zoo.continuous_spec` (or `zoo.spec`, which knows no scalings and signs).
        permute: the hidden units of every network get an order of their own.
        scales: ReLU units are scaled by exp(scales * normal), see `scale_relu_units`.
        signs: sine units change their sign at random.
        noise: see `add_noise`.
        drop: see `drop_weights`.
    """

    spec: SymmetrySpec
    permute: bool = True
    scales: float = 0.0
    signs: bool = False
    noise: float = 0.0
    drop: float = 0.0

    def __call__(self, parameters: Parameters, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return the augmented parameters; `generator` is on the CPU."""
        result = dict(parameters)
        if self.permute:
            result = permute_zoo(result, self.spec, generator)
        if self.scales:
            result = scale_relu_units(result, self.spec, generator, spread=self.scales)
        if self.signs:
            result = flip_sine_units(result, self.spec, generator)
        if self.noise:
            result = add_noise(result, generator, strength=self.noise)
        if self.drop:
            result = drop_weights(result, generator, rate=self.drop)
        return result


def permute_zoo(
    parameters: Parameters, spec: SymmetrySpec, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return the networks with their hidden units in random orders, drawn for each of them; same functions.

    Args:
        spec: of one network; its permutation groups act.
        generator: on the CPU; None is the global one.
    Raises:
        ShapeError: the spec describes other parameters or shapes.
    """
    count = _count(parameters)
    elements = {
        group.name: torch.rand(count, *group.copies, group.size, generator=generator).argsort(-1)
        for group in spec.permutations
    }
    return act_batch(parameters, spec, elements)


def scale_relu_units(
    parameters: Parameters,
    spec: SymmetrySpec,
    generator: torch.Generator | None = None,
    *,
    spread: float = 0.5,
) -> dict[str, Tensor]:
    r"""Return the networks with every ReLU unit scaled by $s = e^{\sigma \xi}$, $\xi$ normal; same functions.

    Args:
        spec: derived with `continuous=True`; its positive scalings act. Those of other units do not exist.
        spread: $\sigma$.
    Raises:
        ShapeError: the spec has no positive scalings, or describes other parameters.
    """
    count = _count(parameters)
    elements = {}
    for group in _scalings(spec, "positive"):
        shape = (count, *group.copies, group.size)
        elements[group.name] = (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).exp()
    return act_batch(parameters, spec, elements)


def flip_sine_units(
    parameters: Parameters, spec: SymmetrySpec, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    r"""Return the networks with random signs of their sine (or tanh) units, $\sin(-x) = -\sin x$; same functions.

    Args:
        spec: derived with `continuous=True`; its signs act.
    Raises:
        ShapeError: the spec has no signs, or describes other parameters.
    """
    count = _count(parameters)
    elements = {}
    for group in _scalings(spec, "sign"):
        shape = (count, *group.copies, group.size)
        elements[group.name] = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return act_batch(parameters, spec, elements)


def add_noise(
    parameters: Parameters, generator: torch.Generator | None = None, *, strength: float = 0.05
) -> dict[str, Tensor]:
    r"""Return $w + \epsilon\, \sigma\, \xi$: normal noise of `strength` times the standard deviation of the tensor.

    The deviation is over all entries of a tensor, of all networks given.
    """
    result = {}
    for name, tensor in parameters.items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
        spread = tensor.detach().std(correction=0) if tensor.numel() else 0.0
        result[name] = tensor + strength * spread * noise
    return result


def drop_weights(
    parameters: Parameters, generator: torch.Generator | None = None, *, rate: float = 0.1
) -> dict[str, Tensor]:
    """Return the networks with a share `rate` of the weights set to zero at random."""
    return {
        name: tensor * (torch.rand(tensor.shape, generator=generator) >= rate).to(tensor.device)
        for name, tensor in parameters.items()
    }


def _scalings(spec: SymmetrySpec, kind: str) -> list:
    found = [group for group in spec.continuous if group.kind == kind]
    if not found:
        raise ShapeError(
            f"the spec has no group of kind {kind!r}; derive it with symmetry(..., continuous=True) from a network "
            "with such units"
        )
    return found


def _count(parameters: Parameters) -> int:
    counts = {len(tensor) for tensor in parameters.values()}
    if len(counts) != 1:
        raise ShapeError(f"parameters of a batch have one length; got {sorted(counts)}")
    return counts.pop()
