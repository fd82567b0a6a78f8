"""Opening weight files: safetensors (one file, shards, a Hugging Face folder), PyTorch pickles, `.npz`, `.npy`.

Nothing here executes code from a file: pickles are read by `torch.load(weights_only=True)`, arrays with
`allow_pickle=False`, and the rest is data. ONNX and `.pt2` files, which are programs as well as weights, are
read by `weightspace.read`.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from weightspace.archives import require_moderate, require_plain_array, require_plain_arrays
from weightspace.deferred import DeferredTensors, templates
from weightspace.errors import CheckpointError, OutputError
from weightspace.result import write_atomically

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
MAXIMUM_REPEATED_BYTES = 2**28  # of a tensor that is smaller in its file (`expand`), to be looked at
MAXIMUM_REPEATED_WEIGHT_BYTES = 2**24  # of one to be computed with
MAXIMUM_HEADER_BYTES = 100_000_000  # the limit in the format's own specification
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_DTYPE_NAMES = {getattr(torch, name): code for code, name in _DTYPES.items() if hasattr(torch, name)}
# Entries of a training checkpoint that hold tensors but no weights.
_NO_WEIGHTS = re.compile(r"optim|sched|scaler|rng|callbacks|loops", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """What a file says about one tensor, and the function that loads it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Immutable view of the named tensors of a file or folder; tensors are loaded when asked for.

    Attributes:
        path: what was opened.
        metadata: text that the file carries about itself (the `__metadata__` of safetensors), else empty.
        entries: name -> shape, dtype and loader, in file order.
        resident: the tensors live as long as the checkpoint: two names with one storage are tied weights.
    """

    path: Path
    metadata: Mapping[str, str] = field(repr=False)
    entries: Mapping[str, StoredTensor] = field(repr=False)
    resident: bool = False

    def __post_init__(self):
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        object.__setattr__(self, "entries", MappingProxyType(dict(self.entries)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in file order."""
        return tuple(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without loading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor without loading it."""
        return self._entry(name).dtype

    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU.

        From safetensors and PyTorch zip files it is a private map of the file: pages are read when touched
        and take no anonymous memory until they are written to.

        Raises:
            CheckpointError: there is no such name, the file changed since it was opened, or the tensor is not dense
                (sparse, quantized) or repeats what is stored (`expand`), which `weightspace.inspect` lists.
        """
        return _require_dense(self.path, name, self._entry(name).load())

    def row_blocks(self, name: str, rows: int) -> Iterator[Tensor]:
        """Yield the slices `tensor[i : i + rows]` in order; a scalar is yielded as it is."""
        tensor = self.tensor(name)
        if rows < 1:
            raise ValueError(f"row_blocks needs rows >= 1; rows is {rows}")
        if tensor.ndim == 0:
            yield tensor
        else:
            for start in range(0, tensor.shape[0], rows):
                yield tensor[start : start + rows]

    def state_dict(self) -> dict[str, Tensor]:
        """Return name -> tensor for all tensors."""
        return {name: self.tensor(name) for name in self.entries}

    def _entry(self, name: str) -> StoredTensor:
        if name not in self.entries:
            raise CheckpointError(
                f"{self.path}: no tensor is named {name!r}; `names` lists the {len(self)} there are"
            )
        return self.entries[name]


def open_checkpoint(path: str | Path, *, key: str | None = None) -> Checkpoint:
    """Open a weight file or folder without executing anything in it.

    Args:
        path: `.safetensors`; `*.safetensors.index.json`; a folder with `model.safetensors` or an index;
            `.pt`, `.pth`, `.bin`, `.ckpt` (PyTorch, state dicts nested in other objects are found); `.npz`; `.npy`,
            whose array has the name of the file.
        key: which state dict, when a PyTorch file holds several, as the error that lists them spells it.
    Returns:
        Checkpoint. Shapes and dtypes are known at once; safetensors, `.npy` and PyTorch zip files are mapped, legacy
        PyTorch files and `.npz` are read into memory.
    Raises:
        CheckpointError: the path is missing, empty, truncated, inconsistent, refused as unsafe, or of a kind
            that is not read; the one-line message names the file, the reason and the remedy.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path, key)
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such file; check the path")
        if not path.is_file():
            raise CheckpointError(f"{path}: this is not a regular file; save the checkpoint to a file first")
        return _open_file(path, key)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path}: cannot be read ({reason}); check the path and permissions") from error


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.safetensors` file, whole or not at all (`write_atomically`), one tensor after the other.

    Layout: the length of the header (8 bytes, little-endian), the header (JSON: name -> dtype, shape and place,
    filled up with spaces to a multiple of 8), then the entries of every tensor in row-major order, tensors of large
    entries first, so that all are aligned. Those that are deferred (`DeferredTensors`), not contiguous or on
    another device are in memory one at a time.

    Raises:
        OutputError: the file cannot be written, or a tensor or metadata entry has no place in the format.
    """
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise OutputError(f"cannot write {str(path)!r}: metadata maps str to str; {key!r} is {value!r}")
    known = templates(tensors)
    for name, tensor in known.items():
        if not isinstance(name, str) or name == "__metadata__" or not isinstance(tensor, Tensor):
            raise OutputError(
                f"cannot write {str(path)!r}: {name!r} ({type(tensor).__name__}) is no named tensor"
            )
        dense = tensor.layout == torch.strided and not tensor.is_quantized
        if not dense or (tensor.is_meta and not isinstance(tensors, DeferredTensors)):
            raise OutputError(
                f"cannot write {str(path)!r}: tensor {name!r} is not dense; convert it with to_dense()"
            )
        if tensor.dtype not in _DTYPE_NAMES:
            raise OutputError(
                f"cannot write {str(path)!r}: tensor {name!r} has dtype {tensor.dtype}, which has no place in "
                "safetensors; convert it"
            )
    order = sorted(known, key=lambda name: (-known[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + known[name].numel() * known[name].element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[known[name].dtype],
            "shape": list(known[name].shape),
            "data_offsets": [start, end],
        }
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"cannot write {str(path)!r}: a name is no Unicode text ({error})") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAXIMUM_HEADER_BYTES:
        raise OutputError(
            f"cannot write {str(path)!r}: its header would take {len(text):,} bytes of at most "
            f"{MAXIMUM_HEADER_BYTES:,}; shorten the metadata"
        )
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensor = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
            if (tensor.shape, tensor.dtype) != (known[name].shape, known[name].dtype):
                raise OutputError(
                    f"cannot write {str(path)!r}: tensor {name!r} became {tuple(tensor.shape)} {tensor.dtype}, "
                    f"not {tuple(known[name].shape)} {known[name].dtype}; please report this"
                )
            flat = tensor.as_strided((tensor.numel(),), (1,))  # of a single entry `reshape` keeps any stride
            file.write(flat.view(torch.uint8).numpy().data)


# ---- which kind ------------------------------------------------------------------------------------------


def _open_file(path: Path, key: str | None) -> Checkpoint:
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty (0 bytes); download or save it again")
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path}: this is a Git LFS pointer, not the weights; run `git lfs pull`")
    if path.name.lower().endswith(".index.json"):
        return _open_index(path, key)
    if suffix not in {".safetensors", ".npz", ".npy", *PICKLE_SUFFIXES}:
        remedies = {
            ".onnx": "use weightspace.read",
            ".pt2": "use weightspace.read",
            ".h5": "load it in Keras and save the weights with safetensors",
            ".keras": "load it in Keras and save the weights with safetensors",
            ".gguf": "dequantize it and save the weights with safetensors",
        }
        known = ", ".join([".safetensors", ".safetensors.index.json", *PICKLE_SUFFIXES, ".npz", ".npy"])
        remedy = remedies.get(suffix, f"convert it to one of {known}")
        raise CheckpointError(
            f"{path}: files of kind {suffix or 'without suffix'!r} are not opened here; {remedy}"
        )
    if key is not None and suffix not in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path}: `key` is {key!r}, but only PyTorch files hold several state dicts; leave it out"
        )
    if suffix == ".safetensors":
        return Checkpoint(path, *_open_safetensors(path))
    if suffix == ".npy":
        return Checkpoint(path, {}, _resident({path.stem: _map_npy(path)}))
    if suffix == ".npz":
        return Checkpoint(path, {}, _resident(_load_npz(path)), resident=True)
    return Checkpoint(path, {}, _resident(_load_pickle(path, key)), resident=True)


def _open_folder(folder: Path, key: str | None) -> Checkpoint:
    """Open what `transformers` would: `model.safetensors`, an index, then any one other weight file."""
    for pattern in (
        "model.safetensors", "model.safetensors.index.json", "*.safetensors.index.json", "*.safetensors",
        "pytorch_model.bin", "*.bin.index.json", "*.bin", "*.pt", "*.pth",
    ):  # fmt: skip
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return _open_file(found[0], key)
        if found:
            names = ", ".join(file.name for file in found[:5]) + (", ..." if len(found) > 5 else "")
            raise CheckpointError(
                f"{folder}: the folder holds {len(found)} checkpoints and no index ({names}); name one"
            )
    raise CheckpointError(
        f"{folder}: the folder holds no checkpoint; it needs model.safetensors or its .index.json"
    )


def _open_index(path: Path, key: str | None) -> Checkpoint:
    """Open shards listed by `{"weight_map": {tensor name: file name}}`, beside the index."""
    try:
        index = json.loads(path.read_bytes(), object_pairs_hook=partial(_unique_pairs, path))
        weight_map = index["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise TypeError("weight_map is not a mapping with entries")
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise TypeError("weight_map maps a name to something that is no file name")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: this is not a checkpoint index ({_one_line(repr(error))}); download it again"
        ) from error
    entries: dict[str, StoredTensor] = {}
    homes: dict[str, str] = {}
    metadata: dict[str, str] = {}
    resident = False
    for shard in dict.fromkeys(weight_map.values()):
        file = _shard_path(path, shard)
        if not file.is_file():
            raise CheckpointError(
                f"{path}: shard {shard!r} is missing from {str(path.parent)!r}; download all shards"
            )
        opened = _open_file(file, key)
        resident = resident or opened.resident
        metadata.update(opened.metadata)
        for name, entry in opened.entries.items():
            if name in homes:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is in two shards, {homes[name]!r} and {shard!r}; save again"
                )
            homes[name], entries[name] = shard, entry
    for name, shard in weight_map.items():
        if homes.get(name) != shard:
            raise CheckpointError(
                f"{path}: tensor {name!r} is not in its shard {shard!r}; download the shards again"
            )
    return Checkpoint(path, metadata, entries, resident)


def _shard_path(index: Path, shard: str) -> Path:
    """Return the file of a shard; it must lie below the index. A symbolic link there is the user's own."""
    spellings = (PurePosixPath(shard), PureWindowsPath(shard))
    if (
        not shard
        or "\0" in shard
        or any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in spellings)
    ):
        raise CheckpointError(
            f"{index}: shard {shard!r} lies outside the folder of the index; do not trust this file"
        )
    if shard.lower().endswith(".index.json"):
        raise CheckpointError(f"{index}: shard {shard!r} is itself an index; list weight files")
    return index.parent / shard


# ---- safetensors -----------------------------------------------------------------------------------------


def _open_safetensors(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Read the header (names, shapes, dtypes), then let safetensors check offsets against the file.

    The header is parsed here as well because the library's own parser keeps the last of two equal names.
    """
    from safetensors import SafetensorError, safe_open

    header = _read_header(path)
    metadata = header.pop("__metadata__", {})
    try:
        if not all(isinstance(text, str) for text in metadata.values()):
            raise TypeError("__metadata__ holds something that is not text")
        order = sorted(header, key=lambda name: header[name]["data_offsets"])
        shapes = {name: tuple(int(size) for size in header[name]["shape"]) for name in order}
        handle = safe_open(path, framework="pt")
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        reason = _one_line(str(error))
        raise CheckpointError(f"{path}: broken safetensors file ({reason}); download it again") from error
    entries = {}
    for name in order:
        dtype = getattr(torch, _DTYPES.get(header[name]["dtype"], "unknown"), None)
        if dtype is None:
            raise CheckpointError(
                f"{path}: tensor {name!r} has dtype {header[name]['dtype']!r}, unknown to PyTorch; convert it"
            )
        entries[name] = StoredTensor(shapes[name], dtype, partial(_load_safetensor, handle, path, name))
    return metadata, entries


def _read_header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAXIMUM_HEADER_BYTES):
            raise CheckpointError(
                f"{path}: not a safetensors file, or a truncated one: its header would take {length:,} bytes "
                f"of a file of {size:,}; download or save it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=partial(_unique_pairs, path))
        if not isinstance(header, dict):
            raise TypeError("it is no JSON object")
    except (ValueError, TypeError, RecursionError) as error:
        reason = _one_line(str(error))
        raise CheckpointError(f"{path}: broken safetensors header ({reason}); download it again") from error
    return header


def _unique_pairs(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that repeats a name: readers of JSON differ in which of the two they keep."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"{path}: the name {twice!r} occurs twice in the header; save the file again")
    return result


def _load_safetensor(handle: Any, path: Path, name: str) -> Tensor:
    from safetensors import SafetensorError

    try:
        return handle.get_tensor(name)
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = _one_line(str(error))
        raise CheckpointError(
            f"{path}: tensor {name!r} cannot be loaded ({reason}); save it again"
        ) from error


# ---- PyTorch pickles and numpy archives ------------------------------------------------------------------


def _resident(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    def give(tensor: Tensor) -> Tensor:
        return tensor

    return {name: StoredTensor(tuple(t.shape), t.dtype, partial(give, t)) for name, t in tensors.items()}


def _load_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    tensors: dict[str, Tensor] = {}
    name = ""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            require_plain_arrays(archive.zip)
            for name in archive.files:
                array = archive[name]
                tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for a broken archive
        place = f"array {name!r} " if name else ""
        reason = _one_line(str(error)) or type(error).__name__
        raise CheckpointError(
            f"{path}: {place}cannot be read as plain numbers ({reason}); save numeric arrays only"
        ) from error
    return tensors


def _map_npy(path: Path) -> Tensor:
    """The array of a `.npy` file, mapped privately: pages are read when touched."""
    import numpy as np

    with open(path, "rb") as file:
        if file.read(6) != b"\x93NUMPY":  # numpy would take it for a pickle, and advise to load it unsafely
            raise CheckpointError(f"{path}: this is no .npy file; write it again with numpy.save")
    try:
        with open(path, "rb") as file:
            require_plain_array(file, path.stat().st_size, path.name)
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except OSError:
        raise
    except Exception as error:  # numpy raises several kinds for a broken or hostile file
        reason = _one_line(str(error)) or type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as plain numbers ({reason}); save one numeric array"
        ) from error


def _load_pickle(path: Path, key: str | None) -> dict[str, Tensor]:
    found = dict(_find_state_dicts(_unpickle(path), "", set()))
    if key is not None:
        if key not in found:
            raise CheckpointError(f"{path}: there is no state dict at key {key!r}; there is {_quote(found)}")
        return _require_numbers(path, found[key])
    if not found:
        raise CheckpointError(f"{path}: the file holds no tensors; save `module.state_dict()`")
    if len(found) > 1:
        raise CheckpointError(
            f"{path}: the file holds {len(found)} state dicts, {_quote(found)}; "
            "choose one with open_checkpoint(path, key=...)"
        )
    return _require_numbers(path, next(iter(found.values())))


def _require_numbers(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Refuse what a pickle can state and nothing can look at: tensors without numbers, or with too many."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise CheckpointError(
                f"{path}: tensor {name!r} has a shape and no numbers; save it from a module that is on a device"
            )
        if tensor.is_nested:
            raise CheckpointError(f"{path}: tensor {name!r} is nested and has no shape; save its parts")
        if tensor.layout == torch.strided:
            _require_stored(path, name, tensor, MAXIMUM_REPEATED_BYTES)
    return tensors


def _require_dense(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Refuse what no analysis of weights can take."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(
            f"{path}: tensor {name!r} is not dense; convert it with to_dense() or dequantize() and save it again"
        )
    _require_stored(path, name, tensor, MAXIMUM_REPEATED_WEIGHT_BYTES)
    return tensor


def _require_stored(path: Path, name: str, tensor: Tensor, most: int) -> None:
    """Refuse a tensor larger than `most` bytes that has more of them than are stored."""
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > max(stored, most):
        raise CheckpointError(
            f"{path}: tensor {name!r} repeats {stored} bytes in its shape {tuple(tensor.shape)}; save a clone"
        )


def read_training_state(path: Path) -> Any:
    """Return what `torch.save` wrote of a training: tensors and plain data, on the CPU; nothing else is loaded.

    Raises:
        CheckpointError: the file is missing, broken, or holds more than that.
    """
    try:
        return _unpickle(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; name a file that can be read") from error


def write_training_state(path: str | Path, content: Any) -> None:
    """Write tensors and plain data with `torch.save`, whole or not at all (`write_atomically`).

    Raises:
        OutputError: the file cannot be written, the disk is full; an older file stays as it was.
    """
    with write_atomically(path) as temporary:
        write_pickle(temporary, content)


def write_pickle(path: Path, content: Any) -> None:
    """`torch.save`, with one error for all that a disk may do.

    Raises:
        OutputError: the file cannot be written; a part of it may be there.
    """
    try:
        torch.save(content, path)
    except RuntimeError as error:  # what PyTorch makes of a full disk
        raise OutputError(
            f"cannot write {str(path)!r}: {_one_line(str(error))}; free space or name another folder"
        ) from error


def _unpickle(path: Path) -> Any:
    """Load plain data and tensors only; whatever a hostile or broken pickle raises is a CheckpointError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about pickle protocols and old storages: nothing a user can act on
            try:
                if zipfile.is_zipfile(path):
                    with zipfile.ZipFile(path) as archive:
                        require_moderate(archive)
                elif tarfile.is_tarfile(path):  # which torch would unpack into a folder of its own
                    raise RuntimeError(
                        "the format of PyTorch before 0.2, a tar file, is not read; save it again"
                    )
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(
                    path, map_location="cpu", weights_only=True
                )  # the format before PyTorch 1.6
    except OSError:
        raise
    except Exception as error:
        raise CheckpointError(_explain_refusal(path, error)) from error


def _explain_refusal(path: Path, error: Exception) -> str:
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)|attempted to (?:call|use|import) ([\w.]+)", text)
    with open(path, "rb") as file:
        start = file.read(2)
    if "TorchScript" in text or "torch.jit" in text:
        return (
            f"{path}: this is a TorchScript program, which is not run here; in a trusted place save "
            "torch.jit.load(path).state_dict() with safetensors.torch.save_file"
        )
    if refused or (isinstance(error, pickle.UnpicklingError) and (start == b"PK" or start[:1] == b"\x80")):
        what = (
            f"it needs the forbidden global {refused.group(1) or refused.group(2)!r}"
            if refused
            else f"it holds more than plain tensors, or is damaged ({_last_reason(text)})"
        )
        target = str(path.with_suffix(".safetensors"))
        return (
            f"{path}: this pickle is refused, since loading it could execute code: {what}; if you trust its "
            "author, convert it with two lines of Python in a place that may run it: "
            f"`state = torch.load({str(path)!r}, weights_only=False)` and "
            f"`safetensors.torch.save_file(state, {target!r})`, state being the mapping from names to tensors"
        )
    return (
        f"{path}: this is not a PyTorch checkpoint, or a truncated one "
        f"({type(error).__name__}: {_one_line(text)}); download or save it again"
    )


def _find_state_dicts(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (place, name -> tensor) for every mapping or list that holds tensors, optimizer states left out.

    `seen` holds the ids of containers already visited: a pickle can contain itself, and many times over.
    """
    if isinstance(value, Tensor):
        yield place, {place.rpartition(".")[2] or "tensor": value.detach()}
        return
    if id(value) in seen or place.count(".") > 50:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        if "param_groups" in value and "state" in value:
            return
        items = [(str(key), inner) for key, inner in value.items() if isinstance(key, (str, int))]
    elif isinstance(value, (list, tuple)):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return
    tensors = {name: inner.detach() for name, inner in items if isinstance(inner, Tensor)}
    if tensors:
        yield place, tensors
    for name, inner in items:
        if not isinstance(inner, Tensor) and not _NO_WEIGHTS.search(name):
            yield from _find_state_dicts(inner, f"{place}.{name}" if place else name, seen)


def _quote(found: Mapping[str, Any]) -> str:
    places = [repr(place) + ("" if place else " (the top level)") for place in found]
    return (", ".join(places[:6]) + (", ..." if len(places) > 6 else "")) or "none"


def _last_reason(text: str) -> str:
    """Return what PyTorch found, without its advice to load the file with the protection off."""
    _, _, reason = text.rpartition("WeightsUnpickler error:")
    return _one_line(reason.partition("Check the documentation")[0]) or "no reason given"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."
