"""The commands `inspect`, `diff`, `align` and `graph`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint file or Hugging Face folder.")]
Architecture = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.PY:FUNCTION", help="Function returning the module, or a network JSON; it is run."
    ),
]
Activation = Annotated[str | None, typer.Option(help="Nonlinearity of a bare state dict (default relu).")]
Layout = Annotated[str | None, typer.Option(help="out-in or in-out: how a bare state dict stores matrices.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def emit(data: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result: one JSON object, or text for people."""
    typer.echo(json.dumps(data, allow_nan=False) if as_json else text)


def assumption(network: Any) -> None:
    """Say on standard error what was assumed about a bare state dict."""
    if network.metadata.get("assumed"):
        typer.echo(f"note: {network.metadata['source']}: assumed {network.metadata['assumed']}", err=True)


@app.command("inspect")
def inspect_command(file: File, as_json: Json = False) -> None:
    """One row per tensor: shape, norm, spectral norm, stable rank, dead units, NaN, power-law exponent."""
    from weightspace.inspection import inspect

    inspection = inspect(file, progress=True)
    emit(json.loads(inspection.to_json()), inspection.to_table(), as_json)


@app.command("diff")
def diff_command(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path, typer.Argument(metavar="B")],
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    as_json: Json = False,
) -> None:
    """Compare two checkpoints tensor by tensor, and modulo neuron order where they can be read as networks."""
    from weightspace.checkpoint import open_checkpoint
    from weightspace.distances import difference
    from weightspace.errors import WeightspaceError
    from weightspace.matching import align
    from weightspace.matching.alignment import corresponding_parameters
    from weightspace.network import Network
    from weightspace.reading import read

    data: dict[str, Any] = {"a": str(a), "b": str(b)}
    networks = []
    try:
        networks = [read(p, architecture=architecture, activation=activation, layout=layout) for p in (a, b)]
        names = corresponding_parameters(*networks)
        raw = difference(networks[0].parameters, networks[1].parameters, names=names)
        alignment = align(*networks)
        assert isinstance(alignment.model, Network)
        used = {key: n for key, n in names.items() if key in alignment.spec.axes}
        data["modulo_permutation"] = {
            "same_network": alignment.same_network,
            "distance": alignment.distance,
            "distance_before": alignment.distance_before,
            "gap": difference(networks[0].parameters, alignment.model.parameters, names=used).gap,
        }
        after = (
            f"modulo neuron order: distance {alignment.distance:.4g} (before {alignment.distance_before:.4g})"
            + (": the same network" if alignment.same_network else "")
        )
    except WeightspaceError as error:
        if a.suffix in (".onnx", ".pt2") or b.suffix in (".onnx", ".pt2"):
            raise
        raw = difference(open_checkpoint(a).state_dict(), open_checkpoint(b).state_dict())
        data["modulo_permutation"] = {"not_analyzed": str(error)}
        after = f"modulo neuron order: not analyzed: {error}"
    data |= {
        "equal": raw.equal,
        "tensors": [{**vars(row), "largest": _finite(row.largest)} for row in raw.tensors],
        "only_a": raw.only_a,
        "only_b": raw.only_b,
        "reshaped": raw.reshaped,
    }
    emit(data, f"{_difference_table(raw)}\n{after}", as_json)
    for network in networks:
        assumption(network)


def _finite(value: float) -> float | None:
    """JSON has no infinity: a difference that is not finite is null."""
    return value if math.isfinite(value) else None


def _difference_table(raw: Any) -> str:
    width = max((len(row.name) for row in raw.tensors), default=6)
    lines = [f"{'tensor':<{width}}  {'gap':>9}  {'cosine':>9}  {'largest':>10}"]
    for row in raw.tensors:
        cosine = "-" if row.cosine is None else f"{row.cosine:.6f}"
        lines.append(f"{row.name:<{width}}  {row.gap:>9.3g}  {cosine:>9}  {row.largest:>10.3g}")
    lines += [f"{name}: only in A" for name in raw.only_a] + [f"{name}: only in B" for name in raw.only_b]
    lines += [f"{name}: {first} in A, {second} in B" for name, first, second in raw.reshaped]
    return "\n".join(lines)


@app.command("align")
def align_command(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE")],
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to write the aligned model (.safetensors).")
    ],
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    as_json: Json = False,
) -> None:
    """Write MODEL with its hidden neurons in REFERENCE's order; its function stays the same."""
    from weightspace.errors import OutputError
    from weightspace.matching import align
    from weightspace.network import Network
    from weightspace.reading import read
    from weightspace.result import check_writable

    if check_writable(output) in (reference.resolve(), model.resolve()):
        raise OutputError(f"{output}: this would overwrite one of the two inputs; name another file")
    if output.suffix != ".safetensors":
        raise OutputError(f"{output}: the aligned model is written as .safetensors; name the file so")
    first, second = (
        read(p, architecture=architecture, activation=activation, layout=layout) for p in (reference, model)
    )
    alignment = align(first, second)
    assert isinstance(alignment.model, Network)
    alignment.model.save(output)
    assumption(first)
    assumption(second)
    data = {**json.loads(alignment.to_json()), "output": str(output)}
    text = [
        f"distance {alignment.distance_before:.6g} -> {alignment.distance:.6g}"
        + (" (the same network in another neuron order)" if alignment.same_network else ""),
        f"function changed by {alignment.function_change:.1e}",
        *(f"left alone: {entry.place} ({entry.size}): {entry.reason}" for entry in alignment.spec.frozen),
        f"wrote {output}",
    ]
    emit(data, "\n".join(text), as_json)


@app.command("graph")
def graph_command(
    file: File,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the graph (JSON).")],
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    as_json: Json = False,
) -> None:
    """Write the graph of neurons (nodes) and weights (edges) as JSON."""
    from weightspace.graph import encode
    from weightspace.network import require_finite
    from weightspace.reading import read
    from weightspace.result import check_writable, write_text

    check_writable(output)
    network = read(file, architecture=architecture, activation=activation, layout=layout)
    require_finite(network)
    graph = encode(network)
    write_text(output, graph.to_json())
    assumption(network)
    data = {"output": str(output), "nodes": len(graph.node_layer), "edges": graph.edge_index.shape[1]}
    emit(data, f"wrote {output}: {data['nodes']} neurons, {data['edges']} weights", as_json)
