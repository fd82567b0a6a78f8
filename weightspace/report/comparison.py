"""Section on pairs of files: are they the same network in another neuron order, and can they be joined?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import ShapeError, WeightspaceError
from weightspace.matching import Alignment, align
from weightspace.network import Network
from weightspace.paths import Barrier, barrier
from weightspace.report.content import Block, Evaluation, Gap, Section, Subject, Table, Text
from weightspace.report.figures import barrier_figure, picture
from weightspace.verification import random_inputs

PAIRS_SHOWN = 6
RANDOM_INPUTS = (
    "Without data that fits, the barrier is measured on standard normal inputs: how far outputs move from the "
    "nearer end. That is a weak stand-in for a loss; --data measures the real one."
)
SAMPLES = 512


def pairs(subjects: Sequence[Subject], evaluation: Evaluation | None = None) -> Section:
    """Align every pair of equal structure, and measure the barrier before and after."""
    blocks: list[Block] = []
    data, gaps, rows = {}, [], []
    compared = 0
    for first, second in combinations(subjects, 2):
        names = f"{first.name} and {second.name}"
        if first.network is None or second.network is None:
            without = first.name if first.network is None else second.name
            gaps.append(
                Gap(names, "comparison modulo neuron order", f"{without} could not be read as a network")
            )
            continue
        try:
            alignment = align(first.network, second.network)
        except ShapeError as error:
            gaps.append(Gap(names, "comparison modulo neuron order", str(error)))
            continue
        except WeightspaceError as error:
            gaps.append(Gap(names, "alignment", str(error)))
            continue
        compared += 1
        row, result, block = _compare(first, second, alignment, evaluation, draw=compared <= PAIRS_SHOWN)
        rows.append(row)
        data[names] = result
        blocks += block
        if evaluation is not None and "random inputs" in result["loss"]:
            gaps.append(Gap(names, f"loss on {evaluation.name}", "inputs or labels do not fit the network"))
        for entry in alignment.spec.frozen:
            if not entry.reason.startswith("network "):
                gaps.append(Gap(names, f"alignment of {entry.place}", entry.reason))
    if rows:
        headers = ["pair", "distance", "distance after", "verdict", "barrier", "barrier after"]
        blocks.insert(0, Table(headers, rows, caption="Before and after aligning the second to the first."))
        if any("random inputs" in result["loss"] for result in data.values()):
            blocks.insert(1, Text(RANDOM_INPUTS))
    return Section("The same network in another order?", "pairs", blocks, data, gaps)


def _compare(
    first: Subject, second: Subject, alignment: Alignment, evaluation: Evaluation | None, *, draw: bool
) -> tuple[list[str], dict, list[Block]]:
    a, b = first.network, second.network
    assert a is not None
    assert b is not None
    assert isinstance(alignment.model, Network)
    loss, label = _loss(a, b, evaluation)
    before, after = barrier(a, b, loss), barrier(a, alignment.model, loss)
    verdict = "the same network in another neuron order" if alignment.same_network else "different networks"
    if a == b:
        verdict, draw = "identical weights", False
    row = [f"{first.name} / {second.name}", f"{alignment.distance_before:.4g}", f"{alignment.distance:.4g}", verdict,
           f"{before.barrier:.4g}", f"{after.barrier:.4g}"]  # fmt: skip
    result = {
        "distance_before": alignment.distance_before,
        "distance": alignment.distance,
        "same_network": alignment.same_network,
        "function_change": alignment.function_change,
        "loss": label,
        "barrier_before": _curve(before),
        "barrier_after": _curve(after),
    }
    curves = {
        "as they are": (before.positions, before.losses),
        "after alignment": (after.positions, after.losses),
    }
    caption = f"On the straight line from {first.name} to {second.name}."
    return row, result, [picture(barrier_figure(curves, label), caption)] if draw else []


def _curve(result: Barrier) -> dict:
    return {"barrier": result.barrier, "positions": result.positions, "losses": result.losses}


def _loss(a: Network, b: Network, evaluation: Evaluation | None) -> tuple[Callable[[nn.Module], float], str]:
    """Return a loss and its name: on the data given, or, without data, the distance from both ends' outputs.

    The latter asks on standard normal inputs how far the network is from either end, whichever is nearer in
    mean square, relative to the distance between the ends; it needs no data and is 0 at both ends.
    """
    data = evaluation.inputs_for(a) if evaluation is not None else None
    classes = a.node(a.outputs[0]).shape[-1] if a.node(a.outputs[0]).shape else None
    if evaluation is not None and data is not None and classes and int(evaluation.labels.max()) < classes:
        labels = evaluation.labels
        return lambda module: float(
            F.cross_entropy(module(data), labels)
        ), f"cross entropy, {evaluation.name}"
    inputs = random_inputs(a, torch.Generator().manual_seed(0), SAMPLES)
    with torch.no_grad():
        ends = [_output(network.to_module()(*inputs)) for network in (a, b)]
    scale = max(float(sum(end.square().mean() for end in ends)) / 2, 1e-300)

    def distance(module: nn.Module) -> float:
        value = _output(module(*inputs))
        return min(float((value - end).square().mean()) for end in ends) / scale

    return distance, "relative distance\nto the nearer end\n(random inputs)"


def _output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return (result if isinstance(result, Tensor) else result[0]).double()
