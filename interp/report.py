"""The report's section on bilinear layers."""

from __future__ import annotations

from collections.abc import Sequence

from interp.decomposition import decompose
from interp.plots import eigenvector_figure, image_shape
from interp.sites import BilinearSite, find_sites
from weightspace import operations as op
from weightspace.errors import WeightspaceError
from weightspace.report.content import Block, Gap, Section, Subject, Table, Text
from weightspace.report.figures import picture

INTRODUCTION = (
    "Each output of a bilinear layer is a quadratic form of the input: sum of eigenvalue x (eigenvector . input)^2, "
    "exactly, plus linear and constant parts. The eigenvectors below are read from the weights alone, without data."
)
SHOWN = 3


def _listed(name: str, sites: Sequence[BilinearSite]) -> Table:
    """The layers that can be decomposed one by one where the whole network cannot."""
    rows = [[f"{name}: {site.name}", "+".join(site.gates) or "none, exact", site.source] for site in sites]
    return Table(["layer (weightspace decompose FILE --layer NAME)", "gate", "reads"], rows)


def section(subjects: Sequence[Subject], evaluation: object = None) -> Section:
    """Decompose the bilinear layer of every network that has a product of two values."""
    blocks: list[Block] = []
    data: dict[str, object] = {}
    gaps = []
    for subject in subjects:
        network = subject.network
        if network is None or not any(
            isinstance(node.operation, op.Multiply | op.Bilinear) for node in network.nodes
        ):
            continue
        try:
            decomposition = decompose(network)
        except WeightspaceError as error:
            sites = find_sites(network)
            if sites:
                blocks.append(_listed(subject.name, sites))
                data[subject.name] = {
                    "layers": [{"name": site.name, "gates": list(site.gates)} for site in sites]
                }
            gaps.append(Gap(subject.name, "bilinear layer", str(error)))
            continue
        values, ranks = decomposition.values, decomposition.effective_rank
        rows = [
            [
                f"{subject.name}, output {unit}",
                f"{float(ranks[unit]):.3g}",
                ", ".join(f"{v:.4g}" for v in leading),
            ]
            for unit, leading in enumerate(values[:, :6].tolist())
        ]
        if image_shape(decomposition) is not None:
            figure = eigenvector_figure(decomposition, shown=SHOWN)
            blocks.append(picture(figure, f"Leading eigenvectors of {subject.name}, by output.", form="png"))
        blocks.append(Table(["output", "effective rank", "leading eigenvalues"], rows))
        data[subject.name] = {
            "values": values.tolist(),
            "effective_rank": ranks.tolist(),
            "residual": float(decomposition.residual),
        }
    if blocks:
        blocks.insert(0, Text(INTRODUCTION))
    return Section("What a bilinear layer computes", "bilinear", blocks, data, gaps)
