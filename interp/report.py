"""The report's section on bilinear layers."""

from __future__ import annotations

from collections.abc import Sequence

from interp.decomposition import Decomposition, decompose
from interp.plots import eigenvector_figure, image_shape
from interp.sites import BilinearSite, find_sites
from weightspace import operations as op
from weightspace.errors import WeightspaceError
from weightspace.report.content import Block, Finding, Gap, Method, Section, Severity, Subject, Table, Text
from weightspace.report.figures import picture
from weightspace.report.wording import between, counted

INTRODUCTION = (
    "Each output of a bilinear layer is a quadratic form of the input: sum of eigenvalue x (eigenvector . input)^2, "
    "exactly, plus linear and constant parts. The eigenvectors below are read from the weights alone, without data."
)
ANCHOR = "bilinear"
SHOWN = 3
METHODS = (
    Method(
        "eigenvalues", "Eigenvalues",
        "Every output of a bilinear layer is a quadratic form of the input. Its eigenvectors are directions in the "
        "space of the input, its eigenvalues say how much their squares add to the output.",
        "u · y = Σᵢ λᵢ (vᵢ · x)²  with  Q = Σₖ u[k] sym(W[k]ᵀ V[k]) = Σᵢ λᵢ vᵢ vᵢᵀ",
        "interp.decompose",
        "Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic interpretability (2024)",
        "up to rounding",
    ),
    Method(
        "effective-rank", "Effective rank",
        "Over how many eigenvalues an output is spread: 1 where a single one counts, n where n count alike.",
        "(Σ |λᵢ|)² / Σ λᵢ²",
        "interp.decompose", "", "up to rounding",
    ),
    Method(
        "sites", "Bilinear layers inside a network",
        "Products of two linear maps of one input; with a gate (SwiGLU and its kin) a layer is bilinear only in part.",
        "(W x) ⊙ (V x)",
        "interp.find_sites", "", "exact",
    ),
)  # fmt: skip


def _listed(name: str, sites: Sequence[BilinearSite]) -> Table:
    """The layers that can be decomposed one by one where the whole network cannot."""
    rows = [[f"{name}: {site.name}", "+".join(site.gates) or "none, exact", site.source] for site in sites]
    headers = ["layer (weightspace decompose FILE --layer NAME)", "gate", "reads"]
    return Table(headers, rows, f"Bilinear layers inside {name}.", {headers[0]: "sites"})


def section(subjects: Sequence[Subject], evaluation: object = None) -> Section:
    """Decompose the bilinear layer of every network that has a product of two values."""
    blocks: list[Block] = []
    data: dict[str, object] = {}
    gaps, findings = [], []
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
                sentence = f"{subject.name}: {counted(len(sites), 'bilinear or gated layer')} inside"
                findings.append(Finding(sentence, Severity.RESULT, ANCHOR, ("sites",)))
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
            caption = (
                f"Leading eigenvectors of {subject.name}: per output the eigenvalues as bars, and what the "
                "eigenvectors look for in the input (red positive, blue negative; the sign of a vector means nothing)."
            )
            alt = _described(values[:16, :SHOWN].tolist())
            blocks.append(picture(figure, caption, alt=alt, form="png", methods=("eigenvalues",)))
        methods = {"effective rank": "effective-rank", "leading eigenvalues": "eigenvalues"}
        headers = ["output", "effective rank", "leading eigenvalues"]
        blocks.append(Table(headers, rows, f"Outputs of {subject.name}.", methods))
        findings.append(_finding(subject.name, decomposition))
        data[subject.name] = {
            "values": values.tolist(),
            "effective_rank": ranks.tolist(),
            "residual": float(decomposition.residual),
        }
    if blocks:
        blocks.insert(0, Text(INTRODUCTION))
    return Section("What a bilinear layer computes", ANCHOR, blocks, data, gaps, findings, METHODS)


def _finding(name: str, decomposition: Decomposition) -> Finding:
    count, kept = decomposition.values.shape
    rank = between(decomposition.effective_rank.tolist())
    exact = decomposition.residual == 0
    form = (
        "a quadratic function"
        if exact
        else f"a quadratic function but for {decomposition.residual:.2g} of the variance"
    )
    sentence = (
        f"{name}: {'its output is' if count == 1 else f'each of its {count} outputs is'} {form} of the input, "
        f"spread over {rank} of {kept} eigenvectors (effective rank)"
    )
    return Finding(sentence, Severity.RESULT, ANCHOR, ("eigenvalues", "effective-rank"))


def _described(values: list[list[float]]) -> str:
    """Say the leading eigenvalues that stand above the pictures."""
    told = [
        f"output {unit}: {', '.join(f'{v:+.3g}' for v in leading)}" for unit, leading in enumerate(values)
    ]
    return (
        "One row per output: a bar chart of eigenvalues, then the leading eigenvectors as small pictures in red and "
        f"blue under their eigenvalue. {'; '.join(told).capitalize()}."
    )
