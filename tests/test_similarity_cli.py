"""`weightspace diff` and `weightspace similarity` as a user meets them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from weightspace.bundled import load, path
from weightspace.cli import main
from weightspace.permutation import permute, random_permutations
from weightspace.verification import symmetry


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the command line in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["weightspace", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=stop.value.code, stdout=captured.out, stderr=captured.err)

    return call


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    original = load("digits_mlp_a")
    spec = symmetry(original)
    moved = permute(original, spec, random_permutations(spec, torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(0)
    touched = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) * (tensor > 0)
        for name, tensor in moved.parameters.items()
    }
    networks = {"moved": moved, "tuned": moved.replace_parameters(touched)}
    for name, network in networks.items():
        network.save(folder / f"{name}.safetensors")
    return [
        path("digits_mlp_a"),
        *(folder / f"{name}.safetensors" for name in networks),
        path("digits_mlp_b"),
    ]


def test_diff_grades_what_it_sees(run, files):
    original, moved, tuned, other = files
    expected = {
        original: "identical",
        moved: "the same network in another neuron order",
        tuned: "derived: one was trained on from the other, or both from a common ancestor",
        other: "independent as far as the weights tell",
    }
    for second, kinship in expected.items():
        done = run("diff", original, second, "--json")
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout)
        assert data["provenance"]["kinship"] == kinship
        assert data["equal"] == (second == original)
        assert data["modulo_permutation"]["same_network"] == (second in (original, moved))
        for row in data["tensors"]:
            assert 0 <= row["gap_modulo_permutation"] <= 1
        if second == moved:
            assert all(row["gap_modulo_permutation"] == 0 for row in data["tensors"])
    text = run("diff", original, tuned).stdout
    assert "provenance: derived" in text
    assert "not analyzed: --raw" in run("diff", "--raw", original, tuned).stdout


def test_diff_lists_missing_added_and_reshaped(run, tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"w": torch.ones(2, 3), "old": torch.ones(1), "x": torch.ones(4)}, a)
    save_file({"w": torch.ones(3, 2), "new": torch.ones(1), "x": torch.ones(4)}, b)
    data = json.loads(run("diff", a, b, "--json").stdout)
    assert (data["only_a"], data["only_b"]) == (["old"], ["new"])
    assert data["reshaped"] == [["w", [2, 3], [3, 2]]]
    assert [row["name"] for row in data["tensors"]] == ["x"]
    assert "not_analyzed" in data["modulo_permutation"]
    text = run("diff", a, b).stdout
    assert all(line in text for line in ("old: only in A", "new: only in B", "w: (2, 3) in A, (3, 2) in B"))


def test_similarity_of_many(run, files, tmp_path):
    done = run("similarity", *files, "-o", tmp_path / "report", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["families"] == [0, 0, 0, 3]
    assert data["distances"][0][1] == 0 < data["distances"][0][2] < data["distances"][0][3]
    assert data["canonical_hashes"][0] == data["canonical_hashes"][1] != data["canonical_hashes"][2]
    assert len(data["lineage"]["edges"]) == 2
    page = Path(data["page"]).read_text()
    assert page.count("data:image/svg+xml") == 2
    assert "moved.safetensors" in page
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert stored["similarity"]["families"] == data["families"]
    text = run("similarity", *files).stdout
    assert "one network up to neuron order: digits_mlp_a.safetensors, moved.safetensors" in text
    assert "descent" in text


def test_similarity_of_equal_files(run, files, tmp_path):
    (tmp_path / "copy.safetensors").write_bytes(Path(files[0]).read_bytes())
    text = run("similarity", files[0], tmp_path / "copy.safetensors").stdout
    assert "who came first cannot be told" in text
    assert "edges agree" not in text


def test_similarity_names_the_file_that_does_not_fit(run, files, tmp_path):
    for arguments, reason in [
        ((files[0], path("digits_resnet")), "digits_resnet.safetensors: the networks differ"),
        ((files[0],), "two networks or more"),
        ((files[0], files[0]), "named 2 times"),
        ((files[0], tmp_path / "none.safetensors"), "no such file"),
    ]:
        done = run("similarity", *arguments)
        assert done.returncode == 2
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
