"""`decide`: one demand on one network, by evidence that is there or by computing."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from certify.assurance.answers import answer, overall
from certify.assurance.evidence import certificate_text, check_answers, read_answers, write_answers
from certify.assurance.requirements import CertifiedAccuracy, Demand, LipschitzLimit, SafeOutputs
from certify.certificate import Certificate, shown_above
from certify.checking import check_text
from certify.gaps import describe_gap
from certify.verdicts import VerdictStatus
from weightspace.archives import require_plain_arrays
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.network import Network


class Outcome(enum.Enum):
    """What became of a demand, in words for the user."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    ERROR = "error"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Decision:
    """The outcome and what shows it.

    Attributes:
        outcome: never ERROR.
        detail: one line: what was proven, the gap, or the counterexample.
        method: how it was found.
        text: of the evidence file.
        kept: `text` is evidence that was there and passed the check.
    """

    outcome: Outcome
    detail: str
    method: str
    text: str
    kept: bool = False


def decide(
    demand: Demand, network: Network, *, file: Path | None = None, known: str | None = None, seed: int = 0
) -> Decision:
    """Decide a demand.

    Args:
        file: of the network; counterexamples of ONNX files are replayed.
        known: text of an evidence file. It is kept if it is about this demand, settles it, and passes the check
            against this network; else everything is computed.
        seed: of the search for counterexamples.
    Raises:
        WeightspaceError: as `certify.lipschitz`, `certify.verify` and `certify.robust_accuracy`.
    """
    match demand:
        case LipschitzLimit():
            return (known and _known_limit(demand, network, known)) or _decide_limit(demand, network)
        case SafeOutputs():
            return (known and _known_outputs(demand, network, known)) or _decide_outputs(
                demand, network, file, seed
            )
    return _decide_accuracy(demand, network)


def _decide_limit(demand: LipschitzLimit, network: Network) -> Decision:
    from certify.bounders import lipschitz

    certificate = lipschitz(network, norm=demand.norm, region=demand.region, output=demand.output)
    return _judge_limit(demand, certificate, certificate_text(certificate))


def _judge_limit(demand: LipschitzLimit, certificate: Certificate, text: str) -> Decision:
    gap, attained = describe_gap(certificate, demand.limit), certificate.sampled_lower_bound
    if gap is None:
        proven = f"Lipschitz constant at most {shown_above(certificate.upper_bound)}"
        return Decision(Outcome.HOLDS, proven, certificate.method, text)
    exceeded = attained is not None and attained > demand.limit
    return Decision(Outcome.FAILS if exceeded else Outcome.UNDECIDED, gap, certificate.method, text)


def _known_limit(demand: LipschitzLimit, network: Network, known: str) -> Decision | None:
    try:
        if not check_text(known, network):
            return None
        certificate = Certificate.from_json(known)
    except WeightspaceError:
        return None
    stated = (certificate.norm, certificate.region, certificate.output, certificate.arithmetic)
    if stated != (demand.norm, demand.region, demand.output, "real"):
        return None
    decision = _judge_limit(demand, certificate, known)
    # That a limit is exceeded rests on sampling, which no check repeats.
    return _kept(decision) if decision.outcome is Outcome.HOLDS else None


def _decide_outputs(demand: SafeOutputs, network: Network, file: Path | None, seed: int) -> Decision:
    answers = answer(network, demand.properties, file=file, seconds=demand.seconds, seed=seed)
    status = overall([one.status for one in answers])
    decisive = next(one for one in answers if one.status is status)
    return _judge_outputs(status, decisive.reason, write_answers(answers) + "\n")


def _judge_outputs(status: VerdictStatus, detail: str, text: str) -> Decision:
    outcome = {
        VerdictStatus.PROVED: Outcome.HOLDS,
        VerdictStatus.REFUTED: Outcome.FAILS,
        VerdictStatus.UNKNOWN: Outcome.UNDECIDED,
    }[status]
    return Decision(outcome, detail, "input splitting over linear bounds", text)


def _known_outputs(demand: SafeOutputs, network: Network, known: str) -> Decision | None:
    try:
        if not check_answers(known, network):
            return None
        recorded = read_answers(known)
    except WeightspaceError:
        return None
    status = overall([entry.status for entry in recorded])
    asked = [(one.region, one.unsafe) for one in demand.properties]
    stated = [(entry.property.region, entry.property.unsafe) for entry in recorded]
    # Where one is refuted, those after it were not looked at.
    if stated != (asked if status is VerdictStatus.PROVED else asked[: len(stated)]):
        return None
    decisive = next(entry for entry in recorded if entry.status is status)
    return _kept(_judge_outputs(status, decisive.reason, known))


def _decide_accuracy(demand: CertifiedAccuracy, network: Network) -> Decision:
    from certify.robustness import robust_accuracy

    x, y = _samples(demand.data)
    found = robust_accuracy(network, x, y, epsilon=demand.epsilon, norm=demand.norm)
    numbers = {
        "certified_accuracy": float(found.certified_accuracy),
        "attacked_accuracy": float(found.attacked_accuracy),
        "clean_accuracy": float(found.clean_accuracy),
    }
    if numbers["certified_accuracy"] >= demand.minimum:
        outcome = Outcome.HOLDS
    elif numbers["attacked_accuracy"] < demand.minimum:
        outcome = Outcome.FAILS
    else:
        outcome = Outcome.UNDECIDED
    evidence: dict[str, Any] = {
        "format": "weightspace.robust_accuracy",
        "version": 1,
        "network_hash": network.hash,
        "epsilon": demand.epsilon.hex(),
        "norm": demand.norm,
        "samples": len(y),
        **{name: value.hex() for name, value in numbers.items()},
    }
    detail = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers.items())
    method = "margins and pairwise Lipschitz constants; attack by projected gradients"
    return Decision(
        outcome, f"{detail}, needed {demand.minimum:g}", method, json.dumps(evidence, indent=1) + "\n"
    )


def _samples(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            require_plain_arrays(archive.zip)
            return torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"]).long()
    except Exception as error:  # zip, zlib and numpy each have their own
        raise CheckpointError(
            f"data {str(path)!r} is no .npz with arrays x and y: {type(error).__name__}: {error}"
        ) from error


def _kept(decision: Decision) -> Decision:
    return Decision(decision.outcome, decision.detail, decision.method, decision.text, kept=True)
