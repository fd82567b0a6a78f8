"""The coverage-guided runs start, hold the law for a moment, and write down what breaks it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing import targets
from tests.fuzzing.run import Findings

pytest.importorskip("atheris", reason="atheris drives the runs (Linux)")
ROOT = Path(__file__).parents[2]
# Each costs a process; the readers with the most code behind them. The others meet `test_readers.py`.
NAMES = ["onnx", "certificate"]


def fuzz(*arguments, folder):
    command = [sys.executable, "-m", "tests.fuzzing.run", *arguments, "--findings", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_every_run_ends_without_a_finding(tmp_path):
    done = fuzz(*NAMES, "--runs", "60", "--seconds", "10", "--seed", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.iterdir()) == []
    for name in NAMES:
        assert f"== {name}\n" in done.stderr
    units = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    assert len(units) == len(NAMES)


def test_a_broken_law_is_written_down_once_for_every_place(tmp_path, monkeypatch, capsys):
    def broken(data):
        if data == b"bad":
            raise KeyError("no error of ours")
        assert data != b"worse"

    monkeypatch.setitem(targets.TARGETS, "region", broken)
    findings = Findings("region", tmp_path, go_on=True)
    for data in (b"good", b"bad", b"bad", b"worse"):
        findings.hold(data)
    assert sorted(file.read_bytes() for file in tmp_path.iterdir()) == [b"bad", b"worse"]
    assert "no error of ours" in capsys.readouterr().err
