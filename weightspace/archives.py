"""Zip files whose content takes no more memory than the file can stand for: checked before anything is unpacked."""

from __future__ import annotations

import math
from typing import IO
from zipfile import ZipFile

_ALWAYS = 2**28  # bytes that may be unpacked from a file of any size
_RATIO = 100  # numbers that are worth storing are not compressed further


def require_moderate(archive: ZipFile) -> None:
    """Refuse a zip that expands a hundredfold beyond 256 MB, or has two members of one name.

    Raises:
        ValueError: it does or has.
    """
    members = archive.infolist()
    expanded = sum(member.file_size for member in members)
    if expanded > _ALWAYS and expanded > _RATIO * sum(member.compress_size for member in members):
        raise ValueError(f"it expands to {expanded:,} bytes, more than {_RATIO} times its size")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("two of its members have the same name")


def require_plain_arrays(archive: ZipFile) -> None:
    """Refuse an `.npz` of which an array is not as large as its header says: numpy makes room for it first.

    Raises:
        ValueError: such an array, one of objects, or a zip that is not moderate.
    """
    require_moderate(archive)
    for member in archive.infolist():
        with archive.open(member) as file:
            require_plain_array(file, member.file_size, member.filename.removesuffix(".npy"))


def require_plain_array(file: IO[bytes], size: int, name: str) -> None:
    """Refuse an `.npy` whose header does not fit its size in bytes, or that holds no numbers.

    Raises:
        ValueError: it does not or holds none; mapping entries of no bytes would end the process (numpy 2.4).
    """
    from numpy.lib import format as npy

    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"{name!r} has version {version} of the format, in which there are no plain numbers")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError(f"Object arrays are pickles and are not read: {name!r}")
    if not dtype.itemsize or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name!r} has {size} bytes, which does not fit its shape {shape} and dtype {dtype}")
