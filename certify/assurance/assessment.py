"""`assess`: every requirement of a file decided, with the evidence written down."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from certify.assurance.decisions import Outcome, decide
from certify.assurance.requirements import (
    CertifiedAccuracy,
    Demand,
    LipschitzLimit,
    ModelFile,
    Requirement,
    Requirements,
    SafeOutputs,
)
from certify.regions import Ball
from weightspace.errors import WeightspaceError
from weightspace.network import Network
from weightspace.result import make_folder, write_text

EVIDENCE = "evidence"  # folder of the evidence files, inside the job's folder


@dataclass(frozen=True)
class Finding:
    """One requirement, its test and its evidence.

    Attributes:
        requirement: what was asked.
        outcome: whether it holds.
        detail: why, in one line: the proven number, the gap, the counterexample or the error.
        method: what decided it; empty after an error.
        network_hash: of the network; None where it could not be read.
        evidence: path of the evidence file inside the job's folder; None after an error.
        evidence_hash: SHA-256 of its bytes.
        recheck: the command that looks at it again, to be run in the job's folder.
        kept: evidence of an earlier run was checked instead of computed again.
    """

    requirement: Requirement
    outcome: Outcome
    detail: str
    method: str = ""
    network_hash: str | None = None
    evidence: str | None = None
    evidence_hash: str | None = None
    recheck: str | None = None
    kept: bool = False


@dataclass(frozen=True)
class Assessment:
    """What became of a file of requirements.

    Attributes:
        requirements: what was asked.
        findings: one per requirement, in the order of the file.
    """

    requirements: Requirements
    findings: tuple[Finding, ...]

    def count(self, outcome: Outcome) -> int:
        """Return how many requirements have this outcome."""
        return sum(finding.outcome is outcome for finding in self.findings)


def assess(
    requirements: Requirements,
    folder: str | Path,
    *,
    seed: int = 0,
    finished: Callable[[Finding], None] = lambda finding: None,
) -> Assessment:
    """Decide every requirement and write its evidence into `folder`, whole or not at all.

    Evidence that is already there is kept if it is about the same question, settles it, and passes the check against
    the network as it is now; everything else is computed again. An error in one requirement does not stop the others.

    Args:
        folder: made where it is missing.
        seed: of the searches for counterexamples.
        finished: is called after each requirement.
    Raises:
        OutputError: the folder cannot be made.

    Examples:
        >>> import certify, pathlib, tempfile
        >>> from weightspace.bundled import load
        >>> text = '''
        ... title = "Digits"
        ... [[requirements]]
        ... id = "R1"
        ... text = "The scores change by at most 10 per unit of input."
        ... kind = "lipschitz"
        ... max = 10.0
        ... model = "digits.safetensors"
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "requirements.toml")
        ...     _ = path.write_text(text)
        ...     load("digits_maxmin").save(f"{folder}/digits.safetensors")
        ...     assessment = certify.assess(certify.read_requirements(path), f"{folder}/evidence")
        >>> [(finding.requirement.identifier, finding.outcome.name) for finding in assessment.findings]
        [('R1', 'HOLDS')]
    """
    folder = Path(folder)
    make_folder(folder / EVIDENCE)
    networks: dict[ModelFile, Network] = {}
    findings = []
    for requirement in requirements.requirements:
        try:
            network = networks.get(requirement.model) or requirement.model.read()
            networks[requirement.model] = network
            finding = _find(requirement, requirements, network, folder, seed)
        except Exception as error:  # whatever it is, the other requirements are still to be decided
            reason = str(error) if isinstance(error, WeightspaceError) else f"{type(error).__name__}: {error}"
            known = networks.get(requirement.model)
            finding = Finding(
                requirement,
                Outcome.ERROR,
                " ".join(reason.split()),
                network_hash=None if known is None else known.hash,
            )
        findings.append(finding)
        finished(finding)
    return Assessment(requirements, tuple(findings))


def describe(demand: Demand) -> str:
    """Return what is tested, in words."""
    match demand:
        case LipschitzLimit():
            what = "" if demand.output is None else f" of output {demand.output}"
            where = {type(None): "all inputs", Ball: "a ball"}.get(type(demand.region), "a box")
            return f"Lipschitz constant{what} at most {demand.limit:g}, norm {demand.norm}, over {where}"
        case SafeOutputs():
            names = ", ".join(property.name for property in demand.properties if property.name)
            return f"no unsafe output{f': {names}' if names else ''}"
        case CertifiedAccuracy():
            return (
                f"certified accuracy at least {demand.minimum:g}, norm {demand.norm}, epsilon {demand.epsilon:g}, on "
                f"{demand.data.name}"
            )


def _find(
    requirement: Requirement, requirements: Requirements, network: Network, folder: Path, seed: int
) -> Finding:
    model, demand = requirement.model, requirement.demand
    evidence = f"{EVIDENCE}/{requirement.identifier}.json"
    path = folder / evidence
    decision = decide(demand, network, file=model.path, known=_text(path), seed=seed)
    if not decision.kept:
        write_text(path, decision.text)
    if isinstance(demand, CertifiedAccuracy):
        command = ["verify", os.path.relpath(requirements.path, folder), "-o", "."]
    else:
        flags = {
            "--architecture": model.architecture and os.path.relpath(model.architecture, folder),
            "--activation": model.activation,
            "--layout": model.layout,
        }
        given = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
        command = ["check", evidence, os.path.relpath(model.path, folder), *given]
    return Finding(
        requirement,
        decision.outcome,
        decision.detail,
        decision.method,
        network.hash,
        evidence,
        hashlib.sha256(decision.text.encode()).hexdigest(),
        shlex.join(["weightspace", *command]),
        decision.kept,
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
