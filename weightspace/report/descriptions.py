"""Alternative texts: what is to be seen in a figure, with its numbers, for readers who do not see it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from weightspace.report.wording import counted, listed, shown

if TYPE_CHECKING:
    from weightspace.common_order import Comparison
    from weightspace.graph import ParameterGraph
    from weightspace.heritage import Lineage

CURVES_TOLD = 10


def describe_barrier(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], ylabel: str) -> str:
    """Say for every curve where it starts, peaks and ends."""
    told = []
    for name, (positions, values) in curves.items():
        if not all(map(math.isfinite, values)):
            told.append(f"{name}, could not be measured: not finite everywhere")
            continue
        peak = int(np.argmax(values))
        told.append(
            f"{name}, from {shown(values[0], 3)} at t = 0 over a largest value of {shown(values[peak], 3)} at "
            f"t = {shown(positions[peak], 2)} to {shown(values[-1], 3)} at t = 1"
        )
    return (
        f"Line chart of {' '.join(ylabel.split())} over the position t. " + "; ".join(told).capitalize() + "."
    )


def describe_spectra(spectra: Mapping[str, Sequence[float]]) -> str:
    """Say for every matrix its largest and smallest singular value."""
    told = [
        f"{name} falls from {shown(max(values), 3)} to {shown(min(values), 3)} over {counted(len(values), 'value')}"
        for name, values in spectra.items()
        if len(values)
    ]
    more = f"; and {len(told) - CURVES_TOLD} more" if len(told) > CURVES_TOLD else ""
    return f"Line chart of singular values by rank. {'; '.join(told[:CURVES_TOLD])}{more}."


def describe_graph(graph: ParameterGraph) -> str:
    """Say how many neurons stand in which layer, and over what range weights and biases go."""
    weights, biases = (
        values[np.isfinite(values)]
        for values in (graph.edge_features.double().numpy(), graph.node_features[:, 0].double().numpy())
    )
    sizes = [f"{size} {kind}" for size, kind in zip(graph.layer_sizes, graph.activations, strict=True)]
    return (
        f"Columns of dots joined by lines, from left to right: {listed(sizes, most=20)}. "
        f"Weights from {shown(float(weights.min(initial=0.0)), 3)} to {shown(float(weights.max(initial=0.0)), 3)}, "
        f"biases from {shown(float(biases.min(initial=0.0)), 3)} to {shown(float(biases.max(initial=0.0)), 3)}."
    )


def describe_matrix(comparison: Comparison) -> str:
    """Say which pair is nearest and which is farthest, and who belongs together."""
    names, values = comparison.names, comparison.relative
    rows, columns = np.triu_indices(len(names), 1)
    pairs = values[rows, columns]
    ends = [
        f"{shown(float(pairs[n]), 3)} between {names[rows[n]]} and {names[columns[n]]}"
        for n in (int(pairs.argmin()), int(pairs.argmax()))
    ]
    groups = [
        f"({listed([name for name, own in zip(names, comparison.families, strict=True) if own == family], most=8)})"
        for family in dict.fromkeys(comparison.families)
    ]
    return (
        f"A colored matrix of relative distances under its dendrogram: the smallest is {ends[0]}, the largest "
        f"{ends[1]}. Families: {listed(groups, most=10)}."
    )


def describe_lineage(found: Lineage) -> str:
    """Say every step of the trees, up to a number of them."""
    steps = [f"{edge.parent} to {edge.child} at {shown(edge.length, 3)}" for edge in found.edges]
    alone = [tree.root for tree in found.trees if len(tree.members) == 1]
    told = [f"Steps: {listed(steps, most=20)}."] if steps else []
    return " ".join(
        ["Trees of descent, from left to right.", *told]
        + ([f"Without relatives: {listed(alone, most=10)}."] if alone else [])
    )
