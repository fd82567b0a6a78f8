"""What became of a property: proved, refuted or unknown, with what shows it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from certify.properties import Property


class VerdictStatus(enum.Enum):
    """The three outcomes, in words for the user.

    Examples:
        >>> import certify
        >>> [status.name for status in certify.VerdictStatus]
        ['PROVED', 'REFUTED', 'UNKNOWN']
    """

    PROVED = "proved: no input of the region reaches an unsafe output"
    REFUTED = "refuted: a counterexample was found"
    UNKNOWN = "unknown: the time or the splits were used up"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Counterexample:
    """An input of the region whose output is unsafe.

    Attributes:
        input: one sample, row-major; exact in the network's own precision where its rounding lies in the region.
        output: what the network gives for it, evaluated in float64.
    """

    input: tuple[float, ...]
    output: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """The outcome of `verify`.

    Attributes:
        status: proved, refuted or unknown.
        property: what was asked.
        network_hash: `Network.hash` of the network.
        counterexample: of a refuted property.
        certificate: of a proved property, the text that `weightspace check` and `certify/checker.py` accept.
        regions: number of boxes looked at.
        seconds: wall time.
        reason: one sentence for the user.

    Examples:
        >>> import certify, torch
        >>> identity = torch.nn.Linear(1, 1)
        >>> identity.weight.data, identity.bias.data = torch.ones(1, 1), torch.zeros(1)
        >>> unsafe = certify.Polyhedron([[-1.0]], [-0.5])  # y >= 0.5
        >>> verdict = certify.verify(identity, certify.Property(certify.Box([0.0], [1.0]), (unsafe,)))
        >>> print(verdict.status)
        refuted: a counterexample was found
        >>> verdict.counterexample.output[0] >= 0.5
        True
    """

    status: VerdictStatus
    property: Property
    network_hash: str
    counterexample: Counterexample | None
    certificate: str | None
    regions: int
    seconds: float
    reason: str
