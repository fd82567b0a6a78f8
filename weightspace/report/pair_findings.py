"""What pairs of files say, as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from weightspace.report.content import Finding, Severity
from weightspace.report.wording import between, counted, shown

if TYPE_CHECKING:
    from weightspace.report.comparison import Loss

PAIRS_TOLD = 6  # of more different networks one sentence speaks
FLAT = 1e-9  # a barrier of rounding errors only
UNMEASURED = "could not be measured: it is not finite everywhere"


class Verdict(StrEnum):
    """What is known about a pair; the text is what the reader sees."""

    IDENTICAL = "identical weights"
    SAME = "the same network in another neuron order"
    DIFFERENT = "different networks"
    OPEN = "no neuron order found that makes them equal"


@dataclass(frozen=True)
class Pair:
    """Two files of one structure, compared; `data` is what report.json holds."""

    first: str
    second: str
    verdict: Verdict
    loss: Loss
    barrier_before: float
    barrier_after: float
    data: Mapping[str, Any]

    @property
    def names(self) -> str:
        return f"{self.first} and {self.second}"


def pair_findings(found: Sequence[Pair], anchor: str) -> list[Finding]:
    """Return a sentence per pair; of many equal ones, one with their number, of many different ones, of their range."""
    findings = []
    apart = [pair for pair in found if pair.verdict in (Verdict.DIFFERENT, Verdict.OPEN)]
    equal = len(found) - len(apart)
    if equal > PAIRS_TOLD:
        identical = sum(pair.verdict is Verdict.IDENTICAL for pair in found)
        weights = f", {identical:,} of them with identical weights" if identical else ""
        sentence = (
            f"{equal:,} of {counted(len(found), 'pair')} measured are one network up to neuron order{weights}"
        )
        findings.append(Finding(sentence, Severity.RESULT, anchor, ("verdict", "alignment")))
    for pair in found if equal <= PAIRS_TOLD else apart:
        if pair.verdict is Verdict.IDENTICAL:
            sentence = f"{pair.names} have identical weights"
            findings.append(Finding(sentence, Severity.RESULT, anchor, ("verdict",)))
        elif pair.verdict is Verdict.SAME:
            sentence = f"{pair.names} are the same network up to neuron order{_precision(pair)}"
            findings.append(Finding(sentence, Severity.RESULT, anchor, ("verdict", "alignment")))
        elif len(apart) <= PAIRS_TOLD:
            findings.append(
                Finding(_apart(pair), Severity.RESULT, anchor, ("verdict", "barrier", "alignment"))
            )
    if len(apart) > PAIRS_TOLD:
        findings += [
            Finding(_many(group), Severity.RESULT, anchor, ("verdict", "barrier", "alignment"))
            for group in (
                [pair for pair in apart if pair.loss.measured],
                [pair for pair in apart if not pair.loss.measured],
            )
            if group
        ]
    return findings


def _precision(pair: Pair) -> str:
    return "" if pair.data["distance"] == 0 else " and rounding"


def _apart(pair: Pair) -> str:
    rise, after = _rise(pair.barrier_before), _after(pair)
    return f"{pair.names}: {pair.verdict}; {_line(pair.loss)} {rise}, after alignment {after}"


def _measured(pair: Pair) -> bool:
    return math.isfinite(pair.barrier_before) and math.isfinite(pair.barrier_after)


def _line(loss: Loss) -> str:
    if loss.measured:
        return f"on the straight line between them the {loss.name.replace(', ', ' on ', 1)}"
    return (
        "no data that fits was given; on random inputs, along the straight line between them, the distance of the "
        "outputs from the nearer end's, in mean square relative to the outputs,"
    )


def _rise(height: float) -> str:
    if not math.isfinite(height):
        return UNMEASURED
    return f"rises by {shown(height)}" if height > FLAT else "does not rise"


def _after(pair: Pair) -> str:
    rises = math.isfinite(pair.barrier_before) and pair.barrier_before > FLAT
    if math.isfinite(pair.barrier_after) and pair.barrier_after > FLAT and rises:
        return f"by {shown(pair.barrier_after)}"
    return f"it {_rise(pair.barrier_after)}"


def _many(group: Sequence[Pair]) -> str:
    proven = all(pair.verdict is Verdict.DIFFERENT for pair in group)
    what = "different networks" if proven else "networks that no neuron order found makes equal"
    start = f"{counted(len(group), 'pair')} of {what}; {_line(group[0].loss)}"
    finite = [pair for pair in group if _measured(pair)]
    if not finite:
        return f"{start} {UNMEASURED}"
    before = [max(pair.barrier_before, 0.0) for pair in finite]
    after = [max(pair.barrier_after, 0.0) for pair in finite]
    worst = finite[before.index(max(before))]
    missing = len(group) - len(finite)
    rest = f"; of {counted(missing, 'pair')} it {UNMEASURED}" if missing else ""
    return f"{start} rises by {between(before)} (most between {worst.names}), after alignment by {between(after)}{rest}"
