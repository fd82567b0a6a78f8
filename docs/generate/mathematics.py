"""Equations as MathML, written at build time: a browser shows them without scripts, fonts or a network."""

from __future__ import annotations

import html
import re

_SPAN = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_DISPLAYED = re.compile(r"\s*(\$\$.+?\$\$)[ \t]*\n?", re.DOTALL)
_RELATION = re.compile(
    "<mi>(&#x02AB0;|&#x02AAF;|&#x0227D;|&#x0227C;)</mi>"
)  # orders of matrices, taken for names


def separate_displayed(text: str) -> str:
    """Return Markdown in which every $$equation$$ is a paragraph of its own, as it is to be shown."""
    return _DISPLAYED.sub(r"\n\n\1\n\n", text)


def convert_equations(page: str, place: str) -> str:
    """Replace the LaTeX that `pymdownx.arithmatex` marked.

    Raises:
        ValueError: a command is unknown to the converter, which would have printed it as it stands.
    """
    from latex2mathml.converter import convert

    def replace(match: re.Match) -> str:
        latex = html.unescape(match[2]).strip()
        latex = re.sub(r"\\arg\b", r"\\operatorname{arg}", latex)  # the converter has no such command
        display = "block" if match[1] == "div" else "inline"
        result = convert(latex, display=display)
        if "\\" in re.sub(r"<[^>]*>", "", result):
            raise ValueError(f"{place}: an equation has a command that cannot be converted: {latex}")
        result = _RELATION.sub(r"<mo>\1</mo>", result)
        kind = "equation long" if match[1] == "span" and len(latex) > 30 else "equation"
        return f'<{match[1]} class="{kind}">{result}</{match[1]}>'

    return _SPAN.sub(replace, page)
