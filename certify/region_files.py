"""Boxes and balls as they stand in JSON, TOML and YAML: {"lower", "upper"} or {"center", "radius"}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certify.regions import Ball, Box, Region
from weightspace.errors import WeightspaceError

FORM = '{"lower": [...], "upper": [...]} or {"center": [...], "radius": r}'


def read_region(path: str | Path) -> Region:
    """Read a box or a ball from a JSON file, in the network's own input units.

    Raises:
        WeightspaceError: the file cannot be read, or is not of one of the two forms; it names the file.
    """
    place = f"box {str(path)!r}"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightspaceError(f"cannot read {place}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WeightspaceError(f"{place} is not of the form {FORM}: {error}") from error
    return region_of(data, place)


def region_of(data: Any, place: str) -> Region:
    """Return the region that a table describes; `place` names it in messages.

    Raises:
        WeightspaceError: it is not of one of the two forms, or its numbers make no region.
    """
    try:
        if isinstance(data, Mapping) and data.keys() == {"lower", "upper"}:
            return Box(data["lower"], data["upper"])
        if isinstance(data, Mapping) and data.keys() == {"center", "radius"}:
            return Ball(data["center"], data["radius"])
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:  # RuntimeError: ragged lists
        raise WeightspaceError(f"{place} is not of the form {FORM}: {error}") from error
    raise WeightspaceError(f"{place} is not of the form {FORM}")
