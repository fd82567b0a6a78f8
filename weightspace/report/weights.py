"""Sections on what is in each file: overview, layers, spectra, the graph of neurons."""

from __future__ import annotations

import json
from collections.abc import Sequence

from weightspace.errors import WeightspaceError
from weightspace.graph import encode
from weightspace.inspection import TensorRow
from weightspace.report.content import Block, Gap, Listing, Section, Subject, Table, Text
from weightspace.report.figures import graph_figure, picture, spectra_figure

ROWS_SHOWN = 300
SPECTRA_SHOWN = 10
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
                     f"{totals['bytes'] / 1e6:,.2f}", network.hash[:16] if network else "-"])  # fmt: skip
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
    blocks: list[Block] = [Table(["file", "network", "tensors", "parameters", "MB", "hash"], rows)]
    for subject in subjects:
        assumed = subject.network.metadata.get("assumed") if subject.network else None
        if assumed:
            blocks.append(Text(f"{subject.name}: assumed {assumed}."))
        if subject.inspection.findings:
            blocks.append(Listing(f"{subject.name}:", subject.inspection.findings))
    return Section("What is in there", "overview", blocks, data, gaps)


def layers(subjects: Sequence[Subject], evaluation: object = None) -> Section:
    """One row per tensor, and the singular values drawn."""
    blocks: list[Block] = []
    data = {}
    for subject in subjects:
        rows = subject.inspection.rows
        shown = [_row(row) for row in rows[:ROWS_SHOWN]]
        more = (
            f" The first {ROWS_SHOWN} of {len(rows)}; all are in report.json."
            if len(rows) > ROWS_SHOWN
            else ""
        )
        headers = [
            "tensor",
            "shape",
            "dtype",
            "norm",
            "spectral norm",
            "stable rank",
            "alpha",
            "KS",
            "dead",
            "NaN/Inf",
            "note",
        ]
        blocks.append(Table(headers, shown, caption=f"{subject.name}.{more}"))
        spectra = {row.name: row.singular_values for row in rows if row.singular_values is not None}
        largest = sorted(spectra, key=lambda name: -len(spectra[name]))[:SPECTRA_SHOWN]
        if largest:
            figure = spectra_figure(
                {name: [float(v) for v in spectra[name]] for name in spectra if name in largest}
            )
            blocks.append(picture(figure, f"Singular values of {subject.name}."))
        data[subject.name] = json.loads(subject.inspection.to_json(singular_values=True))
    return Section("Layers", "layers", blocks, data)


def _row(row: TensorRow) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    return [
        row.name,
        " x ".join(map(str, row.shape)) or "scalar",
        row.dtype,
        number(row.norm),
        number(row.spectral_norm),
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
            gaps.append(Gap(subject.name, "drawing of the parameter graph", f"{size} are too many to draw"))
            continue
        caption = (
            f"{subject.name}: neurons by layer, colored by bias, and the weights that are largest "
            f"for their layer, of {graph.edge_index.shape[1]:,} (red positive, blue negative)."
        )
        blocks.append(picture(graph_figure(graph), caption, form="png"))
    return Section("Neurons and weights", "neurons", blocks, data, gaps)
