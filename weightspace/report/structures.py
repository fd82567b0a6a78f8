"""Which files have one structure, so that their weights can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightspace.errors import WeightspaceError
from weightspace.network import Network
from weightspace.report.content import Subject


@dataclass(frozen=True)
class Family:
    """Files of one structure; `reason` says why they do not belong to the first family."""

    members: tuple[Subject, ...]
    reason: str = ""


def network_of(subject: Subject) -> Network:
    """Return the network of a file that was read as one."""
    assert subject.network is not None
    return subject.network


def group_by_structure(subjects: Sequence[Subject]) -> list[Family]:
    """Return the files that were read as networks, those of one structure together, in the order of the first."""
    from weightspace.matching.alignment import corresponding_parameters

    groups: list[list[Subject]] = []
    reasons: list[str] = []
    for subject in subjects:
        if subject.network is None:
            continue
        why = ""
        for group in groups:
            try:
                corresponding_parameters(network_of(group[0]), subject.network)
            except WeightspaceError as error:
                why = why or f"against {group[0].name}: {error}"
                continue
            group.append(subject)
            break
        else:
            groups.append([subject])
            reasons.append(why)
    return [Family(tuple(group), reason) for group, reason in zip(groups, reasons, strict=True)]
