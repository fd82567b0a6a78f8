"""The summary: what all sections found, in plain words, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightspace.inspection import printable
from weightspace.report.content import Finding, Gap, Method, Section, Severity
from weightspace.report.wording import listed

NOT_ANALYZED = "not-analyzed"
NO_NETWORK = "reading as a network"
REASON_LENGTH = 160


@dataclass(frozen=True)
class Sentence:
    """A sentence of the summary with where it leads.

    Attributes:
        section: anchor of the place that has its numbers; `place` is that place's title.
        methods: how they were computed.
    """

    text: str
    severity: Severity
    section: str
    place: str
    methods: tuple[Method, ...]

    def as_data(self) -> dict[str, Any]:
        """Return what report.json holds."""
        return {
            "sentence": self.text,
            "severity": str(self.severity),
            "section": self.section,
            "methods": [method.key for method in self.methods],
        }

    def as_text(self) -> str:
        """Return one line for a terminal, whose cursor no name from a file may move."""
        marked = self.severity in (Severity.PROBLEM, Severity.CAUTION, Severity.GAP)
        return printable(f"{self.severity}: {self.text}" if marked else self.text)


def summarize(
    sections: Sequence[Section],
    gaps: Sequence[Gap],
    broken: Sequence[Gap],
    methods: Mapping[str, Method],
) -> tuple[Sentence, ...]:
    """Return the findings of all sections and what could not be analyzed: problems first, notes last."""
    places = {section.anchor: section.title for section in sections} | {NOT_ANALYZED: "Not analyzed"}
    unread = [(f"{gap.subject} could not be read: {_short(gap.reason)}") for gap in broken]
    findings = [
        *(Finding(sentence, Severity.PROBLEM, NOT_ANALYZED) for sentence in unread),
        *(finding for section in sections for finding in section.findings),
        *_not_analyzed([gap for gap in gaps if gap not in broken]),
    ]
    return tuple(
        Sentence(
            found.sentence,
            found.severity,
            found.anchor,
            places.get(found.anchor, "Layers"),
            tuple(methods[key] for key in found.methods),
        )
        for found in sorted(findings, key=lambda finding: finding.severity.rank)
    )


def _not_analyzed(gaps: Sequence[Gap]) -> list[Finding]:
    """One sentence per kind of analysis, with the reason where there is one."""
    kinds: dict[str, list[Gap]] = {}
    for gap in gaps:
        kinds.setdefault(gap.analysis, []).append(gap)
    findings = []
    for analysis, found in kinds.items():
        reasons = {gap.reason for gap in found}
        subjects = list(dict.fromkeys(gap.subject for gap in found))
        why = f": {_short(reasons.pop())}" if len(reasons) == 1 else ", for several reasons"
        what = f"No {analysis} for" if analysis != NO_NETWORK else "Not read as a network:"
        severity = Severity.NOTE if all(gap.minor for gap in found) else Severity.GAP
        findings.append(Finding(f"{what} {listed(subjects)}{why}", severity, NOT_ANALYZED))
    return findings


def _short(reason: str) -> str:
    """The first clauses of a long reason; the page has all of it under "Not analyzed"."""
    head = reason[:REASON_LENGTH]
    clause = max(head.rfind("; "), head.rfind(": "))
    if len(reason) > REASON_LENGTH and clause > REASON_LENGTH // 2:
        return reason[:clause]
    return reason if len(reason) <= REASON_LENGTH else f"{reason[:REASON_LENGTH].rsplit(' ', 1)[0]} …"
