"""The command `verify`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certify.cli import Activation, Architecture, AsJson, Layout
from weightspace.errors import WeightspaceError

if TYPE_CHECKING:
    from certify.assurance.answers import Answer
    from certify.assurance.assessment import Assessment, Finding

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def verify(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Network file, or requirements: .toml .yaml .yml")
    ],
    property: Annotated[
        Path | None, typer.Argument(metavar="[PROPERTY]", help="Of a network: .vnnlib or .vnnlib.gz")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="PATH",
            help="The verdict's file; for requirements the folder of all results.",
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE.xml", help="Requirements: also write JUnit XML.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Of a property: time after which it is unknown.  [default: 60]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search for counterexamples.")] = 0,
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    run_architectures: Annotated[
        bool, typer.Option("--run-architectures", help="Run the Python files that the requirements name; trust them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Decide a property of a network, or every requirement of a file.

    Requirements write DIR/evidence/, the requirement-test-evidence matrix as DIR/matrix.html, .md and .json, and
    JUnit XML. Evidence in DIR that still passes its check is kept. Their form: pydoc certify.assurance.requirements

    Exit status: 0 proved (all requirements hold), 1 refuted, unknown or not all hold, 2 error.
    """
    from certify.assurance.requirements import SUFFIXES

    if property is not None:
        if junit is not None:
            raise WeightspaceError("--junit belongs to a requirements file, not to one property")
        seconds = 60.0 if seconds is None else seconds
        if not seconds >= 0:
            raise WeightspaceError(f"--seconds {seconds} is no number of at least 0")
        _verify_property(file, property, out, seconds, seed, architecture, activation, layout, as_json)
        return
    if file.suffix not in SUFFIXES:
        raise WeightspaceError(
            f"verify {str(file)!r} needs a property to verify (.vnnlib), or a requirements file ({', '.join(SUFFIXES)})"
        )
    given = {
        "--seconds": seconds,
        "--architecture": architecture,
        "--activation": activation,
        "--layout": layout,
    }
    for flag, value in given.items():
        if value is not None:
            raise WeightspaceError(f"{flag} belongs to one property; requirements say it in {str(file)!r}")
    if out is None:
        raise WeightspaceError("requirements write several files; name their folder with -o")
    _verify_requirements(file, out, junit, seed, run_architectures, as_json)


def _verify_property(
    file: Path,
    property: Path,
    out: Path | None,
    seconds: float,
    seed: int,
    architecture: str | None,
    activation: str | None,
    layout: str | None,
    as_json: bool,
) -> None:
    from certify.assurance.answers import answer, overall
    from certify.assurance.evidence import write_answers
    from certify.assurance.vnnlib import read_vnnlib
    from certify.verdicts import VerdictStatus
    from weightspace.commands import assumption
    from weightspace.reading import read
    from weightspace.result import check_writable, write_text

    if out is not None:
        check_writable(out)
    properties = read_vnnlib(property)
    network = read(file, architecture=architecture, activation=activation, layout=layout)
    assumption(network)
    answers = answer(network, properties, file=file, seconds=seconds, seed=seed)
    status = overall([one.status for one in answers])
    if out is not None:
        write_text(out, write_answers(answers) + "\n")
    if as_json:
        data = {
            "status": status.name.lower(),
            "network_hash": network.hash,
            "properties": [_shown(one) for one in answers],
            "verdict": None if out is None else str(out),
        }
        typer.echo(json.dumps(data, allow_nan=False))
    else:
        for one in answers:
            typer.echo(f"{one.verdict.property.name}: {one.status}: {one.reason}")
            example = one.verdict.counterexample
            if example is not None:
                typer.echo(f"  input   {_numbers(example.input)}\n  output  {_numbers(example.output)}")
    if status is not VerdictStatus.PROVED:
        raise typer.Exit(1)


def _shown(answer: Answer) -> dict[str, Any]:
    example, replay = answer.verdict.counterexample, answer.replay
    return {
        "name": answer.verdict.property.name,
        "status": answer.status.name.lower(),
        "reason": answer.reason,
        "boxes": answer.verdict.regions,
        "seconds": answer.verdict.seconds,
        "counterexample": example and {"input": example.input, "output": example.output},
        "replay": replay
        and {
            "runtime": replay.runtime,
            "unsafe": replay.unsafe,
            "difference": replay.difference if math.isfinite(replay.difference) else None,
        },
    }


def _numbers(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:.9g}" for value in values[:12])
    return shown if len(values) <= 12 else f"{shown}, .. ({len(values)} numbers; -o writes them all)"


def _verify_requirements(
    file: Path, out: Path, junit: Path | None, seed: int, run_architectures: bool, as_json: bool
) -> None:
    from certify.assurance.assessment import assess
    from certify.assurance.decisions import Outcome
    from certify.assurance.junit import write_junit
    from certify.assurance.requirements import read_requirements
    from certify.assurance.traceability import matrix, require_template, write_matrix
    from weightspace.result import check_writable, write_text

    require_template()
    if junit is not None:
        check_writable(junit)
    requirements = read_requirements(file, run_architectures=run_architectures)

    def finished(finding: Finding) -> None:
        if not as_json:
            kept = " (evidence kept)" if finding.kept else ""
            typer.echo(f"{finding.requirement.identifier}: {finding.outcome}: {finding.detail}{kept}")

    assessment = assess(requirements, out, seed=seed, finished=finished)
    write_matrix(assessment, out)
    if junit is not None:
        write_text(junit, write_junit(assessment))
    if as_json:
        typer.echo(json.dumps(matrix(assessment), allow_nan=False))
    else:
        typer.echo(f"{_summary(assessment)}; matrix: {out / 'matrix.html'}")
    if assessment.count(Outcome.ERROR):
        raise typer.Exit(2)
    if assessment.count(Outcome.HOLDS) < len(assessment.findings):
        raise typer.Exit(1)


def _summary(assessment: Assessment) -> str:
    from certify.assurance.decisions import Outcome

    counts = {str(outcome): assessment.count(outcome) for outcome in Outcome}
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
