"""The commands `inspect`, `diff`, `similarity`, `align` and `graph`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from concurrent.futures import Executor

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
LowMemory = Annotated[
    bool | None,
    typer.Option(
        "--low-memory/--in-memory", help="A few tensors at a time, slower; default from 1 GB of files on."
    ),
]

Workers = Annotated[
    int | None, typer.Option("--workers", min=1, metavar="N", help="Processes that share the work.")
]
JournalFile = Annotated[
    Path | None,
    typer.Option(
        "--journal", metavar="FILE", help="Keep what is done, so that the same command goes on after a kill."
    ),
]

MATRIX_SHOWN = 60  # networks up to which `similarity` prints the matrix
LARGE = 50_000_000  # weights from which on `diff` aligns only when asked to
DEFERRED_FROM = 2**30  # bytes of all files from which on `align` and `merge` hold a few tensors only


def emit(data: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result: one JSON object, or text for people."""
    typer.echo(json.dumps(data, allow_nan=False) if as_json else text)


def assumption(network: Any) -> None:
    """Say on standard error what was assumed about a bare state dict."""
    if network.metadata.get("assumed"):
        typer.echo(f"note: {network.metadata['source']}: assumed {network.metadata['assumed']}", err=True)


@app.command("inspect")
def inspect_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Checkpoints: files, Hugging Face folders, or folders of them."
        ),
    ],
    workers: Workers = None,
    journal: JournalFile = None,
    as_json: Json = False,
) -> None:
    """One row per tensor: shape, norm, spectral norm, stable rank, dead units, NaN, power-law exponent.

    Of several checkpoints one line each with what is unusual; --json has all rows. What cannot be read is named, and
    the exit status is 2 then.
    """
    from weightspace.folder_inspection import find_checkpoints
    from weightspace.inspection import inspect

    found = find_checkpoints(files)
    if len(found) > 1 or workers is not None or journal is not None:
        _inspect_each(found, workers, journal, as_json)
        return
    inspection = inspect(found[0], progress=True)
    emit(json.loads(inspection.to_json()), inspection.to_table(), as_json)


def _inspect_each(paths: Sequence[Path], workers: int | None, journal: Path | None, as_json: bool) -> None:
    from weightspace.folder_inspection import inspect_many
    from weightspace.inspection import Inspection, printable

    with _pool(workers) as executor:
        found = inspect_many(paths, executor=executor, journal=journal, keep_errors=True, progress=True)
    inspections = [one for one in found if isinstance(one, Inspection)]
    failed = {
        str(path): str(one) for path, one in zip(paths, found, strict=True) if not isinstance(one, Inspection)
    }
    lines = []
    for path, one in zip(paths, found, strict=True):
        if isinstance(one, Inspection):
            lines += [f"{printable(str(path))}: {one.summary}", *(f"  {text}" for text in one.findings)]
        else:
            lines.append(f"{printable(str(path))}: not read")
    unusual = sum(bool(one.findings) for one in inspections)
    lines.append(f"{len(paths):,} checkpoints, {unusual:,} with findings, {len(failed):,} not read")
    data = {"checkpoints": [json.loads(one.to_json()) for one in inspections], "failed": failed}
    emit(data, "\n".join(lines), as_json)
    for reason in failed.values():
        typer.echo(f"weightspace: error: {printable(reason)}", err=True)
    if failed:
        raise typer.Exit(2)


def _pool(workers: int | None) -> AbstractContextManager[Executor | None]:
    from weightspace.mapping import process_pool

    return nullcontext() if workers is None or workers == 1 else process_pool(workers)


@app.command("diff")
def diff_command(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path, typer.Argument(metavar="B")],
    modulo: Annotated[
        bool | None,
        typer.Option(
            "--modulo/--raw",
            help="Also compare modulo neuron order, or tensors as they stand only, in bounded memory. "
            f"Default: --raw from {LARGE:,} weights on.",
        ),
    ] = None,
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    as_json: Json = False,
) -> None:
    """Compare two checkpoints tensor by tensor, and modulo neuron order where they can be read as networks."""
    from weightspace.checkpoint import open_checkpoint
    from weightspace.distances import difference
    from weightspace.errors import WeightspaceError
    from weightspace.kinship import Kinship, provenance
    from weightspace.matching.alignment import corresponding_parameters
    from weightspace.reading import read

    data: dict[str, Any] = {"a": str(a), "b": str(b)}
    networks = []
    found = None
    after: dict[str, float] = {}
    programs = any(path.suffix in (".onnx", ".pt2") for path in (a, b))
    try:
        if modulo is False and not programs:
            raise WeightspaceError("--raw was given")
        networks = [read(p, architecture=architecture, activation=activation, layout=layout) for p in (a, b)]
        names = corresponding_parameters(*networks)
        found = difference(networks[0].parameters, networks[1].parameters, names=names)
        size = sum(tensor.numel() for tensor in networks[0].parameters.values())
        if modulo is False or (modulo is None and size >= LARGE):
            raise WeightspaceError(
                "--raw was given" if modulo is False else f"{size:,} weights take long; see --modulo"
            )
        kin = provenance(*networks)
        after = {
            row.name: row.gap
            for row in difference(networks[0].parameters, kin.aligned.parameters, names=names).tensors
        }
        rounded = kin.kinship is Kinship.ROUNDED and str(kin.precision).startswith("float32")
        data["modulo_permutation"] = {
            "same_network": rounded or kin.kinship in (Kinship.IDENTICAL, Kinship.REORDERED),
            "distance": kin.distance,
            "distance_before": kin.distance_raw,
            "gap": kin.gap,
        }
        data["provenance"] = json.loads(kin.to_json())
        line = (
            f"modulo neuron order: gap {kin.gap:.3g} (as they stand {kin.gap_raw:.3g}), "
            f"distance {kin.distance:.4g} ({kin.distance_raw:.4g})\nprovenance: {kin}"
        )
    except WeightspaceError as error:
        if programs and len(networks) < 2:
            raise
        if found is None:  # no networks, or of different structure: names decide
            states = (
                [network.parameters for network in networks]
                if programs
                else [open_checkpoint(path).state_dict() for path in (a, b)]
            )
            found = difference(*states)
        data["modulo_permutation"] = {"not_analyzed": str(error)}
        line = f"modulo neuron order: not analyzed: {error}"
    data |= {
        "equal": found.equal,
        "gap": found.gap,
        "tensors": [
            {**vars(row), "largest": _finite(row.largest), "gap_modulo_permutation": after.get(row.name)}
            for row in found.tensors
        ],
        "only_a": found.only_a,
        "only_b": found.only_b,
        "reshaped": found.reshaped,
    }
    emit(data, f"{_difference_table(found, after)}\n{line}", as_json)
    for network in networks:
        assumption(network)


@app.command("similarity")
def similarity_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Two or more checkpoints of one architecture, or folders of them."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for report.html and report.json with pictures."),
    ] = None,
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    workers: Workers = None,
    journal: JournalFile = None,
    as_json: Json = False,
) -> None:
    """Compare many checkpoints modulo neuron order: a matrix of distances, families, and a tree of descent."""
    from weightspace.common_order import compare
    from weightspace.errors import ShapeError
    from weightspace.folder_inspection import find_checkpoints
    from weightspace.heritage import lineage
    from weightspace.reading import read
    from weightspace.report.page import assemble, require_folder, short_names
    from weightspace.report.similarity import similarity_data, similarity_section

    if output is not None:
        require_folder(output)
    named, files = files, find_checkpoints(files)
    if len(files) == 1 and len(named) > 1:
        raise ShapeError(f"{files[0]} was named {len(named)} times; name two checkpoints or more to compare")
    networks = [read(p, architecture=architecture, activation=activation, layout=layout) for p in files]
    names = short_names(files)
    with _pool(workers) as executor:
        comparison = compare(
            dict(zip(names, networks, strict=True)), executor=executor, journal=journal, progress=True
        )
        tree = lineage(comparison, executor=executor, progress=True)
    data = similarity_data(comparison, tree)
    shown = _matrix(comparison) if len(names) <= MATRIX_SHOWN else "--json has the matrix of distances"
    text = [shown, "", "descent, as the weights suggest it:", str(tree)]
    same = [h for h in dict.fromkeys(comparison.hashes) if h is not None and comparison.hashes.count(h) > 1]
    for own in same:
        equal = [name for name, other in zip(names, comparison.hashes, strict=True) if other == own]
        text.insert(1, f"one network up to neuron order: {', '.join(equal)}")
    if output is not None:
        page = assemble(names, [similarity_section(comparison, tree)]).write(output)
        data["page"] = str(page)
        text.append(f"wrote {page}")
    emit(data, "\n".join(text), as_json)
    for network in networks:
        assumption(network)


def _matrix(comparison: Any) -> str:
    """Relative distances, in the order of the dendrogram's leaves."""
    from scipy.cluster.hierarchy import leaves_list

    order = leaves_list(comparison.linkage())
    width = max(len(name) for name in comparison.names)
    lines = ["distance modulo neuron order, relative to the norms"]
    for row in order:
        values = " ".join(f"{comparison.relative[row, column]:5.3f}" for column in order)
        lines.append(f"{comparison.names[row]:<{width}}  {values}")
    return "\n".join(lines)


def _finite(value: float) -> float | None:
    """JSON has no infinity: a difference that is not finite is null."""
    return value if math.isfinite(value) else None


def _difference_table(found: Any, after: dict[str, float]) -> str:
    width = max((len(row.name) for row in found.tensors), default=6)
    lines = [f"{'tensor':<{width}}  {'gap':>9}  {'reordered':>9}  {'cosine':>9}  {'largest':>10}"]
    for row in found.tensors:
        cosine = "-" if row.cosine is None else f"{row.cosine:.6f}"
        modulo = f"{after[row.name]:.3g}" if row.name in after else "-"
        lines.append(f"{row.name:<{width}}  {row.gap:>9.3g}  {modulo:>9}  {cosine:>9}  {row.largest:>10.3g}")
    lines += [f"{name}: only in A" for name in found.only_a] + [f"{name}: only in B" for name in found.only_b]
    lines += [f"{name}: {first} in A, {second} in B" for name, first, second in found.reshaped]
    return "\n".join(lines)


def defers(files: Sequence[Path], low_memory: bool | None) -> bool:
    """Whether to hold a few tensors at a time; then the memory that they took is given back at once."""
    from weightspace.deferred import return_freed_memory

    if low_memory is None:
        parts = (part for file in files for part in (file.rglob("*") if file.is_dir() else [file]))
        low_memory = sum(part.stat().st_size for part in parts if part.is_file()) >= DEFERRED_FROM
    if low_memory:
        return_freed_memory()
    return low_memory


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
    low_memory: LowMemory = None,
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
    deferred = defers([reference, model], low_memory)
    first, second = (
        read(p, architecture=architecture, activation=activation, layout=layout) for p in (reference, model)
    )
    alignment = align(first, second, deferred=deferred)
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
