"""The requirement-test-evidence matrix of an assessment: JSON for programs, Markdown and HTML for people."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from certify.assurance.assessment import Assessment, Finding, describe
from certify.assurance.decisions import Outcome
from weightspace.report.templates import load_template
from weightspace.result import write_text

_TEMPLATE = Path(__file__).parent / "matrix.html.j2"
_HEADERS = (
    "requirement", "text", "source", "model", "network hash", "test", "outcome", "evidence", "evidence SHA-256",
    "check again",
)  # fmt: skip


def write_matrix(assessment: Assessment, folder: str | Path) -> None:
    """Write `matrix.json`, `matrix.md` and `matrix.html` into a folder; the same assessment gives the same bytes.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        OutputError: a file cannot be written.
    """
    page = render_html(assessment)
    for name, text in (
        ("matrix.json", json.dumps(matrix(assessment), indent=1) + "\n"),
        ("matrix.md", render_markdown(assessment)),
        ("matrix.html", page),
    ):
        write_text(Path(folder) / name, text)


def require_template() -> None:
    """Ask for what `write_matrix` needs, before long work.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    load_template(_TEMPLATE, "the matrix")


def matrix(assessment: Assessment) -> dict[str, Any]:
    """Return the matrix as JSON data, one row per requirement."""
    return {
        "title": assessment.requirements.title,
        "requirements_file": assessment.requirements.path.name,
        "requirements_sha256": assessment.requirements.digest,
        "outcomes": {str(outcome): assessment.count(outcome) for outcome in Outcome},
        "rows": [_row(finding) for finding in assessment.findings],
    }


def _row(finding: Finding) -> dict[str, Any]:
    requirement = finding.requirement
    return {
        "requirement": requirement.identifier,
        "text": requirement.text,
        "source": requirement.source,
        "model": requirement.model.name,
        "network_hash": finding.network_hash,
        "test": describe(requirement.demand),
        "method": finding.method,
        "outcome": str(finding.outcome),
        "detail": finding.detail,
        "evidence": finding.evidence,
        "evidence_sha256": finding.evidence_hash,
        "check_again": finding.recheck,
    }


def render_markdown(assessment: Assessment) -> str:
    """Return the matrix as a Markdown table."""
    data = matrix(assessment)
    rows = [
        [
            _plain(row["requirement"]),
            _plain(row["text"]),
            _plain(row["source"]),
            _plain(row["model"]),
            _code(row["network_hash"]),
            _plain(row["test"]),
            f"**{row['outcome']}**: {_plain(row['detail'])}",
            _code(row["evidence"]),
            _code(row["evidence_sha256"]),
            _code(row["check_again"]),
        ]
        for row in data["rows"]
    ]
    table = [list(_HEADERS), ["---"] * len(_HEADERS), *rows]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    counts = ", ".join(f"{name}: {count}" for name, count in data["outcomes"].items())
    return (
        f"# {_plain(data['title'])}\n\nRequirements: {_code(data['requirements_file'])}, SHA-256 "
        f"{_code(data['requirements_sha256'])}. Outcomes: {counts}.\n\n{lines}\n"
    )


def render_html(assessment: Assessment) -> str:
    """Return the matrix as one HTML page without scripts or outside resources.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    return load_template(_TEMPLATE, "the matrix").render(**matrix(assessment)) + "\n"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~&])", r"\\\1", " ".join(text.split()))


def _code(text: str | None) -> str:
    """Return text as code inside a table cell; None as nothing."""
    if text is None:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{' '.join(text.split())}{pad}{fence}".replace("|", "\\|")
