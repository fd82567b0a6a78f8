"""Which layout a checkpoint has, and who reads and writes it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from interp.autoencoders.autoencoder import Autoencoder
from weightspace.errors import (
    CheckpointError,
    NonFiniteError,
    OutputError,
    ShapeError,
    UnsupportedOperationError,
)

FORMATS = {
    "weightspace": "interp.autoencoders.formats.own",
    "sae_lens": "interp.autoencoders.formats.sae_lens",
    "sparsify": "interp.autoencoders.formats.sparsify",
    "dictionary_learning": "interp.autoencoders.formats.dictionary_learning",
}
# The files that make a folder a checkpoint of a layout: weights, configuration.
FILES = {
    "sae_lens": ("sae_weights.safetensors", "cfg.json"),
    "sparsify": ("sae.safetensors", "cfg.json"),
    "dictionary_learning": ("ae.pt", "config.json"),
}
_DEPTH = 3  # folders below a run in which checkpoints are looked for


def load_autoencoder(path: str | Path) -> Autoencoder:
    """Read an autoencoder of any of the layouts, with the same map as in the library that wrote it.

    Args:
        path: a `.safetensors` file of ours; the folder of a checkpoint of SAE Lens, sparsify or dictionary_learning; or
            `ae.pt` or another `.pt` of the last (its backups). Nothing in it is executed.
    Returns:
        The autoencoder, on the CPU. What a layout does not say (penalties, dead latents) is as by default.
    Raises:
        CheckpointError: the path is no checkpoint, or a broken one; the text names file and reason. A folder with
            several is refused with their names.
        UnsupportedOperationError: it is of a kind that has no counterpart here.

    Examples:
        >>> import interp, tempfile, torch
        >>> autoencoder = interp.SparseAutoencoder(8, 32, interp.TopK(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     autoencoder.save(f"{folder}/sae", format="sae_lens")
        ...     same = interp.load_autoencoder(f"{folder}/sae")
        >>> x = torch.randn(10, 8)
        >>> torch.allclose(same(x), autoencoder(x), atol=1e-6)
        True
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder; check the path")
    if path.is_dir():
        found = _layouts(path)
        if len(found) != 1:
            raise CheckpointError(f"{path}: {_why_not(path, found)}")
        layout = found[0]
        target = path / FILES[layout][0] if layout == "dictionary_learning" else path
    else:
        layout = "dictionary_learning" if path.suffix in (".pt", ".pth") else "weightspace"
        target = path
        for name, (weights, _) in FILES.items():
            if path.name == weights:
                layout, target = name, path if name == "dictionary_learning" else path.parent
    try:
        return importlib.import_module(FORMATS[layout]).read(target)
    except (ShapeError, OverflowError) as error:  # sizes that make no autoencoder
        raise CheckpointError(f"{path}: {error}") from error


def write_autoencoder(autoencoder: Autoencoder, path: str | Path, format: str) -> None:
    """Write an autoencoder in a layout; whole or not at all.

    Args:
        path: a `.safetensors` file of format "weightspace", a folder of the others, which is made if need be.
        format: "weightspace", "sae_lens", "sparsify" or "dictionary_learning".
    Raises:
        UnsupportedOperationError: the format is unknown, or has no place for this kind of autoencoder.
        NonFiniteError: a weight is NaN or infinite.
        OutputError: a file cannot be written, or the folder holds a checkpoint of another layout.
    """
    if format not in FORMATS:
        raise UnsupportedOperationError(f"the format is {format!r}; it is one of {', '.join(FORMATS)}")
    for name, tensor in autoencoder.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(
                f"{name} has NaN or infinite entries; save an autoencoder from before they came"
            )
    others = [layout for layout in _layouts(Path(path)) if layout != format]
    if others and format != "weightspace":
        raise OutputError(
            f"cannot write {str(path)!r}: it holds a checkpoint of {others[0]}; name another folder"
        )
    importlib.import_module(FORMATS[format]).write(autoencoder, path)


def _layouts(folder: Path) -> list[str]:
    return [layout for layout, files in FILES.items() if all((folder / file).is_file() for file in files)]


def _why_not(folder: Path, found: list[str]) -> str:
    if found:
        return f"the folder holds checkpoints of {' and '.join(found)} with one configuration; keep one"
    for layout, (weights, configuration) in FILES.items():
        if (folder / weights).is_file():
            return f"{weights} of {layout} lies here without {configuration}, as after an interruption; save it again"
    below = []
    for root, folders, _ in os.walk(folder):
        place = Path(root)
        if len(place.relative_to(folder).parts) >= _DEPTH:
            folders.clear()
        folders.sort()
        if _layouts(place):
            below.append(str(place.relative_to(folder)))
    if below:
        shown = ", ".join(below[:12]) + (", ..." if len(below) > 12 else "")
        return f"the folder holds {len(below)} autoencoders, not one: {shown}; name one of them"
    wanted = "; ".join(f"{' + '.join(files)} ({layout})" for layout, files in FILES.items())
    return f"the folder holds no autoencoder; it needs {wanted}"
