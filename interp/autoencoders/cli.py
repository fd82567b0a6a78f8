"""The command `weightspace train-autoencoder`."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from interp.autoencoders.autoencoder import Autoencoder

app = typer.Typer(add_completion=False)


class Kind(StrEnum):
    """What can be trained from the command line."""

    topk = "topk"
    batchtopk = "batchtopk"
    relu = "relu"
    jumprelu = "jumprelu"
    gated = "gated"
    bilinear = "bilinear"


class Format(StrEnum):
    """Layouts of checkpoints."""

    weightspace = "weightspace"
    sae_lens = "sae_lens"
    sparsify = "sparsify"
    dictionary_learning = "dictionary_learning"


@app.command("train-autoencoder")
def train_autoencoder(
    activations: Annotated[
        Path,
        typer.Argument(help="File or folder of files with one tensor each: .npy, .safetensors, .pt, .npz"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; made if it is missing.")],
    kind: Annotated[Kind, typer.Option(help="Sparsity rule, or a bilinear autoencoder.")] = Kind.topk,
    latents: Annotated[
        int | None, typer.Option(min=1, help="Features; 8 for every entry if not given.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="Latents kept per sample (topk, batchtopk).")] = 32,
    penalty: Annotated[
        float, typer.Option(min=0, help="Weight of the sparsity penalty (relu, jumprelu, gated, bilinear).")
    ] = 0.1,
    matryoshka: Annotated[
        str | None, typer.Option(help="Numbers of leading latents that must do on their own: 64,256.")
    ] = None,
    targets: Annotated[Path | None, typer.Option(help="Files of targets: trains a transcoder.")] = None,
    scaling: Annotated[
        str | None, typer.Option(help="none, mean, standard, unit_norm, root_norm or layer_norm.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step, of all processes.")] = 2048,
    learning_rate: Annotated[
        float | None, typer.Option(help="The usual one of the kind if not given.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda if there is one.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of the samples.")] = 0,
    file_format: Annotated[
        Format, typer.Option("--format", help="Layout of the trained autoencoder.")
    ] = Format.weightspace,
    cards: Annotated[bool, typer.Option(help="Write a page with a card for each leading feature.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a dictionary of features on activations, measure it and draw its features.

    A run that was interrupted goes on where it was when the same command is given again. Under torchrun the processes
    share every batch.
    """
    import torch

    from interp.autoencoders.feature_cards import write_feature_cards
    from interp.autoencoders.metrics import evaluate
    from interp.autoencoders.processes import own_rank
    from interp.autoencoders.sources import open_activations
    from interp.autoencoders.training import train
    from weightspace.result import make_folder, write_text

    source = open_activations(activations, targets=targets)
    output_features = None if targets is None else source.columns[1].shape[0]
    with _processes():
        autoencoder = _make(
            source.sample_shape, kind, latents, k, penalty, matryoshka, output_features, scaling, seed
        ).to(device or _own_device())
        make_folder(out)
        run = train(
            autoencoder,
            source,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            generator=torch.Generator().manual_seed(seed),
            checkpoint=out / "training.ckpt",
            progress=not as_json,
        )
        if own_rank() != 0:
            return
        name = (
            "autoencoder.safetensors"
            if file_format is Format.weightspace
            else f"autoencoder-{file_format.value}"
        )
        autoencoder.save(out / name, format=file_format.value)
        run.save_history(out / "history.json")
        metrics = evaluate(autoencoder, source)
        write_text(out / "metrics.json", metrics.to_json() + "\n")
        written = [name, "history.json", "metrics.json"]
        if cards:
            write_feature_cards(
                autoencoder, source, out / "features.html", title=f"Features of {activations.name}"
            )
            written.append("features.html")
    if as_json:
        summary = {
            "written": [str(out / one) for one in written],
            "seconds": run.seconds,
            "samples": run.samples,
        }
        typer.echo(json.dumps({**summary, "metrics": json.loads(metrics.to_json())}))
        return
    typer.echo(f"{run.samples:,} samples in {run.seconds:.1f} s")
    typer.echo(repr(metrics))
    for one in written:
        typer.echo(f"wrote {out / one}")


def _make(
    shape: tuple[int, ...],
    kind: Kind,
    latents: int | None,
    k: int,
    penalty: float,
    matryoshka: str | None,
    output_features: int | None,
    scaling: str | None,
    seed: int,
) -> "Autoencoder":
    import torch

    import interp
    from weightspace.errors import ShapeError

    if len(shape) != 1:
        raise ShapeError(
            f"train-autoencoder takes vectors (n, d); the samples of these files have shape {shape}"
        )
    size = 8 * shape[0] if latents is None else latents
    generator = torch.Generator().manual_seed(seed)
    if kind is Kind.bilinear:
        if matryoshka is not None or output_features is not None:
            raise ShapeError(
                "a bilinear autoencoder has neither --matryoshka nor --targets; choose another --kind"
            )
        return interp.BilinearAutoencoder(
            shape[0], size, sparsity=penalty, scaling=scaling or "unit_norm", generator=generator
        )
    rules: dict[Kind, Any] = {
        Kind.topk: lambda: interp.TopK(k),
        Kind.batchtopk: lambda: interp.BatchTopK(k),
        Kind.relu: lambda: interp.ReLU(penalty),
        Kind.jumprelu: lambda: interp.JumpReLU(penalty),
        Kind.gated: lambda: interp.Gated(penalty),
    }
    return interp.SparseAutoencoder(
        shape[0],
        size,
        rules[kind](),
        matryoshka=_numbers(matryoshka),
        output_features=output_features,
        scaling=scaling or "standard",
        generator=generator,
    )


def _numbers(text: str | None) -> list[int]:
    from weightspace.errors import ShapeError

    try:
        return [] if text is None else [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ShapeError(f"--matryoshka takes numbers such as 64,256; it is {text!r}") from error


def _own_device() -> str:
    """A GPU if there is one, of the processes of torchrun each its own."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


@contextmanager
def _processes() -> Iterator[None]:
    """Join the processes that torchrun started, if it did."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    import torch.distributed

    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
