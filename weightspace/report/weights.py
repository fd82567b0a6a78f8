"""Sections on what is in each file: overview, layers, spectra, the graph of neurons."""

from __future__ import annotations

import json
from collections.abc import Sequence

from weightspace.errors import WeightspaceError
from weightspace.graph import encode
from weightspace.inspection import TensorRow
from weightspace.report.content import (
    Block,
    Details,
    Finding,
    Gap,
    Picture,
    Section,
    Severity,
    Subject,
    Table,
    Text,
)
from weightspace.report.descriptions import describe_graph, describe_spectra
from weightspace.report.figures import graph_figure, picture, spectra_figure
from weightspace.report.methods import COUNTS, GRAPH, HASH, TENSORS
from weightspace.report.tensor_findings import is_sound, tensor_findings
from weightspace.report.wording import counted, listed

ROWS_SHOWN = 300
SPECTRA_SHOWN = 10
FILES_OPEN = 3  # of more files the tables are folded
GRAPHS_DRAWN = 12
NEURONS_DRAWN = 2000
LAYERS_DRAWN = 40
EDGES_ENCODED = 2_000_000


def overview(subjects: Sequence[Subject], evaluation: object = None) -> Section:
    """One line per file."""
    rows, data, gaps = [], {}, []
    for subject in subjects:
        totals = vars(subject.inspection.totals)
        network = subject.network
        kinds = f"{len(network.nodes)} operations" if network else "not read as a network"
        rows.append([subject.name, kinds, f"{totals['tensors']:,}", f"{totals['parameters']:,}",
                     f"{totals['bytes']:,}", network.hash[:16] if network else "-"])  # fmt: skip
        data[subject.name] = {
            "path": str(subject.path),
            **totals,
            "hash": network.hash if network else None,
            "operations": [node.operation.kind for node in network.nodes] if network else None,
            "metadata": dict(network.metadata) if network else {},
            "findings": list(subject.inspection.findings),
        }
        if subject.reason:
            gaps.append(Gap(subject.name, "reading as a network", subject.reason))
        for node in network.opaque if network else ():
            gaps.append(
                Gap(
                    subject.name,
                    f"operation {node.name}",
                    f"{node.operation.attributes['name']} is not known",
                )
            )
    headers = ["file", "network", "tensors", "parameters", "bytes", "hash"]
    table = Table(headers, rows, "Every file, and what was read from it.", {"hash": HASH.key})
    blocks: list[Block] = [table]
    findings = [_contents(subjects)]
    for number, subject in enumerate(subjects):
        assumed = subject.network.metadata.get("assumed") if subject.network else None
        if assumed:
            blocks.append(Text(f"{subject.name}: assumed {assumed}."))
            sentence = f"{subject.name}: read as a network by assuming {assumed}"
            findings.append(Finding(sentence, Severity.CAUTION, "overview"))
        findings += tensor_findings(subject.name, subject.inspection, tensors_anchor(number))
    sound = [subject.name for subject in subjects if is_sound(subject.inspection)]
    if sound:
        sentence = f"No NaN or infinite entries, no dead or repeated units in {listed(sound)}"
        findings.append(Finding(sentence, Severity.NOTE, "layers", (COUNTS.key,)))
    return Section("What is in there", "overview", blocks, data, gaps, findings, (HASH, *TENSORS))


def tensors_anchor(number: int) -> str:
    """Return the anchor of the table of a file's tensors."""
    return f"tensors-{number + 1}"


def _contents(subjects: Sequence[Subject]) -> Finding:
    totals = [subject.inspection.totals for subject in subjects]
    networks = sum(subject.network is not None for subject in subjects)
    read = "all" if networks == len(subjects) else f"{networks:,} of them"
    if len(subjects) == 1:
        read = "read as a network" if networks else "not read as a network"
    else:
        read = f"{read if networks else 'none'} read as {'a network' if networks == 1 else 'networks'}"
    sentence = (
        f"{counted(len(subjects), 'file')} with {counted(sum(t.parameters for t in totals), 'parameter')} in "
        f"{counted(sum(t.tensors for t in totals), 'tensor')}, {read}"
    )
    return Finding(sentence, Severity.RESULT, "overview")


COLUMNS = {
    "tensor": "",
    "shape": "",
    "dtype": "",
    "norm": "norm",
    "spectral norm": "spectrum",
    "stable rank": "spectrum",
    "alpha": "alpha",
    "KS": "alpha",
    "dead": "counts",
    "NaN/Inf": "counts",
    "note": "",
}


def layers(subjects: Sequence[Subject], evaluation: object = None) -> Section:
    """One row per tensor, and the singular values drawn."""
    blocks: list[Block] = []
    data = {}
    for number, subject in enumerate(subjects):
        rows = subject.inspection.rows
        more = (
            f" The first {ROWS_SHOWN} of {len(rows)}; all are in report.json."
            if len(rows) > ROWS_SHOWN
            else ""
        )
        methods = {header: method for header, method in COLUMNS.items() if method}
        table = Table(
            list(COLUMNS),
            [_row(row) for row in rows[:ROWS_SHOWN]],
            f"Tensors of {subject.name}.{more}",
            methods,
        )
        title = f"{subject.name}: {counted(len(rows), 'tensor')}"
        inner = [*_spectra(subject), table]
        blocks.append(Details(title, inner, tensors_anchor(number), open=len(subjects) <= FILES_OPEN))
        data[subject.name] = json.loads(subject.inspection.to_json(singular_values=True))
    return Section("Layers", "layers", blocks, data, methods=TENSORS)


def _spectra(subject: Subject) -> list[Picture]:
    spectra = {
        row.name: row.singular_values for row in subject.inspection.rows if row.singular_values is not None
    }
    largest = sorted(spectra, key=lambda name: -len(spectra[name]))[:SPECTRA_SHOWN]
    if not largest:
        return []
    drawn = {name: [float(v) for v in spectra[name]] for name in spectra if name in largest}
    which = "" if len(drawn) == len(spectra) else f" The {len(drawn)} largest of {len(spectra)} matrices."
    caption = f"Singular values of {subject.name}.{which}"
    return [picture(spectra_figure(drawn), caption, alt=describe_spectra(drawn), methods=("spectrum",))]


def _row(row: TensorRow) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    return [
        row.name,
        " x ".join(map(str, row.shape)) or "scalar",
        row.dtype,
        number(row.norm),
        "~" * row.spectral_norm_is_estimate + number(row.spectral_norm),
        number(row.stable_rank),
        number(row.alpha),
        number(row.alpha_ks),
        "-" if row.dead_units is None else str(row.dead_units),
        f"{row.nan}/{row.inf}" if row.nan or row.inf else "0",
        row.note,
    ]


def neurons(subjects: Sequence[Subject], evaluation: object = None) -> Section:
    """The graph of neurons and weights, drawn."""
    blocks: list[Block] = []
    data, gaps = {}, []
    many = len(subjects) > FILES_OPEN
    for subject in subjects:
        if subject.network is None:
            continue
        try:
            graph = encode(subject.network, max_edges=EDGES_ENCODED)
        except WeightspaceError as error:
            gaps.append(Gap(subject.name, "parameter graph", str(error)))
            continue
        count = len(graph.node_layer)
        data[subject.name] = {
            "layer_sizes": graph.layer_sizes,
            "activations": graph.activations,
            "nodes": count,
            "edges": graph.edge_index.shape[1],
        }
        if count > NEURONS_DRAWN or len(graph.layer_sizes) > LAYERS_DRAWN:
            size = f"{count:,} neurons in {len(graph.layer_sizes)} layers"
            gaps.append(
                Gap(
                    subject.name, "drawing of the parameter graph", f"{size} are too many to draw", minor=True
                )
            )
            continue
        if len(blocks) == GRAPHS_DRAWN:
            gaps.append(
                Gap(
                    subject.name,
                    "drawing of the parameter graph",
                    f"{GRAPHS_DRAWN} others are drawn",
                    minor=True,
                )
            )
            continue
        edges = f"{graph.edge_index.shape[1]:,}"
        caption = (
            f"{subject.name}: neurons by layer, colored by bias, and the weights that are largest "
            f"for their layer, of {edges} (red positive, blue negative)."
        )
        drawn = picture(
            graph_figure(graph), caption, alt=describe_graph(graph), form="png", methods=("graph",)
        )
        title = f"{subject.name}: {counted(count, 'neuron')}, {edges} weights"
        blocks.append(Details(title, [drawn], open=not blocks) if many else drawn)
    return Section("Neurons and weights", "neurons", blocks, data, gaps, methods=(GRAPH,))
