"""`merge`: several networks of one architecture become one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.balancing import balance_units
from weightspace.deferred import DeferredTensors, chosen, templates
from weightspace.errors import ArchitectureError, ShapeError
from weightspace.matching.alignment import Matcher, corresponding_parameters
from weightspace.matching.pieces import inner_product
from weightspace.network import Network, require_finite
from weightspace.operations import BatchNorm
from weightspace.paths import between, require_path
from weightspace.permutation import permute
from weightspace.reading import as_network
from weightspace.repair import restore_statistics, written_into
from weightspace.symmetry_spec import PERMUTATION, SymmetrySpec
from weightspace.unit_statistics import Batches, LeftAlone, networks_of
from weightspace.universe import Ensemble, Strategy, Universe, between_models
from weightspace.verification import TOLERANCE, change_by, symmetry, verified


@dataclass(frozen=True)
class Merged:
    r"""One network made of several.

    Attributes:
        model: the merged network, of the kind that was given, in the first model's neuron order; a Network where
            modules were given and REPAIR had to add a bias that they have no place for (`notes` says so).
        permutations: for every model, group -> gather index that puts it into the common order, $\pi_i$; those of
            the first are the identity.
        objective: $E = \|\sum_i \pi_i\theta_i\|^2$ over all trained parameters; `objective_before` without
            permutations.
        distances: $\|\pi_i\theta_i - \theta\|$ from every model to the weighted average (before REPAIR), over all
            floating tensors the networks compute with; `distances_before` without permutations.
        spec: the symmetry that was used; `spec.frozen` lists what was left alone and why.
        weights: of the models in the average, summing to 1.
        repaired: nodes whose statistics were restored, `reset` BatchNorms whose statistics were measured anew,
            `left_alone` what could not be.
        notes: what a user should know about the result, one sentence each.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> merged = weightspace.merge([load("digits_mlp_a"), load("digits_mlp_b")])
        >>> merged.weights
        (0.5, 0.5)
        >>> merged.objective > merged.objective_before
        True
    """

    model: Network | nn.Module
    permutations: tuple[Mapping[str, Tensor], ...]
    objective: float
    objective_before: float
    distances: tuple[float, ...]
    distances_before: tuple[float, ...]
    spec: SymmetrySpec = field(repr=False)
    weights: tuple[float, ...]
    repaired: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    notes: tuple[str, ...] = ()

    def between(self, source: int, target: int) -> dict[str, Tensor]:
        r"""Return the permutations that put model `source` into the order of model `target`, $\pi_i^{-1}\pi_j$.

        Cycle-consistent: from i to j, then from j to k, is from i to k.
        """
        return between_models(self.spec, self.permutations, source, target)

    def to_json(self) -> str:
        """Return everything but the model as JSON."""
        data = {
            "permutations": [{n: p.tolist() for n, p in element.items()} for element in self.permutations],
            "frozen": [vars(entry) for entry in self.spec.frozen],
            "left_alone": [vars(entry) for entry in self.left_alone],
        }
        plain = (
            "objective",
            "objective_before",
            "distances",
            "distances_before",
            "weights",
            "repaired",
            "reset",
        )
        return json.dumps({**{name: getattr(self, name) for name in (*plain, "notes")}, **data})


def merge(
    models: Sequence[Network | nn.Module],
    *,
    matcher: Matcher | None = None,
    method: Strategy | None = None,
    weights: Sequence[float] | None = None,
    path: str = "linear",
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    repair_data: Tensor | Iterable[Any] | None = None,
    spec: SymmetrySpec | None = None,
    balance: bool = False,
    deferred: bool = False,
) -> Merged:
    r"""Merge networks of equal structure: bring them into one neuron order, average, give units their statistics back.

    theta = sum_i w_i pi_i theta_i, computed in float64. Two models give a point of the path from the first to the
    aligned second, the midpoint by default. Floating running statistics are averaged as well, which is only a start:
    with `repair_data` they are measured anew, and units without BatchNorm are repaired
    (`repair.restore_statistics`). Tensors that are equal in all models stay exactly as they are; tensors that are
    not floating are the first model's.

    Args:
        models: two or more networks or modules; names may differ. The result is of the kind of the first.
        matcher: how two models are aligned, default that of `align`; `WeightMatching` where an order is only improved.
        method: how many are, `Universe()` (default), `MergeMany()`, `Reference(index)`, or `Average()` for none.
        weights: one per model, at least 0; they are divided by their sum. They weigh the average, not the alignment.
        path: "spherical" for the spherical path between two models (`interpolate`) at t = the second's weight.
        example_inputs: to trace modules whose first layer is not Linear; default the first batch of `repair_data`.
        repair_data: inputs, without labels or with: one tensor, or batches as a DataLoader gives them.
        spec: the symmetries to use, under the first model's names; default `symmetry(models[0])`.
        balance: scale the ReLU units of every model first so that its weights are least (`balance_units`), so that
            models which differ in such scales alone are equal. All that `Merged` says is then about balanced models.
        deferred: work on one tensor at a time, and return, from networks, a network whose parameters are made at
            every look-up (`Network.deferred`): slower, in memory for a few tensors. `save` writes it. Not with
            `repair_data`, which runs and changes the whole network.
    Raises:
        ShapeError: fewer than two models, structures that differ (the message names the first difference), weights
            that do not fit, no data, more than two models on a spherical path.
        NonFiniteError: NaN or infinite weights or data.
        ArchitectureError: nothing can be permuted, with the reasons; a group of one's own spec changes the function.
    Source: Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023); Crisostomi et al., C2M3 (2024); Jordan et al., REPAIR
        (2023).

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import digits, load
        >>> images, _, test_images, test_labels = digits()
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> merged = weightspace.merge([a, b], repair_data=images).model
        >>> bool((merged.to_module()(test_images).argmax(1) == test_labels).double().mean() > 0.8)
        True
    """
    shares = _shares(len(models), weights)
    require_path(path)
    if path != "linear" and len(models) != 2:
        raise ShapeError(f"a {path} path joins two models; got {len(models)}")
    batches = None if repair_data is None else Batches(repair_data)
    if batches is not None and example_inputs is None:
        networks = networks_of(models, batches)
    else:
        networks = [as_network(model, example_inputs) for model in models]
    names = [corresponding_parameters(networks[0], network) for network in networks]
    for network in networks:
        require_finite(network)
    method = method or Universe()
    spec = _spec(networks[0], spec, method)
    if deferred and batches is None:
        networks = [network.deferred() for network in networks]
    plain = [_under_names(networks[0], network, own) for network, own in zip(networks, names, strict=True)]
    notes = []
    if balance:
        scalings = symmetry(networks[0], continuous=True)
        if not any(group.kind == "positive" for group in scalings.groups):
            notes.append("no unit of these networks may be rescaled; balancing changed nothing")
        plain = [balance_units(network, spec=scalings).network for network in plain]
    permutations = method.order(Ensemble(spec, tuple(plain), matcher))
    aligned = [
        permute(network, spec, elements) for network, elements in zip(plain, permutations, strict=True)
    ]
    for network, elements in zip(plain, permutations, strict=True):
        _require_preserved(network, spec, elements)
    average, average_before = (_averaged(group, shares, path) for group in (aligned, plain))
    merged, restored = average, None
    if batches is not None:
        restored = restore_statistics(average, aligned, batches, weights=shares)
        merged = restored.network
    elif any(isinstance(node.operation, BatchNorm) for node in average.nodes):
        notes.append(
            "running statistics were averaged, which is a rough guess; data (repair_data) measures them"
        )
    result: Network | nn.Module = merged
    if isinstance(models[0], nn.Module):
        result = written_into(models[0], networks[0], merged)
        if isinstance(result, Network):
            notes.append("REPAIR added biases that the module has no place for; the result is a Network")
    return Merged(
        result,
        tuple(permutations),
        _objective(aligned),
        _objective(plain),
        tuple(_distance(network, average) for network in aligned),
        tuple(_distance(network, average_before) for network in plain),
        spec,
        shares,
        restored.repaired if restored else (),
        restored.reset if restored else (),
        restored.left_alone if restored else (),
        tuple(notes),
    )


def _shares(count: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    if count < 2:
        raise ShapeError(f"merge needs at least two models; got {count}")
    weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(weights) != count:
        raise ShapeError(f"merge needs one weight per model; got {len(weights)} for {count} models")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise ShapeError(f"the weights of a merge are at least 0, one of them positive; got {weights}")
    return tuple(weight / sum(weights) for weight in weights)


def _spec(network: Network, spec: SymmetrySpec | None, method: Strategy) -> SymmetrySpec:
    """Derive the spec, or take the one that was given, with the permutations that running the network confirms."""
    if not method.aligns and spec is None:
        return SymmetrySpec((), {})
    given = spec
    spec = symmetry(network) if given is None else verified(given, network)
    if given is not None and (lost := [g.name for g in given.groups if g.name not in spec.by_name]):
        raise ArchitectureError(
            f"group {lost[0]!r} of the spec changes the function of the network; take it out with "
            f"spec.without([{lost[0]!r}], reason)"
        )
    if method.aligns and not spec.permutations:
        reasons = "; ".join(f"{entry.place}: {entry.reason}" for entry in spec.frozen[:4])
        raise ArchitectureError(
            f"nothing can be permuted in this network ({reasons or 'it has no hidden units'}); "
            "method=Average() averages the models as they are"
        )
    return spec.only([PERMUTATION])


def _takes_part(network: Network, name: str) -> bool:
    """Running statistics move with their channel but take no part in the matching."""
    return templates(network.parameters)[name].is_floating_point() and name not in network.buffers


def _require_preserved(network: Network, spec: SymmetrySpec, permutations: Mapping[str, Tensor]) -> None:
    """In float64: rounding to the network's own dtype commutes with moving entries."""
    change = change_by(network, spec, permutations) if spec.groups else 0.0
    if not change <= TOLERANCE:
        raise ArchitectureError(
            f"aligning would change the function by {change:.1e}; please report this network"
        )


def _under_names(first: Network, network: Network, names: Mapping[str, str]) -> Network:
    """Return the network under the first one's names and dtypes."""
    known, theirs = templates(first.parameters), network.parameters
    parameters = chosen(
        {name: known[name] for name in names},
        lambda name: theirs[names[name]].to(known[name].dtype),
        deferred=isinstance(theirs, DeferredTensors),
    )
    return first.replace_parameters(parameters)


def _averaged(networks: Sequence[Network], shares: Sequence[float], path: str) -> Network:
    first, *rest = networks

    def average(name: str, tensor: Tensor) -> Tensor:
        if path != "linear" and name not in first.buffers:
            return between(tensor, rest[0].parameters[name], shares[1], path)
        total, equal = tensor.double() * shares[0], True
        for network, share in zip(rest, shares[1:], strict=True):
            other = network.parameters[name]
            equal = equal and torch.equal(tensor, other)
            total.add_(other.double(), alpha=share)
        return tensor if equal else total.to(tensor.dtype)

    known = templates(first.parameters)
    return first.change_parameters([name for name in known if known[name].is_floating_point()], average)


def _objective(networks: Sequence[Network]) -> float:
    objective = 0.0
    for name in networks[0].parameters:
        if _takes_part(networks[0], name):
            total = networks[0].parameters[name].to(torch.float64, copy=True)
            for network in networks[1:]:
                total += network.parameters[name]
            objective += inner_product(total, total)
    return objective


def _distance(a: Network, b: Network) -> float:
    """Frobenius distance over all floating tensors of two networks with equal names."""
    known = templates(a.parameters)
    squares = 0.0
    for name in dict.fromkeys(name for node in a.nodes for name in node.operation.parameters.values()):
        if known[name].is_floating_point():
            apart = a.parameters[name].to(torch.float64, copy=True)
            apart -= b.parameters[name]
            squares += inner_product(apart, apart)
    return squares**0.5
