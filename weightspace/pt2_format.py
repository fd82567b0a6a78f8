"""Read a `.pt2` file (torch.export) without `torch.export.load`, which would fall back to full unpickling.

The archive is a zip: `models/*.json` holds the graph, `data/weights/` and `data/constants/` hold raw tensor
payloads listed in `*_config.json`. Only JSON is parsed and only raw payloads are taken.
"""

from __future__ import annotations

import json
import lzma
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.archives import require_moderate
from weightspace.aten import AtenReader, Call, Reference, Value, Weight
from weightspace.builder import NetworkBuilder
from weightspace.errors import ArchitectureError, CheckpointError, UnsupportedOperationError
from weightspace.network import Network

# torch/_export/serde/schema.py, ScalarType
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128,
    12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_LITERALS = (
    "as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_strings",
)  # fmt: skip


def read_pt2(path: str | Path) -> Network:
    """Read an exported program as a `Network`.

    Raises:
        CheckpointError: not such an archive, a pickled payload, a payload shorter than its tensor.
        ArchitectureError: a graph this library cannot describe (control flow, writes into shared tensors).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, Path(path))
    except (CheckpointError, ArchitectureError, UnsupportedOperationError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error, struct.error, lzma.LZMAError) as error:
        raise CheckpointError(f"{path}: not a readable .pt2 archive ({error}); export it again") from error
    except (
        ValueError, TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError, AssertionError,
        StopIteration,
    ) as error:  # fmt: skip
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(
            f"{path}: the archive does not follow the torch.export format ({reason})"
        ) from error


def _read(archive: zipfile.ZipFile, path: Path) -> Network:
    require_moderate(archive)
    names = archive.namelist()
    models = [name for name in names if "/models/" in name and name.endswith(".json")]
    if len(models) != 1:
        old = any(name.endswith("serialized_state_dict.pt") for name in names)
        reason = (
            "its weights are pickled (torch 2.7 or older)" if old else f"it holds {len(models)} models, not 1"
        )
        raise CheckpointError(
            f"{path}: {reason}; export it again with torch.export.save of torch 2.11 or later"
        )
    root = models[0].split("/models/")[0]
    model = json.loads(archive.read(models[0]))
    tensors = _payloads(archive, path, root, "weights") | _payloads(archive, path, root, "constants")
    program = model["graph_module"]
    graph = program["graph"]
    builder = NetworkBuilder()
    reader = AtenReader(builder)
    notes = _bind_inputs(program, graph, tensors, builder, reader)
    for node in graph["nodes"]:
        _read_node(node, reader)
    outputs = []
    for spec in program["signature"]["output_specs"]:
        if "user_output" not in spec:
            raise ArchitectureError(
                f"{path}: the exported program writes into its buffers ({next(iter(spec))})"
            )
        argument = spec["user_output"]["arg"]
        if "as_none" in argument:
            continue
        if "as_tensor" not in argument:
            raise ArchitectureError(
                f"{path}: the program returns {next(iter(argument))[3:]}; export tensors only"
            )
        outputs.append(reader.node(reader.environment[argument["as_tensor"]["name"]]))
    return builder.build(outputs, metadata=notes)


def _payloads(archive: zipfile.ZipFile, path: Path, root: str, kind: str) -> dict[str, tuple[Tensor, bool]]:
    """Return name -> (tensor, is a trained parameter) for one of the archive's two stores."""
    folder = f"{root}/data/{kind}"
    listing = f"{folder}/model_{kind}_config.json"
    if listing not in archive.namelist():
        return {}
    result = {}
    for name, entry in json.loads(archive.read(listing))["config"].items():
        meta = entry.get("tensor_meta")
        if entry.get("use_pickle") or meta is None:
            raise CheckpointError(
                f"{path}: the payload of {name!r} is a pickle, which could run code, and is refused; in a place "
                "you trust: program = torch.export.load(path), then torch.export.save(program, new_path)"
            )
        payload = f"{folder}/{entry['path_name']}"
        if "/" in entry["path_name"] or payload not in archive.namelist():
            raise CheckpointError(f"{path}: the payload {entry['path_name']!r} of {name!r} is missing")
        result[name] = (
            _tensor(archive.read(payload), meta, f"{path}: payload of {name!r}"),
            entry["is_param"],
        )
    return result


def _tensor(data: bytes, meta: dict[str, Any], place: str) -> Tensor:
    dtype = _DTYPES.get(meta["dtype"])
    if dtype is None:
        raise CheckpointError(f"{place}: dtype number {meta['dtype']} is not supported")
    sizes = [entry["as_int"] for entry in meta["sizes"]]
    strides = [entry["as_int"] for entry in meta["strides"]]
    offset = meta["storage_offset"]["as_int"]
    if math.prod(sizes) == 0:
        return torch.empty(sizes, dtype=dtype)
    if min(sizes + strides + [offset]) < 0:
        raise CheckpointError(f"{place}: negative sizes {sizes}, strides {strides} or offset {offset}")
    needed = (
        offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + 1
    ) * dtype.itemsize
    if math.prod(sizes) * dtype.itemsize > max(len(data), 2**20):  # a stride of 0 makes any size of a few bytes
        raise CheckpointError(f"{place}: a {sizes} tensor of strides {strides} repeats {len(data)} bytes; file damaged")
    if len(data) < needed or len(data) % dtype.itemsize:
        raise CheckpointError(
            f"{place}: {len(data)} bytes, but a {sizes} {dtype} tensor needs {needed}; file damaged"
        )
    return torch.frombuffer(bytearray(data), dtype=dtype).as_strided(sizes, strides, offset).contiguous()


def _bind_inputs(
    program: dict[str, Any],
    graph: dict[str, Any],
    tensors: dict[str, tuple[Tensor, bool]],
    builder: NetworkBuilder,
    reader: AtenReader,
) -> dict[str, str]:
    notes: dict[str, str] = {}
    for spec in program["signature"]["input_specs"]:
        ((kind, entry),) = spec.items()
        if kind in ("parameter", "buffer"):
            name, placeholder = entry[f"{kind}_name"], entry["arg"]["name"]
            tensor, trained = tensors[name]
            reader.environment[placeholder] = Weight(builder.parameter(name, tensor, trained=trained))
        elif kind == "tensor_constant":
            reader.environment[entry["arg"]["name"]] = tensors[entry["tensor_constant_name"]][0]
        elif kind == "user_input" and "as_tensor" in entry["arg"]:
            name = entry["arg"]["as_tensor"]["name"]
            meta = graph["tensor_values"][name]
            shape: list[int | None] = []
            for axis, size in enumerate(meta["sizes"]):
                if "as_int" in size:
                    shape.append(size["as_int"])
                elif axis == 0:
                    shape.append(None)
                else:  # only the batch stays open: other free axes take the size the program was exported with
                    shape.append(size["as_expr"]["hint"]["as_int"])
                    notes[f"input {name!r} axis {axis}"] = f"exported as free, read as {shape[-1]}"
            reader.environment[name] = Value(builder.input(name, shape, _DTYPES[meta["dtype"]]))
        elif kind != "constant_input":
            raise ArchitectureError(f"an exported program with a {kind} input cannot be described")
    return notes


def _read_node(node: dict[str, Any], reader: AtenReader) -> None:
    target = node["target"].removeprefix("torch.ops.")
    arguments = {entry["name"]: _argument(entry["arg"]) for entry in node["inputs"]}
    outputs = [
        value["name"] if "name" in value else value["as_name"]
        for output in node["outputs"]
        for value in (output.get("as_tensors") or [next(iter(output.values()))])
        if isinstance(value, dict) and ("name" in value or "as_name" in value)
    ]
    several = len(outputs) > 1 or any("as_tensors" in output for output in node["outputs"])
    stack = node.get("metadata", {}).get("nn_module_stack", "").split(";")[-1].split(",")
    label = stack[1] if len(stack) == 3 and "hook" not in stack[1] else ""
    name = node.get("name") or (outputs[0] if outputs else target)
    if target.split(".")[0] not in ("aten", "weightspace", "_operator", "math"):
        raise ArchitectureError(
            f"{label or name}: operator {target} is not known; export with its decomposition"
        )
    bound = f"{name} (all outputs)" if several else (outputs[0] if outputs else name)
    reader.read(Call(target, arguments, bound, label or name))
    if several:
        for index, output in enumerate(outputs):
            if "_unused_" not in output:
                reader.environment[output] = reader.item(bound, index)


def _argument(argument: dict[str, Any]) -> Any:
    ((kind, value),) = argument.items()
    if kind == "as_none":
        return None
    if kind in _LITERALS:
        return value
    if kind in ("as_tensor", "as_optional_tensor"):
        return Reference(value["name"]) if "name" in value else _argument(value)
    if kind in ("as_tensors", "as_optional_tensors"):
        return [Reference(entry["name"]) if "name" in entry else _argument(entry) for entry in value]
    if kind in ("as_sym_int", "as_sym_float"):
        return Reference(value["as_name"]) if "as_name" in value else next(iter(value.values()))
    if kind == "as_sym_ints":
        return [_argument({"as_sym_int": entry}) for entry in value]
    if kind == "as_scalar_type":
        return _DTYPES[value]
    if kind in ("as_device", "as_layout", "as_memory_format"):
        return None
    raise ArchitectureError(
        f"an argument of kind {kind!r} (control flow or custom objects) cannot be described"
    )
