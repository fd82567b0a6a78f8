"""Assemble the report: read the files, run every section, render page and JSON."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

import weightspace
from weightspace.errors import CheckpointError, OutputError, WeightspaceError
from weightspace.inspection import inspect
from weightspace.reading import read
from weightspace.report import comparison, similarity, weights
from weightspace.report.content import Evaluation, Gap, Section, Subject
from weightspace.report.templates import load_template
from weightspace.result import check_writable, write_text

_TEMPLATE = Path(__file__).parent / "page.html.j2"
SectionFunction = Callable[[Sequence[Subject], Evaluation | None], Section]

# Sections of the packages above this one, by name: nothing is imported upward.
LATER_SECTIONS = {"certificates": "certify.report:section", "bilinear layers": "interp.report:section"}


@dataclass(frozen=True)
class Report:
    """A finished report: the HTML page, the same as JSON data, and what was not analyzed."""

    html: str
    data: dict[str, Any]
    gaps: tuple[Gap, ...]

    def write(self, folder: str | Path) -> Path:
        """Write `report.html` and `report.json` into `folder` and return the page's path."""
        folder = Path(folder)
        require_folder(folder)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create {str(folder)!r}: {error.strerror}; name another with -o"
            ) from error
        write_text(folder / "report.json", json.dumps(self.data, indent=1))
        write_text(folder / "report.html", self.html)
        return folder / "report.html"


def report(
    paths: Sequence[str | Path],
    *,
    evaluation: Evaluation | None = None,
    architecture: str | None = None,
    activation: str | None = None,
    layout: str | None = None,
    progress: bool = False,
) -> Report:
    """Analyze checkpoints with everything that applies.

    What cannot be analyzed, a broken file among several included, is listed with its reason and never stops the
    rest.

    Args:
        paths: files or folders, as `weightspace.read` takes them; those that are no network are inspected.
        evaluation: labeled data for the loss barrier; without it the barrier is measured on random inputs.
        architecture, activation, layout: as for `weightspace.read`, for every file that needs them.
        progress: show a progress bar on a terminal.
    Raises:
        CheckpointError: no file could be read.
        MissingDependencyError: the extra `report` is not installed.
    """
    load_template(_TEMPLATE, "the report")  # found missing now rather than after minutes of work
    subjects: list[Subject] = []
    broken: list[Gap] = []
    names = short_names([Path(path) for path in paths])
    with tqdm(total=len(names) + 5 + len(LATER_SECTIONS), disable=None if progress else True) as bar:
        for path, name in zip(paths, names, strict=True):
            bar.set_description(f"reading {name}")
            try:
                subjects.append(_subject(Path(path), name, architecture, activation, layout))
            except CheckpointError as error:
                if len(names) == 1:
                    raise
                broken.append(Gap(name, "the file", str(error)))
            bar.update()
        if not subjects:
            raise CheckpointError(
                f"none of the {len(names)} files could be read; the first: {broken[0].reason}"
            )
        sections = []
        for title, function in _sections():
            bar.set_description(title)
            sections.append(function(subjects, evaluation))
            bar.update()
    return assemble(names, sections, broken)


def assemble(names: Sequence[str], sections: Sequence[Section], broken: Sequence[Gap] = ()) -> Report:
    """Render sections as a page and as data.

    Raises:
        MissingDependencyError: the extra `report` is not installed.
    """
    gaps = (*broken, *(gap for section in sections for gap in section.gaps))
    data = {
        "weightspace": weightspace.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": list(names),
        **{section.anchor: dict(section.data) for section in sections},
        "not_analyzed": [vars(gap) for gap in gaps],
    }
    html = load_template(_TEMPLATE, "the report").render(
        names=names,
        sections=sections,
        gaps=gaps,
        gap_rows=[(gap.subject, gap.analysis, gap.reason) for gap in gaps],
        created=data["created"],
        version=data["weightspace"],
    )
    return Report(html, data, gaps)


def require_folder(folder: Path) -> None:
    """Make sure before any long work that `Report.write` will be able to write.

    Raises:
        OutputError: the folder, or the one it is to be created in, is missing or not writable.
    """
    if folder.is_dir():
        check_writable(folder / "report.html")
    elif check_writable(folder).is_file():
        raise OutputError(f"cannot write into {str(folder)!r}: it is a file; name a folder with -o")


def _sections() -> list[tuple[str, SectionFunction]]:
    """Return the sections in the order of the page: conclusions first, tables of every tensor last."""
    later: list[tuple[str, SectionFunction]] = []
    for title, place in LATER_SECTIONS.items():
        module, function = place.split(":")
        later.append((title, getattr(importlib.import_module(module), function)))
    return [
        ("overview", weights.overview),
        ("pairs", comparison.pairs),
        ("similarity", similarity.families),
        *later,
        ("neurons", weights.neurons),
        ("layers", weights.layers),
    ]


def _subject(
    path: Path, name: str, architecture: str | None, activation: str | None, layout: str | None
) -> Subject:
    reason, network = None, None
    try:
        network = read(path, architecture=architecture, activation=activation, layout=layout)
    except CheckpointError:
        raise
    except WeightspaceError as error:
        reason = str(error)
    source = network if network is not None and path.suffix in (".onnx", ".pt2") else path
    return Subject(name, path, inspect(source), network, reason)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return file names, with as much of their folders as it takes to tell them apart."""
    resolved = [path.resolve() for path in paths]
    names = []
    for index, path in enumerate(resolved):
        parts = 1
        others = [other for other in resolved[:index] + resolved[index + 1 :] if other != path]
        while any(other.parts[-parts:] == path.parts[-parts:] for other in others):
            parts += 1
        names.append("/".join(path.parts[-parts:]))
    return [
        f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)
    ]
