"""Numbers as decimals, rounded to the safe side: what is read is no tighter than what was proven."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context

DIGITS = 5


def rounded_up(value: float | None, digits: int = DIGITS) -> str:
    """Return an upper bound with so many digits, not below the number itself; "-" for None."""
    return _rounded(value, digits, ROUND_CEILING)


def rounded_down(value: float | None, digits: int = DIGITS) -> str:
    """Return a lower bound with so many digits, not above the number itself; "-" for None."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float | None, digits: int, rounding: str) -> str:
    if value is None:
        return "-"
    decimal = Context(prec=digits, rounding=rounding).create_decimal_from_float(value)
    return f"{float(decimal):.{digits}g}"
