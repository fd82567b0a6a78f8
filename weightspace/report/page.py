"""Assemble the report: read the files, run every section, render page and JSON."""

from __future__ import annotations

import importlib
import json
import math
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
from weightspace.report.content import Details, Evaluation, Gap, Method, Picture, Section, Subject, Table
from weightspace.report.summary import Sentence, summarize
from weightspace.report.templates import load_template
from weightspace.result import check_writable, write_text

_TEMPLATE = Path(__file__).parent / "page.html.j2"
SectionFunction = Callable[[Sequence[Subject], Evaluation | None], Section]

# What stands under each key of report.json; the keys of the sections are their anchors on the page.
KEYS = {
    "keys": "this list: what stands under each key",
    "weightspace": "version that wrote the report",
    "created": "when, in UTC, ISO 8601",
    "files": "names of the files, as used in the rest",
    "summary": "the sentences the page begins with, worst first: sentence, severity, section (anchor), methods (keys)",
    "overview": "per file: path, counts, hash of the network, its operations, findings on its tensors",
    "pairs": "per pair of files of one structure: distances and barriers before and after alignment, with their curves",
    "similarity": "distances modulo neuron order, families, descent: per three files or more of one structure; of "
    "`weightspace similarity` for all its files",
    "certificates": "per file: bounds of the Lipschitz constant, method, norm, hash of the network",
    "bilinear": "per file: eigenvalues and effective rank of every output, or the bilinear layers inside",
    "neurons": "per file: the graph of neurons: sizes of layers, activations, numbers of nodes and edges",
    "layers": "per file: every tensor with its numbers and singular values; not finite ones are 'inf', '-inf', 'nan'",
    "not_analyzed": "what could not be analyzed: subject, analysis, reason",
    "methods": "per key: how a kind of number is computed: meaning, equation, function, source, promise",
}

# Sections of the packages above this one, by name: nothing is imported upward.
LATER_SECTIONS = {"certificates": "certify.report:section", "bilinear layers": "interp.report:section"}


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        html: the page.
        data: the same as data for JSON; `data["keys"]` says what stands under each key.
        gaps: what was not analyzed.
        summary: the sentences that the page begins with, worst first.
    """

    html: str
    data: dict[str, Any]
    gaps: tuple[Gap, ...]
    summary: tuple[Sentence, ...] = ()

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
        write_text(folder / "report.json", json.dumps(self.data, indent=1, allow_nan=False))
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
    methods = _used(sections)
    summary = summarize(sections, gaps, broken, methods)
    data = {
        "weightspace": weightspace.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": list(names),
        "summary": [sentence.as_data() for sentence in summary],
        **{section.anchor: dict(section.data) for section in sections},
        "not_analyzed": [
            {"subject": gap.subject, "analysis": gap.analysis, "reason": gap.reason} for gap in gaps
        ],
        "methods": {
            key: {name: text for name, text in vars(method).items() if name != "key"}
            for key, method in methods.items()
        },
    }
    data = {"keys": {key: KEYS[key] for key in ("keys", *data) if key in KEYS}, **data}
    html = load_template(_TEMPLATE, "the report").render(
        title=f"weightspace report: {', '.join(names)}",
        names=names,
        sections=[section for section in sections if section.blocks],
        gaps=gaps,
        gap_table=_gap_table(gaps),
        methods=methods,
        summary=summary,
        created=f"{data['created'][:16].replace('T', ' ')} UTC",
        version=data["weightspace"],
    )
    return Report(html, strict(data), gaps, summary)


def _gap_table(gaps: Sequence[Gap]) -> Table:
    rows = [(gap.subject, gap.analysis, gap.reason) for gap in gaps]
    return Table(["what", "analysis", "why not"], rows, "What could not be analyzed, and why.")


def _used(sections: Sequence[Section]) -> dict[str, Method]:
    """The methods that some number on the page or some sentence was computed by, in the order of the sections."""
    used: set[str] = set()
    for section in sections:
        for finding in section.findings:
            used.update(finding.methods)
        waiting = list(section.blocks)
        for block in waiting:
            if isinstance(block, Details):
                waiting += block.blocks
            elif isinstance(block, Table):
                used.update(block.methods.values())
            elif isinstance(block, Picture):
                used.update(block.methods)
    return {method.key: method for section in sections for method in section.methods if method.key in used}


def strict(value: Any) -> Any:
    """Replace floats that JSON cannot write by "inf", "-inf" and "nan"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, (list, tuple)) else value


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
