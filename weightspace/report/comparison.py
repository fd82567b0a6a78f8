"""Section on pairs of files: are they the same network in another neuron order, and can they be joined?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.canonical_form import canonical_hash
from weightspace.errors import WeightspaceError
from weightspace.matching import Alignment, align
from weightspace.network import Network
from weightspace.paths import Barrier, barrier
from weightspace.report.content import Block, Evaluation, Gap, Section, Subject, Table, Text
from weightspace.report.descriptions import describe_barrier
from weightspace.report.figures import barrier_figure, picture
from weightspace.report.methods import PAIRS
from weightspace.report.pair_findings import Pair, Verdict, pair_findings
from weightspace.report.structures import Family, group_by_structure, network_of
from weightspace.report.wording import counted, listed, shown
from weightspace.verification import random_inputs

PAIRS_SHOWN = 6
PAIRS_MEASURED = 60
RANDOM_INPUTS = (
    "Without data that fits, the barrier is measured on standard normal inputs: how far outputs move from the "
    "nearer end. That is a weak stand-in for a loss; --data measures the real one."
)
SAMPLES = 512
MODULO = "comparison modulo neuron order"
COLUMNS = {
    "pair": "",
    "distance": "alignment",
    "distance after": "alignment",
    "verdict": "verdict",
    "barrier": "barrier",
    "barrier after": "barrier",
}


def pairs(subjects: Sequence[Subject], evaluation: Evaluation | None = None) -> Section:
    """Align pairs of equal structure, and measure the barrier before and after."""
    families = group_by_structure(subjects)
    gaps = _alone(subjects, families)
    chosen = [pair for family in families for pair in _nearest_in_list(family)]
    known: dict[str, str | None] = {}
    found: list[Pair] = []
    figures: list[Block] = []
    for first, second in chosen[:PAIRS_MEASURED]:
        names = f"{first.name} and {second.name}"
        try:
            alignment = align(network_of(first), network_of(second))
        except WeightspaceError as error:
            gaps.append(Gap(names, "alignment", str(error)))
            continue
        for entry in alignment.spec.frozen:
            if not entry.reason.startswith("network "):
                gaps.append(Gap(names, f"alignment of {entry.place}", entry.reason))
        try:
            pair, curves = _compare(first, second, alignment, evaluation, known)
        except WeightspaceError as error:
            gaps.append(Gap(names, "loss barrier", str(error)))
            continue
        found.append(pair)
        if evaluation is not None and not pair.loss.measured:
            gaps.append(Gap(names, f"loss on {evaluation.name}", "inputs or labels do not fit the network"))
        if len(figures) < PAIRS_SHOWN and pair.verdict is not Verdict.IDENTICAL:
            label, caption = pair.loss.axis, f"On the straight line from {first.name} to {second.name}."
            figures.append(
                picture(
                    barrier_figure(curves, label),
                    caption,
                    alt=describe_barrier(curves, label),
                    methods=("barrier",),
                )
            )
    if len(chosen) > PAIRS_MEASURED:
        others = counted(len(chosen) - PAIRS_MEASURED, "further pair")
        reason = f"{PAIRS_MEASURED} pairs are measured, neighbors in the list of files first"
        gaps.append(Gap(others, "loss barrier and alignment", reason, minor=True))
    return Section(
        "The same network in another order?",
        "pairs",
        [*_table(found), *figures] if found else [],
        {pair.names: pair.data for pair in found},
        gaps,
        pair_findings(found, "pairs"),
        PAIRS,
    )


def _nearest_in_list(family: Family) -> list[tuple[Subject, Subject]]:
    """All pairs of a family; where not all can be measured, every file should be in one."""
    places = sorted(combinations(range(len(family.members)), 2), key=lambda pair: pair[1] - pair[0])
    return [(family.members[i], family.members[j]) for i, j in places]


def _alone(subjects: Sequence[Subject], families: Sequence[Family]) -> list[Gap]:
    """What cannot be compared, said once per file or structure and not once per pair."""
    if len(subjects) < 2:
        return []
    gaps = [
        Gap(subject.name, MODULO, "could not be read as a network")
        for subject in subjects
        if subject.network is None
    ]
    for family in families[1:]:
        names = listed([member.name for member in family.members])
        gaps.append(Gap(names, f"{MODULO} with files of other structure", family.reason, minor=True))
    return gaps


def _table(found: Sequence[Pair]) -> list[Block]:
    rows = [
        [f"{pair.first} / {pair.second}", shown(pair.data["distance_before"]), shown(pair.data["distance"]),
         str(pair.verdict), shown(pair.barrier_before), shown(pair.barrier_after)]
        for pair in found
    ]  # fmt: skip
    methods = {header: method for header, method in COLUMNS.items() if method}
    blocks: list[Block] = [
        Table(list(COLUMNS), rows, "Before and after aligning the second to the first.", methods)
    ]
    if not all(pair.loss.measured for pair in found):
        blocks.append(Text(RANDOM_INPUTS))
    return blocks


@dataclass(frozen=True)
class Loss:
    """What is measured along the line, and how it is called in a sentence and on an axis."""

    function: Callable[[nn.Module], float]
    name: str
    axis: str
    measured: bool


def _compare(
    first: Subject,
    second: Subject,
    alignment: Alignment,
    evaluation: Evaluation | None,
    known: dict[str, str | None],
) -> tuple[Pair, dict]:
    a, b = network_of(first), network_of(second)
    assert isinstance(alignment.model, Network)
    loss = _loss(a, b, evaluation)
    before, after = barrier(a, b, loss.function), barrier(a, alignment.model, loss.function)
    verdict = _verdict(a, b, alignment, known)
    data = {
        "distance_before": alignment.distance_before,
        "distance": alignment.distance,
        "verdict": str(verdict),
        "same_network": alignment.same_network,
        "function_change": alignment.function_change,
        "loss": loss.name,
        "barrier_before": _curve(before),
        "barrier_after": _curve(after),
    }
    curves = {
        "as they are": (before.positions, before.losses),
        "after alignment": (after.positions, after.losses),
    }
    return Pair(first.name, second.name, verdict, loss, before.barrier, after.barrier, data), curves


def _verdict(a: Network, b: Network, alignment: Alignment, known: dict[str, str | None]) -> Verdict:
    """Say only what is known: a search that finds no order does not prove that there is none."""
    if a == b:
        return Verdict.IDENTICAL
    if alignment.same_network:
        return Verdict.SAME
    hashes = [_canonical(network, known) for network in (a, b)]
    if None in hashes:
        return Verdict.OPEN
    return Verdict.SAME if hashes[0] == hashes[1] else Verdict.DIFFERENT


def _canonical(network: Network, known: dict[str, str | None]) -> str | None:
    """The hash modulo neuron order, found once per network; None where the weights are too symmetric for one."""
    if network.hash not in known:
        try:
            known[network.hash] = canonical_hash(network)
        except WeightspaceError:
            known[network.hash] = None
    return known[network.hash]


def _curve(result: Barrier) -> dict:
    return {"barrier": result.barrier, "positions": result.positions, "losses": result.losses}


def _loss(a: Network, b: Network, evaluation: Evaluation | None) -> Loss:
    """Return a loss and its name: on the data given, or, without data, the distance from both ends' outputs.

    The latter asks on standard normal inputs how far the network is from either end, whichever is nearer in
    mean square, relative to the mean square of the ends' outputs; it needs no data and is 0 at both ends.
    """
    data = evaluation.inputs_for(a) if evaluation is not None else None
    classes = a.node(a.outputs[0]).shape[-1] if a.node(a.outputs[0]).shape else None
    if evaluation is not None and data is not None and classes and int(evaluation.labels.max()) < classes:
        labels = evaluation.labels
        name = f"cross entropy, {evaluation.name}"
        return Loss(lambda module: float(F.cross_entropy(module(data), labels)), name, name, True)
    inputs = random_inputs(a, torch.Generator().manual_seed(0), SAMPLES)
    with torch.no_grad():
        ends = [_output(network.to_module()(*inputs)) for network in (a, b)]
    scale = max(float(sum(end.square().mean() for end in ends)) / 2, 1e-300)

    def distance(module: nn.Module) -> float:
        value = _output(module(*inputs))
        return min(float((value - end).square().mean()) for end in ends) / scale

    name = "relative distance to the nearer end (random inputs)"
    return Loss(distance, name, "relative distance\nto the nearer end\n(random inputs)", False)


def _output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return (result if isinstance(result, Tensor) else result[0]).double()
