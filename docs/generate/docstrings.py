"""Docstrings on their way to the API pages: sections and equations inside a paragraph become paragraphs."""

from __future__ import annotations

import re
from typing import Any

import griffe
from generate.mathematics import separate_displayed

_NAMES = re.compile(r"(?m)^([ ]+[a-z_]\w*(?:, [a-z_]\w*)+)(?=: )")  # a, b: what both are
_HEADING = re.compile(r"(?m)(?<!\n)\n(Args|Attributes|Returns|Yields|Raises):[ \t]*$")
_ONE_LINE = re.compile(r"(?m)^(Returns|Yields): (?=\S)")
_ONE_ERROR = re.compile(r"(?m)^Raises: (?=\w+(Error|Exception): )")
_NO_PAIRS = re.compile(
    r"(?m)^Raises:[ \t]*\n[ \t]+(?=[^:\n]*$)"
)  # as in: as `lipschitz`; ShapeError where ...
_REMARK = re.compile(r"(?m)\n?^(Args, Raises|Args|Cost|Raises|Source): (?=\S)")


def spread(text: str) -> str:
    """Return a docstring with its sections and equations as paragraphs."""
    text = separate_displayed(text)
    text = _NAMES.sub(
        lambda match: match[1].replace(", ", ",\u00a0"), text
    )  # else b is read as the type of a
    text = _ONE_LINE.sub(r"\n\1:\n    ", text)
    text = _ONE_ERROR.sub("\nRaises:\n    ", text)
    text = _NO_PAIRS.sub("Raises: ", text)
    text = _HEADING.sub(r"\n\n\1:", text)
    return _REMARK.sub(r"\n\n**\1:** ", text)


class SpreadDocstrings(griffe.Extension):
    """Applies `spread` to every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = spread(obj.docstring.value)
