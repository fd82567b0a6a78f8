"""Folders written by transformers compute, once read, what transformers computes."""

import json

import pytest
import torch

from weightspace.errors import ArchitectureError, CheckpointError
from weightspace.huggingface import read_huggingface

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")

GPT2 = {"vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
LLAMA = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
VIT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}


def build(kind, seed=0, **options):
    """Return a tiny random transformers model; weights spread out so that every part matters."""
    torch.manual_seed(seed)
    config, defaults = {
        "GPT2": (transformers.GPT2Config, GPT2 | SPECIAL),
        "Llama": (transformers.LlamaConfig, LLAMA | SPECIAL),
        "ViT": (transformers.ViTConfig, VIT),
    }[next(name for name in ("GPT2", "Llama", "ViT") if kind.startswith(name))]
    model = getattr(transformers, kind)(config(**defaults | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def assert_same(model, network, tolerance=2e-6):
    images = "ViT" in type(model).__name__
    module = network.to_module()
    for batch in (1, 3):
        x = (
            torch.randn(batch, 3, 8, 8)
            if images
            else torch.randint(0, 50, (batch, network.inputs[0].shape[1]))
        )
        with torch.no_grad():
            expected, found = model(x)[0], module(x)
        found = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


CASES = [
    ("GPT2LMHeadModel", {}),
    ("GPT2LMHeadModel", {"tie_word_embeddings": False}),
    (
        "GPT2LMHeadModel",
        {"scale_attn_by_inverse_layer_idx": True, "n_inner": 20, "activation_function": "relu"},
    ),
    ("GPT2LMHeadModel", {"scale_attn_weights": False, "activation_function": "gelu", "n_positions": 5}),
    ("GPT2Model", {"layer_norm_epsilon": 1e-3, "activation_function": "silu"}),
    ("LlamaForCausalLM", {}),
    ("LlamaForCausalLM", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("LlamaForCausalLM", {"num_key_value_heads": 1, "head_dim": 6, "attention_bias": True, "mlp_bias": True}),
    (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3},
    ),
    ("LlamaModel", {"hidden_act": "gelu"}),
    ("ViTForImageClassification", {"num_labels": 7}),
    ("ViTForImageClassification", {"qkv_bias": False, "hidden_act": "relu", "patch_size": 2}),
    ("ViTModel", {}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: str(value)[:60])
def test_read_model_computes_the_same(kind, options, tmp_path):
    model = build(kind, **options)
    model.save_pretrained(tmp_path)
    network = read_huggingface(tmp_path)
    assert not network.opaque
    assert_same(model, network)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM", "ViTForImageClassification"])
def test_parameters_keep_the_names_of_the_checkpoint(kind, tmp_path):
    from weightspace.checkpoint import open_checkpoint

    build(kind).save_pretrained(tmp_path)
    network = read_huggingface(tmp_path)
    stored = open_checkpoint(tmp_path).state_dict()
    trained = {name: tensor for name, tensor in network.parameters.items() if name not in network.buffers}
    assert trained.keys() == stored.keys()
    assert all(torch.equal(trained[name], stored[name]) for name in stored)


def test_operations_come_out_typed(tmp_path):
    build("LlamaForCausalLM", num_key_value_heads=2).save_pretrained(tmp_path)
    kinds = [node.operation.kind for node in read_huggingface(tmp_path).nodes]
    assert (kinds.count("RMSNorm"), kinds.count("Attention"), kinds.count("SiLU")) == (5, 2, 2)


def test_tied_head_is_one_parameter_with_two_names(tmp_path):
    build("GPT2LMHeadModel").save_pretrained(tmp_path)
    network = read_huggingface(tmp_path)
    assert network.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert "lm_head.weight" not in network.parameters


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_shards_are_joined(kind, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(model, read_huggingface(tmp_path))


def test_bare_names_and_mask_buffers_of_the_first_gpt2_files(tmp_path):
    from safetensors.torch import load_file, save_file

    model = build("GPT2LMHeadModel")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    save_file(tensors, file)
    network = read_huggingface(tmp_path)
    assert "wte.weight" in network.parameters
    assert_same(model, network)


def test_old_place_of_the_rotary_base(tmp_path):
    model = build("LlamaForCausalLM", rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    model.save_pretrained(tmp_path)
    edit(tmp_path, rope_parameters=None, rope_theta=77.0, rope_scaling=None)
    assert_same(model, read_huggingface(tmp_path))


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "ViTForImageClassification"])
def test_half_precision_is_kept(kind, tmp_path):
    build(kind).to(torch.bfloat16).save_pretrained(tmp_path)
    network = read_huggingface(tmp_path)
    assert network.node(network.outputs[0]).dtype == "bfloat16"


def edit(folder, **entries):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


REFUSED = [
    ("LlamaForCausalLM", {"model_type": "mamba"}, "model_type 'mamba'"),
    ("LlamaForCausalLM", {"model_type": None}, "model_type None"),
    ("LlamaForCausalLM", {"hidden_size": None}, "'hidden_size' is missing"),
    ("LlamaForCausalLM", {"hidden_size": "16"}, "'hidden_size' must be a positive integer, not '16'"),
    ("LlamaForCausalLM", {"num_hidden_layers": 1}, r"layers\.1\."),
    ("LlamaForCausalLM", {"num_hidden_layers": 3}, r"misses model\.layers\.2\."),
    ("LlamaForCausalLM", {"num_hidden_layers": 10**9}, "1000000000 layers"),
    ("LlamaForCausalLM", {"intermediate_size": 25}, r"gate_proj\.weight has shape \(24, 16\)"),
    ("LlamaForCausalLM", {"hidden_act": "tanhshrink"}, "hidden_act 'tanhshrink'"),
    ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "yarn"}}, "'yarn' is not supported"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "linear"}}, "rope_scaling of type 'linear'"),
    ("LlamaForCausalLM", {"num_key_value_heads": 3}, "not divisible by num_key_value_heads 3"),
    ("GPT2LMHeadModel", {"n_head": 3}, "n_embd 16 is not divisible by n_head 3"),
    ("GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention True"),
    ("ViTForImageClassification", {"patch_size": 3}, "has shape"),
]


@pytest.mark.parametrize(("kind", "entries", "reason"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_does_not_fit_is_refused_by_name(kind, entries, reason, tmp_path):
    build(kind).save_pretrained(tmp_path)
    edit(tmp_path, **entries)
    with pytest.raises(ArchitectureError, match=reason) as caught:
        read_huggingface(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        read_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not readable as JSON"):
        read_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_huggingface(tmp_path)


def test_untied_checkpoint_without_its_head_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    build("LlamaForCausalLM").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if name != "lm_head.weight"}, file)
    with pytest.raises(ArchitectureError, match=r"misses lm_head\.weight"):
        read_huggingface(tmp_path)
