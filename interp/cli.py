"""The command `weightspace decompose`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from interp.decomposition import Decomposition

app = typer.Typer(add_completion=False)


@app.command()
def decompose(
    file: Annotated[
        Path, typer.Argument(help="Network with one bilinear layer: .safetensors, .pt, .onnx, .pt2")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; made if it is missing.")],
    top: Annotated[int | None, typer.Option(min=1, help="Eigenvectors to keep for every output.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="file.py:function that returns the module, run as it is, or a .json")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the eigenvalues and eigenvectors of a bilinear layer: what each output looks for in the input."""
    from interp.decomposition import decompose as decompose_network
    from weightspace.errors import OutputError
    from weightspace.reading import read

    decomposition = decompose_network(read(file, architecture=architecture), top=top)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {str(out)!r}: {error.strerror}; name another with -o"
        ) from error
    written = _write(decomposition, out, file.name)
    if as_json:
        summary = {"file": str(file), "written": [str(path) for path in written], **decomposition.summary()}
        typer.echo(json.dumps(summary))
        return
    typer.echo(repr(decomposition))
    for index, values in enumerate(decomposition.values[:20, :5].tolist()):
        rank = decomposition.effective_rank[index].item()
        leading = " ".join(f"{value:+9.3g}" for value in values)
        typer.echo(f"  output {index:3d}  effective rank {rank:5.1f}  leading values {leading}")
    if len(decomposition.values) > 20:
        typer.echo(f"  ... {len(decomposition.values) - 20} more outputs")
    for path in written:
        typer.echo(f"wrote {path}")


def _write(decomposition: "Decomposition", folder: Path, source: str) -> list[Path]:
    """Write JSON, vectors and, where it can be drawn, the picture; return the files."""
    from weightspace.checkpoint import write_safetensors
    from weightspace.result import write_text

    numbers, vectors = folder / "decomposition.json", folder / "vectors.safetensors"
    write_text(numbers, json.dumps({"source": source, **decomposition.summary()}, indent=2) + "\n")
    tensors = {
        name: getattr(decomposition, name)
        for name in ("values", "vectors", "directions", "linear", "constant")
    }
    metadata = {"source": source, "padded": json.dumps(decomposition.padded)}
    write_safetensors(vectors, tensors, metadata)
    picture = _draw(decomposition, folder / "eigenvectors.png")
    return [numbers, vectors, picture] if picture else [numbers, vectors]


def _draw(decomposition: "Decomposition", path: Path) -> Path | None:
    """Draw the eigenvectors when the inputs form a picture and matplotlib is there; neither is an error."""
    from interp.plots import eigenvector_figure, image_shape
    from weightspace.errors import MissingDependencyError
    from weightspace.result import write_atomically

    if image_shape(decomposition) is None:
        return None
    try:
        figure = eigenvector_figure(decomposition)
    except MissingDependencyError:
        return None
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return path
