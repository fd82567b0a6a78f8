"""`symmetry`: derive the symmetries of a network and believe only those that running it confirms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from weightspace import operations as op
from weightspace.deferred import templates
from weightspace.errors import ArchitectureError
from weightspace.module import evaluate
from weightspace.network import Network, require_finite
from weightspace.reading import as_network
from weightspace.symmetry_spec import SymmetrySpec

ROUNDS = 3  # elements that are tried; see `_telling`
TOLERANCE = 1e-9  # largest change of the function, relative to its size, that float64 rounding explains


def symmetry(
    network_or_module: Network | nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    continuous: bool = False,
) -> SymmetrySpec:
    """Derive the symmetries of a network's parameters and verify them by running it.

    A random element of every group is applied in float64, with every parameter and running statistic disturbed; a
    group that changes the function by more than 1e-9 is frozen and reported. What the derivation does not
    understand is frozen with the reason, never guessed.

    Args:
        network_or_module: a `Network`, or a module to be traced.
        example_inputs: needed to trace a module whose first layer is not Linear.
        continuous: also look for scalings of ReLU and sine units, orthogonal maps of residual streams and invertible
            maps inside attention heads. A linear group takes the place of the permutations of the same units.
    Raises:
        ArchitectureError: the module cannot be traced.
        NonFiniteError: NaN or infinite weights, with which running it verifies nothing.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> spec = weightspace.symmetry(load("digits_mlp_a"))
        >>> [(group.kind, group.size) for group in spec.groups]
        [('permutation', 24), ('permutation', 12)]
        >>> [frozen.reason for frozen in spec.frozen]
        ['network input', 'network output']
    """
    from weightspace import symmetry_derivation

    network = as_network(network_or_module, example_inputs)
    require_finite(network)
    spec = symmetry_derivation.derive(network)
    if continuous:
        spec = symmetry_derivation.with_continuous(spec, network)
    return verified(spec, network)


def require_verified(spec: SymmetrySpec, network: Network) -> SymmetrySpec:
    """Return a spec that was given, or refuse it: what is asked for is not to be left out silently.

    Raises:
        ArchitectureError: a group changes the function of the network when it is run.
    """
    kept = verified(spec, network).by_name
    for group in spec.groups:
        if group.name not in kept:
            raise ArchitectureError(
                f"group {group.name!r} of the spec changes the function of the network; take it out with "
                f"spec.without([{group.name!r}], reason)"
            )
    return spec


def verified(spec: SymmetrySpec, network: Network) -> SymmetrySpec:
    """Return the spec without the groups that change the function of the network when it is run.

    Raises:
        ShapeError: the spec describes other parameters or shapes than the network has.
    """
    from weightspace.group_action import action, random_elements

    spec.require_fits({name: tensor.shape for name, tensor in templates(network.parameters).items()})
    if not spec.groups:
        return spec
    foreign = [node for node in network.opaque if not node.operation.name.startswith("aten.")]  # type: ignore[attr-defined]
    if foreign:
        names = [group.name for group in spec.groups]
        return spec.without(names, f"cannot be verified: {foreign[0].name} cannot be run")
    generator = torch.Generator().manual_seed(0)
    doubled = _varied(network.deferred().astype(torch.float64))
    inputs = random_inputs(doubled, generator)
    moving = {group.name for group in spec.permutations}

    def changes(tried: Sequence[dict[str, Tensor]]) -> list[float]:
        return _changes(doubled, inputs, [action(spec, elements) for elements in tried])

    rounds = [
        {
            name: _telling(element, turn) if name in moving else element
            for name, element in random_elements(spec, generator).items()
        }
        for turn in range(ROUNDS)
    ]
    for elements, change in zip(rounds, changes(rounds), strict=True):
        if not change <= TOLERANCE:
            broken = [
                name for name, element in elements.items() if not changes([{name: element}])[0] <= TOLERANCE
            ]
            reason = "changes the function when the network is run"
            return verified(spec.without(broken or list(elements), reason), network)
    return spec


def _telling(permutations: Tensor, turn: int) -> Tensor:
    """Replace identities by cyclic shifts, since they verify nothing; in turn 1 let every second copy rest.

    Copies that all move alike would hide that they must.
    """
    rest = torch.arange(permutations.shape[-1]).expand_as(permutations)
    moved = torch.where((permutations == rest).all(-1, keepdim=True), rest.roll(1, -1), permutations)
    if turn == 0 or permutations.ndim == 1:
        return moved
    if turn == 1:
        copies = sum(torch.meshgrid(*(torch.arange(n) for n in permutations.shape[:-1]), indexing="ij"))
        return torch.where((copies % 2 == 0)[..., None], moved, rest)  # type: ignore[union-attr]
    return permutations


def _varied(network: Network) -> Network:
    """Disturb every floating tensor, so that running statistics of 0 and 1 or zero biases hide nothing.

    Constants of the program (masks, scale factors) stay: another value may not make sense there.
    """
    kept = {
        name
        for node in network.nodes
        if isinstance(node.operation, op.Parameter)
        for name in node.operation.parameters.values()
        if name in network.buffers
    }
    seeds = {
        name: seed
        for seed, (name, tensor) in enumerate(templates(network.parameters).items())
        if tensor.is_floating_point() and name not in kept
    }

    def varied(name: str, tensor: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seeds[name])  # the same noise whenever it is made
        noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
        return torch.addcmul(tensor, tensor, noise, value=0.1).add_(noise, alpha=0.01)

    return network.change_parameters(seeds, varied)


def function_change(a: Network, b: Network, generator: torch.Generator, batch: int = 3) -> float:
    """Return max |f_a(x) - f_b(x)| / max |f_a(x)| over a few random inputs (absolute where f_a is 0)."""
    inputs = random_inputs(a, generator, batch)
    (first,), (second,) = (evaluate(network, inputs) for network in (a, b))
    return _largest_change(first, second)


def change_by(network: Network, spec: SymmetrySpec, elements: Mapping[str, Tensor]) -> float:
    """Return by how much an element changes the function, as `function_change`, in float64."""
    from weightspace.group_action import action

    exact = network.deferred().astype(torch.float64)
    inputs = random_inputs(exact, torch.Generator().manual_seed(1))
    return _changes(exact, inputs, [action(spec, elements)])[0]


def _changes(
    network: Network, inputs: Sequence[Tensor], moves: Sequence[Callable[[str, Tensor], Tensor]]
) -> list[float]:
    """The change of the function by each of several moves, all run side by side: a parameter is made once."""
    first, *others = evaluate(network, inputs, [lambda name, tensor: tensor, *moves])
    return [_largest_change(first, other) for other in others]


def _largest_change(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    first, second = ([value.double() for value in values] for values in (first, second))
    scale = max((float(value.abs().max()) for value in first if value.numel()), default=0.0) or 1.0
    changes = (float((x - y).abs().max()) if x.numel() else 0.0 for x, y in zip(first, second, strict=True))
    return max(changes, default=0.0) / scale


def random_inputs(network: Network, generator: torch.Generator, batch: int = 3) -> list[Tensor]:
    """Return standard normal inputs of the network's dtypes; integers are rows of the tables they look up."""
    tables: dict[str, int] = {}
    for node in network.nodes:
        if isinstance(node.operation, op.Embedding):
            rows = templates(network.parameters)[node.operation.weight].shape[0]
            tables[node.inputs[0]] = min(rows, tables.get(node.inputs[0], rows))
    inputs = []
    for node in network.inputs:
        shape, dtype = [batch if n is None else n for n in node.shape], getattr(torch, node.dtype)
        if dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator, dtype=dtype))
        else:
            inputs.append(torch.randint(0, tables.get(node.name, 2), shape, generator=generator).to(dtype))
    return inputs
