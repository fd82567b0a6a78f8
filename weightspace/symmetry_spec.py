"""`SymmetrySpec`: which axes of which parameters may be permuted together without changing the function.

The spec is derived from the graph of the network by union-find over the axes of its values, then verified by
running the network: see `symmetry`. Alignment, graph encodings and canonical forms start from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from weightspace.errors import ArchitectureError
from weightspace.network import Network, require_finite
from weightspace.operations import Parameter

TOLERANCE = 1e-9  # largest change of the function, relative to its size, that float64 rounding explains


@dataclass(frozen=True)
class Group:
    """The symmetric group on `size` units that are permuted together."""

    name: str
    size: int


@dataclass(frozen=True)
class Axis:
    """How a group acts on one axis of a parameter: the axis has `group.size` x `block` entries, unit-major.

    block 1 permutes single entries; block b moves runs of b entries (a channel flattened with its pixels).
    """

    group: str
    block: int = 1


@dataclass(frozen=True)
class Frozen:
    """Units that may not move: where they are made, how many, and why."""

    place: str
    size: int
    reason: str


@dataclass(frozen=True)
class SymmetrySpec:
    """Permutation symmetries of a network.

    Attributes:
        groups: the groups that act, independent of each other.
        axes: parameter name -> one `Axis`, or None, for each of its axes; only parameters some group moves.
        frozen: the axes that are left alone, each with the operation and reason.
    Source: Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023), section 3.
    """

    groups: tuple[Group, ...]
    axes: Mapping[str, tuple[Axis | None, ...]]
    frozen: tuple[Frozen, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"{len(self.groups)} permutation groups"]
        for group in self.groups:
            touched = [
                f"{name}[{axis}]" + (f" in blocks of {entry.block}" if entry.block > 1 else "")
                for name, entries in self.axes.items()
                for axis, entry in enumerate(entries)
                if entry is not None and entry.group == group.name
            ]
            lines.append(f"  S_{group.size} {group.name}: {', '.join(touched)}")
        lines += [f"  frozen {entry.place} ({entry.size}): {entry.reason}" for entry in self.frozen]
        return "\n".join(lines)

    def without(self, names: Sequence[str], reason: str) -> SymmetrySpec:
        """Return the spec with some groups frozen for a stated reason."""
        moved = {
            name: tuple(None if entry is None or entry.group in names else entry for entry in entries)
            for name, entries in self.axes.items()
        }
        return SymmetrySpec(
            tuple(group for group in self.groups if group.name not in names),
            {name: entries for name, entries in moved.items() if any(entries)},
            (*self.frozen, *(Frozen(g.name, g.size, reason) for g in self.groups if g.name in names)),
        )


def symmetry(
    network_or_module: Network | nn.Module, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> SymmetrySpec:
    """Derive the permutation symmetries of a network and verify them by running it.

    A random element of every group is applied in float64; a group that changes the function by more than 1e-9
    is frozen and reported. What the derivation does not understand is frozen with the reason, never guessed.

    Args:
        network_or_module: a `Network`, or a module to be traced.
        example_inputs: needed to trace a module whose first layer is not Linear.
    Raises:
        ArchitectureError: the module cannot be traced.
        NonFiniteError: NaN or infinite weights, with which running it verifies nothing.
    """
    from weightspace.symmetry_derivation import derive

    network = as_network(network_or_module, example_inputs)
    require_finite(network)
    return _verified(derive(network), network)


def as_network(
    network_or_module: Network | nn.Module, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> Network:
    """Return a `Network`, tracing a module when one is given."""
    if isinstance(network_or_module, Network):
        return network_or_module
    if not isinstance(network_or_module, nn.Module):
        raise ArchitectureError(
            f"a Network or an nn.Module is needed, not {type(network_or_module).__name__}"
        )
    from weightspace.reading import default_inputs
    from weightspace.tracing import trace

    return trace(
        network_or_module, default_inputs(network_or_module) if example_inputs is None else example_inputs
    )


def _verified(spec: SymmetrySpec, network: Network) -> SymmetrySpec:
    from weightspace.permutation import permute, random_permutations

    if not spec.groups:
        return spec
    if any(not node.operation.name.startswith("aten.") for node in network.opaque):  # type: ignore[attr-defined]
        names = [group.name for group in spec.groups]
        place = network.opaque[0]
        return spec.without(names, f"cannot be verified: {place.name} cannot be run")
    generator = torch.Generator().manual_seed(0)
    doubled = _varied(network.astype(torch.float64), generator)
    elements = random_permutations(spec, generator)
    if function_change(doubled, permute(doubled, spec, elements), generator) <= TOLERANCE:
        return spec
    broken = [
        name
        for name, element in elements.items()
        if not function_change(doubled, permute(doubled, spec, {name: element}), generator) <= TOLERANCE
    ]
    return _verified(
        spec.without(broken or list(elements), "changes the function when the network is run"), network
    )


def _varied(network: Network, generator: torch.Generator) -> Network:
    """Disturb every floating tensor, so that running statistics of 0 and 1 or zero biases hide nothing.

    Constants of the program (masks, scale factors) stay: another value may not make sense there.
    """
    values = {
        name
        for node in network.nodes
        if isinstance(node.operation, Parameter)
        for name in node.operation.parameters.values()
    }
    constants = values & network.buffers
    return network.replace_parameters(
        {
            name: tensor * (1 + 0.1 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
            + 0.01 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            for name, tensor in network.parameters.items()
            if tensor.is_floating_point() and name not in constants
        }
    )


def function_change(a: Network, b: Network, generator: torch.Generator, batch: int = 3) -> float:
    """Return max |f_a(x) - f_b(x)| / max |f_a(x)| over a few random inputs (absolute where f_a is 0)."""
    inputs = random_inputs(a, generator, batch)
    with torch.no_grad():
        first, second = (_outputs(network.to_module()(*inputs)) for network in (a, b))
    scale = max((float(value.abs().max()) for value in first if value.numel()), default=0.0) or 1.0
    return (
        max(float((x - y).abs().max()) if x.numel() else 0.0 for x, y in zip(first, second, strict=True))
        / scale
    )


def random_inputs(network: Network, generator: torch.Generator, batch: int = 3) -> list[Tensor]:
    """Return standard normal inputs of the network's dtypes (integers 0 and 1 for integer inputs)."""
    inputs = []
    for node in network.inputs:
        shape, dtype = [batch if n is None else n for n in node.shape], getattr(torch, node.dtype)
        if dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator, dtype=dtype))
        else:
            inputs.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return inputs


def _outputs(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    values = result if isinstance(result, tuple) else (result,)
    return [value.double() for value in values]
