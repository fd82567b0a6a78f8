"""A network as a function of flat float64 samples, whatever batch its file was written for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weightspace.network import Network


def flat_function(network: Network) -> Callable[[Tensor], Tensor]:
    """Return x (batch, inputs) -> f(x) (batch, outputs) in float64, differentiable; free sizes of inputs count as 1."""
    module = network.astype(torch.float64).to_module().requires_grad_(False)
    known = network.inputs[0].shape
    single = len(known) == 1  # a network of one vector, without a batch
    sizes = [size or 1 for size in (known if single else known[1:])]
    if not single and known[0] != 1:
        return lambda x: module(x.reshape(len(x), *sizes)).flatten(1)
    shape = sizes if single else [1, *sizes]  # reshaping may insist on a batch of one
    return torch.func.vmap(lambda x: module(x.reshape(shape)).flatten())
