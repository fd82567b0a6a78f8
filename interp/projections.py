"""Linear maps between a stream and attention heads, read by running the graph between them on basis vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.constants import constant_values
from weightspace import operations as op
from weightspace.errors import ShapeError
from weightspace.network import Network, Node

_AFFINE = (
    op.Linear, op.Scale, op.Cast, op.Add, op.Subtract, op.Multiply, op.Divide, op.Reshape, op.Flatten, op.Permute,
    op.Unsqueeze, op.Squeeze, op.Expand, op.Slice, op.Select, op.Concat, op.Stack, op.Conv, op.MatMul, op.Einsum,
    op.Item, op.Gather,
)  # fmt: skip
_JOINING = (op.Add, op.Subtract, op.Concat, op.Stack)
_PROJECTING = (op.Linear, op.MatMul, op.Conv, op.Einsum)
_GAINS = (op.Multiply, op.Scale, op.Cast, op.Add)
_ARRANGING = (op.Reshape, op.Permute, op.Flatten, op.Unsqueeze, op.Squeeze)
_COLUMNS = 256  # basis vectors that are run through the projections at once


@dataclass(frozen=True, eq=False)
class Projection:
    """An affine map from the stream to heads: weight (heads, time, width, d), bias (heads, time, width)."""

    source: str
    weight: Tensor
    bias: Tensor

    @property
    def depends_on_position(self) -> bool:
        weight = self.weight
        return bool((weight - weight[:, :1]).abs().max() > 1e-9 * weight.abs().max())

    def at(self, head: int, position: int) -> Tensor:
        """Return the map of a head at a position with the bias as the last column, (width, d + 1).

        Raises:
            ShapeError: the traced sequence is too short.
        """
        time = self.weight.shape[1]
        if not 0 <= position < time:
            raise ShapeError(
                f"offset {position} needs a trace with more than {position} positions; this one has {time}: "
                "give longer example inputs"
            )
        return torch.cat([self.weight[head, position], self.bias[head, position, :, None]], 1)


class ProjectionReader:
    """Reads the linear maps around attention in a network in float64; what is none is added to `notes`."""

    def __init__(self, network: Network):
        self.network = network
        self.position = {node.name: index for index, node in enumerate(network.nodes)}
        self.constants = constant_values(network)
        self.moving = self.position.keys() - self.constants.keys()

    def projection(self, name: str, notes: list[str], transposed: bool = False) -> Projection | None:
        """The affine map from the stream to the value `name`, by walking back to where everything comes from."""
        needed, region = {name}, []
        while True:
            node = self.network.node(max(needed, key=self.position.__getitem__))
            moving = [each for each in node.inputs if each in self.moving]
            # The first value that everything comes from, unless it is the gain or the bias of a norm written out (and
            # not learned positions), or
            # is arranged otherwise than (batch, time, d) or (time, batch, d).
            projected = any(isinstance(each.operation, _PROJECTING) for each in region)
            arranged = len(node.shape) != 3 or None not in node.shape[:2]
            still = (self.constants[each].shape[:-1] for each in node.inputs if each in self.constants)
            gain = (
                len(moving) == 1
                and isinstance(node.operation, _GAINS)
                and all(shape.numel() == 1 for shape in still)
            )
            if (
                len(needed) == 1
                and projected
                and not (gain or (arranged and isinstance(node.operation, _ARRANGING)))
            ):
                break
            if not isinstance(node.operation, _AFFINE) or (
                len(moving) > 1 and not isinstance(node.operation, _JOINING)
            ):
                notes.append(
                    f"{node.operation.kind} at {node.name!r} stands before {name!r}: no linear map of the stream"
                )
                return None
            needed = needed - {node.name} | set(moving)
            region.append(node)
        start = node
        if len(start.shape) != 3 or None not in start.shape[:2]:
            notes.append(f"{start.name!r} is no stream of shape (batch, time, d): it has shape {start.shape}")
            return None
        region.sort(key=lambda each: self.position[each.name])
        time, width = start.shape[0] or start.shape[1] or 1, start.shape[2] or 1
        basis = torch.cat([torch.zeros(1, width), torch.eye(width)]).double()
        probe = torch.randn(2, time, width, generator=torch.Generator().manual_seed(0)).double()
        columns, values = (
            self._run(start, region, inputs) for inputs in (basis[:, None].expand(-1, time, -1), probe)
        )
        if columns is None or values is None:
            notes.append(f"{name!r} has a fixed batch size or mixes the samples of a batch")
            return None
        if transposed:
            columns, values = columns.mT, values.mT
        if columns.ndim != 4:
            notes.append(f"{name!r} has {columns.ndim} axes, not batch, heads, time and width")
            return None
        # (d + 1, heads, time, width) -> weight (heads, time, width, d) and bias (heads, time, width)
        bias, weight = columns[0], (columns[1:] - columns[:1]).permute(1, 2, 3, 0)
        if weight.shape[1] != time or not _agree(
            values, torch.einsum("htwd,btd->bhtw", weight, probe) + bias
        ):
            notes.append(f"{name!r} is no map of each position of {start.name!r} alone")
            return None
        norm = start.operation
        if isinstance(norm, op.LayerNorm | op.RMSNorm):
            held = self.network.weights(start)
            if "bias" in held:
                bias = bias + weight @ held["bias"]
            if "weight" in held:
                weight = weight * held["weight"]
        return Projection(start.name, weight, bias)

    def _run(self, start: Node, region: Sequence[Node], inputs: Tensor) -> Tensor | None:
        """The value of the last node of a region for values of `start`, some at a time; both with the batch first.

        None if other batches than the traced one do not go through.
        """
        results = []
        batch, last = start.shape.index(None), region[-1].shape.index(None)
        for rows in inputs.split(_COLUMNS):
            values = {start.name: rows.transpose(0, batch)}
            for node in region:
                taken = tuple(
                    values[each] if each in values else self.constants[each] for each in node.inputs
                )
                try:
                    values[node.name] = node.operation.evaluate(taken, self.network.weights(node))
                except RuntimeError:  # a reshape to sizes that fit the traced batch alone
                    return None
            results.append(values[region[-1].name].transpose(0, last))
        return torch.cat(results)

    def output(self, node: Node, notes: list[str]) -> tuple[str, Tensor | None]:
        """The chain of linear maps after the heads: its last node, and W_O of every head, (heads, d, width)."""
        chain: list[Node] = []
        last = node
        while len(users := self.network.consumers[last.name]) == 1:
            (last,) = users
            moving = [name for name in last.inputs if name in self.moving]
            if not isinstance(last.operation, _AFFINE) or len(moving) != 1:
                break
            chain.append(last)
        while chain and (len(chain[-1].shape) != 3 or None not in chain[-1].shape[:2]):
            chain.pop()
        if not any(isinstance(each.operation, _PROJECTING) for each in chain):
            notes.append(f"no linear map follows {node.name!r}")
            return node.name, None
        _, heads, time, width = (size or 1 for size in node.shape)
        count = heads * width
        basis = torch.cat([torch.zeros(1, count), torch.eye(count)]).double().reshape(-1, heads, 1, width)
        columns = self._run(node, chain, basis.expand(-1, -1, time, -1))
        if columns is None:
            notes.append(f"{chain[-1].name!r} has a fixed batch size or mixes the samples of a batch")
            return node.name, None
        weight = columns[1:, 0] - columns[:1, 0]
        probe = torch.randn(2, heads, time, width, generator=torch.Generator().manual_seed(0)).double()
        expected = probe.transpose(1, 2).flatten(2)
        if not _agree(self._run(node, chain, probe), expected @ weight + columns[:1, :1]):
            notes.append(f"{chain[-1].name!r} mixes positions: no output matrix")
            return node.name, None
        return chain[-1].name, weight.unflatten(0, (heads, width)).mT


def _agree(got: Tensor | None, expected: Tensor) -> bool:
    return (
        got is not None
        and got.shape == expected.shape
        and bool((got - expected).abs().max() <= 1e-9 * expected.abs().max())
    )
