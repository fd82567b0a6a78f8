"""`align`: one call, one result, for every matcher."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from weightspace.deferred import DeferredTensors, chosen, templates
from weightspace.errors import ArchitectureError, ShapeError
from weightspace.group_action import act, act_tensor
from weightspace.matching.pieces import Piece, cut, inner_product
from weightspace.network import Network, require_finite
from weightspace.reading import as_network
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.verification import TOLERANCE, change_by, require_verified, symmetry


@dataclass(frozen=True)
class Problem:
    """What a matcher works on: the trained floating tensors that some group moves, under the reference's names.

    Attributes:
        spec: the symmetries of the reference.
        reference, model: name -> tensor, in the dtypes and on the devices of the networks.
        networks: reference and model, for matchers that run them.
        names: the reference's parameter names -> the model's.
    """

    spec: SymmetrySpec
    reference: Mapping[str, Tensor]
    model: Mapping[str, Tensor]
    networks: tuple[Network, Network] | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The tensors cut into pieces with flat axes, float32 or float64."""
        return cut(self.spec, self.spec.axes, self.reference, self.model)

    def objective(self, elements: Mapping[str, Tensor]) -> float:
        """f = sum over parameters of <A, moved B>; for permutations maximal where ||A - moved B|| is minimal."""
        total = 0.0
        for name, reference in self.reference.items():
            moved = act_tensor(self.model[name], self.spec.axes[name], elements, self.spec.by_name)
            total += inner_product(reference, moved)
        return total


class Matcher(ABC):
    """A strategy for `align`. Those that look at weights alone never return less objective than the identity has."""

    @abstractmethod
    def match(self, problem: Problem) -> dict[str, Tensor]:
        """Return an element for every permutation group of the spec, to be applied to the model.

        Raises:
            ArchitectureError: the problem lacks what the matcher needs.
        """


@dataclass(frozen=True)
class Alignment:
    """The model in the reference's neuron order.

    Attributes:
        permutations: group -> gather index that was applied to the model, `new[i] = old[p[i]]`.
        model: the aligned model, of the kind that was given (Network or nn.Module); computes the same function.
        objective: sum of <reference, aligned> over the parameters that groups move; `objective_before` without.
        distance: ||reference - aligned|| over all tensors the networks compute with, those that no group moves
            and running statistics included; `distance_before` without alignment.
        function_change: max |f - f'| of model and aligned model on random inputs, relative, in float64.
        spec: the symmetry that was used; `spec.frozen` lists what was left alone and why.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> found = weightspace.align(load("digits_mlp_a"), load("digits_mlp_b"))
        >>> {name: tuple(index.shape) for name, index in found.permutations.items()}
        {'0': (24,), '2': (12,)}
        >>> found.objective > found.objective_before
        True
    """

    permutations: Mapping[str, Tensor]
    model: Network | nn.Module
    objective: float
    objective_before: float
    distance: float
    distance_before: float
    function_change: float
    spec: SymmetrySpec = field(repr=False)

    @property
    def same_network(self) -> bool:
        """Whether the two are one network up to neuron order: equal to float32 rounding after alignment."""
        return self.distance <= 1e-6 * max(self.distance_before, 1e-30) or self.distance == 0.0

    def to_json(self) -> str:
        """Return everything but the model as JSON."""
        return json.dumps(
            {
                "permutations": {name: index.tolist() for name, index in self.permutations.items()},
                "objective": self.objective,
                "objective_before": self.objective_before,
                "distance": self.distance,
                "distance_before": self.distance_before,
                "function_change": self.function_change,
                "same_network": self.same_network,
                "frozen": [vars(entry) for entry in self.spec.frozen],
            }
        )


def align(
    reference: Network | nn.Module,
    model: Network | nn.Module,
    *,
    matcher: Matcher | None = None,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    spec: SymmetrySpec | None = None,
    deferred: bool = False,
) -> Alignment:
    """Permute the hidden units of `model` so that its weights come as close to the reference's as can be.

    Minimizes ||A - P B|| over the permutation symmetries of the architecture; `matcher` says how, default
    `FrankWolfeMatching()`. The function of the model is preserved, which is checked by running both.

    Args:
        reference, model: two networks or modules of equal structure; names may differ.
        example_inputs: to trace modules whose first layer is not Linear.
        spec: the symmetries to use, under the reference's parameter names; default `symmetry(reference)`. One's own
            is verified by running the reference.
        deferred: work on one tensor at a time, and return, from networks, a network whose parameters are made at
            every look-up (`Network.deferred`): slower, in memory for a few tensors. `save` writes it.
    Raises:
        ShapeError: the structures differ; the message names the first difference. The spec does not fit.
        NonFiniteError: NaN or infinite weights.
        ArchitectureError: the network has no permutation symmetry this version understands; the reasons are
            listed. Or a group of one's own spec changes the function; the message names it.
    Source: Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023).

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> found = weightspace.align(a, b)
        >>> found.distance < found.distance_before
        True
        >>> found.function_change < 1e-9
        True
    """
    from weightspace.matching.frank_wolfe import FrankWolfeMatching

    a, b = as_network(reference, example_inputs), as_network(model, example_inputs)
    names = corresponding_parameters(a, b)
    require_finite(a)
    require_finite(b)
    spec = symmetry(a) if spec is None else _own(spec, a)
    if not spec.groups:
        reasons = "; ".join(f"{entry.place}: {entry.reason}" for entry in spec.frozen[:4])
        raise ArchitectureError(
            f"nothing can be permuted in this network ({reasons or 'it has no hidden units'})"
        )
    given = b
    if deferred:
        a, b = a.deferred(), b.deferred()
    problem = _problem(a, b, names, spec)
    permutations = (matcher or FrankWolfeMatching()).match(problem)
    renamed = spec.renamed(names)
    change = change_by(b, renamed, permutations)
    if not change <= TOLERANCE:
        raise ArchitectureError(
            f"the alignment would change the function by {change:.1e}; please report this network"
        )
    aligned = act(b, renamed, permutations)
    objective, distance = _compared(a, aligned, names, problem.reference)
    objective_before, distance_before = _compared(a, b, names, problem.reference)
    return Alignment(
        dict(permutations),
        aligned if isinstance(model, Network) else _module(model, given, aligned),
        objective,
        objective_before,
        distance,
        distance_before,
        change,
        spec,
    )


def _problem(a: Network, b: Network, names: Mapping[str, str], spec: SymmetrySpec) -> Problem:
    known = templates(a.parameters)
    moved = {
        name: known[name]
        for name in known
        if name in spec.axes and known[name].is_floating_point() and not _is_statistic(a, name)
    }
    sides = (
        chosen(moved, make, deferred=isinstance(b.parameters, DeferredTensors))
        for make in (
            lambda name: a.parameters[name].detach(),
            lambda name: b.parameters[names[name]].detach(),
        )
    )
    return Problem(spec, *sides, networks=(a, b), names=names)


def _own(spec: SymmetrySpec, network: Network) -> SymmetrySpec:
    """Return a spec that was given, or refuse it: what is asked for is not to be left out silently."""
    spec.require_fits({name: tensor.shape for name, tensor in network.parameters.items()})
    return require_verified(spec, network)


def corresponding_parameters(a: Network, b: Network) -> dict[str, str]:
    """Return a's parameter name -> b's, node by node.

    Raises:
        ShapeError: the two networks differ in structure; the message names the first difference.
    """
    names: dict[str, str] = {}
    places = [{node.name: index for index, node in enumerate(network.nodes)} for network in (a, b)]
    for first, second in zip(a.nodes, b.nodes, strict=False):
        if first.operation.kind != second.operation.kind:
            raise ShapeError(
                f"the networks differ: {first.operation.kind} at {first.name!r} against "
                f"{second.operation.kind} at {second.name!r}"
            )
        if [places[0][name] for name in first.inputs] != [places[1][name] for name in second.inputs]:
            raise ShapeError(f"the networks differ in what {first.operation.kind} at {first.name!r} takes")
        ours, theirs = first.operation.parameters, second.operation.parameters
        if ours.keys() != theirs.keys():
            role = next(iter(ours.keys() ^ theirs.keys()))
            which = "reference" if role in ours else "model"
            raise ShapeError(f"the networks differ: {first.name!r} has a {role} in the {which} only")
        for role, name in ours.items():
            shapes = [tuple(n.parameters[key].shape) for n, key in ((a, name), (b, theirs[role]))]
            if shapes[0] != shapes[1]:
                raise ShapeError(
                    f"equal widths are needed; {name!r} has shape {shapes[0]} in the reference and "
                    f"{theirs[role]!r} {shapes[1]} in the model"
                )
            if names.setdefault(name, theirs[role]) != theirs[role]:
                raise ShapeError(
                    f"the networks differ: {name!r} is shared in the reference, not in the model"
                )
        if first.operation.attributes != second.operation.attributes or first.shape != second.shape:
            raise ShapeError(
                f"the networks differ in the settings of {first.operation.kind} at {first.name!r}"
            )
    if len(a.nodes) != len(b.nodes):
        raise ShapeError(f"the networks differ: {len(a.nodes)} operations against {len(b.nodes)}")
    if [places[0][name] for name in a.outputs] != [places[1][name] for name in b.outputs]:
        raise ShapeError("the networks differ in what they return")
    return names


def _is_statistic(network: Network, name: str) -> bool:
    """Running statistics move with their channel but take no part in the matching."""
    return name in network.buffers


def _compared(
    a: Network, b: Network, names: Mapping[str, str], matched: Collection[str]
) -> tuple[float, float]:
    """The sum of inner products over matched tensors, and the distance over all floating ones that are used."""
    objective, squares = 0.0, 0.0
    for name, other in names.items():
        first, second = a.parameters[name], b.parameters[other]
        if first.is_floating_point():
            if name in matched:
                objective += inner_product(first, second)
            if first.dtype != second.dtype:
                first, second = first.double(), second.double()
            difference = first - second
            squares += inner_product(difference, difference)
    return objective, squares**0.5


def _module(model: nn.Module, before: Network, after: Network) -> nn.Module:
    """Copy the module and load the aligned parameters into it."""
    aligned = copy.deepcopy(model)
    state = aligned.state_dict()
    with torch.no_grad():
        for name, tensor in after.state_dict().items():
            if name in state and tensor is not before.parameters.get(name):
                state[name].copy_(tensor)
    return aligned
