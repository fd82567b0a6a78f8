"""`inspect_many`: what is in each of many checkpoints; `find_checkpoints`: which there are in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, overload

from weightspace.checkpoint import PICKLE_SUFFIXES
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.inspection import Inspection, inspect
from weightspace.journal import Journal
from weightspace.mapping import map_over

SUFFIXES = (".safetensors", ".onnx", ".pt2", ".npz", *PICKLE_SUFFIXES)
INDEX = ".index.json"
_IN_FOLDERS = (".safetensors", ".json", ".bin", ".pt", ".pth")  # what `open_checkpoint` finds in a folder
_MODELS = ("model.safetensors", "pytorch_model.bin")


@overload
def inspect_many(
    paths: Sequence[str | Path],
    *,
    executor: Executor | None = ...,
    journal: str | Path | None = ...,
    singular_values: bool = ...,
    largest_spectrum: int = ...,
    keep_errors: Literal[False] = ...,
    progress: bool = ...,
) -> list[Inspection]: ...


@overload
def inspect_many(
    paths: Sequence[str | Path],
    *,
    executor: Executor | None = ...,
    journal: str | Path | None = ...,
    singular_values: bool = ...,
    largest_spectrum: int = ...,
    keep_errors: bool,
    progress: bool = ...,
) -> list[Inspection | WeightspaceError]: ...


def inspect_many(
    paths: Sequence[str | Path],
    *,
    executor: Executor | None = None,
    journal: str | Path | None = None,
    singular_values: bool = False,
    largest_spectrum: int = 4096,
    keep_errors: bool = False,
    progress: bool = False,
) -> list[Inspection] | list[Inspection | WeightspaceError]:
    """Inspect many checkpoints, as `inspect` does one, each with one thread.

    Args:
        paths: of files or folders that are one checkpoint each (`find_checkpoints`).
        executor: for example of `concurrent.futures`, or a Dask client's `get_executor()`; None works here.
        journal: a file that takes every result. The same call finds them there and inspects the rest: what was not
            done, and what has changed since, by path, size and time of the last change.
        singular_values: keep them, which is most of what is known of a large network.
        largest_spectrum: as for `inspect`.
        keep_errors: where a checkpoint cannot be read, return the error in its place.
        progress: show a progress bar, if standard error is a terminal.
    Returns:
        One inspection per path, in their order.
    Raises:
        CheckpointError: a file cannot be opened, or the journal belongs to another call.
        ExecutorError: the workers were lost; the message says what is kept.
    """
    arguments = {"singular_values": singular_values, "largest_spectrum": largest_spectrum}
    opened = Journal(journal, "inspect_many", arguments) if journal is not None else nullcontext()
    with opened as record:
        return map_over(
            partial(_inspect, **arguments),
            [str(path) for path in paths],
            executor=executor,
            journal=record,
            key=identify,
            encode=_encode,
            decode=_decode,
            keep_errors=keep_errors,
            progress="inspecting" if progress else None,
        )


def _inspect(path: str, *, singular_values: bool, largest_spectrum: int) -> Inspection:
    found = inspect(path, largest_spectrum=largest_spectrum)
    if singular_values:
        return found
    return replace(found, rows=tuple(replace(row, singular_values=None) for row in found.rows))


def _encode(inspection: Inspection) -> dict:
    return json.loads(inspection.to_json(singular_values=True))


def _decode(value: dict) -> Inspection:
    return Inspection.from_json(json.dumps(value))


def identify(path: str) -> str:
    """Return what tells a checkpoint from all others and from itself after a change: path, sizes, times of change.

    Of a folder it covers all files in it, of an index its shards, of an ONNX file no external data. A path that is
    missing has an identity too; opening it will say so.
    """
    place = os.path.abspath(path)
    parts = []
    files = [Path(place)]
    if os.path.isdir(place):
        files = sorted(_files(Path(place)))
    elif place.lower().endswith(INDEX):
        files += [files[0].with_name(shard) for shard in sorted(_shards(files[0]))]
    for file in files:
        try:
            found = file.stat()
        except OSError:
            continue
        parts.append([os.path.relpath(file, os.path.dirname(place)), found.st_size, found.st_mtime_ns])
    return json.dumps([path, place, parts])


def find_checkpoints(paths: Iterable[str | Path]) -> list[Path]:
    """Return the checkpoints that files and folders hold, folders searched to any depth, sorted by path.

    One checkpoint each are: a file that is named; a folder with a Hugging Face `config.json` beside the weights of one
    model; an index with its shards; any other file of weights. A named folder with no more than one stands for it.

    Raises:
        CheckpointError: a folder holds none, or cannot be read.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = list(_search(path)) if path.is_dir() else [path]
        if not inside:
            raise CheckpointError(
                f"{path}: the folder holds no checkpoint; they end in {', '.join(SUFFIXES)}"
            )
        alone = len(inside) == 1 and inside[0].parent == path and inside[0].suffix in _IN_FOLDERS
        found += [path] if alone else inside
    return list(dict.fromkeys(found))


def _search(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be read ({error.strerror}); check the permissions"
        ) from error
    files = [entry for entry in entries if entry.is_file()]
    weights = [file for file in files if file.suffix.lower() in SUFFIXES]
    indices = [file for file in files if file.name.lower().endswith(INDEX)]
    single = indices or len(weights) == 1 or any(file.name in _MODELS for file in weights)
    if weights and single and any(file.name == "config.json" for file in files):
        yield folder
    else:
        sharded = {shard for index in indices for shard in _shards(index)}
        yield from sorted([*indices, *(file for file in weights if file.name not in sharded)])
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            yield from _search(entry)


def _shards(index: Path) -> set[str]:
    try:
        return {str(shard) for shard in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()  # opening the index will say what is wrong with it


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names)
