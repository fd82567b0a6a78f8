"""The executed notebooks of tutorials/ as pages: text, code, what it printed and drew, in the style of the site."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from generate.mathematics import separate_displayed
from generate.project_pages import relink

FOLDER = Path(__file__).parents[2] / "tutorials"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colors of a terminal


def notebooks() -> list[Path]:
    """Return the executed notebooks there are, in order of their numbers."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


def title(path: Path) -> str:
    """Return the first heading of a notebook, with its number."""
    for cell in _cells(path):
        found = re.search(r"^# (.+)$", _text(cell["source"]), re.MULTILINE)
        if cell["cell_type"] == "markdown" and found:
            return f"{path.stem[:2]} {found[1]}"
    return path.stem


def render(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown and its figures, file name -> bytes."""
    how = f"*To run it: `python tutorials/run.py {path.stem[:2]}`, or `tutorials/{path.name}` in Jupyter.*"
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    for cell in _cells(path):
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            text = relink(source, f"tutorials/{path.name}", f"tutorials/{path.stem}.md")
            text = separate_displayed(text)
            parts.append(re.sub(r"(?m)^(# .+)$", lambda match: f"{match[1]}\n\n{how}", text, count=1))
        elif source.strip():
            parts.append(_fenced(source, "python"))
            parts += [_shown(output, path.stem, figures) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n", figures


def _shown(output: dict, stem: str, figures: dict[str, bytes]) -> str:
    if output["output_type"] == "stream":
        return _fenced(_text(output["text"]), "text")
    if output["output_type"] == "error":
        return _fenced("\n".join(output["traceback"]), "text")
    data = output["data"]
    for kind, ending in (("image/png", "png"), ("image/jpeg", "jpg"), ("image/svg+xml", "svg")):
        if kind in data:
            name, content = f"{stem}_{len(figures) + 1}.{ending}", _text(data[kind])
            figures[name] = content.encode() if ending == "svg" else base64.b64decode(content)
            return f"![Figure {len(figures)}: drawn by the code above it]({name})"
    if "text/html" in data:
        lines = (
            line for line in _text(data["text/html"]).splitlines() if line.strip()
        )  # else Markdown goes on
        return '<div class="output">\n' + "\n".join(lines) + "\n</div>"
    return (
        _text(data["text/markdown"])
        if "text/markdown" in data
        else _fenced(_text(data["text/plain"]), "text")
    )


def _cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{_ESCAPES.sub('', text).rstrip()}\n````"
