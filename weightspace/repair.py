r"""REPAIR and BatchNorm reset: give the units of an averaged network the statistics they had in its end points.

Averaging shrinks the variance of units: two aligned units correlate imperfectly, so their mean varies less than
either, and layers multiply the loss. REPAIR rescales every unit before its nonlinearity to the mean $\mu^*$ and
standard deviation $s^*$ averaged over the end points, from the input to the output, since what a unit measures
depends on the layers before it.
Source: Jordan, Sedghi, Saukh, Entezari, Neyshabur, REPAIR (2023).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weightspace import operations as op
from weightspace.errors import ShapeError
from weightspace.matching.alignment import corresponding_parameters
from weightspace.network import Network, Node
from weightspace.operations import Operation
from weightspace.unit_statistics import (
    Batches,
    LeftAlone,
    Nodes,
    Statistics,
    measured_statistics,
    networks_of,
    restoring_rounds,
)


@dataclass(frozen=True)
class Restored:
    """A network whose units have the statistics that were asked for.

    Attributes:
        network: the network.
        model: the same, of the kind that was given; the network where a bias was added that the module has no
            place for.
        repaired: names of the Linear, Conv and BatchNorm nodes that were rescaled, in order.
        reset: names of the BatchNorm nodes whose running statistics are those of the data.
        left_alone: nodes that should have been rescaled and could not, each with the reason.
    """

    network: Network
    model: Network | nn.Module
    repaired: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()


def restore_statistics(
    model: Network | nn.Module,
    end_points: Sequence[Network | nn.Module],
    data: Tensor | Iterable[Any] | Batches,
    *,
    weights: Sequence[float] | None = None,
    batch_norm: str = "reset",
) -> Restored:
    r"""Rescale the units of a merged network to the statistics they have in the networks it was made of (REPAIR).

    For a unit of a Linear or Conv node whose output reaches a nonlinearity, over all samples (and positions):
    mu* = sum_j w_j mu_j and s* = sum_j w_j s_j over the end points; with mu and s those of the merged network, all
    layers before it restored, its row of the weight becomes w s*/s and its bias (b - mu) s*/s + mu*. A unit that is
    constant (s = 0) is only shifted. A missing bias is added. BatchNorm nodes, and what they normalize, get the
    statistics of the data instead (`reset_batch_norm`).

    Args:
        model: the merged network.
        end_points: the networks it was made of, in its neuron order (`align`), of equal structure.
        data: inputs, best of the training data; some thousands are enough. See `Batches`.
        weights: of the end points, summing to 1; equal by default.
        batch_norm: "reset", or "repair": after the reset, the affine part of every BatchNorm is rescaled as well, so
            that its output has the mean and standard deviation it has in the end points.
    Raises:
        ShapeError: structures differ, no end points, no data, data that do not fit, an unknown `batch_norm`.
        NonFiniteError: statistics that are NaN or infinite; the message names the node.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import digits, load
        >>> images, _, _, _ = digits()
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> b = weightspace.align(a, b).model
        >>> middle = weightspace.interpolate(a, b, 0.5)
        >>> fixed = weightspace.restore_statistics(middle, [a, b], images)
        >>> len(fixed.repaired), fixed.left_alone
        (2, ())
    """
    batches = Batches(data)
    merged, *ends = networks_of((model, *end_points), batches)
    result = Goals.measured(ends, batches).restored(merged, weights, batches, batch_norm=batch_norm)
    return _of_kind(model, merged, result)


def reset_batch_norm(model: Network | nn.Module, data: Tensor | Iterable[Any] | Batches) -> Restored:
    """Replace the running statistics of every BatchNorm by those of the data, from the input to the output.

    running_mean and running_var become the mean and the variance (divided by the number of values) of what the
    node takes over the whole data, all earlier BatchNorms reset: what one forward pass in training mode over all
    data in one batch normalizes with. The mean of the variances of batches, which a running average gives, lacks
    the variance between batches.

    Raises:
        ShapeError: no data, or data that do not fit.
        NonFiniteError: statistics that are NaN or infinite; the message names the node.

    Examples:
        >>> import torch, weightspace
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> data = torch.randn(100, 2)
        >>> fixed = weightspace.reset_batch_norm(module, data)
        >>> fixed.reset
        ('1',)
        >>> torch.allclose(fixed.model(data).mean(0), torch.zeros(3), atol=1e-4)
        True
    """
    batches = Batches(data)
    (network,) = networks_of((model,), batches)
    return _of_kind(model, network, _restored(network, {}, batches, "reset"))


def _of_kind(model: Network | nn.Module, before: Network, result: Restored) -> Restored:
    return (
        replace(result, model=written_into(model, before, result.network))
        if isinstance(model, nn.Module)
        else result
    )


def written_into(module: nn.Module, before: Network, after: Network) -> nn.Module | Network:
    """Return a copy of the module with the tensors of `after`, a network that was traced from it as `before`.

    Biases that `after` has and the module lacks are given to the layers that can take one; where one cannot, the
    network itself is returned.
    """
    copied = copy.deepcopy(module)
    for name in after.parameters.keys() - before.parameters.keys():
        path, _, leaf = name.rpartition(".")
        owner = dict(copied.named_modules()).get(path)
        if leaf != "bias" or not isinstance(owner, _WITH_BIAS) or owner.bias is not None:
            return after
        owner.bias = nn.Parameter(after.parameters[name].to(owner.weight.device))
    state = copied.state_dict()
    with torch.no_grad():
        for name, tensor in after.state_dict().items():
            if name in state:
                state[name].copy_(tensor)
    return copied


_WITH_BIAS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class Goals:
    """The statistics that units have in each end point, measured once for every point of a path between them."""

    statistics: tuple[Mapping[Nodes, Statistics], ...]
    end_points: tuple[Network, ...]

    @classmethod
    def measured(cls, end_points: Sequence[Network], batches: Batches) -> Goals:
        """Run every end point over the data once."""
        if not end_points:
            raise ShapeError("REPAIR needs the networks that were merged; got none")
        groups = [group for ready in restoring_rounds(end_points[0])[0] for group in ready]
        for network in end_points[1:]:
            corresponding_parameters(end_points[0], network)
        found = (
            measured_statistics(network, groups, batches, given=False) if groups else {}
            for network in end_points
        )
        return cls(tuple(found), tuple(end_points))

    def restored(
        self,
        network: Network,
        weights: Sequence[float] | None,
        batches: Batches,
        *,
        batch_norm: str = "reset",
    ) -> Restored:
        """Return the network with the weighted statistics of the end points; see `restore_statistics`."""
        corresponding_parameters(self.end_points[0], network)
        weights = [1 / len(self.statistics)] * len(self.statistics) if weights is None else weights
        if len(weights) != len(self.statistics):
            raise ShapeError(
                f"REPAIR needs one weight per end point; got {len(weights)} for {len(self.statistics)}"
            )
        goals = {
            group: Statistics(
                torch.stack(
                    [w * own[group].mean for w, own in zip(weights, self.statistics, strict=True)]
                ).sum(0),
                torch.stack(
                    [w * own[group].deviation for w, own in zip(weights, self.statistics, strict=True)]
                ).sum(0),
            )
            for group in self.statistics[0]
        }
        return _restored(network, goals, batches, batch_norm)


def _restored(
    network: Network, goals: Mapping[Nodes, Statistics], batches: Batches, batch_norm: str
) -> Restored:
    if batch_norm not in ("reset", "repair"):
        raise ShapeError(f"batch_norm is 'reset' or 'repair', not {batch_norm!r}")
    rounds, left = restoring_rounds(network)
    repaired, reset = [], []
    for ready in rounds:
        norms = [g for g in ready if isinstance(network.nodes[g[0]].operation, op.BatchNorm)]
        affine = [g for g in ready if g not in norms and g in goals]
        taken = measured_statistics(network, norms, batches, given=True) if norms else {}
        made = measured_statistics(network, affine, batches, given=False) if affine else {}
        for group in norms:
            network = _reset(network, group, taken[group])
            reset += [network.nodes[position].name for position in group]
            if (
                batch_norm == "repair"
                and group in goals
                and "weight" in network.nodes[group[0]].operation.parameters
            ):
                made[group] = _normalized(network, network.nodes[group[0]], taken[group])
        for group, now in made.items():
            network = _rescaled(network, group, now, goals[group])
            repaired += [network.nodes[position].name for position in group]
    return Restored(network, network, tuple(repaired), tuple(reset), tuple(left))


def _reset(network: Network, group: Nodes, taken: Statistics) -> Network:
    operation = network.nodes[group[0]].operation
    assert isinstance(operation, op.BatchNorm)
    found = {operation.running_mean: taken.mean, operation.running_var: taken.deviation.square()}
    return network.replace_parameters(
        {name: tensor.to(network.parameters[name].dtype) for name, tensor in found.items()}
    )


def _normalized(network: Network, node: Node, taken: Statistics) -> Statistics:
    """What a BatchNorm makes of values with the statistics it normalizes by."""
    operation = node.operation
    assert isinstance(operation, op.BatchNorm)
    weights = {role: tensor.double() for role, tensor in network.weights(node).items()}
    deviation = (
        taken.deviation / (taken.deviation.square() + operation.epsilon).sqrt() * weights["weight"].abs()
    )
    return Statistics(weights.get("bias", torch.zeros_like(deviation)), deviation)


def _rescaled(network: Network, group: Nodes, now: Statistics, goal: Statistics) -> Network:
    """w <- w s*/s and b <- (b - mu) s*/s + mu*, for all nodes of a group, which share w and b."""
    node = network.nodes[group[0]]
    operation = node.operation
    constant = now.deviation <= 1e-7 * torch.maximum(now.mean.abs(), goal.deviation)
    scale = torch.where(
        constant, 1.0, goal.deviation / now.deviation.clamp_min(torch.finfo(torch.float64).tiny)
    )
    weights = network.weights(node)
    weight = weights["weight"]
    bias = weights["bias"].double() if "bias" in weights else torch.zeros_like(now.mean)
    names = operation.parameters
    new = {
        names["weight"]: (weight.double() * _on_outputs(operation, weight, scale)).to(weight.dtype),
        names.get("bias", ""): ((bias - now.mean) * scale + goal.mean).to(weight.dtype),
    }
    if "bias" in names:
        return network.replace_parameters(new)
    name = _free_name(names["weight"], network)
    new[name] = new.pop("")
    members = {network.nodes[position].name for position in group}
    nodes = tuple(
        replace(n, operation=replace(n.operation, bias=name)) if n.name in members else n  # type: ignore[call-arg]
        for n in network.nodes
    )
    return replace(network, nodes=nodes, parameters={**network.parameters, **new})


def _on_outputs(operation: Operation, weight: Tensor, scale: Tensor) -> Tensor:
    """Shape one factor per unit so that it multiplies the unit's weights."""
    if isinstance(operation, op.Linear):
        return scale if operation.transposed else scale[:, None]
    if isinstance(operation, op.Conv) and operation.transposed:  # (in, out / groups, kernel...)
        rows = scale.reshape(operation.groups, -1).repeat_interleave(weight.shape[0] // operation.groups, 0)
        return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def _free_name(weight: str, network: Network) -> str:
    path, dot, _ = weight.rpartition(".")
    name = f"{path}{dot}bias"
    while name in network.parameters or name in network.aliases:
        name += "_"
    return name
