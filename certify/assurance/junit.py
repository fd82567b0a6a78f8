"""The outcome of a file of requirements as JUnit XML, which continuous-integration systems show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from certify.assurance.assessment import Assessment, Finding, describe
from certify.assurance.decisions import Outcome

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0


def write_junit(assessment: Assessment) -> str:
    """Return the XML: a test suite per model, a test case per requirement.

    What does not hold and what is undecided is a failure, with the gap or the counterexample as its message; an error
    is an error; nothing is skipped, since systems show that as passed. Times are left out, so that the same evidence
    gives the same bytes.
    """
    suites: dict[str, list[Finding]] = {}
    for finding in assessment.findings:
        suites.setdefault(finding.requirement.model.name, []).append(finding)
    root = _element(None, "testsuites", name=assessment.requirements.title, **_counts(assessment.findings))
    for name, findings in suites.items():
        suite = _element(root, "testsuite", name=name, **_counts(findings))
        properties = _element(suite, "properties")
        _element(properties, "property", name="requirements_sha256", value=assessment.requirements.digest)
        for digest in sorted({finding.network_hash for finding in findings if finding.network_hash}):
            _element(properties, "property", name="network_hash", value=digest)
        for finding in findings:
            _add_case(suite, name, finding)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _add_case(suite: ElementTree.Element, model: str, finding: Finding) -> None:
    requirement = finding.requirement
    case = _element(suite, "testcase", classname=model, name=f"{requirement.identifier}: {requirement.text}")
    if finding.outcome is Outcome.ERROR:
        _element(case, "error", type="error", message=finding.detail)
    elif finding.outcome is not Outcome.HOLDS:
        _element(case, "failure", type=str(finding.outcome), message=f"{finding.outcome}: {finding.detail}")
    lines = {
        "test": describe(requirement.demand),
        "outcome": f"{finding.outcome}: {finding.detail}",
        "source": requirement.source,
        "method": finding.method,
        "evidence": finding.evidence and f"{finding.evidence} (SHA-256 {finding.evidence_hash})",
        "check again": finding.recheck,
    }
    output = _element(case, "system-out")
    output.text = _clean("\n".join(f"{name}: {line}" for name, line in lines.items() if line))


def _counts(findings: Sequence[Finding]) -> dict[str, str]:
    outcomes = [finding.outcome for finding in findings]
    failures = sum(outcome in (Outcome.FAILS, Outcome.UNDECIDED) for outcome in outcomes)
    return {
        "tests": str(len(outcomes)),
        "failures": str(failures),
        "errors": str(outcomes.count(Outcome.ERROR)),
        "skipped": "0",
    }


def _element(parent: ElementTree.Element | None, tag: str, **attributes: str) -> ElementTree.Element:
    clean = {name: _clean(value) for name, value in attributes.items()}
    return ElementTree.Element(tag, clean) if parent is None else ElementTree.SubElement(parent, tag, clean)


def _clean(text: str) -> str:
    """Return the text with what XML cannot hold replaced."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
