"""The command `merge`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from weightspace.commands import Activation, Architecture, Json, Layout, LowMemory, assumption, defers, emit

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


class Method(StrEnum):
    """How several files are brought into one neuron order."""

    universe = "universe"
    sequential = "sequential"
    reference = "reference"
    average = "average"


class Route(StrEnum):
    """How two files are joined."""

    linear = "linear"
    spherical = "spherical"


@app.command("merge")
def merge_command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Two or more checkpoints of one structure.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to write the merged model (.safetensors).")
    ],
    method: Annotated[
        Method,
        typer.Option(
            help="universe: all to a common order; sequential: MergeMany; reference: all to the first; "
            "average: as they are (for fine-tunings of one model)."
        ),
    ] = Method.universe,
    path: Annotated[Route, typer.Option(help="spherical: SLERP, for two files.")] = Route.linear,
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Share of a file in the average; once per file, in order."),
    ] = None,
    balance: Annotated[
        bool, typer.Option("--balance", help="First scale the ReLU units of every file to the least weights.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the order in which files are visited.")] = 0,
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    low_memory: LowMemory = None,
    as_json: Json = False,
) -> None:
    """Write one model made of several: hidden neurons brought into one order, then averaged."""
    from weightspace.errors import OutputError
    from weightspace.merging import merge
    from weightspace.network import Network
    from weightspace.reading import read
    from weightspace.result import check_writable
    from weightspace.universe import Average, MergeMany, Reference, Universe

    if check_writable(output) in [file.resolve() for file in files]:
        raise OutputError(f"{output}: this would overwrite one of the inputs; name another file")
    if output.suffix != ".safetensors":
        raise OutputError(f"{output}: the merged model is written as .safetensors; name the file so")
    strategy = {
        Method.universe: Universe(seed=seed),
        Method.sequential: MergeMany(seed=seed),
        Method.reference: Reference(),
        Method.average: Average(),
    }[method]
    deferred = defers(files, low_memory)
    networks = [read(p, architecture=architecture, activation=activation, layout=layout) for p in files]
    merged = merge(
        networks, method=strategy, weights=weight, path=path.value, balance=balance, deferred=deferred
    )
    assert isinstance(merged.model, Network)
    merged.model.save(output)
    for network in networks:
        assumption(network)
    for note in merged.notes:
        typer.echo(f"note: {note}", err=True)
    width = max(len(str(file)) for file in files)
    text = [
        f"objective {merged.objective_before:.6g} -> {merged.objective:.6g}",
        *(
            f"{file!s:<{width}}  distance to the merged model {before:.6g} -> {after:.6g}"
            for file, before, after in zip(files, merged.distances_before, merged.distances, strict=True)
        ),
        *(f"left alone: {entry.place} ({entry.size}): {entry.reason}" for entry in merged.spec.frozen),
        f"wrote {output}",
    ]
    data = {**json.loads(merged.to_json()), "files": [str(f) for f in files], "output": str(output)}
    emit(data, "\n".join(text), as_json)
