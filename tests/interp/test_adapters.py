"""Laws of low-rank adapters: the factored form is the update that is added to the weight."""

import json

import pytest
import torch
from safetensors.torch import save_file

import interp
import weightspace


def factors(rows=6, columns=6, rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)


@pytest.mark.parametrize("kind", ["peft", "peft default", "kohya", "diffusers"])
def test_names_of_several_libraries(kind):
    a, b = factors()
    down, up = {
        "peft": ("lora_A.weight", "lora_B.weight"),
        "peft default": ("lora_A.default.weight", "lora_B.default.weight"),
        "kohya": ("lora_down.weight", "lora_up.weight"),
        "diffusers": ("lora.down.weight", "lora.up.weight"),
    }[kind]
    tensors = {f"model.q_proj.{down}": a, f"model.q_proj.{up}": b}
    if kind == "kohya":
        tensors["model.q_proj.alpha"] = torch.tensor(4.0)
    (adapter,) = interp.find_adapters(tensors)
    scale = 2.0 if kind == "kohya" else 1.0
    assert (adapter.name, adapter.scale) == ("model.q_proj", scale)
    torch.testing.assert_close(adapter.update.matrix(), (scale * b @ a).double(), rtol=1e-6, atol=1e-6)
    (other,) = interp.find_adapters(tensors, scale=0.5)
    torch.testing.assert_close(other.update.matrix(), (0.5 * b @ a).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8}, 4.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"q_proj": 2}}, 1.0),
        ({}, 1.0),
    ],
)
def test_the_scale_stands_in_the_configuration(config, scale, tmp_path):
    a, b = factors()
    save_file(
        {"base.q_proj.lora_A.weight": a, "base.q_proj.lora_B.weight": b},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for source in (tmp_path, tmp_path / "adapter_model.safetensors"):
        (adapter,) = interp.find_adapters(source)
        assert adapter.scale == pytest.approx(scale)
        singular = torch.linalg.svdvals((scale * b @ a).double())[:2]
        torch.testing.assert_close(adapter.update.svd()[1], singular, rtol=1e-6, atol=0)


def test_the_spectrum_of_an_update_is_that_of_its_matrix():
    a, b = factors(20, 20, 3)
    (adapter,) = interp.find_adapters({"x.lora_A.weight": a, "x.lora_B.weight": b})
    update = (b @ a).double()
    expected = torch.linalg.eigvalsh((update + update.T) / 2)
    got = adapter.update.decompose().values[0].double()
    torch.testing.assert_close(got.sort().values, expected[expected.abs() > 1e-4], rtol=1e-4, atol=1e-5)


def test_refusals(tmp_path):
    a, b = factors()
    with pytest.raises(weightspace.ArchitectureError, match="no low-rank factors"):
        interp.find_adapters({"weight": a})
    with pytest.raises(weightspace.ArchitectureError, match=r"no 'x.lora_B.weight'"):
        interp.find_adapters({"x.lora_A.weight": a})
    with pytest.raises(weightspace.ShapeError, match=r"\(6, 3\)"):
        interp.find_adapters({"x.lora_A.weight": a, "x.lora_B.weight": torch.zeros(6, 3)})
    with pytest.raises(weightspace.ShapeError, match="convolutions"):
        interp.find_adapters({"x.lora_A.weight": torch.zeros(2, 3, 3, 3), "x.lora_B.weight": b})
    with pytest.raises(weightspace.NonFiniteError, match="lora_B"):
        interp.find_adapters({"x.lora_A.weight": a, "x.lora_B.weight": b * torch.nan})
    with pytest.raises(weightspace.ArchitectureError, match="adapter_model"):
        interp.find_adapters(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    save_file({"x.lora_A.weight": a, "x.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(weightspace.ArchitectureError, match="no JSON"):
        interp.find_adapters(tmp_path)
