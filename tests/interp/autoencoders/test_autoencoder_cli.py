"""`weightspace train-autoencoder`: what it writes, how it goes on, and how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
from interp.autoencoders import training
from interp.autoencoders.cli import Kind, app
from weightspace.errors import WeightspaceError

runner = CliRunner()
ROOT = Path(__file__).parents[3]
SMALL = ["--latents", "24", "--k", "3", "--steps", "12", "--batch-size", "64"]


@pytest.fixture
def files(tmp_path):
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "x").mkdir()
    for index, part in enumerate(x.split(150)):
        np.save(tmp_path / "x" / f"{index}.npy", part.numpy())
    return tmp_path / "x"


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_every_kind_is_trained_measured_and_drawn(files, tmp_path, kind):
    out = tmp_path / "new" / "folder"
    result = run(files, "-o", out, "--kind", kind.value, *SMALL, "--json")
    assert result.exit_code == 0
    printed = json.loads(result.output)
    names = {"autoencoder.safetensors", "history.json", "metrics.json", "features.html"}
    assert {path.name for path in out.iterdir()} == names
    assert {Path(path).name for path in printed["written"]} == names
    model = interp.load_autoencoder(out / "autoencoder.safetensors")
    assert type(model).__name__ == ("BilinearAutoencoder" if kind is Kind.bilinear else "SparseAutoencoder")
    metrics = interp.evaluate(model, interp.open_activations(files))
    assert printed["metrics"]["fvu"] == pytest.approx(metrics.fvu)
    assert json.loads((out / "metrics.json").read_text()) == printed["metrics"]
    assert printed["samples"] == 12 * 64


def test_options_reach_the_autoencoder(files, tmp_path):
    result = run(
        files, "-o", tmp_path / "out", *SMALL, "--targets", files, "--matryoshka", "6,12", "--scaling", "mean",
        "--format", "weightspace", "--no-cards",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "fvu" in result.output
    model = interp.load_autoencoder(tmp_path / "out" / "autoencoder.safetensors")
    configuration = model.configuration()
    assert configuration["matryoshka"] == [6, 12, 24]
    assert configuration["output_features"] == 8
    assert configuration["scaling"] == "mean"
    assert not (tmp_path / "out" / "features.html").exists()


def test_other_layouts_are_written(files, tmp_path):
    result = run(
        files, "-o", tmp_path / "out", *SMALL, "--format", "sparsify", "--scaling", "none", "--no-cards"
    )
    assert result.exit_code == 0
    ours = run(files, "-o", tmp_path / "own", *SMALL, "--scaling", "none", "--no-cards")
    assert ours.exit_code == 0
    x = torch.randn(5, 8)
    models = [
        interp.load_autoencoder(tmp_path / "out" / "autoencoder-sparsify"),
        interp.load_autoencoder(tmp_path / "own" / "autoencoder.safetensors"),
    ]
    assert torch.allclose(models[0](x), models[1](x), atol=1e-6)


def test_an_interrupted_run_goes_on(files, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(files, "-o", whole, *SMALL, "--no-cards")
    plain, taken = training._step, []

    def stopping(*arguments):
        taken.append(1)
        if len(taken) == 7:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(training, "_step", stopping)
    original = interp.train

    def often(*arguments, **options):
        return original(*arguments, **options, seconds_between_checkpoints=0)

    monkeypatch.setattr(interp, "train", often)
    result = runner.invoke(app, [str(files), "-o", str(parts), *SMALL, "--no-cards"])
    assert result.exit_code != 0
    assert [path.name for path in parts.iterdir()] == ["training.ckpt"]
    monkeypatch.undo()
    run(files, "-o", parts, *SMALL, "--no-cards")
    contents = [(folder / "autoencoder.safetensors").read_bytes() for folder in (whole, parts)]
    assert contents[0] == contents[1]
    assert not (parts / "training.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--matryoshka", "a,b"], "--matryoshka takes numbers"),
        (["--kind", "bilinear", "--matryoshka", "3"], "neither --matryoshka nor --targets"),
        (["--k", "100"], "keeps more than the 24"),
        (["--batch-size", "1000"], "no 1000 samples"),
        (["--scaling", "big"], "unit_norm"),
        (["--kind", "jumprelu", "--format", "sparsify"], "sparsify"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--learning-rate", "-1"], "learning_rate is -1"),
    ],
)
def test_errors_come_before_any_work(files, tmp_path, options, text):
    result = runner.invoke(app, [str(files), "-o", str(tmp_path / "out"), *SMALL, *options])
    assert isinstance(result.exception, WeightspaceError)
    assert text in str(result.exception)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_an_error_is_one_line(tmp_path):
    command = [sys.executable, "-m", "weightspace.cli", "train-autoencoder", tmp_path, "-o", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "holds no .npy" in done.stderr
    assert done.stderr.count("\n") == 1


def test_torchrun_starts_the_command(files, tmp_path):
    """One process through the whole path; that two train as one is a law of `interp.train` (test_training.py)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m",
               "weightspace.cli", "train-autoencoder", files, "-o", tmp_path / "one", *SMALL, "--no-cards"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    run(files, "-o", tmp_path / "plain", *SMALL, "--no-cards")
    one, plain = (
        interp.load_autoencoder(tmp_path / name / "autoencoder.safetensors") for name in ("one", "plain")
    )
    x = torch.randn(50, 8)
    assert torch.allclose(one(x), plain(x), atol=1e-4)
