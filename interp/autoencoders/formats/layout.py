"""What the layouts have in common: configurations in JSON, tensors that are as announced, folders written whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.autoencoders.autoencoder import Autoencoder
from interp.autoencoders.latent_activation import LatentActivation
from interp.autoencoders.lifted_autoencoder import LiftedAutoencoder
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from weightspace.errors import CheckpointError, OutputError, UnsupportedOperationError
from weightspace.result import write_atomically

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)
_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "an object",
    list: "a list",
}


class Configuration:
    """An object of a JSON file whose entries are asked for by name and kind.

    Raises:
        CheckpointError: an entry is missing or of another kind; the text names file, entry and value.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any], place: str = ""):
        self.path, self.entries, self.place = path, entries, place

    @classmethod
    def read(cls, path: Path) -> Configuration:
        try:
            entries = json.loads(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}; it belongs to the weights") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: this is not JSON ({error}); download or save it again") from error
        if not isinstance(entries, dict):
            raise CheckpointError(f"{path}: this is no JSON object; download or save it again")
        return cls(path, entries)

    def get(self, name: str, kind: type, default: Any = ...) -> Any:
        """The entry of that name, or the default if there is none (or null)."""
        value = self.entries.get(name)
        if value is None and default is not ...:
            return default
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            found = f"is {value!r}" if name in self.entries else "is missing"
            raise self.error(name, f"{found}; it is {_WORDS[kind]}")
        return value

    def size(self, name: str, default: Any = ...) -> int:
        """A positive integer."""
        value = self.get(name, int, default)
        if value < 1:
            raise self.error(name, f"is {value}; it is a positive integer")
        return value

    def choice(self, name: str, known: tuple[str, ...], default: Any = ...) -> str:
        """One of the texts that are known."""
        value = self.get(name, str, default)
        if value not in known:
            raise self.error(name, f"is {value!r}, which is not known here; what is read: {', '.join(known)}")
        return value

    def inner(self, name: str) -> Configuration:
        """The object of that name, empty if there is none."""
        return Configuration(self.path, self.get(name, dict, {}), f"{self.place}{name}.")

    def error(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.place + name!r} {what}")


def checked_tensors(
    path: Path,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    optional: tuple[str, ...] = (),
    integers: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """The tensors of a file, of which there are those that were announced and no others.

    Args:
        shapes: of every tensor by name.
        optional: names that may be missing.
        integers: names of integer tensors; all others are floating-point and finite.
    Raises:
        CheckpointError: a tensor is missing, unknown, or not of the announced shape or kind, or holds NaN.
    """
    missing = [name for name in shapes if name not in tensors and name not in optional]
    if missing:
        raise CheckpointError(f"{path}: tensor {missing[0]!r} is missing; there are {_listed(tensors)}")
    unknown = [name for name in tensors if name not in shapes]
    if unknown:
        raise CheckpointError(
            f"{path}: tensor {unknown[0]!r} has no place in this kind of autoencoder, which has {_listed(shapes)}; "
            "check the configuration beside it"
        )
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is {type(tensor).__name__}, not a tensor; save the state dict"
            )
        if tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, but the configuration says {shapes[name]}; "
                "they belong to different autoencoders"
            )
        wanted = "integer" if name in integers else "floating-point"
        if tensor.dtype not in (_INTEGERS if name in integers else _FLOATS):
            raise CheckpointError(f"{path}: tensor {name!r} has dtype {tensor.dtype}; it is {wanted} here")
        if name not in integers and not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path}: tensor {name!r} has NaN or infinite entries; save it again before they came"
            )
    return dict(tensors)


def plain_sparse(autoencoder: Autoencoder, layout: str) -> SparseAutoencoder:
    """The autoencoder, a lifted one folded, if it is one of those that other libraries have.

    Raises:
        UnsupportedOperationError: it is not.
    """
    if isinstance(autoencoder, LiftedAutoencoder):
        autoencoder = autoencoder.fold()
    if not isinstance(autoencoder, SparseAutoencoder):
        raise refusal(layout, f"a {type(autoencoder).__name__}")
    if autoencoder.sites:
        raise refusal(layout, f"a crosscoder (sites {autoencoder.sites})")
    return autoencoder


def refusal(
    layout: str, what: str, remedy: str = 'save it with format "weightspace"'
) -> UnsupportedOperationError:
    """The error that says what a layout has no place for."""
    return UnsupportedOperationError(f"the layout of {layout} has no place for {what}; {remedy}")


def known_threshold(autoencoder: SparseAutoencoder, layout: str) -> None:
    """Refuse a BatchTopK whose codes still depend on the batch.

    Raises:
        UnsupportedOperationError: it has seen no training step.
    """
    if bool(autoencoder.get_buffer("threshold") < 0):
        raise refusal(
            layout, "a BatchTopK that has no threshold yet", "train it for a step, or save it as TopK"
        )


def other_activation(activation: LatentActivation, layout: str) -> UnsupportedOperationError:
    """The error that names an activation."""
    return refusal(layout, f"the activation {activation}")


def write_folder(folder: str | Path, files: Mapping[str, Callable[[Path], None]]) -> None:
    """Write the files of a checkpoint, each by the function that is given the path to write to.

    The last one is the configuration, without which the folder is no checkpoint. All are complete beside their places
    before the first is put there, and the configuration of an older checkpoint goes before its weights do.

    Raises:
        OutputError: a file cannot be written; what was there before is still there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(folder)!r}: {error.strerror}; name a folder that can be made"
        ) from error
    names = list(files)
    with ExitStack() as stack:  # left in reverse: the configuration comes last
        paths = {name: stack.enter_context(write_atomically(folder / name)) for name in reversed(names)}
        for name, write in files.items():
            try:
                write(paths[name])
            except OutputError as error:  # which names the place beside
                raise OutputError(str(error).replace(str(paths[name]), str(folder / name))) from error
        (folder / names[-1]).unlink(missing_ok=True)


def json_writer(entries: Mapping[str, Any]) -> Callable[[Path], None]:
    """What writes an object as a JSON file."""

    def write(path: Path) -> None:
        path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")

    return write


def dtype_name(dtype: torch.dtype) -> str:
    """As JSON files name it, "float32" say."""
    return str(dtype).removeprefix("torch.")


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(names)[:12])) or "none"
