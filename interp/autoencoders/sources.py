"""Where activations come from: tensors, files larger than memory; hooks are in `recording`."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from weightspace.checkpoint import open_checkpoint
from weightspace.errors import CheckpointError, NonFiniteError, ShapeError

Rows = tuple[Tensor, ...]
"""Samples (n, ...), or samples and their targets (n, ...)."""


class ActivationSource(ABC):
    """Samples, with targets or without, in pieces that fit into memory.

    Attributes:
        sample_shape: of one sample.
    """

    sample_shape: tuple[int, ...]

    @abstractmethod
    def pieces(self, epoch: int, seed: int) -> Iterator[Callable[[], Rows]]:
        """The pieces of one pass, each as a function that loads it; their order depends on nothing else."""

    @abstractmethod
    def in_order(self, batch_size: int) -> Iterator[Rows]:
        """All samples once, as they are stored, in batches of at most `batch_size`."""


@dataclass(frozen=True)
class Position:
    """How far a training has read: the pass, the piece in it and the batch in that."""

    epoch: int = 0
    piece: int = 0
    batch: int = 0


def shuffled_batches(
    source: ActivationSource, batch_size: int, seed: int, position: Position
) -> Iterator[tuple[Rows, Position]]:
    """Batches without end, each with the position behind it; a piece's last samples that fill no batch wait for the
    next pass, which shuffles anew.

    Raises:
        ShapeError: no piece fills a batch.
    """
    for epoch in itertools.count(position.epoch):
        filled = False
        for index, load in enumerate(source.pieces(epoch, seed)):
            if epoch == position.epoch and index < position.piece:
                filled = True
                continue
            rows = load()
            order = torch.randperm(len(rows[0]), generator=_generator(seed, epoch, index + 1))
            first = position.batch if (epoch, index) == (position.epoch, position.piece) else 0
            filled = filled or first > 0
            for batch in range(first, len(order) // batch_size):
                chosen = order[batch * batch_size : (batch + 1) * batch_size]
                filled = True
                yield tuple(x[chosen] for x in rows), Position(epoch, index, batch + 1)
            del rows  # before the next piece is loaded
        if not filled:
            raise ShapeError(f"no {batch_size} samples are there at once; choose a batch_size they fill")


def as_source(activations: Tensor | ActivationSource, targets: Tensor | None = None) -> ActivationSource:
    """A source of tensors, or the source itself.

    Raises:
        ShapeError, NonFiniteError: the tensors do not fit each other, or have NaN.
    """
    if isinstance(activations, Tensor):
        return TensorSource(activations, targets)
    if not isinstance(activations, ActivationSource):
        raise ShapeError(
            f"activations are a tensor (n, ...), open_activations(files) or activations(module, name, loader); this is "
            f"a {type(activations).__name__}"
        )
    if targets is not None:
        raise ShapeError("targets stand beside a tensor of activations; a source brings its own")
    return activations


class TensorSource(ActivationSource):
    """Samples in memory.

    Args:
        x: (n, ...), floating point.
        targets: (n, ...), or None.
    Raises:
        ShapeError, NonFiniteError: they do not fit each other, are empty, or have NaN or infinite entries.
    """

    def __init__(self, x: Tensor, targets: Tensor | None = None):
        self.rows: Rows = (x.detach(),) if targets is None else (x.detach(), targets.detach())
        for tensor, name in zip(self.rows, ("activations", "targets"), strict=False):
            if tensor.ndim < 2 or not len(tensor) or not tensor.is_floating_point():
                raise ShapeError(
                    f"{name} are floating-point samples (n, ...) with n >= 1; these are {tuple(tensor.shape)} "
                    f"{tensor.dtype}"
                )
            require_finite(tensor, f"the {name}")
        if len({len(tensor) for tensor in self.rows}) > 1:
            raise ShapeError(
                f"there are {len(x)} activations and {len(self.rows[-1])} targets; give one for each"
            )
        self.sample_shape = tuple(x.shape[1:])

    def __repr__(self) -> str:
        return f"TensorSource({', '.join(f'{tuple(x.shape)} {x.dtype}' for x in self.rows)})"

    def pieces(self, epoch: int, seed: int) -> Iterator[Callable[[], Rows]]:
        yield lambda: self.rows

    def in_order(self, batch_size: int) -> Iterator[Rows]:
        for start in range(0, len(self.rows[0]), batch_size):
            yield tuple(x[start : start + batch_size] for x in self.rows)


class ShardSource(ActivationSource):
    """Samples in files, of which some stretches are in memory at a time.

    Every pass cuts the files into stretches, shuffles these, and joins some to a piece, which is shuffled by rows: a
    batch mixes samples from many places of many files.

    Args:
        paths: files with one tensor (n, ...) each: `.npy`, `.safetensors`, `.pt`, `.npz`.
        targets: as many files with a target for every sample, or None.
        piece_bytes: memory for a piece, in the dtype of the files.
        stretches: so many long ones make a piece, more short ones.
    Raises:
        CheckpointError: a file is missing, broken, empty, or has another shape or dtype of samples than the first.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        targets: Sequence[str | Path] | None = None,
        *,
        piece_bytes: int = 256 << 20,
        stretches: int = 16,
    ):
        columns = [paths] if targets is None else [paths, targets]
        if not paths or len({len(column) for column in columns}) > 1:
            raise CheckpointError(
                "activations need at least one file, and targets as many as there are activations"
            )
        self.columns = tuple(_Column(column) for column in columns)
        for ours, theirs in zip(self.columns[0].files, self.columns[-1].files, strict=True):
            if ours.rows != theirs.rows:
                raise CheckpointError(
                    f"{theirs.path}: it has {theirs.rows} targets for the {ours.rows} samples of {ours.path.name}"
                )
        self.sample_shape = self.columns[0].shape
        row_bytes = sum(column.row_bytes for column in self.columns)
        self.stretch_rows = max(piece_bytes // row_bytes // stretches, 1)
        self.piece_rows = self.stretch_rows * stretches

    def __len__(self) -> int:
        return sum(file.rows for file in self.columns[0].files)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{column.shape} {column.dtype}" for column in self.columns)
        return f"ShardSource({len(self)} samples in {len(self.columns[0].files)} files, {kinds})"

    def pieces(self, epoch: int, seed: int) -> Iterator[Callable[[], Rows]]:
        places = [
            (file, start)
            for file, stored in enumerate(self.columns[0].files)
            for start in range(0, stored.rows, self.stretch_rows)
        ]
        order = torch.randperm(len(places), generator=_generator(seed, epoch, 0)).tolist()
        chosen: list[tuple[int, int]] = []
        held = 0
        for index, place in enumerate(order):
            file, start = places[place]
            chosen.append((file, start))
            held += min(self.stretch_rows, self.columns[0].files[file].rows - start)
            if held + self.stretch_rows > self.piece_rows or index == len(order) - 1:
                yield partial(self._join, chosen)
                chosen, held = [], 0

    def _join(self, places: Sequence[tuple[int, int]]) -> Rows:
        return tuple(
            torch.cat([column.read(file, start, self.stretch_rows) for file, start in places])
            for column in self.columns
        )

    def in_order(self, batch_size: int) -> Iterator[Rows]:
        for file, stored in enumerate(self.columns[0].files):
            for start in range(0, stored.rows, batch_size):
                yield tuple(column.read(file, start, batch_size) for column in self.columns)


def open_activations(
    path: str | Path | Sequence[str | Path],
    *,
    targets: str | Path | Sequence[str | Path] | None = None,
    piece_bytes: int = 256 << 20,
) -> ShardSource:
    """Open activations that were written to files, of which a few hundred megabytes are in memory at a time.

    But for `.npz`, which is read whole whenever a part of it is needed: a format for small files.

    Args:
        path: a file with one tensor (n, ...), a folder of such files (taken in the order of their names), or several
            files: `.npy`, `.safetensors`, `.pt`, `.npz`.
        targets: likewise, for transcoders; as many samples in each.
        piece_bytes: memory for what is shuffled together.
    Raises:
        CheckpointError: a file is missing, broken, empty, or does not fit the others.

    Examples:
        >>> import interp, pathlib, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(torch.randn(100, 8), pathlib.Path(folder, "hidden.pt"))
        ...     source = interp.open_activations(folder)
        ...     len(source), source.sample_shape
        (100, (8,))
    """
    return ShardSource(_files(path), None if targets is None else _files(targets), piece_bytes=piece_bytes)


def require_finite(x: Tensor, where: str, first: int = 0) -> None:
    """Refuse NaN and infinities.

    Raises:
        NonFiniteError: there are some; the text names the first sample.
    """
    if not bool(x.isfinite().all()):
        row = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
        raise NonFiniteError(
            f"{where} have NaN or infinite entries, first in sample {first + row}; remove such samples"
        )


@dataclass(frozen=True, eq=False)
class _File:
    path: Path
    name: str
    rows: int


class _Column:
    """Files side by side that hold the same kind of samples."""

    def __init__(self, paths: Sequence[str | Path]):
        self.files: list[_File] = []
        self.shape: tuple[int, ...] = ()
        self.dtype = torch.float32
        for path in map(Path, paths):
            checkpoint = open_checkpoint(path)
            if len(checkpoint) != 1:
                raise CheckpointError(
                    f"{path}: activations are one tensor in a file; this has {len(checkpoint)}"
                )
            name = checkpoint.names[0]
            shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
            if len(shape) < 2 or shape[0] == 0 or not dtype.is_floating_point:
                raise CheckpointError(
                    f"{path}: activations are floating-point samples (n, ...); this is {shape} {dtype}"
                )
            if not self.files:
                self.shape, self.dtype = shape[1:], dtype
            elif (shape[1:], dtype) != (self.shape, self.dtype):
                raise CheckpointError(
                    f"{path}: its samples are {shape[1:]} {dtype}, those of {self.files[0].path.name} are {self.shape} "
                    f"{self.dtype}"
                )
            self.files.append(_File(path, name, shape[0]))

    @property
    def row_bytes(self) -> int:
        return torch.empty(self.shape, dtype=self.dtype, device="meta").numel() * self.dtype.itemsize

    def read(self, file: int, start: int, count: int) -> Tensor:
        stored = self.files[file]
        # Opened anew: thousands of files that stay open are more than a process may have.
        rows = open_checkpoint(stored.path).tensor(stored.name)[start : start + count]
        require_finite(rows, f"{stored.path}: activations", start)
        return rows


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(path, str | Path):
        return [Path(one) for one in path]
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    found = sorted(
        file for file in folder.iterdir() if file.suffix in (".npy", ".safetensors", ".pt", ".npz")
    )
    if not found:
        raise CheckpointError(f"{folder}: the folder holds no .npy, .safetensors, .pt or .npz files")
    return found


def _generator(*numbers: int) -> torch.Generator:
    """A generator whose seed is a hash of some numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(seed)
