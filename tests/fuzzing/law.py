"""The law of every reader: whatever the bytes, it returns a value or raises one error that names the file.

No other exception, no hang, no memory beyond what the file can stand for, nothing run, nothing written.
"""

import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any

from weightspace.errors import WeightspaceError

SECONDS = 20  # that a few kilobytes may take on a busy machine; the law says 5 on an idle one
MEMORY = (
    1 << 30
)  # address space beyond what the process has: torch alone maps some hundred megabytes when it starts
_UNTOUCHED = ("ast.py", "_weights_only_unpickler.py")
_EXHAUSTED = ("MemoryError", "DefaultCPUAllocator", "can't allocate", "Unable to allocate", "out of memory")

SCRATCH = tempfile.TemporaryDirectory(prefix="fuzzing")


def place(name: str, data: bytes) -> Path:
    """Write the file that a reader is given, where the last one of that name was."""
    path = Path(SCRATCH.name) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read_or_refuse(read: Callable[[], Any], path: Path | None) -> Any:
    """Return what a reader returns, None where it refuses as it should.

    Args:
        path: the file that the message must name; None for readers of text.
    Raises:
        AssertionError: the message does not name the file, or memory ran out on the way to it. Any other exception
            of the reader passes through.
    """
    try:
        return read()
    except WeightspaceError as error:
        message = str(error)
        assert path is None or path.name in message or path.parent.name in message, (
            f"names no file: {message}"
        )
        assert message.strip(), "an error without a message"
        require_no_exhaustion(error)
        return None


def require_no_exhaustion(error: BaseException | None) -> None:
    """Raise where an error came of memory that was asked for and not given.

    Two libraries are known to do that without touching it: Python's parser, whose stack is called memory, and torch's
    reader of pickles, which asks for as many bytes as are stated and then finds that the file has fewer.
    """
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    if any(
        Path(frame.filename).name in _UNTOUCHED for one in chain for frame in extract_tb(one.__traceback__)
    ):
        return
    for one in chain:
        text = f"{type(one).__name__} {one}"
        assert not any(sign in text for sign in _EXHAUSTED), f"asked for too much memory: {text[:300]}"


@contextmanager
def limits(memory: int = MEMORY, seconds: int = SECONDS) -> Iterator[None]:
    """Let what is inside have so much more address space and so much time; no limit of time outside the main thread."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    timed = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, _expired) if timed else None
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory, hard))
        if timed:
            signal.alarm(seconds)
        yield
    finally:
        if timed:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _expired(*_: object) -> None:
    raise AssertionError(f"the reader still runs after {SECONDS} seconds")


def _address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()
