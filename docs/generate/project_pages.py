"""Texts that stand elsewhere in the repository, as pages: their links are led to where the site has the target."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def render(source: str) -> str:
    """Return a text of the repository as the page that shows it."""
    return relink((ROOT / source).read_text(encoding="utf-8"), source, PAGES[source])


def relink(text: str, source: str, page: str) -> str:
    """Return Markdown of the file `source` with links that hold on `page`; those to what the site lacks become text."""

    def replace(match: re.Match) -> str:
        image, label, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or ":" in target:
            return match[0]
        place = _page_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)))
        if place is None:
            return label
        return f"{image}[{label}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(replace, text)


def _page_of(place: str) -> str | None:
    """Return where the site has a file of the repository."""
    if place in PAGES or place == "README.md":
        return PAGES.get(place, "index.md")
    folder, _, name = place.rpartition("/")
    if not (ROOT / place).is_file():
        return None
    if folder == "tutorials":
        stem, _, ending = name.rpartition(".")
        return (
            f"{folder}/{stem}.md"
            if ending == "ipynb" or (ROOT / folder / f"{stem}.ipynb").is_file()
            else None
        )
    return place.removeprefix("docs/") if folder.startswith("docs") else None
