"""The claims: each has a script, a committed result that still says it, and its row in the page."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import claims

FOLDER = Path(__file__).parents[1] / "benchmarks"
NOT_SCRIPTS = {"measure.py", "claims.py", "__main__.py"}


def test_every_script_and_every_result_stands_behind_a_claim():
    scripts = {claim.command.split()[0] for claim in claims.CLAIMS}
    assert scripts == {path.name for path in FOLDER.glob("*.py")} - NOT_SCRIPTS
    assert {path.stem for path in claims.RESULTS.glob("*.json")} <= {claim.result for claim in claims.CLAIMS}


def test_page_shows_the_committed_results():
    page = command.PAGE.read_text()
    assert f"{command.BEGIN}\n{command.table()}\n{command.END}" in page


def test_a_result_without_the_rows_of_a_claim_is_an_error():
    claim = replace(claims.CLAIMS[0], value=claims.one("ratio", n=-1))
    with pytest.raises(ValueError, match=r"eigh\.json has no row"):
        claim.row()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU could measure it")
def test_rows_of_a_gpu_are_refused_without_one():
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        command.chosen(["eigh_gpu"])
    assert not any(
        claim.gpu and claim.command in command.chosen([])
        for claim in claims.CLAIMS
        if claim.result == "eigh_gpu"
    )


def test_what_fits_takes_less_than_twenty_minutes():
    minutes = {claim.command: claim.minutes for claim in claims.CLAIMS}
    assert 0 < sum(minutes[chosen] for chosen in command.chosen([])) <= 20


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("open(OUT, 'w').write(NEW)", r"measured in"),
        ("open(OUT, 'w').write(OTHER)", r"not measured: .* has no row"),
        (
            "open(OUT, 'w').write(NEW); raise SystemExit('no such data')",
            r"not measured: failed, no such data",
        ),
        ("open(OUT, 'w').write(NEW); import time; time.sleep(60)", r"not measured: not finished within"),
    ],
)
def test_a_run_that_fails_leaves_the_result_as_it_was(tmp_path, monkeypatch, script, outcome):
    form = '{{"date": "{}", "machine": {{"threads": "1", "processor": "p"}}, "rows": [{{"{}": 2.0}}]}}'
    old, new, other = form.format("old", "ratio"), form.format("new", "ratio"), form.format("new", "other")
    out = tmp_path / "made.json"
    out.write_text(old)
    (tmp_path / "made.py").write_text(f"OUT, NEW, OTHER = {str(out)!r}, {new!r}, {other!r}\n{script}\n")
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "SCRIPTS", tmp_path)
    claim = claims.Claim("a task", "another", "made", claims.spread("ratio"), "made.py", 1)
    monkeypatch.setattr(command, "CLAIMS", (claim,))
    assert re.match(outcome, command.measure("made.py", 5))
    assert out.read_text() == (new if outcome == "measured in" else old)
    out.unlink()
    assert re.match(outcome, command.measure("made.py", 5))
    assert out.exists() == (outcome == "measured in")
