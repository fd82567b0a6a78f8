"""The command `weightspace decompose`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from interp.decomposition import Decomposition
    from weightspace.network import Network

app = typer.Typer(add_completion=False)


@app.command()
def decompose(
    file: Annotated[
        Path, typer.Argument(help="Network with one bilinear layer: .safetensors, .pt, .onnx, .pt2")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; made if it is missing.")],
    layer: Annotated[
        str | None,
        typer.Option(help="A bilinear or gated layer inside the network, by the name of its product."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="File with one tensor of network inputs; needed for gates such as SwiGLU."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Eigenvectors to keep for every output.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="file.py:function that returns the module, run as it is, or a .json")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the eigenvalues and eigenvectors of a bilinear layer: what each output looks for in the input."""
    from weightspace.reading import read
    from weightspace.result import make_folder

    inputs = None if data is None else _inputs(data)
    decomposition = _decompose(read(file, architecture=architecture), layer, inputs, top)
    make_folder(out)
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


def _inputs(path: Path) -> "Tensor":
    """The only tensor of a file."""
    from weightspace.checkpoint import open_checkpoint
    from weightspace.errors import CheckpointError

    checkpoint = open_checkpoint(path)
    if len(checkpoint) != 1:
        raise CheckpointError(
            f"{path}: --data takes a file with one tensor, the network's inputs; this one has {len(checkpoint)}"
        )
    return checkpoint.tensor(checkpoint.names[0])


def _decompose(
    network: "Network", layer: str | None, inputs: "Tensor | None", top: int | None
) -> "Decomposition":
    """Decompose the whole network, or one layer of it; an error about the whole lists the layers there are."""
    from interp.decomposition import decompose as decompose_network
    from interp.sites import find_sites
    from weightspace.errors import ArchitectureError, UnsupportedOperationError

    if layer is None:
        try:
            return decompose_network(network, top=top, data=inputs)
        except (ArchitectureError, UnsupportedOperationError) as error:
            names = [f"{site.name} ({'+'.join(site.gates) or 'bilinear'})" for site in find_sites(network)]
            if not names:
                raise
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise type(error)(f"{error}; one layer of it: --layer with one of {listed}") from error
    sites = {site.name: site for site in find_sites(network)}
    if layer not in sites:
        raise ArchitectureError(
            f"no bilinear or gated layer is named {layer!r}; there are {', '.join(sites) or 'none'}"
        )
    site = sites[layer]
    if site.gates and inputs is None:
        raise UnsupportedOperationError(
            f"{layer!r} is gated by {'+'.join(site.gates)}, which has no exact form: give inputs of the network with "
            "--data; the residual of the bilinear part is then reported"
        )
    activations = None if inputs is None else site.activations(network, inputs)
    return decompose_network(site.network, top=top, data=activations)


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
