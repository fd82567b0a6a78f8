"""How a rule is entered under the names of its operators, and what several rules need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightspace.aten import AtenReader

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
END = 2**62


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a function under the names of its operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def tuple_of(value: Any, length: int) -> tuple[int, ...]:
    """Return a number or a list of numbers as a tuple of `length`."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * length if len(values) == 1 else values


def weights(reader: AtenReader, **values: Any) -> dict[str, Any] | None:
    """Return role -> parameter name; None when one of them is computed by the program, not stored."""
    names = {role: reader.weight(value) for role, value in values.items()}
    return None if any(values[role] is not None and name is None for role, name in names.items()) else names


def is_weight(value: Any) -> bool:
    """Whether an argument is a parameter of the network, not a value it computes."""
    return type(value).__name__ == "Weight"
