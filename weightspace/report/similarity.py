"""Section on many files of one architecture: distances modulo neuron order, a dendrogram, and descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from weightspace.common_order import Comparison, compare
from weightspace.errors import WeightspaceError
from weightspace.heritage import Evidence, Lineage, lineage
from weightspace.report.content import Block, Finding, Gap, Section, Severity, Subject, Table, Text
from weightspace.report.descriptions import describe_lineage, describe_matrix
from weightspace.report.figures import BLUE, GRAY, new_figure, picture, plain
from weightspace.report.methods import SIMILARITY
from weightspace.report.structures import group_by_structure, network_of
from weightspace.report.wording import counted, listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORKS_DRAWN = 60
TITLE, ANCHOR = "How similar are they?", "similarity"


def families(subjects: Sequence[Subject], evaluation: object = None) -> Section:
    """Compare the files of each architecture that three or more have; pairs have a section of their own."""
    blocks: list[Block] = []
    data, gaps, findings = {}, [], []
    for family in group_by_structure(subjects):
        if len(family.members) < 3:
            continue
        names = ", ".join(member.name for member in family.members)
        try:
            comparison = compare({member.name: network_of(member) for member in family.members})
            found = lineage(comparison)
        except WeightspaceError as error:
            gaps.append(Gap(names, "similarity", str(error)))
            continue
        blocks += similarity_blocks(comparison, found)
        data[names] = similarity_data(comparison, found)
        findings += similarity_findings(comparison, found)
    return Section(TITLE, ANCHOR, blocks, data, gaps, findings, SIMILARITY)


def similarity_section(comparison: Comparison, found: Lineage) -> Section:
    """Return the one section of the page of `weightspace similarity`."""
    return Section(
        TITLE,
        ANCHOR,
        similarity_blocks(comparison, found),
        similarity_data(comparison, found),
        findings=similarity_findings(comparison, found),
        methods=SIMILARITY,
    )


def similarity_findings(comparison: Comparison, found: Lineage) -> list[Finding]:
    """Say how many families there are, which networks are one, and how far descent can be told."""
    names = comparison.names
    families = len(set(comparison.families))
    count = counted(len(names), "network")
    origin = "no two of common origin" if families == len(names) else (
        f"in {counted(families, 'family', 'families')} of common origin"
    )  # fmt: skip
    findings = [
        Finding(
            f"{count} of one structure, {origin}, as far as the weights tell",
            Severity.RESULT,
            ANCHOR,
            ("distances",),
        )
    ]
    for same in equal_networks(comparison):
        sentence = f"{listed(same, most=8)} are the same network up to neuron order"
        findings.append(Finding(sentence, Severity.RESULT, ANCHOR, ("canonical-hash",)))
    for tree in found.trees:
        if len(tree.members) > 1:
            sentence = (
                f"Who of {len(tree.members)} related networks came first cannot be told; {tree.root} stands in their "
                "middle"
                if tree.evidence is Evidence.CENTER
                else f"A guess at descent: {tree.root} is the oldest of {len(tree.members)} related networks, since "
                f"{tree.evidence}; {tree.agreement:.0%} of the steps agree"
            )
            findings.append(Finding(sentence, Severity.NOTE, ANCHOR, ("lineage",)))
    return findings


def equal_networks(comparison: Comparison) -> list[list[str]]:
    """Return the names of networks that are one, in several neuron orders."""
    hashes = [own for own in comparison.hashes if own is not None]
    return [
        [name for name, other in zip(comparison.names, comparison.hashes, strict=True) if other == own]
        for own in dict.fromkeys(hashes)
        if hashes.count(own) > 1
    ]


def similarity_data(comparison: Comparison, found: Lineage) -> dict:
    """Return what `similarity --json` prints and report.json holds."""
    import json

    return {
        "names": comparison.names,
        "distances": comparison.distances.tolist(),
        "relative": comparison.relative.tolist(),
        "families": comparison.families,
        "canonical_hashes": comparison.hashes,
        "lineage": json.loads(found.to_json()),
    }


def similarity_blocks(comparison: Comparison, found: Lineage) -> list[Block]:
    """Return the matrix and the trees, drawn as far as they fit on a page."""
    names = comparison.names
    families = {
        family: [n for n, f in enumerate(comparison.families) if f == family]
        for family in comparison.families
    }
    kind = "family" if len(families) == 1 else "families"
    text = f"{len(names)} networks in {len(families)} {kind} of common origin."
    blocks: list[Block] = [Text(text)]
    if len(names) <= NETWORKS_DRAWN:
        caption = (
            "Distances modulo neuron order, relative to the norms: 0 the same weights, 1 and more nothing in "
            "common. Between families they are upper estimates."
        )
        blocks.append(
            picture(
                matrix_figure(comparison), caption, alt=describe_matrix(comparison), methods=("distances",)
            )
        )
        blocks.append(
            picture(
                lineage_figure(found),
                "Who was trained on from whom; lengths of steps on the lines.",
                alt=describe_lineage(found),
                methods=("lineage",),
            )
        )
    same = [", ".join(group) for group in equal_networks(comparison)]
    if same:
        blocks.append(Text(f"One network in several neuron orders: {'; '.join(same)}."))
    for tree in found.trees:
        if len(tree.members) > 1:
            count = len(tree.members)
            blocks.append(Text(f"Root {tree.root} of {count}: {tree.reason}."))
    rows = [[e.parent, e.child, f"{e.length:.4g}", f"{e.shared:.1%}"] for e in found.edges]
    if rows:
        headers = ["parent", "child", "distance", "weights untouched"]
        methods = {"parent": "lineage", "distance": "distances", "weights untouched": "lineage"}
        blocks.append(Table(headers, rows, "Steps of training, as the weights suggest them.", methods))
    return blocks


def matrix_figure(comparison: Comparison) -> Figure:
    """Draw the relative distances as a matrix under their dendrogram (average linkage)."""
    from scipy.cluster.hierarchy import dendrogram

    names = [plain(name) for name in comparison.names]
    size = min(10.0, 3.5 + 0.22 * len(names))
    figure = new_figure(size + 1.2, size + 1.6)
    top, below = figure.subplots(2, 1, height_ratios=[1, 3.5])
    linkage = comparison.linkage()
    flat = not linkage[:, 2].any()  # all networks are equal: a tree without height
    tree = dendrogram(
        linkage,
        ax=top,
        no_plot=flat,
        no_labels=True,
        color_threshold=0,
        above_threshold_color=BLUE,
        link_color_func=None,
    )
    order = tree["leaves"]
    top.set_ylabel("relative distance", fontsize=8)
    if flat:  # drawn here: scipy would set limits that are equal, and warn
        top.plot([5, 10 * len(names) - 5], [0, 0], color=BLUE)
        top.set_xlim(0, 10 * len(names))
        top.set_ylim(0, 1)
        top.set_xticks([])
    top.spines[["top", "right", "bottom"]].set_visible(False)
    values = comparison.relative[np.ix_(order, order)]
    image = below.imshow(values, cmap="Blues", vmin=0, vmax=max(values.max(), 1e-12), aspect="auto")
    labels = [names[n] for n in order]
    below.set_xticks(range(len(names)), labels, rotation=90, fontsize=7)
    below.set_yticks(range(len(names)), labels, fontsize=7)
    if len(names) <= 12:
        for (row, column), value in np.ndenumerate(values):
            dark = value > 0.6 * values.max()
            below.text(
                column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color="w" if dark else "k"
            )
    figure.colorbar(image, ax=below, shrink=0.8)
    return figure


def lineage_figure(found: Lineage) -> Figure:
    """Draw every tree from left to right, one generation per column."""
    children: dict[str, list] = {}
    for edge in found.edges:
        children.setdefault(edge.parent, []).append(edge)
    places: dict[str, tuple[float, float]] = {}
    height = 0.0
    for tree in found.trees:
        waiting: list[tuple[str, int]] = [(tree.root, 0)]
        order = []
        while waiting:
            name, depth = waiting.pop()
            order.append((name, depth))
            waiting += [(edge.child, depth + 1) for edge in reversed(children.get(name, []))]
        for name, depth in order:
            if name not in children:
                places[name] = (depth, height)
                height -= 1
        for name, depth in reversed(order):
            if name in children:
                below = [places[edge.child][1] for edge in children[name]]
                places[name] = (depth, (below[0] + below[-1]) / 2)
        height -= 0.5
    columns = max(x for x, _ in places.values()) + 1
    figure = new_figure(min(14.0, 2.2 + 1.9 * columns), max(1.4, 0.26 * -height))
    axes = figure.subplots()
    for edge in found.edges:
        (x, y), (u, v) = places[edge.parent], places[edge.child]
        axes.annotate(
            "", (u, v), (x, y), arrowprops={"arrowstyle": "->", "color": GRAY, "lw": 0.8, "shrinkB": 28}
        )
        axes.text(
            (x + 2 * u) / 3,
            (y + 2 * v) / 3,
            f"{edge.length:.3g}",
            fontsize=6,
            color=GRAY,
            ha="center",
            va="bottom",
        )
    for name, (x, y) in places.items():
        axes.text(
            x,
            y,
            plain(name),
            fontsize=7,
            va="center",
            ha="center",
            bbox={"fc": "w", "ec": BLUE, "lw": 0.6, "pad": 1.5},
        )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(height, 1)
    axes.axis("off")
    return figure
