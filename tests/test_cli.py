"""The command line as a user meets it: exit codes, one line per error, JSON, files written whole or not at all."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from weightspace.checkpoint import write_safetensors
from weightspace.cli import COMMANDS, main
from weightspace.reading import read


@pytest.fixture
def weightspace(monkeypatch, capsys):
    """Return a function that runs the command line in this process, as `weightspace ARGUMENTS...`."""

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["weightspace", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=stop.value.code, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture
def fails(weightspace):
    """Return a function that runs a command, expects exit code 2 and one line on standard error, and returns it."""

    def run(*arguments: object) -> str:
        result = weightspace(*arguments)
        assert result.returncode == 2, result.stderr
        assert result.stdout == ""
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("weightspace: error: ")
        return line

    return run


def mlp(seed: int, *sizes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return {f"{i}.{k}": t.detach() for i, layer in enumerate(layers) for k, t in layer.state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "mlp.safetensors"
    write_safetensors(path, mlp(0, 4, 6, 3))
    return path


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from weightspace.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'certify', 'interp', 'weightspace.commands'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    assert "HEAVY []" in result.stdout
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(weightspace, name):
    result = weightspace(name, "--help")
    assert result.returncode == 0, result.stderr
    assert "--json" in result.stdout


def test_version_lists_torch_devices_and_backends(weightspace):
    text = weightspace("--version").stdout
    assert f"torch {torch.__version__}" in text
    assert "devices: cpu" in text
    assert "eigensolver backends: " in text


def test_unknown_command_and_option(fails):
    assert "bogus" in fails("bogus")
    assert "--nope" in fails("inspect", "--nope", "x")
    assert "FILE" in fails("inspect")


def test_inspect(weightspace, checkpoint):
    table = weightspace("inspect", checkpoint)
    assert table.returncode == 0
    assert "0.weight" in table.stdout
    data = json.loads(weightspace("inspect", checkpoint, "--json").stdout)
    assert [row["name"] for row in data["tensors"]] == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_align_and_diff(weightspace, checkpoint, tmp_path):
    order = torch.randperm(6)
    tensors = mlp(0, 4, 6, 3)
    for name in ("0.weight", "0.bias"):
        tensors[name] = tensors[name][order]
    tensors["1.weight"] = tensors["1.weight"][:, order]
    shuffled, aligned = tmp_path / "shuffled.safetensors", tmp_path / "aligned.safetensors"
    write_safetensors(shuffled, tensors)
    difference = json.loads(weightspace("diff", checkpoint, shuffled, "--json").stdout)
    assert difference["equal"] is False
    assert difference["modulo_permutation"]["same_network"] is True
    result = weightspace("align", checkpoint, shuffled, "-o", aligned, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["same_network"] is True
    assert all(torch.equal(t, read(checkpoint).parameters[k]) for k, t in read(aligned).parameters.items())
    assert json.loads(weightspace("diff", checkpoint, aligned, "--json").stdout)["equal"] is True


def test_graph(weightspace, checkpoint, tmp_path):
    result = weightspace("graph", checkpoint, "-o", tmp_path / "g.json", "--json")
    assert json.loads(result.stdout)["edges"] == 42
    assert json.loads((tmp_path / "g.json").read_text())["layer_sizes"] == [4, 6, 3]


def test_certify_and_check(weightspace, checkpoint, tmp_path):
    certificate = tmp_path / "c.json"
    result = weightspace("certify", checkpoint, "-o", certificate, "--json")
    assert result.returncode == 0, result.stderr
    json.loads(result.stdout)
    assert weightspace("certify", checkpoint, "--max-lipschitz", 1e-3).returncode == 1
    assert weightspace("certify", checkpoint, "--max-lipschitz", 1e3).returncode == 0
    assert weightspace("check", certificate, checkpoint).returncode == 0
    other = tmp_path / "other.safetensors"
    write_safetensors(other, mlp(1, 4, 6, 3))
    assert weightspace("check", certificate, other).returncode == 1


def test_decompose(weightspace, tmp_path):
    from weightspace.layers import BilinearMLP
    from weightspace.tracing import trace

    torch.manual_seed(0)
    trace(BilinearMLP(9, 6, 3), torch.zeros(2, 9)).save(tmp_path / "b.safetensors")
    result = weightspace("decompose", tmp_path / "b.safetensors", "-o", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    json.loads(result.stdout)
    assert (tmp_path / "out" / "decomposition.json").exists()


# ---- bad input: one clear line, exit code 2, nothing written -----------------------------------------------


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_missing_file(fails, tmp_path):
    assert "nowhere.safetensors" in fails("inspect", tmp_path / "nowhere.safetensors")


def test_truncated_safetensors(fails, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-8])
    for command in (("inspect", checkpoint), ("report", checkpoint, "-o", checkpoint.parent / "r")):
        assert "mlp.safetensors" in fails(*command)


def test_pickle_that_would_execute_code(fails, tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Attack(tmp_path / "owned")))
    assert "evil.pt" in fails("inspect", tmp_path / "evil.pt")
    torch.save({"w": torch.ones(2), "x": Attack(tmp_path / "owned")}, tmp_path / "evil2.pt")
    assert "evil2.pt" in fails("certify", tmp_path / "evil2.pt")
    assert not (tmp_path / "owned").exists()


def test_pt2_with_a_pickled_payload(fails, tmp_path):
    import zipfile

    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),)), tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as old, zipfile.ZipFile(tmp_path / "p.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"use_pickle": false', b'"use_pickle": true'))
    assert "is a pickle" in fails("inspect", tmp_path / "p.pt2")


def test_nan_weights(weightspace, fails, tmp_path):
    tensors = mlp(0, 4, 6, 3)
    tensors["0.weight"][1, 2] = torch.nan
    path = tmp_path / "nan.safetensors"
    write_safetensors(path, tensors)
    assert "'0.weight'" in fails("certify", path)
    assert "'0.weight'" in fails("align", path, path, "-o", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    assert weightspace("inspect", path).returncode == 0


def test_unsupported_onnx_operation(fails, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2, None])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    assert "NonZero" in fails("certify", tmp_path / "m.onnx")


def test_mismatching_shapes_in_align(fails, checkpoint, tmp_path):
    other = tmp_path / "other.safetensors"
    write_safetensors(other, mlp(0, 4, 7, 3))
    line = fails("align", checkpoint, other, "-o", tmp_path / "out.safetensors")
    assert "(6," in line
    assert "(7," in line
    assert not (tmp_path / "out.safetensors").exists()


def test_unwritable_output(fails, checkpoint, tmp_path):
    for arguments in (
        ("report", checkpoint, "-o", tmp_path / "missing" / "folder"),
        ("align", checkpoint, checkpoint, "-o", tmp_path / "missing" / "a.safetensors"),
        ("certify", checkpoint, "-o", tmp_path / "missing" / "c.json"),
        ("graph", checkpoint, "-o", tmp_path / "missing" / "g.json"),
    ):
        assert "missing" in fails(*arguments)
    (tmp_path / "file").write_text("")
    assert "file" in fails("report", checkpoint, "-o", tmp_path / "file")


def test_align_refuses_another_suffix(fails, checkpoint, tmp_path):
    assert "name the file so" in fails("align", checkpoint, checkpoint, "-o", tmp_path / "out.pt")


def test_align_does_not_overwrite_its_inputs(fails, checkpoint, tmp_path):
    assert "overwrite" in fails("align", checkpoint, checkpoint, "-o", checkpoint)


def test_architecture_that_fails(fails, checkpoint, tmp_path):
    (tmp_path / "a.py").write_text("def boom():\n    raise KeyError('x')\n")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    assert "boom failed: KeyError" in fails("certify", checkpoint, "--architecture", f"{tmp_path}/a.py:boom")
    assert "not a text file" in fails("certify", checkpoint, "--architecture", tmp_path / "a.json")


@pytest.mark.parametrize(
    ("x", "y"),
    [((0, 4), torch.zeros(0, dtype=torch.int64)), ((), torch.tensor(1)), ((5, 4), torch.zeros(5, 3)),
     ((5, 4), torch.full((5,), -1)), ((5, 4), torch.zeros(4, dtype=torch.int64))],
)  # fmt: skip
def test_data_that_is_no_labeled_data(fails, checkpoint, tmp_path, x, y):
    import numpy

    numpy.savez(tmp_path / "d.npz", x=numpy.zeros(x), y=y.numpy())
    line = fails("report", checkpoint, checkpoint, "-o", tmp_path / "r", "--data", tmp_path / "d.npz")
    assert "--data needs" in line
    assert not (tmp_path / "r").exists()


def test_report_leaves_nothing_when_it_fails(fails, tmp_path):
    fails("report", tmp_path / "missing.pt", "-o", tmp_path / "r")
    assert not (tmp_path / "r").exists()
