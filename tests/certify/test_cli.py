"""The commands `certify` and `check`: what they print and how they exit."""

import json

import pytest
import torch
from typer.testing import CliRunner

from certify.cli import app
from weightspace.errors import WeightspaceError


@pytest.fixture
def network_file(build, he, tmp_path):
    path = tmp_path / "network.npz"
    build(he([3, 4, 2]), dtype=torch.float32).save_npz(path)
    return path


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(result.exception, WeightspaceError):
        return 2, str(result.exception)
    return result.exit_code, result.stdout


@pytest.mark.parametrize("method", ["auto", "lipsdp", "closed-form", "norm-product"])
def test_certify_then_check(network_file, tmp_path, method):
    out = tmp_path / "certificate.json"
    code, text = run("certify", network_file, "--method", method, "-o", out, "--json")
    answer = json.loads(text)
    assert code == 0
    assert answer["certified"] is True
    assert answer["sampled_lower_bound"] <= answer["upper_bound"]
    assert run("certify", network_file, "--method", method, "--max-lipschitz", answer["upper_bound"])[0] == 0
    code, text = run(
        "certify", network_file, "--method", method, "--max-lipschitz", answer["upper_bound"] * 0.5
    )
    assert code == 1
    assert "NOT certified" in text
    code, text = run("check", out, network_file, "--exact", "--json")
    assert code == 0
    assert json.loads(text)["valid"] is True
    edited = out.read_text().replace('"l2"', '"linf"', 1)
    out.write_text(edited)
    code, text = run("check", out, network_file)
    assert code == 1
    assert "INVALID" in text
    out.write_text("{")
    assert run("check", out, network_file)[0] == 2
    assert run("check", tmp_path / "none.json", network_file)[0] == 2


def test_flags(network_file):
    assert run("certify", network_file, "--norm", "linf")[0] == 0
    assert run("certify", network_file, "--output", "0,1", "--multipliers", "layer")[0] == 0
    assert run("certify", network_file, "--solver", "SCS")[0] == 0
    for wrong in (
        ("--output", "a"), ("--output", "7"), ("--output", "0,1,1"), ("--solver", "NONE"),
        ("--norm", "linf", "--method", "closed-form"), ("--cut", "9"),
            ("--cut", "x"), ("--arithmetic", "float32"), ("--box", "missing.json"),
        ("--method", "norm-product", "--solver", "SCS"),
        ("--max-lipschitz", "nan"), ("--max-lipschitz", "-1"),
    ):  # fmt: skip
        code, text = run("certify", network_file, *wrong)
        assert code == 2, wrong
        assert "\n" not in text.strip(), wrong
