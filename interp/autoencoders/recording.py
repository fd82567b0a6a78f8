"""Activations of a network while it runs on data, through hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.autoencoders.sources import ActivationSource, Rows, require_finite
from weightspace.checkpoint import write_safetensors
from weightspace.errors import ArchitectureError, OutputError, ShapeError
from weightspace.result import make_folder


def activations(
    module: nn.Module | Mapping[str, nn.Module],
    names: str | Sequence[str],
    loader: Iterable[Any],
    *,
    target: str | None = None,
    axis: int = -1,
    flatten: bool = True,
    mask: Callable[[Any], Tensor] | None = None,
    batches_per_piece: int = 64,
) -> RecordedSource:
    """Record what a submodule puts out (or gets) while a network runs on data: the activations to train on.

    The network runs in inference mode and stops as soon as everything asked for is known. Nothing is kept on disk
    (`write_activations` does that); what is shuffled together is `batches_per_piece` batches of the loader.

    Args:
        module: any network; or several by name, all run on each batch, whose submodules are then "name.blocks.3.mlp":
            for crosscoders of models.
        names: of a submodule, as `named_modules` spells it, "blocks.3.mlp": its output; "blocks.3.mlp:input": its first
            input. Several: side by side, for crosscoders. "" is the network itself.
        loader: batches, iterable as often as one likes and in the same order each time (a list, a `DataLoader` without
            shuffling): a tensor is the network's input, a mapping its keyword arguments; of a tuple the first entry is
            the input, the rest labels.
        target: likewise, what a transcoder is to predict.
        axis: of the features in a batched activation; other axes than it are positions, each a sample.
        flatten: False keeps the activations of an input together as one sample, without its batch axis: functions.
        mask: from a batch to a boolean tensor over (batch, positions): which are samples, for padded text.
        batches_per_piece: as above.
    Raises:
        ArchitectureError: there is no such submodule, or it was not run.
        ShapeError: the loader can be read once only, or is empty; activations at several places do not fit.
        NonFiniteError: an activation is NaN or infinite.

    Examples:
        >>> import interp, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> hidden = interp.activations(model, "1", [torch.randn(10, 4) for _ in range(3)])
        >>> hidden.sample_shape
        (8,)
    """
    if not isinstance(module, nn.Module):
        module = _SideBySide(module)
    return RecordedSource(
        module, (names,) if isinstance(names, str) else tuple(names), loader, target, axis, flatten, mask,
        batches_per_piece,
    )  # fmt: skip


class RecordedSource(ActivationSource):
    """What `activations` returns."""

    def __init__(
        self,
        module: nn.Module,
        names: tuple[str, ...],
        loader: Iterable[Any],
        target: str | None,
        axis: int,
        flatten: bool,
        mask: Callable[[Any], Tensor] | None,
        batches_per_piece: int,
    ):
        if isinstance(loader, Iterator):
            raise ShapeError(
                "the loader is an iterator, which can be read once only; pass a list, a DataLoader or another iterable"
            )
        self.module, self.names, self.loader, self.target = module, names, loader, target
        self.axis, self.flatten, self.mask = axis, flatten, mask
        self.batches_per_piece = batches_per_piece
        if mask is not None and not flatten:
            raise ShapeError(
                "a mask chooses positions, which flatten=False keeps together; leave one of them out"
            )
        known = dict(module.named_modules())
        for name in (*names, *(() if target is None else (target,))):
            if name.removesuffix(":input") not in known:
                listed = ", ".join(repr(known_name) for known_name in list(known)[1:9])
                raise ArchitectureError(f"no submodule is named {name!r}; there are {listed}, ...")
        first = next(iter(loader), None)
        if first is None:
            raise ShapeError("the loader has no batches")
        self.sample_shape = tuple(self._record(first, 0)[0].shape[1:])

    def __repr__(self) -> str:
        return (
            f"RecordedSource({', '.join(self.names)}, target {self.target}, samples of {self.sample_shape})"
        )

    def pieces(self, epoch: int, seed: int) -> Iterator[Callable[[], Rows]]:
        reader = _Reader(self.loader, self.batches_per_piece)
        while reader.more():
            piece = reader.next_piece()
            yield lambda piece=piece: self._join(piece())

    def in_order(self, batch_size: int) -> Iterator[Rows]:
        for index, batch in enumerate(self.loader):
            rows = self._record(batch, index)
            for start in range(0, len(rows[0]), batch_size):
                yield tuple(x[start : start + batch_size] for x in rows)

    def _join(self, batches: Iterable[tuple[int, Any]]) -> Rows:
        recorded = [self._record(batch, index) for index, batch in batches]
        return tuple(torch.cat(column) for column in zip(*recorded, strict=True))

    def _record(self, batch: Any, index: int) -> Rows:
        wanted = (*self.names, *(() if self.target is None else (self.target,)))
        found = record(self.module, wanted, batch)
        rows = [self._rows(found[name], name, batch) for name in wanted]
        for x, name in zip(rows, wanted, strict=True):
            require_finite(x, f"{name!r} on batch {index}: its activations")
        if len({x.shape[:1] if x.ndim == 2 else x.shape[:1] + x.shape[2:] for x in rows}) > 1:
            shapes = ", ".join(f"{name!r} {tuple(x.shape)}" for x, name in zip(rows, wanted, strict=True))
            raise ShapeError(f"activations at several places need as many samples each; they are {shapes}")
        x = rows[0] if len(self.names) == 1 else torch.cat(rows[: len(self.names)], 1)
        return (x,) if self.target is None else (x, rows[-1])

    def _rows(self, activation: Tensor, name: str, batch: Any) -> Tensor:
        if activation.ndim < 2 or not activation.is_floating_point():
            raise ShapeError(
                f"the activation of {name!r} is {tuple(activation.shape)} {activation.dtype}, not "
                "(batch, ..., features) in floating point"
            )
        if not self.flatten:
            return activation
        rows = activation.movedim(self.axis, -1)
        if self.mask is not None:
            return rows[self.mask(batch).to(rows.device)]
        return rows.flatten(0, -2)


def write_activations(
    source: ActivationSource, folder: str | Path, *, rows_per_shard: int = 65536
) -> list[Path]:
    """Write all samples of a source to `activations-00000.safetensors`, ..., its targets to a folder `targets/` there.

    One shard is in memory at a time; each is written whole or not at all. `open_activations(folder)` and, of a source
    with targets, `open_activations(folder, targets=folder / "targets")` read them.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.

    Examples:
        >>> import interp, tempfile, torch
        >>> model = torch.nn.Linear(4, 8)
        >>> hidden = interp.activations(model, "", [torch.randn(10, 4)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in interp.write_activations(hidden, folder)]
        ['activations-00000.safetensors']
    """
    folder = make_folder(folder)
    if any(folder.iterdir()):
        raise OutputError(f"cannot write to {str(folder)!r}: it is not empty; name another folder")
    written: list[Path] = []
    waiting: list[Rows] = []

    def flush() -> None:
        number = len(written)
        for kind, parts in zip(("activations", "targets"), zip(*waiting, strict=True), strict=False):
            place = folder if kind == "activations" else make_folder(folder / kind)
            path = place / f"{kind}-{number:05d}.safetensors"
            write_safetensors(path, {kind: torch.cat(parts)})
        written.append(folder / f"activations-{number:05d}.safetensors")
        waiting.clear()

    for rows in source.in_order(rows_per_shard):
        if waiting and sum(len(held[0]) for held in waiting) + len(rows[0]) > rows_per_shard:
            flush()
        waiting.append(rows)
    if waiting:
        flush()
    return written


def record(module: nn.Module, names: Sequence[str], batch: Any) -> dict[str, Tensor]:
    """Run a network on one batch, without gradients, until the activations of some submodules are known.

    Raises:
        ArchitectureError: one of them was not run.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        tensor = value[0] if isinstance(value, tuple | list) and value else value
        if not isinstance(tensor, Tensor):
            raise ArchitectureError(f"the activation of {name!r} is a {type(value).__name__}, not a tensor")
        # A copy: the network goes on, and may write into its own activations (ReLU(inplace=True), x += ...).
        found.setdefault(name, tensor.detach().clone())
        if len(found) == len(set(names)):
            raise _Known

    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(in_inference_mode(module))
        for name in dict.fromkeys(names):
            place = module.get_submodule(name.removesuffix(":input"))
            if name.endswith(":input"):
                hook = place.register_forward_pre_hook(
                    lambda _, positional, keywords, name=name: keep(
                        name, positional or next(iter(keywords.values()), None)
                    ),
                    with_kwargs=True,
                )
            else:
                hook = place.register_forward_hook(lambda _, inputs, output, name=name: keep(name, output))
            stack.callback(hook.remove)
        try:
            run(module, _copied(batch))
        except _Known:
            return found
    missing = next(name for name in names if name not in found)
    raise ArchitectureError(f"{missing!r} was not run by the network on this batch; name another submodule")


def run(module: nn.Module, batch: Any) -> Any:
    """Call a network on a batch: a tensor, keyword arguments, or a tuple whose first entry is the input."""
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(batch[0] if isinstance(batch, tuple | list) else batch)


@contextmanager
def in_inference_mode(module: nn.Module) -> Iterator[None]:
    """Put a network into inference mode, and each of its submodules back into its own afterwards."""
    trained = [submodule for submodule in module.modules() if submodule.training]
    module.eval()
    try:
        yield
    finally:
        for submodule in trained:
            submodule.training = True


def _copied(batch: Any) -> Any:
    """A batch whose inputs a network may write into."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, Mapping):
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}
    return (_copied(batch[0]), *batch[1:]) if isinstance(batch, tuple | list) and batch else batch


class _SideBySide(nn.Module):
    """Several networks, run one after the other on the same inputs."""

    def __init__(self, networks: Mapping[str, nn.Module]):
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)

    def forward(self, *inputs: Any, **keywords: Any) -> list[Any]:
        return [network(*inputs, **keywords) for network in self.children()]


class _Known(BaseException):
    """Everything asked for is known: the rest of the network need not run. No network catches it as an error."""


class _Reader:
    """Batches of a loader in groups; a group that nobody loads is read past without running the network."""

    def __init__(self, loader: Iterable[Any], size: int):
        self._batches = enumerate(loader)
        self._size = size
        self._ahead: list[tuple[int, Any]] = []

    def more(self) -> bool:
        if not self._ahead:
            self._ahead = list(islice(self._batches, 1))
        return bool(self._ahead)

    def next_piece(self) -> Callable[[], list[tuple[int, Any]]]:
        batches = [*self._ahead, *islice(self._batches, self._size - 1)]
        self._ahead = []
        return lambda: batches
