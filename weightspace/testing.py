"""Assertions for tests of networks and layers that are to respect the symmetries of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from weightspace.group_action import random_elements
from weightspace.network import Network
from weightspace.permutation import random_permutations
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.verification import change_by

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


def assert_function_preserved(
    network: Network,
    spec: SymmetrySpec,
    *,
    elements: Mapping[str, Tensor] | None = None,
    tolerance: float = 1e-9,
    generator: torch.Generator | None = None,
) -> None:
    """Assert that an element of the symmetry group, by default a random one, leaves the function of a network.

    The network is run in float64 on random inputs; the change is relative to the largest output.

    Raises:
        AssertionError: it changes by more than `tolerance`; the message names the groups that do it by themselves.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> from weightspace.testing import assert_function_preserved
        >>> network = load("digits_mlp_a")
        >>> assert_function_preserved(network, weightspace.symmetry(network))
    """
    if elements is None:
        elements = random_elements(spec, generator or torch.Generator().manual_seed(0))
    change = change_by(network, spec, elements)
    if not change <= tolerance:
        alone = {name: change_by(network, spec, {name: element}) for name, element in elements.items()}
        blamed = [f"{name} ({value:.2g})" for name, value in alone.items() if not value <= tolerance]
        raise AssertionError(
            f"the function changes by {change:.2g} of its size; groups that do so alone: {', '.join(blamed) or 'none'}"
        )


def assert_equivariant(
    layer: Callable[[dict[str, Tensor]], Any],
    spec: SymmetrySpec,
    *,
    channels: int = 1,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
) -> None:
    r"""Assert $L(\rho(g) x) = \rho(g) L(x)$, or $L(\rho(g) x) = L(x)$ where L returns one tensor.

    x is random, name -> (batch, channels, *shape), and g a random element of all permutation groups.

    Args:
        tolerance: largest difference, relative to the largest entry; by default 1e-6 in float32, 1e-12 in float64.
    Raises:
        AssertionError: a larger difference, or a result that is zero or not finite, of which nothing can be said.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> from weightspace.testing import assert_equivariant
        >>> spec = weightspace.symmetry(load("digits_mlp_a"))
        >>> assert_equivariant(lambda weights: {name: 2 * values for name, values in weights.items()}, spec)
    """
    from weightspace.equivariant.features import flatten_features, permute_features

    generator = generator or torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(batch, channels, *shape, dtype=dtype, generator=generator)
        for name, shape in spec.shapes.items()
    }
    element = random_permutations(spec, generator)
    with torch.no_grad():
        expected, found = layer(features), layer(permute_features(features, spec, element))
    if not isinstance(expected, Tensor):
        expected = flatten_features(permute_features(expected, spec, element), spec)
        found = flatten_features(found, spec)
    size = float(expected.abs().max())
    if not 0 < size < float("inf"):
        raise AssertionError(
            f"the largest entry of the result is {size}: equivariance cannot be told from it"
        )
    difference, bound = float((expected - found).abs().max()) / size, tolerance or TOLERANCES[dtype]
    if not difference <= bound:
        raise AssertionError(f"results differ by {difference:.2g} of their size, more than {bound:.2g}")
