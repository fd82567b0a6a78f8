"""Read an ONNX file as a `Network`: parsing, external data, and what makes a file unfit."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightspace.errors import (
    ArchitectureError,
    CheckpointError,
    MissingDependencyError,
    UnsupportedOperationError,
)
from weightspace.network import Network

_EXTERNAL = 1  # onnx.TensorProto.EXTERNAL


def read_onnx(path: str | Path) -> Network:
    """Read an ONNX model as a `Network`.

    Initializers keep their names as parameters; what the file computes from constants alone is folded. An
    open
    first axis of an input follows the batch. An operator without a rule becomes an opaque `onnx.OPTYPE` node.

    Args:
        path: the `.onnx` file; external tensor data must lie beside it or below.
    Raises:
        CheckpointError: no such file, not ONNX, truncated, external data missing or outside the model's
        folder.
        ArchitectureError: a graph that cannot be described: a cycle, a missing initializer, an open axis.
        MissingDependencyError: the onnx package is not installed.
    """
    path = Path(path)
    try:
        import onnx  # noqa: F401
        from google.protobuf.message import Error
    except ImportError as error:
        raise MissingDependencyError(
            f'{path}: reading ONNX needs the onnx package: pip install "weightspace[onnx]"'
        ) from error
    from weightspace.onnx_graph import network_from_model

    model = _parse(path)
    try:
        for tensor in _tensors(model.graph):
            _load_external(tensor, path.resolve().parent)
        return network_from_model(model)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ArchitectureError, UnsupportedOperationError) as error:
        raise ArchitectureError(f"{path}: {error}") from error
    except (
        ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, AssertionError,
        StopIteration, Error, struct.error,
    ) as error:  # fmt: skip
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise CheckpointError(
            f"{path}: the file does not follow the format ({type(error).__name__}: {reason}); export it again"
        ) from error


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not an ONNX file, or a truncated one; copy or export it again"
        ) from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise CheckpointError(f"{path}: holds no ONNX graph; is this another kind of file?")
    return model


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield every stored tensor of a graph, those inside nodes and subgraphs included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _load_external(tensor: Any, folder: Path) -> None:
    """Bring the bytes of an externally stored tensor into memory.

    Raises:
        CheckpointError: the location leaves the model's folder (also through a link), is missing or too
        short.
    """
    if tensor.data_location != _EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"external data {location!r} of initializer {tensor.name!r}"
    if not location or "\0" in location or Path(location).is_absolute() or "\\" in location:
        raise CheckpointError(f"{what} is no relative path inside the model's folder, and is refused")
    target = (folder / location).resolve()
    if not target.is_relative_to(folder):
        raise CheckpointError(f"{what} lies outside the model's folder, and is refused")
    if not target.is_file():
        raise CheckpointError(f"{what} is missing; put the file beside the model")
    size = target.stat().st_size
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
    except ValueError as error:
        raise CheckpointError(f"{what} has an offset or a length that is no number") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise CheckpointError(f"{what} needs bytes {offset} to {offset + length}, but the file has {size}")
    with target.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    del tensor.external_data[:]
    tensor.data_location = 0
