"""`weightspace decompose`: what it writes and how it fails."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import interp
import weightspace
from interp.cli import app
from weightspace.layers import BilinearMLP

runner = CliRunner()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BilinearMLP(16, 5, 3, residual=True)


@pytest.fixture
def file(model, tmp_path):
    weightspace.trace(model, torch.zeros(2, 16)).save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_writes_numbers_vectors_and_picture(model, file, tmp_path):
    out = tmp_path / "new" / "folder"
    result = runner.invoke(app, [str(file), "-o", str(out), "--top", "4", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.output)
    expected = interp.decompose(model, top=4)
    stored = json.loads((out / "decomposition.json").read_text())
    assert stored["values"] == printed["values"] == expected.values.tolist()
    assert stored["clusters"] == [[list(c) for c in clusters] for clusters in expected.clusters]
    assert stored["effective_rank"] == expected.effective_rank.tolist()
    assert torch.equal(load_file(out / "vectors.safetensors")["vectors"], expected.vectors)
    names = {"decomposition.json", "vectors.safetensors"}
    if find_spec("matplotlib"):
        names.add("eigenvectors.png")
    assert {path.name for path in out.iterdir()} == names


def test_text_and_architecture(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "state.pt")
    (tmp_path / "build.py").write_text(
        "from weightspace.layers import BilinearMLP\n\n"
        "def build():\n    return BilinearMLP(16, 5, 3, residual=True)\n"
    )
    arguments = [str(tmp_path / "state.pt"), "-o", str(tmp_path / "out")]
    result = runner.invoke(
        app, [*arguments, "--architecture", f"{tmp_path / 'build.py'}:build"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "Decomposition(3 directions" in result.output
    assert "wrote" in result.output


def test_errors_propagate(file, tmp_path):
    result = runner.invoke(app, [str(tmp_path / "missing.safetensors"), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, weightspace.CheckpointError)
    result = runner.invoke(app, [str(file), "-o", str(file)])
    assert isinstance(result.exception, weightspace.OutputError)
    weightspace.trace(BilinearMLP(4, 3, 2, layers=2), torch.zeros(2, 4)).save(tmp_path / "deep.safetensors")
    result = runner.invoke(app, [str(tmp_path / "deep.safetensors"), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, weightspace.UnsupportedOperationError)
    assert not (tmp_path / "out").exists()


# ---- one layer of a larger network ---------------------------------------------------------------------------


@pytest.fixture
def gated(tmp_path):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(6)
            self.gate, self.up, self.down = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)

        def forward(self, x):
            h = self.norm(x)
            return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))

    torch.manual_seed(0)
    network = weightspace.trace(Gated(), torch.zeros(2, 6))
    network.save(tmp_path / "gated.safetensors")
    x = torch.randn(300, 6)
    save_file({"x": x}, tmp_path / "x.safetensors")
    return tmp_path, network, x


def test_one_gated_layer_with_data(gated):
    folder, network, x = gated
    (site,) = interp.find_sites(network)
    arguments = [str(folder / "gated.safetensors"), "-o", str(folder / "out"), "--layer", site.name]
    result = runner.invoke(
        app, [*arguments, "--data", str(folder / "x.safetensors"), "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0
    printed = json.loads(result.output)
    expected = interp.decompose(site.network, data=site.activations(network, x))
    assert printed["residual"] == pytest.approx(expected.residual)
    assert 0 < printed["residual"] < 1
    torch.testing.assert_close(torch.tensor(printed["values"]), expected.values)


def test_errors_name_the_layers_and_the_remedy(gated):
    folder, network, _ = gated
    (site,) = interp.find_sites(network)
    arguments = [str(folder / "gated.safetensors"), "-o", str(folder / "out")]
    with pytest.raises(
        weightspace.UnsupportedOperationError, match=rf"LayerNorm.*--layer.*{site.name} \(SiLU\)"
    ):
        runner.invoke(app, arguments, catch_exceptions=False)
    with pytest.raises(weightspace.ArchitectureError, match=f"'nothing'; there are {site.name}"):
        runner.invoke(app, [*arguments, "--layer", "nothing"], catch_exceptions=False)
    with pytest.raises(weightspace.UnsupportedOperationError, match=r"gated by SiLU.*--data"):
        runner.invoke(app, [*arguments, "--layer", site.name], catch_exceptions=False)
    two = folder / "two.safetensors"
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, two)
    with pytest.raises(weightspace.CheckpointError, match=r"one tensor.*has 2"):
        runner.invoke(app, [*arguments, "--layer", site.name, "--data", str(two)], catch_exceptions=False)
    assert not (folder / "out").exists()
