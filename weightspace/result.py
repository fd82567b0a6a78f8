"""Writing results: every output file is written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weightspace.errors import OutputError


def check_writable(path: str | Path) -> Path:
    """Return where `path` really stands if a file can be written there; worth asking before long work.

    Raises:
        OutputError: the folder is missing or not writable, or `path` is a folder or a device.
    """
    target = Path(os.path.realpath(path))
    folder = repr(str(target.parent))
    reason = None
    try:
        if not target.parent.is_dir():
            found = "is not a folder" if target.parent.exists() else "does not exist"
            reason = f"{folder} {found}; create it or name another"
        elif target.exists() and not target.is_file():
            reason = f"it is {'a folder' if target.is_dir() else 'not a regular file'}; name a file"
        elif not os.access(target.parent, os.W_OK):
            reason = f"{folder} is not writable; name another folder"
    except OSError as error:
        reason = f"{error.strerror}; choose another name"
    if reason:
        raise OutputError(f"cannot write {str(path)!r}: {reason}")
    return target


def make_folder(path: str | Path) -> Path:
    """Make a folder, and those above it, unless it is there.

    Raises:
        OutputError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {str(path)!r}: {error.strerror}; name another") from error
    return folder


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block it is synced to disk and renamed to `path`.

    When the block raises (a full disk, Ctrl-C), the temporary file is removed and an older file at `path`
    stays as it was. A symbolic link is followed, so that the file it points to is replaced, not the link.

    Raises:
        OutputError: the folder is missing or not writable, `path` is a folder or a device, the disk is full.
            Errors that are not of the file system pass through unchanged.
    """
    target = check_writable(path)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.tmp")
    try:
        # O_EXCL: never write through a file or link that somebody else put there. Mode 0o666 is cut by the
        # umask, as for a plain open(); mkstemp would leave results that only their author can read.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # a library that put its own file there may have made it private
        # Opened for writing, since Windows refuses to sync a file opened for reading.
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise OutputError(
            f"cannot write {str(path)!r}: {reason}; free space or name another folder"
        ) from error
    finally:
        with suppress(OSError):  # after a successful rename there is nothing left to remove
            os.unlink(temporary)
    _sync_folder(target.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically (`write_atomically`).

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable where the system can sync a folder; it is done either way."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
