"""The command `weightspace train-autoencoder`."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from interp.autoencoders.autoencoder import Autoencoder
    from interp.autoencoders.latent_activation import LatentActivation
    from interp.autoencoders.metrics import Metrics
    from interp.autoencoders.training import TrainingRun

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
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the first weights and the order of the samples.")
    ] = 0,
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

    import interp
    from interp.autoencoders.processes import own_rank
    from weightspace.errors import ShapeError
    from weightspace.result import make_folder, write_text

    source = interp.open_activations(activations, targets=targets)
    if len(source.sample_shape) != 1:
        raise ShapeError(
            f"train-autoencoder takes vectors (n, d); the samples of these files have shape {source.sample_shape}"
        )
    if kind is Kind.bilinear and (matryoshka or targets):
        raise ShapeError(
            "a bilinear autoencoder has neither --matryoshka nor --targets; choose another --kind"
        )
    (d,) = source.sample_shape
    size = 8 * d if latents is None else latents
    generator = torch.Generator().manual_seed(seed)
    with _processes():
        autoencoder: Autoencoder
        if kind is Kind.bilinear:
            autoencoder = interp.BilinearAutoencoder(
                d, size, sparsity=penalty, scaling=scaling or "unit_norm", generator=generator
            )
        else:
            autoencoder = interp.SparseAutoencoder(
                d,
                size,
                _activation(kind, k, penalty),
                matryoshka=_numbers(matryoshka),
                output_features=None if targets is None else source.columns[1].shape[0],
                scaling=scaling or "standard",
                # Dead is what is silent for a tenth of the training.
                dead=interp.AuxiliaryLoss(silent=max(min(steps * batch_size // 10, 10_000_000), 1)),
                generator=generator,
            )
        autoencoder.to(_place(device))
        make_folder(out)
        name = (
            "autoencoder.safetensors"
            if file_format is Format.weightspace
            else f"autoencoder-{file_format.value}"
        )
        with TemporaryDirectory(dir=out) as scratch:  # what the format cannot hold is refused before the work
            autoencoder.save(Path(scratch) / name, format=file_format.value)
        run = interp.train(
            autoencoder,
            source,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            generator=torch.Generator().manual_seed(seed),
            checkpoint=out / "training.ckpt",
            keep_checkpoint=True,
            progress=not as_json,
        )
        if own_rank() != 0:
            return
        autoencoder.save(out / name, format=file_format.value)
        run.save_history(out / "history.json")
        metrics = interp.evaluate(autoencoder, source)
        write_text(out / "metrics.json", metrics.to_json() + "\n")
        written = [name, "history.json", "metrics.json"]
        if cards:
            title = f"Features of {activations.name}"
            interp.write_feature_cards(autoencoder, source, out / "features.html", title=title)
            written.append("features.html")
    (out / "training.ckpt").unlink(missing_ok=True)
    _print(run, metrics, [str(out / one) for one in written], as_json)


def _print(run: "TrainingRun", metrics: "Metrics", written: list[str], as_json: bool) -> None:
    if as_json:
        summary = {"written": written, "seconds": run.seconds, "samples": run.samples}
        typer.echo(json.dumps({**summary, "metrics": json.loads(metrics.to_json())}))
        return
    typer.echo(f"{run.samples:,} samples in {run.seconds:.1f} s")
    typer.echo(repr(metrics))
    for path in written:
        typer.echo(f"wrote {path}")


def _activation(kind: Kind, k: int, penalty: float) -> "LatentActivation":
    import interp

    rules: dict[Kind, LatentActivation] = {
        Kind.topk: interp.TopK(k),
        Kind.batchtopk: interp.BatchTopK(k),
        Kind.relu: interp.ReLU(penalty),
        Kind.jumprelu: interp.JumpReLU(penalty),
        Kind.gated: interp.Gated(penalty),
    }
    return rules[kind]


def _numbers(text: str | None) -> list[int]:
    from weightspace.errors import ShapeError

    try:
        return [] if text is None else [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ShapeError(f"--matryoshka takes numbers such as 64,256; it is {text!r}") from error


def _place(device: str | None) -> "torch.device":
    """The device of a name; without one a GPU if there is one, of the processes of torchrun each its own."""
    import torch

    from weightspace.errors import MissingDependencyError

    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MissingDependencyError(
            f"--device {device}: {reason}; leave it out to use what there is"
        ) from error


@contextmanager
def _processes() -> Iterator[None]:
    """Join the processes that torchrun started, if it did."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    import torch.distributed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield
        torch.distributed.barrier()  # the others wait while the first measures and draws
    finally:
        torch.distributed.destroy_process_group()
