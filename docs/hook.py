"""What MkDocs calls at the stages of a build; the generated pages themselves come from docs/generate/."""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

from generate import api, break_this_certificate, commands, mathematics, project_pages, tutorials
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks.weightspace")
_notebooks: list[Path] = []  # of this build, so that one that appears meanwhile is in all of it or in none


def on_config(config: Any) -> Any:
    """Put the pages that exist where the navigation names their folders."""
    _notebooks[:] = tutorials.notebooks()
    config.nav = _expand(config.nav)
    return config


def _expand(nav: list) -> list:
    expanded = []
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            target = _expand(target)
        elif target == "api/":
            target = [{page.title: page.file} for page in api.PAGES]
        elif target == "tutorials/":
            target = [{tutorials.title(path): f"tutorials/{path.stem}.md"} for path in _notebooks]
        if target:
            expanded.append({title: target})
    return expanded


@event_priority(100)  # before the plugins look at what there is
def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and files."""
    for page in api.PAGES:
        files.append(File.generated(config, page.file, content=api.render(page)))
    files.append(File.generated(config, "command_line.md", content=_commands()))
    for source, target in project_pages.PAGES.items():
        files.append(File.generated(config, target, content=project_pages.render(source)))
    for path in _notebooks:
        text, figures = tutorials.render(path)
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=text))
        for name, content in figures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    for name, content in _certificates().items():
        target = f"break_this_certificate/{name}"
        files.append(File.generated(config, target, content=content))
    for path in break_this_certificate.runtime_files():
        target = f"break_this_certificate/pyodide/{path.name}"
        files.append(File.generated(config, target, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Replace {NN} by a link to tutorial NN where it exists."""
    if page.file.src_uri != "which_tool.md":
        return markdown
    known = {path.stem[:2]: f"tutorials/{path.stem}.md" for path in _notebooks}
    return re.sub(
        r"\{(\d\d)\}",
        lambda found: f"[{found[1]}]({known[found[1]]})" if found[1] in known else found[1],
        markdown,
    )


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Turn the equations of a page into MathML."""
    return mathematics.convert_equations(html, page.file.src_uri)


@cache  # `mkdocs serve` builds often
def _commands() -> str:
    return commands.render()


@cache
def _certificates() -> dict[str, bytes]:
    files, notes = break_this_certificate.files()
    for note in notes:
        log.info("break this certificate: %s", note)
    return files
