"""From an ONNX model in memory to a `Network`: inputs, initializers, order of the nodes, control flow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from weightspace.aten import Value
from weightspace.builder import NetworkBuilder
from weightspace.errors import ArchitectureError, CheckpointError, UnsupportedOperationError
from weightspace.network import Network
from weightspace.onnx_folding import LARGEST_FOLDED
from weightspace.onnx_reader import OnnxReader
from weightspace.onnx_values import DTYPES, Known, OnnxCall

_OLDEST_OPSET = 7  # before it, broadcasting was an attribute


def network_from_model(model: Any) -> Network:
    """Describe a parsed model whose tensors are all in memory.

    The open first axis of an input is kept open; a graph that only works for one batch size is read for that
    size, and the metadata says so.
    Raises:
        ArchitectureError: a graph that cannot be described; the message names the node.
    """
    domains = {
        entry.domain if entry.domain != "ai.onnx" else "": entry.version for entry in model.opset_import
    }
    if "" not in domains:
        raise ArchitectureError("the model states no version of the standard operators (opset_import)")
    if domains[""] < _OLDEST_OPSET:
        raise ArchitectureError(
            f"opset {domains['']} is older than {_OLDEST_OPSET}; "
            "onnx.version_converter.convert_version brings it up to date"
        )
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    initializers = known_arrays(model.graph)
    inputs = [entry for entry in model.graph.input if entry.name not in initializers]
    shapes = {entry.name: _input_shape(entry, model.graph, initializers) for entry in inputs}
    open_batch = any(None in shape for shape, _ in shapes.values())
    for fixed in (False, True):
        try:
            return _read(model, domains, initializers, shapes, fixed)
        except ArchitectureError as error:
            if fixed or not open_batch:
                raise
            first = error
    raise first


def _read(
    model: Any,
    domains: Mapping[str, int],
    initializers: Mapping[str, Known],
    shapes: Mapping[str, Any],
    fixed: bool,
) -> Network:
    graph = model.graph
    builder = NetworkBuilder()
    reader = OnnxReader(builder, domains[""], domains)
    reader.environment.update(initializers)
    for entry in [*graph.value_info, *graph.output]:
        reader.stated[entry.name] = entry.type
    for name, (shape, dtype) in shapes.items():
        sizes = [1 if size is None and fixed else size for size in shape]
        reader.environment[name] = Value(builder.input(name, sizes, dtype))
        if sizes != list(shape):
            reader.notes[f"input {name!r} axis 0"] = "open in the file, read as 1: the graph cannot follow it"
    if not graph.output:
        raise ArchitectureError("the graph has no output")
    outputs = [entry.name for entry in graph.output]
    used = {name for node in _all_nodes(graph) for name in node.input} | set(outputs)
    read_nodes(reader, graph.node, used)
    missing = [name for name in outputs if name not in reader.environment]
    if missing:
        raise ArchitectureError(f"output {missing[0]!r} is made by no node")
    metadata = {
        "format": "onnx",
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in domains.items()),
        "inputs": ", ".join(shapes),
        "outputs": ", ".join(outputs),
        **reader.notes,
    }
    made = [reader.node(reader.environment[name]) for name in outputs]
    for name, known in initializers.items():
        if name not in used and known.array.ndim and known.array.dtype.kind in "fV":
            reader.weight(known)
    network = builder.build(made, metadata=metadata)
    return _without_leftovers(network, initializers, used)


def _without_leftovers(network: Network, initializers: Mapping[str, Known], used: set[str]) -> Network:
    """Drop parameters that only served nodes which were fused away; tensors no node ever used stay."""
    needed = {name for node in network.nodes for name in node.operation.parameters.values()}
    needed |= {name for name in initializers if name not in used}
    parameters = {name: tensor for name, tensor in network.parameters.items() if name in needed}
    return dataclasses.replace(network, parameters=parameters, buffers=network.buffers & parameters.keys())


def known_arrays(graph: Any) -> dict[str, Known]:
    """Return the initializers of a graph.

    Raises:
        CheckpointError: an array whose bytes do not fit its shape.
    """
    result = {}
    for tensor in graph.initializer:
        result[tensor.name] = Known(to_array(tensor), tensor.name, trained=True)
    for sparse in graph.sparse_initializer:
        values, indices = to_array(sparse.values), to_array(sparse.indices)
        shape = tuple(sparse.dims)
        if min(shape, default=0) < 0 or math.prod(shape) > LARGEST_FOLDED:
            raise CheckpointError(f"the sparse initializer {sparse.values.name!r} has the shape {list(shape)}")
        dense = np.zeros(shape, values.dtype)
        try:
            places = (indices,) if indices.ndim == 1 and len(shape) == 1 else None
            if indices.ndim == 1 and places is None:
                dense.reshape(-1)[indices] = values
            else:
                dense[places if places is not None else tuple(indices.T)] = values
        except (IndexError, ValueError) as error:
            raise CheckpointError(
                f"the sparse initializer {sparse.values.name!r} is damaged: {error}"
            ) from error
        result[sparse.values.name] = Known(dense, sparse.values.name, trained=True)
    return result


def to_array(tensor: Any) -> np.ndarray:
    """Return the array of a TensorProto; CheckpointError when its bytes do not fit its shape."""
    from onnx import numpy_helper

    if any(size < 0 for size in tensor.dims):
        raise CheckpointError(f"initializer {tensor.name!r} has the negative shape {list(tensor.dims)}")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"initializer {tensor.name!r} of shape {list(tensor.dims)} is damaged ({reason}); "
            "export the model again"
        ) from error


# ---- inputs ----------------------------------------------------------------------------------------------


def _input_shape(entry: Any, graph: Any, initializers: Mapping[str, Known]) -> tuple[list[int | None], Any]:
    """Return shape and dtype of a graph input; None is the open batch axis."""
    name = entry.name
    if not entry.type.HasField("tensor_type"):
        raise ArchitectureError(
            f"input {name!r} is no tensor (a sequence, map or optional), which is not supported"
        )
    dtype = DTYPES.get(entry.type.tensor_type.elem_type)
    if dtype is None:
        raise ArchitectureError(
            f"input {name!r} has element type number {entry.type.tensor_type.elem_type}, "
            "text or a format torch lacks"
        )
    if not entry.type.tensor_type.HasField("shape"):
        raise ArchitectureError(f"input {name!r} states no shape; set it with onnx.tools.update_model_dims")
    shape: list[int | None] = []
    for axis, dim in enumerate(entry.type.tensor_type.shape.dim):
        size = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        if size is None and axis:
            size = _size_from_consumers(
                graph, initializers, name, axis, len(entry.type.tensor_type.shape.dim)
            )
            if size is None:
                raise ArchitectureError(
                    f"axis {axis} ({dim.dim_param or 'unnamed'}) of input {name!r} is open, and only axis 0, "
                    "the batch, may be; fix its size with onnx.tools.update_model_dims"
                )
        shape.append(size)
    return shape, dtype


def _size_from_consumers(
    graph: Any, initializers: Mapping[str, Known], name: str, axis: int, rank: int
) -> int | None:
    """Return the size that a weight the input meets first forces on an axis."""
    for node in graph.node:
        if (
            not node.input
            or node.input[0] != name
            or len(node.input) < 2
            or node.input[1] not in initializers
        ):
            continue
        shape = initializers[node.input[1]].array.shape
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if node.op_type in ("MatMul", "Gemm") and axis == rank - 1 and len(shape) == 2:
            return shape[1 if transposed else 0]
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if node.op_type == "Conv" and axis == 1 and len(shape) > 2:
            return shape[1] * group
    return None


# ---- nodes -----------------------------------------------------------------------------------------------


def read_nodes(reader: OnnxReader, nodes: Sequence[Any], used: set[str]) -> None:
    """Read nodes in an order in which every value is made before it is used."""
    for node in _ordered(nodes, set(reader.environment)):
        attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        if node.op_type == "If" and not node.domain and _read_branch(reader, node, attributes, used):
            continue
        names = [*node.input, *(_captured(node, reader.environment))]
        inputs = [reader.environment[name] if name else None for name in names]
        while inputs and inputs[-1] is None:
            inputs.pop()
        wanted = tuple(position for position, name in enumerate(node.output) if name in used)
        if wanted:
            call = OnnxCall(node.op_type, tuple(inputs), attributes, tuple(node.output), wanted, node)
            try:
                reader.read(call)
            except UnsupportedOperationError as error:
                raise ArchitectureError(f"{node.op_type} {node.output[0]!r}: {error}") from error


def _read_branch(reader: OnnxReader, node: Any, attributes: Mapping[str, Any], used: set[str]) -> bool:
    """Read the branch of an If whose condition is known; False when it depends on the input."""
    condition = reader.environment.get(node.input[0]) if node.input else None
    if not isinstance(condition, Known) or condition.array.size != 1:
        return False
    branch = attributes["then_branch" if condition.array.reshape(())[()] else "else_branch"]
    reader.environment.update(known_arrays(branch))
    read_nodes(reader, branch.node, used | {entry.name for entry in branch.output})
    for name, entry in zip(node.output, branch.output, strict=True):
        if entry.name not in reader.environment:
            raise ArchitectureError(f"If {node.output[0]!r}: its branch does not make {entry.name!r}")
        reader.environment[name] = reader.environment[entry.name]
    return True


def _ordered(nodes: Sequence[Any], available: set[str]) -> Iterator[Any]:
    """Yield nodes topologically, in file order where that will do."""
    pending = list(nodes)
    made = {name for node in pending for name in node.output}
    ready = set(available)
    while pending:
        waiting = []
        for node in pending:
            needs = [name for name in [*node.input, *_captured(node, made)] if name and name not in ready]
            if needs:
                waiting.append((node, needs))
            else:
                ready.update(node.output)
                yield node
        if len(waiting) == len(pending):
            node, needs = next(
                ((node, [name for name in needs if name not in made]) for node, needs in waiting
                 if any(name not in made for name in needs)),
                waiting[0],
            )  # fmt: skip
            place = f"{node.op_type} {(list(node.output) or [node.name])[0]!r}"
            if needs[0] in made:
                raise ArchitectureError(
                    f"{place} depends on its own result through {needs[0]!r}: the graph has a cycle"
                )
            raise ArchitectureError(
                f"{place} uses {needs[0]!r}, which is no input, no initializer and no node's output; "
                "export again"
            )
        pending = [node for node, _ in waiting]


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _all_nodes(inner)


def _captured(node: Any, outer: Any) -> list[str]:
    """Return the names of the surrounding graph that a node's subgraphs use."""
    names: dict[str, None] = {}
    for graph in _subgraphs(node):
        own = {entry.name for entry in [*graph.input, *graph.initializer]}
        for inner in _all_nodes(graph):
            names.update(dict.fromkeys(name for name in inner.input if name in outer and name not in own))
            own.update(inner.output)
        names.update(
            dict.fromkeys(
                entry.name for entry in graph.output if entry.name in outer and entry.name not in own
            )
        )
    return list(names)


def _attribute(attribute: Any) -> Any:
    from onnx import helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return _shortest(value)
    if value is None:
        raise ArchitectureError(f"attribute {attribute.name!r} has no type; export the model again")
    if isinstance(value, int) or hasattr(value, "DESCRIPTOR"):
        return value
    return [
        entry.decode("utf-8", "replace") if isinstance(entry, bytes) else _shortest(entry) for entry in value
    ]


def _shortest(value: Any) -> Any:
    """Return the shortest decimal of a float32 (0.01 rather than 0.00999999977), which is what was meant."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
