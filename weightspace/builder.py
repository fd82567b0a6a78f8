"""Build a `Network` step by step: what every reader uses.

Shapes and dtypes are never worked out by hand: each operation is run on shape-only (meta) tensors for two batch
sizes, and the axes whose sizes differ follow the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import ArchitectureError, WeightspaceError
from weightspace.network import Network, Node, tensor_digest
from weightspace.operations import Input, Item, Linear, Opaque, Operation, Parameter
from weightspace.operations.arithmetic import Add

BATCHES = (11, 13)

Meta = tuple[Any, Any]  # a value for each of BATCHES: meta tensors, or tuples of them


class NetworkBuilder:
    """Collects nodes; every method returns the new node's name. `build` checks, simplifies and freezes."""

    def __init__(self) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.buffers: set[str] = set()
        self.nodes: dict[str, Node] = {}
        self.meta: dict[str, Meta] = {}
        self._values: dict[str, str] = {}
        self._constants: list[str] = []

    def parameter(self, name: str, tensor: Tensor, *, trained: bool = True) -> str:
        """Add a tensor under `name`, which must be new, and return the name.

        Raises:
            ArchitectureError: the name is taken.
        """
        if name in self.parameters:
            raise ArchitectureError(f"two parameters are named {name!r}")
        self.parameters[name] = tensor.detach()
        if not trained:
            self.buffers.add(name)
        return name

    def constant(self, tensor: Tensor) -> str:
        """Add a tensor that is no part of the checkpoint and return the node that yields it."""
        for known in self._constants:
            if tensor_digest(self.parameters[known]) == tensor_digest(tensor):
                return self.value(known)
        index = len(self._constants)
        while (unique := f"constant_{index}") in self.parameters:
            index += 1
        self._constants.append(self.parameter(unique, tensor, trained=False))
        return self.value(unique)

    def is_constant(self, parameter: str) -> bool:
        """Whether a parameter is no part of the checkpoint but a constant of the program."""
        return parameter in self._constants

    def value(self, parameter: str) -> str:
        """Return the node that yields a parameter as a value, made at its first use."""
        if parameter not in self._values:
            self._values[parameter] = self.add(Parameter(value=parameter), name=parameter.replace(".", "_"))
        return self._values[parameter]

    def input(self, name: str, shape: Sequence[int | None], dtype: torch.dtype = torch.float32) -> str:
        """Add a network input; None is an axis whose size follows the batch."""
        metas = tuple(
            torch.empty([batch if n is None else n for n in shape], dtype=dtype, device="meta")
            for batch in BATCHES
        )
        return self._append(name, Input(), (), (metas[0], metas[1]))

    def add(self, operation: Operation, *inputs: str, name: str | None = None) -> str:
        """Add one operation on earlier nodes.

        Raises:
            ArchitectureError: its inputs or parameters do not fit it; the message names them.
        """
        metas: list[Any] = []
        for which in range(2):
            values = tuple(self.meta[value][which] for value in inputs)
            weights = {
                role: self.parameters[parameter].to("meta")
                for role, parameter in operation.parameters.items()
            }
            try:
                metas.append(operation.evaluate(values, weights))
            except WeightspaceError:
                raise
            except (
                RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
            ) as error:  # fmt: skip
                shapes = [tuple(value.shape) for value in values if isinstance(value, Tensor)]
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ArchitectureError(
                    f"{operation.kind} {operation.parameters or ''} does not fit its inputs {list(inputs)} "
                    f"of shapes {shapes} (batch {BATCHES[which]}): {reason}"
                ) from error
        return self._append(name or operation.kind.lower(), operation, inputs, (metas[0], metas[1]))

    def opaque(
        self,
        operation: Opaque,
        inputs: Sequence[str],
        shape: Sequence[int | None],
        dtype: torch.dtype,
        name: str,
    ) -> str:
        """Add an operation that cannot be run, with the shape and dtype its file states."""
        metas = tuple(
            torch.empty([batch if n is None else n for n in shape], dtype=dtype, device="meta")
            for batch in BATCHES
        )
        return self._append(name, operation, tuple(inputs), (metas[0], metas[1]))

    def shape(self, node: str) -> tuple[int | None, ...]:
        """Return the shape of a node's value; None follows the batch."""
        return self.nodes[node].shape

    def _append(self, name: str, operation: Operation, inputs: tuple[str, ...], meta: Meta) -> str:
        unique, count = name, 0
        while unique in self.nodes:
            count += 1
            unique = f"{name}_{count}"
        shape, dtype = (), "tuple"
        if isinstance(meta[0], Tensor):
            shape = tuple(a if a == b else None for a, b in zip(meta[0].shape, meta[1].shape, strict=True))
            dtype = str(meta[0].dtype).removeprefix("torch.")
        self.nodes[unique] = Node(unique, operation, inputs, shape, dtype)
        self.meta[unique] = meta
        return unique

    def build(
        self,
        outputs: Sequence[str],
        *,
        aliases: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Network:
        """Freeze the network: biases that stand apart join their linear map, unreachable nodes go.

        All parameters stay, used or not, so that a checkpoint keeps its tensors; constants that nothing uses go.
        """
        nodes = _join_biases(self.nodes, outputs)
        reachable: set[str] = set(outputs)
        for node in reversed(nodes):
            if node.name in reachable:
                reachable.update(node.inputs)
        kept = tuple(node for node in nodes if node.name in reachable or isinstance(node.operation, Input))
        used = {name for node in kept for name in node.operation.parameters.values()}
        parameters = {
            name: tensor
            for name, tensor in self.parameters.items()
            if name in used or name not in self._constants
        }
        return Network(
            kept,
            tuple(outputs),
            parameters,
            frozenset(self.buffers & parameters.keys()),
            aliases or {},
            metadata or {},
        )


def require_consistent(network: Network) -> None:
    """Work the shapes and dtypes of a network out again and compare them with those it states.

    Raises:
        ArchitectureError: an operation does not fit its inputs or parameters, or gives another shape or dtype.
    """
    builder = NetworkBuilder()
    builder.parameters = dict(network.parameters)
    for node in network.nodes:
        try:
            found = _replayed(builder, node)
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
            if isinstance(error, WeightspaceError):
                raise
            reason = f"{type(error).__name__} {error}".splitlines()[0]
            raise ArchitectureError(f"node {node.name!r} is described wrongly: {reason}") from error
        if (found.shape, found.dtype) != (node.shape, node.dtype):
            raise ArchitectureError(
                f"{node.operation.kind} at {node.name!r} gives {found.shape} {found.dtype}, "
                f"not {node.shape} {node.dtype} as the file states"
            )


def _replayed(builder: NetworkBuilder, node: Node) -> Node:
    operation = node.operation
    if isinstance(operation, Input):
        builder.input(node.name, node.shape, getattr(torch, node.dtype))
    elif isinstance(operation, Opaque) and not operation.name.startswith("aten."):
        builder.opaque(operation, node.inputs, node.shape, getattr(torch, node.dtype), node.name)
    else:
        builder.add(operation, *node.inputs, name=node.name)
    return builder.nodes[node.name]


def _join_biases(nodes: dict[str, Node], outputs: Sequence[str]) -> list[Node]:
    """Rewrite x W + b, with b a vector parameter of its own node, as one Linear with that bias."""
    users: dict[str, int] = {}
    for node in nodes.values():
        for name in node.inputs:
            users[name] = users.get(name, 0) + 1
    replaced: dict[str, Node] = {}
    removed: set[str] = set()
    for node in nodes.values():
        if not isinstance(node.operation, Add):
            continue
        for product, addend in (node.inputs, node.inputs[::-1]):
            linear, bias = nodes[product], nodes[addend]
            if (
                isinstance(linear.operation, Linear)
                and linear.operation.bias is None
                and isinstance(bias.operation, Parameter)
                and bias.shape == linear.shape[-1:]
                and bias.dtype == linear.dtype
                and users[product] == 1
                and product not in outputs
                and product not in removed
            ):
                joined = dataclasses.replace(linear.operation, bias=bias.operation.value)
                replaced[node.name] = dataclasses.replace(node, operation=joined, inputs=linear.inputs)
                removed.add(product)
                break
    return [replaced.get(node.name, node) for node in nodes.values() if node.name not in removed]


def item(builder: NetworkBuilder, node: str, index: int) -> str:
    """Add the node for one output of an operation that has several."""
    return builder.add(Item(index=index), node, name=f"{node}_{index}")
