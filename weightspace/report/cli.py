"""The commands `report` and `demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.commands import Activation, Architecture, Json, Layout

if TYPE_CHECKING:
    from weightspace.report.content import Evaluation

SENTENCES_PRINTED = 20

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

Output = Annotated[Path, typer.Option("-o", "--output", help="Folder for report.html and report.json.")]


@app.command("report")
def report_command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Checkpoints: .safetensors .pt .pth .onnx .pt2, folders."),
    ],
    output: Output = Path("report"),
    data: Annotated[
        Path | None,
        typer.Option(help="npz with x (n, ...) and integer labels y (n,): measure the barrier on them."),
    ] = None,
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    as_json: Json = False,
) -> None:
    """Analyze checkpoints with everything that applies; what does not is listed with its reason."""
    evaluation = _evaluation(data) if data is not None else None
    _write(
        files,
        output,
        as_json,
        evaluation=evaluation,
        architecture=architecture,
        activation=activation,
        layout=layout,
    )


@app.command("demo")
def demo_command(output: Output = Path("report"), as_json: Json = False) -> None:
    """Write the report on the bundled checkpoints: five networks trained on scanned digits."""
    from weightspace.bundled import digits, names, path
    from weightspace.report.content import Evaluation

    _, _, inputs, labels = digits()
    _write(
        [path(name) for name in names()],
        output,
        as_json,
        evaluation=Evaluation("digits, test set", inputs, labels),
    )


def _write(files: list[Path], output: Path, as_json: bool, **options: Any) -> None:
    from weightspace.report.page import report, require_folder

    require_folder(output)
    result = report(files, progress=True, **options)
    page = result.write(output)
    if as_json:
        typer.echo(json.dumps({"page": str(page), **result.data}))
        return
    for sentence in result.summary[:SENTENCES_PRINTED]:
        typer.echo(sentence.as_text())
    if len(result.summary) > SENTENCES_PRINTED:
        typer.echo(f"... {len(result.summary) - SENTENCES_PRINTED} more sentences on the page")
    typer.echo(f"wrote {page} and {page.with_name('report.json')}")


def _evaluation(path: Path) -> Evaluation:
    from weightspace.checkpoint import open_checkpoint
    from weightspace.errors import CheckpointError
    from weightspace.report.content import Evaluation

    arrays = open_checkpoint(path).state_dict()
    if not {"x", "y"} <= arrays.keys():
        raise CheckpointError(f"{path}: --data needs arrays x and y; found {', '.join(arrays) or 'none'}")
    x, y = arrays["x"], arrays["y"]
    if (
        x.ndim < 2
        or y.ndim != 1
        or len(x) != len(y)
        or not len(x)
        or y.is_floating_point()
        or bool((y < 0).any())
    ):
        raise CheckpointError(
            f"{path}: --data needs x (n, ...) and y (n,) with class numbers from 0; x is {tuple(x.shape)} "
            f"{x.dtype}, y is {tuple(y.shape)} {y.dtype}"
        )
    return Evaluation(path.name, x, y.long())
