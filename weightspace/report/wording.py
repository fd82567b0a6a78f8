"""Numbers and names in sentences, never too long; `weightspace.rounded_numbers` rounds bounds."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_LISTED = 4


def shown(value: float | None, digits: int = 4) -> str:
    """Return a number rounded to nearest, "-" for None."""
    return "-" if value is None else f"{value:.{digits}g}"


def listed(names: Sequence[str], most: int = NAMES_LISTED) -> str:
    """Return "a", "a and b", "a, b and c", or the first of many and how many more there are."""
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return "1 tensor", "2 tensors"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def between(values: Sequence[float], digits: int = 3) -> str:
    """Return "a" or "a to b", the range of some numbers."""
    low, high = (f"{end:.{digits}g}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
