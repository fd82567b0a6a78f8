"""Statistics of the units of a network on data: which nodes have them, in which order, and how they are measured."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightspace import operations as op
from weightspace.errors import NonFiniteError, ShapeError
from weightspace.module import NetworkModule
from weightspace.network import Network, Node
from weightspace.operations import Operation
from weightspace.reading import as_network

BATCH = 1024
NONLINEAR = (op.Activation, op.PReLU, op.GroupSort, op.Householder)
PASSING = (  # what may stand between a unit and its nonlinearity
    op.Add, op.AdaptiveAveragePool, op.AveragePool, op.Cast, op.Concat, op.Expand, op.Flatten, op.Interpolate,
    op.MaxPool, op.Pad, op.Permute, op.Reshape, op.Scale, op.Select, op.Slice, op.Squeeze, op.Stack, op.Subtract,
    op.Unsqueeze,
)  # fmt: skip


@dataclass(frozen=True)
class LeftAlone:
    """A node whose statistics could not be restored, and why."""

    place: str
    reason: str


class Batches:
    """Inputs in batches, run through as often as needed.

    Args:
        data: one tensor (cut into batches of 1024), or an iterable of batches: each a tensor, or a sequence of
            which the first entries are the network's inputs and the rest (labels) is ignored. An iterator that can
            be run through only once is kept in memory.
    Raises:
        ShapeError: there is no data.
    """

    def __init__(self, data: Tensor | Iterable[Any] | Batches):
        if isinstance(data, Batches):
            self._batches: Iterable[Any] = data._batches
        elif isinstance(data, Tensor):
            self._batches = data.split(BATCH) if data.numel() else []
        else:
            self._batches = list(data) if iter(data) is data else data
        first = next(iter(self._batches), None)
        if first is None:
            raise ShapeError("restoring statistics needs data; got no batch")
        self.example: tuple[Tensor, ...] = (first,) if isinstance(first, Tensor) else tuple(first)

    def inputs(self, network: Network) -> Iterator[list[Tensor]]:
        """Yield one list of inputs per batch, floating ones in the network's dtype."""
        nodes = network.inputs
        for batch in self._batches:
            tensors = (batch,) if isinstance(batch, Tensor) else tuple(batch)
            if len(tensors) < len(nodes):
                raise ShapeError(
                    f"the network takes {len(nodes)} inputs; a batch of the data has {len(tensors)}"
                )
            yield [
                x.to(getattr(torch, node.dtype)) if x.is_floating_point() else x
                for x, node in zip(tensors, nodes, strict=False)
            ]


def networks_of(models: Sequence[Network | nn.Module], batches: Batches) -> list[Network]:
    """Return the models as networks, modules traced with the first batch."""
    return [
        as_network(model, None if isinstance(model, Network) else _example(model, batches))
        for model in models
    ]


def _example(module: nn.Module, batches: Batches) -> list[Tensor]:
    """The first batch without the labels a data loader may add: as many tensors as the module takes."""
    takes = inspect.signature(module.forward).parameters.values()
    count = None if any(p.kind == p.VAR_POSITIONAL for p in takes) else len(takes)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return [x.to(dtype) if x.is_floating_point() else x for x in batches.example[:count]]


Nodes = tuple[int, ...]  # positions of the nodes that share one set of parameters


def restoring_rounds(network: Network) -> tuple[list[list[Nodes]], list[LeftAlone]]:
    """Find the nodes to restore: what stands in one round depends only on earlier rounds."""
    nodes = network.nodes
    wanted = [
        position
        for position, node in enumerate(nodes)
        if isinstance(node.operation, op.BatchNorm) or _feeds_nonlinearity(network, node)
    ]
    users: dict[str, set[int]] = {}
    for position, node in enumerate(nodes):
        for name in node.operation.parameters.values():
            users.setdefault(name, set()).add(position)
    before = _ancestors(network)
    group_of: dict[int, Nodes] = {}
    left = []
    for position in wanted:
        node = nodes[position]
        shared = {user for name in node.operation.parameters.values() for user in users[name]}
        if any(nodes[user].operation != node.operation or user not in wanted for user in shared):
            left.append(LeftAlone(node.name, "shares a parameter with a node of another kind"))
        elif any(before[user] & shared for user in shared):
            left.append(LeftAlone(node.name, "is applied again to what depends on it"))
        else:
            group_of[position] = tuple(sorted(shared))
    waiting = {
        group: {group_of[a] for position in group for a in before[position] if a in group_of}
        for group in dict.fromkeys(group_of.values())
    }
    rounds: list[list[Nodes]] = []
    while waiting:
        ready = [group for group, needs in waiting.items() if not needs & waiting.keys()]
        if not ready:
            reason = "depends on another shared layer that depends on it"
            return rounds, [*left, *(LeftAlone(nodes[group[0]].name, reason) for group in waiting)]
        rounds.append(ready)
        for group in ready:
            del waiting[group]
    return rounds, left


def _feeds_nonlinearity(network: Network, node: Node) -> bool:
    """Whether a Linear or Conv node's units reach a nonlinearity before anything that mixes or normalizes them."""
    if not isinstance(node.operation, op.Linear | op.Conv):
        return False
    reached, waiting, seen = False, [node], set()
    while waiting:
        for user in network.consumers[waiting.pop().name]:
            if isinstance(user.operation, op.BatchNorm):
                return False
            reached = reached or isinstance(user.operation, NONLINEAR)
            if isinstance(user.operation, PASSING) and user.name not in seen:
                seen.add(user.name)
                waiting.append(user)
    return reached


def _ancestors(network: Network) -> list[set[int]]:
    places: dict[str, int] = {}
    found: list[set[int]] = []
    for position, node in enumerate(network.nodes):
        places[node.name] = position
        own = [places[name] for name in node.inputs]
        found.append({*own, *(a for place in own for a in found[place])})
    return found


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every unit of a node, float64, shape (units,)."""

    mean: Tensor
    deviation: Tensor


class _Moments:
    """Mean and sum of squared deviations, joined batch by batch (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Take samples, shape (samples, units)."""
        values = values.double()
        count = len(values)
        if not count:
            return
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        if self.count:
            total = self.count + count
            gap = mean - self.mean
            self.mean = self.mean + gap * (count / total)
            self.squares = self.squares + squares + gap.square() * (self.count * count / total)
            self.count = total
        else:
            self.count, self.mean, self.squares = count, mean, squares

    def statistics(self, place: str) -> Statistics:
        if not self.count:
            raise ShapeError(f"restoring statistics needs data; {place!r} was given no values")
        if not bool((self.mean.isfinite() & self.squares.isfinite()).all()):
            raise NonFiniteError(
                f"the values of {place!r} on the data are NaN or infinite; look at the data first"
            )
        return Statistics(self.mean, (self.squares / self.count).sqrt())


def measured_statistics(
    network: Network, groups: Sequence[Nodes], batches: Batches, *, given: bool
) -> dict[Nodes, Statistics]:
    """Statistics of what groups of nodes make, or of what they are given; only the nodes these need are run."""
    watched = {
        group: [network.nodes[p].inputs[0] if given else network.nodes[p].name for p in group]
        for group in groups
    }
    names = dict.fromkeys(name for found in watched.values() for name in found)
    module = NetworkModule(_part(network, names))
    moments = {group: _Moments() for group in groups}
    with torch.no_grad():
        for inputs in batches.inputs(network):
            values = module.values(*inputs, only=tuple(names))
            for group, found in watched.items():
                for name in found:
                    moments[group].add(_units_last(network.nodes[group[0]].operation, values[name]))
    return {group: moment.statistics(network.nodes[group[0]].name) for group, moment in moments.items()}


def _units_last(operation: Operation, value: Tensor) -> Tensor:
    """Return (samples, units): Linear has its units last, convolutions and BatchNorm on axis 1."""
    value = value if isinstance(operation, op.Linear) else value.movedim(1, -1)
    return value.reshape(-1, value.shape[-1])


def _part(network: Network, names: Iterable[str]) -> Network:
    """Return the network cut off behind some of its nodes, which become the outputs."""
    needed = set(names)
    for node in reversed(network.nodes):
        if node.name in needed:
            needed |= set(node.inputs)
    nodes = tuple(n for n in network.nodes if n.name in needed or isinstance(n.operation, op.Input))
    used = {name for node in nodes for name in node.operation.parameters.values()}
    parameters = {name: tensor for name, tensor in network.parameters.items() if name in used}
    return Network(nodes, tuple(names), parameters, network.buffers & used)
