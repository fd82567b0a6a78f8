"""`Network`: the immutable description of a neural network that the whole library shares.

Every reader (module, ONNX, `.pt2`, Hugging Face folder, bare state dict) ends in one; every analysis starts
from one. It is a graph of typed operations (`weightspace.operations`) over named parameters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weightspace.deferred import DeferredTensors, chosen, templates
from weightspace.errors import ArchitectureError, NonFiniteError, ShapeError
from weightspace.operations import Input, Opaque, Operation, operation_from_json

if TYPE_CHECKING:
    import networkx

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Node:
    """One value of the network and the operation that makes it.

    `inputs` are names of earlier nodes; an axis of `shape` is None where its size follows the batch.
    """

    name: str
    operation: Operation
    inputs: tuple[str, ...]
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Network:
    """Typed operations, named parameters, shapes and edges of a network in inference mode.

    Attributes:
        nodes: in an order in which every node comes after its inputs.
        outputs: names of the nodes that the network returns.
        parameters: name -> tensor, on the CPU; trained parameters, buffers and constants. Do not write to them.
            They may be made at every look-up (`deferred`).
        buffers: names of those parameters that are not trained.
        aliases: further name -> name of the parameter it shares its storage with (tied weights).
        metadata: free text about the network: where it was read from, units, preprocessing.
    Raises:
        ArchitectureError: a name is used twice or before it is made, an output or a parameter is missing.

    Examples:
        >>> import tempfile, weightspace
        >>> from weightspace.bundled import load
        >>> network = load("digits_mlp_a")
        >>> [type(node.operation).__name__ for node in network.nodes]
        ['Input', 'Linear', 'ReLU', 'Linear', 'ReLU', 'Linear']
        >>> network.to_networkx().number_of_edges()
        5
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     network.save(f"{folder}/copy.safetensors")
        ...     weightspace.read(f"{folder}/copy.safetensors").hash == network.hash
        True
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Tensor]
    buffers: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.parameters, DeferredTensors):
            object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))
        object.__setattr__(self, "aliases", MappingProxyType(dict(self.aliases)))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        seen: set[str] = set()
        for node in self.nodes:
            if node.name in seen:
                raise ArchitectureError(f"two nodes are named {node.name!r}")
            for name in node.inputs:
                if name not in seen:
                    raise ArchitectureError(f"node {node.name!r} uses {name!r}, which no earlier node makes")
            for role, name in node.operation.parameters.items():
                if name not in self.parameters:
                    raise ArchitectureError(f"node {node.name!r} has {role} {name!r}, which is no parameter")
            seen.add(node.name)
        for name in self.outputs:
            if name not in seen:
                raise ArchitectureError(f"output {name!r} is made by no node")

    # ---- looking at it -----------------------------------------------------------------------------------

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def node(self, name: str) -> Node:
        """Return the node called `name` (KeyError when there is none)."""
        return self._by_name[name]

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The input nodes, in the order in which the network takes them."""
        return tuple(node for node in self.nodes if isinstance(node.operation, Input))

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """Node name -> the nodes that use its value."""
        users: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                users[name].append(node)
        return MappingProxyType({name: tuple(nodes) for name, nodes in users.items()})

    @property
    def opaque(self) -> tuple[Node, ...]:
        """The nodes whose operation the library does not know."""
        return tuple(node for node in self.nodes if isinstance(node.operation, Opaque))

    def weights(self, node: Node) -> dict[str, Tensor]:
        """Return role -> tensor for the parameters of `node`."""
        return {role: self.parameters[name] for role, name in node.operation.parameters.items()}

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hexadecimal) over operations, attributes, shapes, dtypes and weight bytes, not names.

        A Merkle hash: a node's digest covers its operation, its shape and dtype, the digests of its inputs
        and the bytes of its parameters; inputs are told apart by position, and all of them count. Hence
        independent of names, of the order of independent nodes and of parameters that no operation uses.
        `certify/checker.py` computes the same number with numpy alone.
        """
        positions = {node.name: index for index, node in enumerate(self.inputs)}
        tensors: dict[str, str] = {}
        digests: dict[str, str] = {}
        for node in self.nodes:
            used = node.operation.parameters
            for name in used.values():
                if name not in tensors:
                    tensors[name] = tensor_digest(self.parameters[name])
            description = [
                node.operation.kind,
                node.operation.to_json()["attributes"],
                list(node.shape),
                node.dtype,
                positions.get(node.name),
                [digests[name] for name in node.inputs],
                {role: tensors[name] for role, name in used.items()},
            ]
            digests[node.name] = hashlib.sha256(canonical_json(description)).hexdigest()
        inputs = [[list(node.shape), node.dtype] for node in self.inputs]
        returned = [digests[name] for name in self.outputs]
        return hashlib.sha256(canonical_json([inputs, returned])).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        plain = (dict(self.parameters), self.buffers, dict(self.aliases), dict(self.metadata))
        return Network, (self.nodes, self.outputs, *plain)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        sizes = " -> ".join(
            str(tuple("batch" if n is None else n for n in node.shape)) for node in self.inputs
        )
        weights = sum(t.numel() for name, t in templates(self.parameters).items() if name not in self.buffers)
        return f"Network({len(self.nodes)} nodes, input {sizes}, {weights:,} weights)"

    def __str__(self) -> str:
        lines = [repr(self)]
        for node in self.nodes:
            shape = ", ".join("batch" if n is None else str(n) for n in node.shape)
            settings = [f"{key}={value}" for key, value in node.operation.attributes.items()]
            settings += [f"{role}={name!r}" for role, name in node.operation.parameters.items()]
            call = f"{node.operation.kind}({', '.join(settings)})"
            lines.append(
                f"  {node.name}: {call} of {', '.join(node.inputs) or '-'} -> ({shape}) {node.dtype}"
            )
        return "\n".join([*lines, f"  returns {', '.join(self.outputs)}"])

    # ---- other forms of it -------------------------------------------------------------------------------

    def replace_parameters(self, parameters: Mapping[str, Tensor]) -> Network:
        """Return the network with some parameters replaced by tensors of the same shape and dtype.

        Raises:
            ShapeError: a name the network does not have, another shape or dtype.
        """
        known = templates(self.parameters)
        for name, tensor in templates(parameters).items():
            if name not in known:
                raise ShapeError(f"the network has no parameter {name!r}")
            own = known[name]
            if tensor.shape != own.shape:
                raise ShapeError(
                    f"parameter {name!r} has shape {tuple(own.shape)}, not {tuple(tensor.shape)}"
                )
            if tensor.dtype != own.dtype:
                raise ShapeError(
                    f"parameter {name!r} has dtype {own.dtype}, not {tensor.dtype}; see Network.astype"
                )
        if isinstance(self.parameters, DeferredTensors) or isinstance(parameters, DeferredTensors):
            before = self.parameters
            return replace(
                self,
                parameters=DeferredTensors(
                    known, lambda name: (parameters if name in parameters else before)[name]
                ),
            )
        return replace(self, parameters={**self.parameters, **parameters})

    def change_parameters(self, names: Iterable[str], change: Callable[[str, Tensor], Tensor]) -> Network:
        """Return the network with change(name, tensor) for some parameters, of the same shape and dtype.

        Made at once; at every look-up where the parameters of this network are (`deferred`).
        """
        before, known = self.parameters, templates(self.parameters)
        return self.replace_parameters(
            chosen(
                {name: known[name] for name in names},
                lambda name: change(name, before[name]),
                deferred=isinstance(before, DeferredTensors),
            )
        )

    def deferred(self) -> Network:
        """Return the network with parameters that are looked up in this one.

        What is derived from it by `replace_parameters`, `change_parameters` and `astype` is made at every look-up
        and takes no memory: one tensor at a time, for networks that fill it. `materialized` is the way back.
        """
        return replace(
            self, parameters=DeferredTensors(templates(self.parameters), self.parameters.__getitem__)
        )

    def materialized(self) -> Network:
        """Return the network with all parameters in memory."""
        return replace(self, parameters=dict(self.parameters))

    def astype(self, dtype: torch.dtype) -> Network:
        """Return the network computing in another floating dtype (all floating parameters and nodes converted)."""
        floating = {"float16", "bfloat16", "float32", "float64"}
        name = str(dtype).removeprefix("torch.")
        nodes = tuple(
            replace(
                node,
                dtype=name if node.dtype in floating else node.dtype,
                operation=replace(node.operation, dtype=name)
                if node.operation.attributes.get("dtype") in floating
                else node.operation,
            )
            for node in self.nodes
        )
        before = self.parameters

        def converted(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        parameters = chosen(
            {key: converted(template.to("meta")) for key, template in templates(before).items()},
            lambda key: converted(before[key]),
            deferred=isinstance(before, DeferredTensors),
        )
        return replace(self, nodes=nodes, parameters=parameters)

    def to_module(self) -> torch.nn.Module:
        """Return an `nn.Module` that runs the network, its parameters under their own names (copies)."""
        from weightspace.module import NetworkModule

        return NetworkModule(self)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """Return the operation graph: one node per value, one edge per use, `position` its place among the inputs.

        Node attributes: `operation` (the typed operation), `kind`, `shape`, `dtype`, `output` (bool).
        `from_networkx` is the inverse.
        """
        import networkx

        graph = networkx.MultiDiGraph(outputs=self.outputs)
        for node in self.nodes:
            graph.add_node(
                node.name,
                operation=node.operation,
                kind=node.operation.kind,
                shape=node.shape,
                dtype=node.dtype,
                output=node.name in self.outputs,
            )
            for position, name in enumerate(node.inputs):
                graph.add_edge(name, node.name, position=position)
        return graph

    @classmethod
    def from_networkx(
        cls, graph: networkx.MultiDiGraph, parameters: Mapping[str, Tensor], buffers: Iterable[str] = ()
    ) -> Network:
        """Build the network from `to_networkx()` and its parameters."""
        nodes = []
        for name, attributes in graph.nodes(data=True):
            edges = sorted(graph.in_edges(name, data="position"), key=lambda edge: edge[2])
            inputs = tuple(edge[0] for edge in edges)
            nodes.append(
                Node(name, attributes["operation"], inputs, attributes["shape"], attributes["dtype"])
            )
        return cls(tuple(nodes), tuple(graph.graph["outputs"]), parameters, frozenset(buffers))

    def to_json(self) -> str:
        """Return everything but the tensors as JSON: the architecture."""
        return json.dumps(
            {
                "format": "weightspace.network",
                "version": FORMAT_VERSION,
                "nodes": [
                    {
                        "name": node.name,
                        **node.operation.to_json(),
                        "inputs": node.inputs,
                        "shape": node.shape,
                        "dtype": node.dtype,
                    }
                    for node in self.nodes
                ],
                "outputs": self.outputs,
                "buffers": sorted(self.buffers),
                "aliases": dict(self.aliases),
                "metadata": dict(self.metadata),
            }
        )

    @classmethod
    def from_json(cls, text: str, parameters: Mapping[str, Tensor]) -> Network:
        """Build the network from `to_json()` and its parameters.

        Raises:
            ArchitectureError: not such a JSON, a version this library does not read, parameters that are missing or do
                not fit the shapes it states.
        """
        try:
            data = json.loads(text)
            if data["format"] != "weightspace.network":
                raise ArchitectureError(f"format is {data['format']!r}, not 'weightspace.network'")
            if data["version"] != FORMAT_VERSION:
                raise ArchitectureError(
                    f"format version {data['version']!r} is not {FORMAT_VERSION}; update weightspace"
                )
            nodes = tuple(
                Node(
                    entry["name"],
                    operation_from_json(entry),
                    tuple(entry["inputs"]),
                    tuple(entry["shape"]),
                    entry["dtype"],
                )
                for entry in data["nodes"]
            )
            network = cls(
                nodes,
                tuple(data["outputs"]),
                parameters,
                frozenset(data["buffers"]),
                data["aliases"],
                data["metadata"],
            )
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ArchitectureError(
                f"this is not the JSON of a network: {type(error).__name__} {error}"
            ) from error
        from weightspace.builder import require_consistent

        require_consistent(network)
        return network

    def state_dict(self) -> dict[str, Tensor]:
        """Return name -> tensor with tied names repeated, as `nn.Module.state_dict` does."""
        return {**self.parameters, **{alias: self.parameters[name] for alias, name in self.aliases.items()}}

    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file that carries the architecture in its metadata, so that `read` needs no more.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        from weightspace.checkpoint import write_safetensors

        write_safetensors(path, self.parameters, {"weightspace.network": self.to_json()})

    def save_npz(self, path: str | Path) -> None:
        """Write the network for readers that have numpy only: arrays `parameter:NAME` and `network`, the JSON.

        bfloat16 tensors, which numpy lacks, are stored as uint16 bit patterns and named in the JSON's `bfloat16`.
        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        from weightspace.result import write_atomically

        halves = [name for name, tensor in self.parameters.items() if tensor.dtype == torch.bfloat16]
        text = json.dumps({**json.loads(self.to_json()), "bfloat16": halves})
        arrays: dict[str, Any] = {
            f"parameter:{name}": (tensor.view(torch.int16) if name in halves else tensor).contiguous().numpy()
            for name, tensor in self.parameters.items()
        }
        arrays["network"] = np.frombuffer(text.encode(), dtype=np.uint8)
        with write_atomically(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)


def canonical_json(value: object) -> bytes:
    """Return the one spelling of a JSON value that hashes are taken of: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True).encode("ascii")


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and the little-endian bytes of a tensor in row-major order."""
    header = canonical_json([str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
    digest = hashlib.sha256(header)
    tensor = tensor.detach().contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,))  # of a single entry `view` keeps any stride
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_finite(network: Network) -> None:
    """Raise NonFiniteError naming the first parameter with NaN or infinite entries."""
    for name, tensor in network.parameters.items():
        if not tensor.is_floating_point():
            continue
        finite = (tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite()
        if not bool(finite.all()):
            count = int((~finite).sum())
            raise NonFiniteError(
                f"parameter {name!r} has {count} NaN or infinite entries; `weightspace inspect` lists every such tensor"
            )
