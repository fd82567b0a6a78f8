"""A file that remembers what is done of a long call, so that the call goes on after it was killed at any moment."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

from weightspace.errors import CheckpointError, OutputError, ShapeError

FORMAT = "weightspace journal"
SYNC_SECONDS = 0.2  # between two times that lines are forced to disk
# The journals of this process, which its own locks let pass, by process (a fork inherits this) and real path.
_open: WeakValueDictionary[tuple[int, str], Journal] = WeakValueDictionary()
_guard = threading.Lock()


class Journal:
    """Results of one operation by key: JSON lines, the first of which says which call they belong to.

    A line is written with one call when its result is there, and so survives a kill of the process. It is forced to
    disk by the first line that comes 0.2 s or more after the last time, and by `close`: a power failure may cost the
    lines since then. A last line without an end, torn off by a kill, is dropped.

    Args:
        path: made when it is missing; its results are read when it is there.
        operation: the name of the call.
        arguments: all of its arguments that its results depend on, as JSON has them. What an item is, and the
            content of a file, belongs into the key of the item.
    Raises:
        CheckpointError: `path` is not a journal, belongs to another call or version, is damaged, or is in use.
        ShapeError: an argument is no JSON value.
        OutputError: it cannot be written.
    """

    def __init__(self, path: str | Path, operation: str, arguments: Mapping[str, Any]):
        from weightspace import __version__

        self.path = Path(path)
        self.results: dict[str, Any] = {}
        header = {
            "format": FORMAT,
            "operation": operation,
            "arguments": {name: _plain(name, value) for name, value in arguments.items()},
            "version": __version__,
        }
        first = json.dumps(header).encode() + b"\n"
        self._place = (os.getpid(), os.path.realpath(self.path))
        with _guard:
            # Before it is opened: closing any file of a path gives up the lock of the process on it.
            if self._place in _open:
                raise CheckpointError(
                    f"{self.path}: this process is writing this journal already; wait for it or name another"
                )
            _open[self._place] = self
        try:
            self._file: IO[bytes] = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - for as long as it lives
        except BaseException as error:
            _open.pop(self._place, None)
            if not isinstance(error, OSError):
                raise
            raise OutputError(
                f"cannot write the journal {str(path)!r}: {error.strerror}; name another file"
            ) from error
        try:
            self._lock()
            self._file.seek(0)
            content = self._file.read()
            whole = self._read(content, header) if not first.startswith(content) else 0
            # What a kill tore off must not run into the next line.
            self._file.truncate(whole)
            self._written = time.monotonic()
            if not whole:
                self._write(first)
        except BaseException:
            self._end()
            raise

    def add(self, key: str, result: Any) -> None:
        """Write down a result, a JSON value."""
        self._write(json.dumps([key, result], allow_nan=False).encode() + b"\n")
        self.results[key] = result

    def close(self) -> None:
        """Force what was written to disk and close the file."""
        if self._file.closed:
            return
        with suppress(OSError):
            os.fsync(self._file.fileno())
        self._end()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        try:
            while line:
                line = line[self._file.write(line) :]
            if time.monotonic() - self._written > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._written = time.monotonic()
        except OSError as error:
            raise OutputError(
                f"cannot write the journal {str(self.path)!r}: {error.strerror}; the results so far are in it, and "
                "the same call goes on from them"
            ) from error

    def _end(self) -> None:
        self._file.close()
        _open.pop(self._place, None)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two calls at once are not told apart there
            return
        try:
            # Owned by the process, hence not inherited by workers that outlive it.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{self.path}: another process is writing this journal; wait for it or name another"
            ) from error
        except OSError:  # a file system without locks
            return

    def _read(self, content: bytes, header: Mapping[str, Any]) -> int:
        """Take over the results of an earlier call; return how many bytes of the file are whole lines."""
        *lines, torn = content.split(b"\n")
        found = _parsed(lines[0]) if lines else None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise CheckpointError(f"{self.path}: this file is not a journal; name another, or a new one")
        for name, value in header.items():
            if found.get(name) != value:
                raise CheckpointError(
                    f"{self.path}: this journal belongs to another call: its {name} is "
                    f"{json.dumps(found.get(name))}, not {json.dumps(value)}; name another journal, or remove this one"
                )
        whole = len(content) - len(torn)
        for number, line in enumerate(lines[1:], 2):
            entry = _parsed(line)
            if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
                self.results[entry[0]] = entry[1]
            elif number == len(lines):  # written in part before the power failed
                whole -= len(line) + 1
            else:
                raise CheckpointError(
                    f"{self.path}: line {number} is damaged; remove the line, or the journal"
                )
        return whole


def _plain(name: str, value: Any) -> Any:
    """The value as JSON gives it back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ShapeError(
            f"a journal keeps arguments that JSON can write; {name} is {value!r} ({type(value).__name__}); give plain "
            "finite numbers, text or tuples of them"
        ) from error


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
