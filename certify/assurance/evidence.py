"""The verdict file: what `weightspace verify` archives about properties, and its check.

One JSON object: every property with its region and unsafe outputs, and what settles it, either the certificate that
`certify/checker.py` accepts or a counterexample. Numbers are in float.hex() form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from certify import checker
from certify.assurance.answers import Answer, overall
from certify.certificate import Certificate
from certify.checking import CheckResult, check_text, network_arrays
from certify.counterexamples import violates
from certify.properties import Polyhedron, Property
from certify.regions import Box
from certify.verdicts import VerdictStatus
from weightspace.errors import CheckpointError
from weightspace.network import Network

VERSION = 1  # of checker.VERDICT_FORMAT


@dataclass(frozen=True)
class Recorded:
    """What a verdict file states about one property.

    Attributes:
        network_hash: of the network.
        property: what was asked.
        status: what came of it.
        reason: one line about it.
        counterexample: its input.
        certificate: the text that the checker reads.
    """

    network_hash: str
    property: Property
    status: VerdictStatus
    reason: str
    counterexample: tuple[float, ...] | None
    certificate: str | None


def certificate_text(certificate: Certificate) -> str:
    """Return the text of a certificate file: without the wall time, so that the same proof gives the same bytes."""
    return replace(certificate, seconds=0.0).to_json() + "\n"


def write_answers(answers: Sequence[Answer]) -> str:
    """Return the text of a verdict file; the same answers give the same text."""
    data = {
        "format": checker.VERDICT_FORMAT,
        "version": VERSION,
        "status": overall([answer.status for answer in answers]).name.lower(),
        "network_hash": answers[0].verdict.network_hash,
        "properties": [_entry(answer) for answer in answers],
    }
    data["digest"] = checker.digest(data)
    return json.dumps(data)


def _entry(answer: Answer) -> dict[str, Any]:
    property, example = answer.verdict.property, answer.verdict.counterexample
    certificate = answer.verdict.certificate
    return {
        "name": property.name,
        "status": answer.status.name.lower(),
        "reason": answer.reason,
        "region": _hexes(asdict(property.region)),
        "unsafe": [_hexes(asdict(polyhedron)) for polyhedron in property.unsafe],
        "boxes": answer.verdict.regions,
        "counterexample": example and _hexes(asdict(example)),
        "replay": answer.replay and _hexes(asdict(answer.replay)),
        "certificate": certificate and json.loads(certificate),
    }


def read_answers(text: str) -> tuple[Recorded, ...]:
    """Read a verdict file; nothing it states is proven before `check_answers`.

    Raises:
        CheckpointError: not a verdict file, another version, or broken.
        checker.Refused: its digest does not match its content, or a name stands twice.
    """
    try:
        data = checker.parse_json(text)
        if data["format"] != checker.VERDICT_FORMAT or data["version"] != VERSION:
            raise ValueError(f"its format is {data['format']!r} {data['version']!r}")
        recorded = tuple(_recorded(entry, data["network_hash"]) for entry in data["properties"])
        if not recorded:
            raise ValueError("it has no properties")
        edited = data["digest"] != checker.digest(data)
    except checker.Refused:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = f"field {error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"the verdict file cannot be read: {reason}; write it again with `verify`"
        ) from error
    if edited:
        raise checker.Refused("the verdict file was edited: its digest does not match its content")
    return recorded


def _recorded(entry: Mapping[str, Any], network_hash: str) -> Recorded:
    example, certificate = entry["counterexample"], entry["certificate"]
    point = example and tuple(_numbers(example["input"]))
    if point and not all(isinstance(number, float) for number in point):
        raise ValueError("a counterexample is no list of numbers")
    return Recorded(
        network_hash,
        Property(
            Box(**_numbers(entry["region"])),
            tuple(Polyhedron(**_numbers(polyhedron)) for polyhedron in entry["unsafe"]),
            entry["name"],
        ),
        VerdictStatus[entry["status"].upper()],
        str(entry["reason"]),
        point or None,
        certificate and json.dumps(certificate),
    )


def check_file(text: str, network: Network, *, exact: bool = False) -> CheckResult:
    """Check the text of a certificate or of a verdict file, whichever it is.

    Raises:
        CheckpointError: the text or the network's description is broken.
    """
    try:
        data = checker.parse_json(text)
    except ValueError:
        data = None  # check_text says what is wrong
    if isinstance(data, dict) and data.get("format") == checker.VERDICT_FORMAT:
        return check_answers(text, network, exact=exact)
    return check_text(text, network, exact=exact)


def check_answers(text: str, network: Network, *, exact: bool = False) -> CheckResult:
    """Check a verdict file: proofs by `certify/checker.py`, a counterexample by running the network.

    Raises:
        CheckpointError: the file or a certificate in it is broken.
    """
    try:
        recorded = read_answers(text)
    except checker.Refused as error:
        return CheckResult(False, str(error), None)
    if recorded[0].network_hash != network.hash:
        return CheckResult(False, "the verdict is of another network: the hashes differ", None)
    status = overall([entry.status for entry in recorded])
    if status is VerdictStatus.UNKNOWN:
        return CheckResult(False, f"nothing is settled: {status}", None)
    margins = [math.inf]
    for entry in recorded:
        if entry.status is not status:
            continue  # one counterexample refutes them all
        if status is VerdictStatus.REFUTED:
            result = _check_counterexample(entry, network)
        else:
            result = _check_proof(entry, network, exact)
        if not result:
            return CheckResult(False, f"property {entry.property.name!r}: {result.reason}", None)
        margins.append(math.inf if result.margin is None else result.margin)
    return CheckResult(True, str(status), min(margins))


def _check_proof(entry: Recorded, network: Network, exact: bool) -> CheckResult:
    if entry.certificate is None:
        return CheckResult(False, "it is stated to be proved and has no certificate", None)
    try:
        fields = checker.parse_certificate(entry.certificate)
    except checker.Refused as error:
        return CheckResult(False, str(error), None)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if fields["format"] != checker.PROPERTY_FORMAT:
        return CheckResult(False, "its certificate is not about a property", None)
    try:
        unsafe = tuple(Polyhedron(**polyhedron) for polyhedron in fields["unsafe"])
        region = Box(**fields["region"])
    except ValueError as error:  # the numbers of a certificate are read before their sizes are known to fit
        return CheckResult(False, f"its certificate is about no region or no outputs: {error}", None)
    if (region, unsafe) != (entry.property.region, entry.property.unsafe):
        return CheckResult(False, "its certificate is about another region or other outputs", None)
    return check_text(entry.certificate, network, exact=exact)


def _check_counterexample(entry: Recorded, network: Network) -> CheckResult:
    point, region = entry.counterexample or (), entry.property.region
    try:
        model = checker.rebuild(*network_arrays(network))
    except checker.Refused as error:
        return CheckResult(False, str(error), None)
    sizes = {len(polyhedron.matrix[0]) for polyhedron in entry.property.unsafe}
    if not len(point) == len(region.lower) == model.steps[0].width or sizes != {model.steps[-1].width}:
        return CheckResult(False, "its counterexample or its property does not fit the network's sizes", None)
    if not all(low <= x <= high for low, x, high in zip(region.lower, point, region.upper, strict=True)):
        return CheckResult(False, "the counterexample lies outside of the region", None)
    found = violates(network, model, entry.property, np.array([point]))
    if found is None or found.input != point:
        return CheckResult(False, "the output for the counterexample is not unsafe beyond rounding", None)
    return CheckResult(True, f"the output for the counterexample is {found.output}", math.inf)


def _hexes(value: Any) -> Any:
    """Return nested tables and sequences of numbers with every float in float.hex() form."""
    match value:
        case float():
            return value.hex()
        case dict():
            return {name: _hexes(item) for name, item in value.items()}
        case tuple() | list():
            return [_hexes(item) for item in value]
    return value


def _numbers(value: Any) -> Any:
    """Return nested tables and lists with every text read as a number in float.hex() form."""
    match value:
        case str():
            return float.fromhex(value)
        case dict():
            return {name: _numbers(item) for name, item in value.items()}
        case list():
            return [_numbers(item) for item in value]
    raise ValueError(f"{repr(value)[:60]} is not a number in float.hex() form")
