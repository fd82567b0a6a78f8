"""Zoos on disk: one file, or shards written and read one after the other in bounded memory.

A zoo file is safetensors. Tensors: `parameter:NAME` (networks, *shape), `sources`, `labels` where there are any,
`measure:NAME`, and `constant:NAME` for tensors of the template that the networks share. Metadata: `weightspace.zoo`,
JSON with format, version, the architecture (`Network.to_json`) and the names of its tensors in order.

A zoo in shards is an index `NAME.json`, JSON with format, version and the number of networks in every shard, and
beside it the shards `NAME-00000.safetensors`, ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from weightspace.checkpoint import open_checkpoint, write_safetensors
from weightspace.errors import CheckpointError, OutputError, ShapeError, WeightspaceError
from weightspace.network import Network
from weightspace.result import check_writable, write_text
from weightspace.zoo.collection import WeightZoo, concatenate_zoos

FORMAT = "weightspace.zoo"
FORMAT_VERSION = 1


def write_zoo(path: str | Path, zoo: WeightZoo) -> None:
    """Write one `.safetensors` file, whole or not at all.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    tensors = {f"parameter:{name}": tensor for name, tensor in zoo.parameters.items()}
    tensors |= {f"measure:{name}": values for name, values in zoo.measures.items()}
    tensors |= {
        f"constant:{name}": tensor
        for name, tensor in zoo.template.parameters.items()
        if name not in zoo.parameters
    }
    rows = {"sources": zoo.sources, "labels": zoo.labels}
    tensors |= {name: tensor for name, tensor in rows.items() if tensor is not None}
    description = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "architecture": zoo.template.to_json(),
        "names": list(zoo.template.parameters),
    }
    write_safetensors(path, tensors, {FORMAT: json.dumps(description)})


def read_zoo(path: str | Path) -> WeightZoo:
    """Read a zoo: `.safetensors` (mapped, not read) or the index of shards (put together in memory).

    Raises:
        CheckpointError: the file is missing, truncated, unsafe or no zoo; the message names file and reason.
    """
    shards = [_read_file(file, networks) for file, networks in _files(Path(path))]
    return shards[0] if len(shards) == 1 else concatenate_zoos(shards)


def stream_zoo(
    path: str | Path, batch_size: int, generator: torch.Generator | None = None
) -> Iterator[WeightZoo]:
    """Yield the networks of a zoo in batches, from mapped files: one batch is in memory at a time.

    Args:
        path: the index of a zoo in shards, or a single `.safetensors`.
        batch_size: networks; the last batch of a shard may have fewer.
        generator: shuffles the shards, and the networks within each; None keeps the order.
    Raises:
        CheckpointError: a file is missing, truncated, unsafe or no zoo; the message names file and reason.
        ShapeError: a batch size below 1.

    Examples:
        >>> import tempfile, torch
        >>> from weightspace import zoo
        >>> inrs = zoo.fit_inrs(torch.rand(5, 8, 8), hidden=(8,), steps=1, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     inrs.save(f"{folder}/inrs.safetensors")
        ...     [len(batch) for batch in zoo.stream_zoo(f"{folder}/inrs.safetensors", 2)]
        [2, 2, 1]
    """
    if batch_size < 1:
        raise ShapeError(f"batch_size is {batch_size}; a batch needs at least one network")
    files = _files(Path(path))
    if generator is not None:
        files = [files[i] for i in torch.randperm(len(files), generator=generator).tolist()]
    for file, networks in files:
        zoo = _read_file(file, networks)
        order = torch.arange(len(zoo))
        if generator is not None:
            order = torch.randperm(len(zoo), generator=generator)
        for rows in order.split(batch_size):
            yield zoo[rows]


class ZooWriter:
    """Writes a zoo in shards while it is made; what was written stays whatever happens next.

    Networks are kept until they fill a shard; on leaving the context the rest is written as a smaller one, unless an
    exception (Ctrl-C) ends it. Each shard, and then the index, is written whole or not at all. A writer on an index
    that exists goes on behind it, `len(writer)` being the number of networks that are safe::

        with ZooWriter("digits.json") as writer:
            for chunk in torch.arange(len(images)).split(500)[len(writer) // 500 :]:
                generator = torch.Generator().manual_seed(int(chunk[0]))
                writer.append(fit_inrs(images[chunk], sources=chunk, generator=generator))

    Args:
        path: of the index, `.json`; shards are written beside it.
        shard_size: networks per shard.
    Raises:
        OutputError: the folder cannot be written to, or another suffix.
        CheckpointError: an index is there and cannot be read.
    """

    def __init__(self, path: str | Path, shard_size: int = 1000):
        self.path = Path(path)
        if self.path.suffix != ".json" or shard_size < 1:
            raise OutputError(
                f"cannot write {str(path)!r} in shards of {shard_size}: the index ends in .json, a shard holds "
                "at least one network"
            )
        check_writable(self.path)
        self.shard_size = shard_size
        self._counts = _read_index(self.path) if self.path.exists() else []
        self._waiting: list[WeightZoo] = []

    def __len__(self) -> int:
        """Number of networks on disk."""
        return sum(self._counts)

    def __enter__(self) -> ZooWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            for zoo in self._waiting:
                self._write(zoo)
        self._waiting = []

    def append(self, zoo: WeightZoo) -> None:
        """Add networks behind the others.

        Raises:
            ShapeError: another architecture than those before.
            OutputError: a shard cannot be written.
        """
        if not self._waiting and self._counts:
            first = _read_file(_shard(self.path, 0), self._counts[0])
            concatenate_zoos([first[:0], zoo[:0]])  # refuses another architecture
        everything = concatenate_zoos([*self._waiting, zoo])
        full = len(everything) - len(everything) % self.shard_size
        for start in range(0, full, self.shard_size):
            self._write(everything[start : start + self.shard_size])
        rest = everything[full:]
        self._waiting = [rest] if len(rest) else []

    def _write(self, zoo: WeightZoo) -> None:
        write_zoo(_shard(self.path, len(self._counts)), zoo)
        counts = [*self._counts, len(zoo)]
        index = {"format": FORMAT, "version": FORMAT_VERSION, "shards": counts}
        write_text(self.path, json.dumps(index))
        self._counts = counts


def _shard(index: Path, number: int) -> Path:
    return index.with_name(f"{index.stem}-{number:05d}.safetensors")


def _files(path: Path) -> list[tuple[Path, int | None]]:
    """The files of a zoo and how many networks its index promises in each."""
    if path.suffix != ".json":
        return [(path, None)]
    return [(_shard(path, number), count) for number, count in enumerate(_read_index(path))]


def _read_index(path: Path) -> list[int]:
    try:
        index = json.loads(path.read_bytes())
        if index["format"] != FORMAT or index["version"] != FORMAT_VERSION:
            raise ValueError(f"format {index['format']!r} version {index['version']!r}")
        counts = index["shards"]
        if not counts or not all(type(count) is int and count > 0 for count in counts):
            raise ValueError("`shards` is no list of positive numbers")
        if not isinstance(counts, list):
            raise TypeError("`shards` is no list")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: this is no index of a zoo ({error}); write it again") from error
    return counts


def _read_file(path: Path, networks: int | None) -> WeightZoo:
    checkpoint = open_checkpoint(path)
    groups: dict[str, dict[str, Tensor]] = {"parameter": {}, "constant": {}, "measure": {}, "": {}}
    try:
        description = json.loads(checkpoint.metadata[FORMAT])
        if description["format"] != FORMAT or description["version"] != FORMAT_VERSION:
            raise ValueError(f"format {description['format']!r} version {description['version']!r}")
        for name in checkpoint.names:
            kind, _, rest = name.partition(":") if ":" in name else ("", "", name)
            groups[kind][rest] = checkpoint.tensor(name)
        parameters = groups["parameter"]
        own = {**groups["constant"], **{name: tensor[0] for name, tensor in parameters.items()}}
        if sorted(description["names"]) != sorted(own):
            raise ValueError("its tensors are not those it lists")
        ordered = {name: own[name] for name in description["names"]}
        template = Network.from_json(description["architecture"], ordered)
        rows = groups[""]
        zoo = WeightZoo(parameters, template, rows.get("labels"), rows["sources"], groups["measure"])
        if networks is not None and len(zoo) != networks:
            raise ValueError(f"it holds {len(zoo)} networks, the index says {networks}")
    except CheckpointError:
        raise
    except (
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, WeightspaceError,
    ) as error:  # fmt: skip
        reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
        raise CheckpointError(f"{path}: this is no zoo of networks ({reason}); write it again") from error
    return zoo
