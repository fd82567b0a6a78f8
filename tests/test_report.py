"""The report: complete, self-contained, honest about gaps, and without errors in a browser."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from weightspace.bundled import digits, load, names, path
from weightspace.checkpoint import write_safetensors
from weightspace.errors import CheckpointError
from weightspace.inspection import inspect
from weightspace.reading import read
from weightspace.report import comparison, report
from weightspace.report.content import Evaluation, Subject

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    _, _, inputs, labels = digits()
    folder = tmp_path_factory.mktemp("demo")
    result = report([path(name) for name in names()], evaluation=Evaluation("digits", inputs, labels))
    page = result.write(folder / "report")
    return result, page


def data_file(name: str) -> Path:
    root = os.environ.get("WEIGHTSPACE_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"needs {name} below WEIGHTSPACE_DATA")
    return Path(root) / name


def test_every_section_has_numbers(demo):
    data = json.loads(demo[1].with_name("report.json").read_text())
    assert len(data["files"]) == len(names())
    for section in ("overview", "layers", "neurons", "pairs", "certificates", "bilinear"):
        assert data[section], f"section {section} is empty"
    (pair,) = [v for k, v in data["pairs"].items() if "digits_mlp_a" in k and "digits_mlp_b" in k]
    assert pair["barrier_after"]["barrier"] < pair["barrier_before"]["barrier"]
    for bounds in data["certificates"].values():
        assert bounds["sampled_lower_bound"] <= bounds["upper_bound"]
    missing = {(gap["subject"], gap["analysis"]): gap["reason"] for gap in data["not_analyzed"]}
    assert "Multiply at node" in missing["digits_bilinear.safetensors", "Lipschitz bound"]


def test_page_needs_no_other_file(demo):
    html = demo[1].read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "<script" not in html


def test_names_from_files_are_escaped(tmp_path):
    attack = "<script>alert(1)</script>.weight"
    write_safetensors(tmp_path / "x.safetensors", {attack: torch.randn(5, 3), "a$b$": torch.randn(30, 30, 2)})
    html = report([tmp_path / "x.safetensors"]).html
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_what_is_no_network_is_inspected_and_listed(tmp_path):
    write_safetensors(tmp_path / "conv.safetensors", {"c.weight": torch.randn(4, 3, 3, 3)})
    result = report([tmp_path / "conv.safetensors"])
    (gap,) = result.gaps
    assert (gap.subject, gap.analysis) == ("conv.safetensors", "reading as a network")
    assert "--architecture" in gap.reason
    assert result.data["layers"]["conv.safetensors"]["tensors"][0]["spectral_norm"] > 0


def test_broken_file_stops_the_report(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 10)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        report([tmp_path / "x.safetensors"])


def test_broken_file_among_others_is_listed(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 10)
    result = report([path("digits_mlp_a"), tmp_path / "x.safetensors"])
    assert (result.gaps[0].subject, result.gaps[0].analysis) == ("x.safetensors", "the file")
    assert result.data["certificates"]["digits_mlp_a.safetensors"]["upper_bound"] > 0


def test_identical_and_shifted_networks_are_told_apart(tmp_path):
    network = load("digits_mlp_a")
    network.replace_parameters({"4.bias": network.parameters["4.bias"] + 1}).save(
        tmp_path / "shifted.safetensors"
    )
    network.save(tmp_path / "same.safetensors")
    files = [path("digits_mlp_a"), tmp_path / "same.safetensors", tmp_path / "shifted.safetensors"]
    section = comparison.pairs([Subject(p.name, p, inspect(p), read(p), None) for p in files])
    verdicts = {row[0]: row[3] for row in section.blocks[0].rows}
    assert verdicts["digits_mlp_a.safetensors / same.safetensors"] == "identical weights"
    assert verdicts["digits_mlp_a.safetensors / shifted.safetensors"] == "different networks"


@pytest.mark.parametrize(
    "files",
    [
        ["acasxu/ACASXU_run2a_1_1_batch_2000.onnx"],
        ["kw_provable/mnist.pth"],
        ["rib_modadd/modadd113_seed0.pt", "rib_modadd/modadd113_seed1.pt"],
        ["audio_misc/silero_vad_16k.safetensors"],
    ],
)
def test_real_checkpoints(files, tmp_path):
    result = report([data_file(name) for name in files])
    page = result.write(tmp_path / "report")
    assert page.stat().st_size > 10_000
    assert len(result.data["layers"]) == len(files)
    if files[0].endswith(".onnx"):
        (bounds,) = result.data["certificates"].values()
        assert bounds["upper_bound"] < 2.1e5
    else:
        assert {gap.analysis for gap in result.gaps} >= {"reading as a network"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: no chromium on the PATH")
def test_browser_opens_the_page_without_console_errors(demo, tmp_path):
    assert CHROMIUM is not None
    result = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", demo[1].as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    assert "</html>" in result.stdout
    assert "Lipschitz" in result.stdout
