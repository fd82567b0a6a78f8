r"""Our own format: one `.safetensors` file that any autoencoder is rebuilt from.

The tensors are those of `state_dict()`, one of each that share storage (tied weights). The metadata hold `format`
("weightspace.autoencoder"), `version` ("1"), `class`, `configuration` (the JSON of `configuration()`) and `dtype`.
"""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from interp.autoencoders.autoencoder import Autoencoder
from interp.autoencoders.formats.layout import Configuration, checked_tensors, dtype_name
from weightspace.checkpoint import Checkpoint, open_checkpoint, write_safetensors
from weightspace.errors import CheckpointError, OutputError, UnsupportedOperationError

FORMAT, VERSION = "weightspace.autoencoder", "1"
MODULES = {
    "SparseAutoencoder": "interp.autoencoders.sparse_autoencoder",
    "BilinearAutoencoder": "interp.autoencoders.bilinear_autoencoder",
    "OperatorAutoencoder": "interp.autoencoders.operator_autoencoder",
    "LiftedAutoencoder": "interp.autoencoders.lifted_autoencoder",
}


def read(path: Path) -> Autoencoder:
    """Read a file of this format.

    Raises:
        CheckpointError: the file is broken, or no autoencoder of ours.
    """
    checkpoint = open_checkpoint(path)
    about = Configuration(path, checkpoint.metadata, "metadata ")
    if about.entries.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: this .safetensors file is no autoencoder that was saved here; of other libraries name the folder"
        )
    about.choice("version", (VERSION,))
    name = about.choice("class", tuple(MODULES))
    dtype = getattr(torch, about.get("dtype", str), None)
    try:
        configuration = json.loads(about.get("configuration", str))
        if not isinstance(dtype, torch.dtype) or not isinstance(configuration, dict):
            raise TypeError("dtype or configuration is none")
        kind = getattr(importlib.import_module(MODULES[name]), name)
        # A configuration may ask for any size: it is compared with what is stored before it takes memory.
        if name == "LiftedAutoencoder":  # factors its lift when it is made
            sizes = [configuration.get(size) or 1 for size in ("d", "latents", "lifted")]
            stored = sum(math.prod(checkpoint.shape(entry)) for entry in checkpoint.names)
            if math.prod(sizes) // min(sizes) > stored:
                raise ValueError(f"sizes {sizes}, but {stored} numbers")
        else:
            with torch.device("meta"):
                _checked(path, checkpoint, kind(**configuration, dtype=dtype))
        autoencoder = kind(**configuration, dtype=dtype)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise about.error("configuration", f"makes no {name} ({error}); save it again") from error
    own = _tensors(autoencoder)
    for entry, tensor in _checked(path, checkpoint, autoencoder).items():
        own[entry].data = tensor.clone()  # with the dtype it was saved with, not in the map of the file
    return autoencoder


def _checked(path: Path, checkpoint: Checkpoint, autoencoder: Autoencoder) -> dict[str, Tensor]:
    """The tensors of a file, which are those that an autoencoder has."""
    own = _tensors(autoencoder)
    integers = tuple(entry for entry, tensor in own.items() if not tensor.is_floating_point())
    shapes = {entry: tuple(tensor.shape) for entry, tensor in own.items()}
    return checked_tensors(path, checkpoint.state_dict(), shapes, integers=integers)


def write(autoencoder: Autoencoder, path: str | Path) -> None:
    """Write one file, whole or not at all.

    Raises:
        UnsupportedOperationError: a class that is none of this library.
        OutputError: the file cannot be written.
    """
    name = type(autoencoder).__name__
    if type(autoencoder).__module__ != MODULES.get(name):
        raise UnsupportedOperationError(
            f"a {name} is not known here ({', '.join(MODULES)}); save its state_dict()"
        )
    if Path(path).suffix != ".safetensors":
        raise OutputError(f"cannot write {str(path)!r}: this format is a file named .safetensors; name it so")
    tensors = {entry: tensor.detach() for entry, tensor in _tensors(autoencoder).items()}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "class": name,
        "configuration": json.dumps(autoencoder.configuration()),
        "dtype": dtype_name(next(autoencoder.parameters()).dtype),
    }
    write_safetensors(path, tensors, about)


def _tensors(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """The state by name, each tensor once."""
    names: dict[int, str] = {}
    state = autoencoder.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return {name: state[name] for name in names.values()}
