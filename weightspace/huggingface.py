"""Read a folder as Hugging Face writes it: `config.json` beside safetensors, for GPT-2, Llama and ViT."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoint import open_checkpoint
from weightspace.errors import ArchitectureError, CheckpointError, WeightspaceError
from weightspace.huggingface_models import ACTIVATIONS, GPT2, Dense, Llama, ViT, WithHead
from weightspace.network import Network
from weightspace.tracing import trace

_LONGEST_EXAMPLE = 16
# Buffers of older checkpoints that are no weights: causal masks and rotary frequencies.
_NO_WEIGHTS = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")
_PREFIXES = {"gpt2": "transformer", "llama": "model", "vit": "vit"}


def read_huggingface(folder: str | Path) -> Network:
    """Read a Hugging Face model folder as a `Network`.

    Language models take token ids (batch, time) with a fixed time, stated in the metadata; ViT takes images.
    The output is that of the language-model head or the image classifier when the folder has one, otherwise
    the hidden states (for ViT with a pooler also its output).

    Args:
        folder: holds `config.json` and safetensors, sharded or not.
    Raises:
        CheckpointError: a file is missing or broken.
        ArchitectureError: another model type, an option that is not supported, missing or unexpected tensors.
    """
    folder = Path(folder)
    config = _Config(folder)
    try:
        return _read(folder, config)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        if isinstance(error, WeightspaceError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ArchitectureError(f"{config.path}: describes no model of these weights ({reason})") from error


def _read(folder: Path, config: _Config) -> Network:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _BUILDERS:
        raise ArchitectureError(
            f"{folder}: model_type {kind!r} is not one of {', '.join(_BUILDERS)}; "
            "build the model yourself and pass it as architecture="
        )
    checkpoint = open_checkpoint(folder)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names if not _NO_WEIGHTS.search(name)}
    layers = config.positive("n_layer" if kind == "gpt2" else "num_hidden_layers")
    if layers > len(tensors):
        raise ArchitectureError(
            f"{folder}: config.json says {layers} layers, the checkpoint has {len(tensors)} tensors"
        )
    prefix = _PREFIXES[kind] if any(name.startswith(f"{_PREFIXES[kind]}.") for name in tensors) else ""
    with torch.device("meta"):
        encoder, example, note = _BUILDERS[kind](config)
        module = WithHead(encoder, prefix, _heads(kind, config, tensors, prefix))
    _load(module, tensors, folder, tied=_tied(module, config, tensors, prefix))
    dtype = next(module.parameters()).dtype if example.is_floating_point() else example.dtype
    example = torch.zeros(example.shape, dtype=dtype)  # the sizes are now known to be those of the weights
    network = trace(module, example)
    metadata = {"format": f"huggingface {kind}", "input": note}
    return dataclasses.replace(network, metadata={**network.metadata, **metadata})


class _Config:
    """The entries of `config.json`; what is missing or of another kind is refused by name."""

    def __init__(self, folder: Path):
        self.path = folder / "config.json"
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.path}: no such file; a model folder needs its config.json"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: not readable as JSON ({type(error).__name__})") from error
        if not isinstance(entries, dict):
            raise CheckpointError(f"{self.path}: holds a {type(entries).__name__}, not a JSON object")
        self.entries = entries

    def get(self, name: str, default: Any = None) -> Any:
        value = self.entries.get(name, default)
        return default if value is None else value

    def positive(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if value is None:
            raise ArchitectureError(
                f"{self.path}: {name!r} is missing; copy the complete config.json of the model"
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise ArchitectureError(f"{self.path}: {name!r} must be a positive integer, not {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise ArchitectureError(f"{self.path}: {name!r} must be a finite number, not {value!r}")
        return float(value)

    def pair(self, name: str) -> tuple[int, int]:
        value = self.get(name)
        if isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 2**31 for n in value):
            return value[0], value[1]
        return self.positive(name), self.positive(name)

    def activation(self, name: str, default: str) -> str:
        value = self.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ArchitectureError(f"{self.path}: {name} {value!r} is not one of {', '.join(ACTIVATIONS)}")
        return value

    def refuse(self, name: str, expected: Any) -> None:
        value = self.get(name, expected)
        if value != expected:
            raise ArchitectureError(f"{self.path}: {name} {value!r} is not supported, only {expected!r}")

    def divides(self, part: str, whole: str, parts: int, size: int) -> None:
        if size % parts:
            raise ArchitectureError(f"{self.path}: {whole} {size} is not divisible by {part} {parts}")


# ---- one builder per family ------------------------------------------------------------------------------


def _tokens(limit: int) -> tuple[Tensor, str]:
    time = min(limit, _LONGEST_EXAMPLE)
    return torch.zeros(2, time, dtype=torch.int64), f"token ids (batch, {time})"


def _gpt2(config: _Config) -> tuple[nn.Module, Tensor, str]:
    width, heads = config.positive("n_embd"), config.positive("n_head")
    config.divides("n_head", "n_embd", heads, width)
    config.refuse("add_cross_attention", False)
    positions = config.positive("n_positions")
    module = GPT2(
        vocabulary=config.positive("vocab_size"),
        positions=positions,
        width=width,
        layers=config.positive("n_layer"),
        heads=heads,
        inner=config.positive("n_inner", 4 * width),
        activation=config.activation("activation_function", "gelu_new"),
        epsilon=config.number("layer_norm_epsilon", 1e-5),
        scaled=bool(config.get("scale_attn_weights", True)),
        scaled_by_depth=bool(config.get("scale_attn_by_inverse_layer_idx", False)),
    )
    return module, *_tokens(positions)


def _llama(config: _Config) -> tuple[nn.Module, Tensor, str]:
    width, heads = config.positive("hidden_size"), config.positive("num_attention_heads")
    shared = config.positive("num_key_value_heads", heads)
    config.divides("num_key_value_heads", "num_attention_heads", shared, heads)
    if config.get("head_dim") is None:
        config.divides("num_attention_heads", "hidden_size", heads, width)
    head_width = config.positive("head_dim", max(width // heads, 1))
    if head_width % 2:
        raise ArchitectureError(f"{config.path}: rotary positions need an even head_dim, not {head_width}")
    module = Llama(
        vocabulary=config.positive("vocab_size"),
        layers=config.positive("num_hidden_layers"),
        theta=_rotary_base(config),
        width=width,
        heads=heads,
        shared_heads=shared,
        head_width=head_width,
        inner=config.positive("intermediate_size"),
        activation=config.activation("hidden_act", "silu"),
        epsilon=config.number("rms_norm_eps", 1e-6),
        attention_bias=bool(config.get("attention_bias", False)),
        perceptron_bias=bool(config.get("mlp_bias", False)),
    )
    return module, *_tokens(config.positive("max_position_embeddings", 2048))


def _rotary_base(config: _Config) -> float:
    """Return theta; older files keep it at the top, newer ones among `rope_parameters`."""
    base = config.number("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        entries = config.get(name, {})
        if not isinstance(entries, Mapping):
            raise ArchitectureError(f"{config.path}: {name} must be an object, not {entries!r}")
        kind = entries.get("rope_type", entries.get("type", "default"))
        if kind != "default":
            raise ArchitectureError(
                f"{config.path}: {name} of type {kind!r} is not supported, only 'default'"
            )
        if float(entries.get("partial_rotary_factor", 1.0)) != 1.0:
            raise ArchitectureError(
                f"{config.path}: {name} with partial_rotary_factor below 1 is not supported"
            )
        base = float(entries.get("rope_theta", base))
    return base


def _vit(config: _Config) -> tuple[nn.Module, Tensor, str]:
    width, heads = config.positive("hidden_size"), config.positive("num_attention_heads")
    config.divides("num_attention_heads", "hidden_size", heads, width)
    image, patch, channels = (
        config.pair("image_size"),
        config.pair("patch_size"),
        config.positive("num_channels", 3),
    )
    module = ViT(
        width=width,
        layers=config.positive("num_hidden_layers"),
        heads=heads,
        inner=config.positive("intermediate_size"),
        activation=config.activation("hidden_act", "gelu"),
        epsilon=config.number("layer_norm_eps", 1e-12),
        bias=bool(config.get("qkv_bias", True)),
        channels=channels,
        image=image,
        patch=patch,
    )
    example = torch.zeros(2, channels, *image)
    return module, example, f"images (batch, {channels}, {image[0]}, {image[1]})"


_BUILDERS = {"gpt2": _gpt2, "llama": _llama, "vit": _vit}


# ---- heads and weights -----------------------------------------------------------------------------------


def _heads(kind: str, config: _Config, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, nn.Module]:
    """Return the heads the checkpoint has; a language-model head may be tied, its tensor left out."""
    if kind == "vit":
        width = config.positive("hidden_size")
        if "classifier.weight" in tensors:
            return {"classifier": nn.Linear(width, tensors["classifier.weight"].shape[0])}
        name = "pooler.dense.weight"
        if name in tensors:
            config.refuse("pooler_act", "tanh")
            return {"pooler": Dense(width, tensors[name].shape[0])}
        return {}
    named = any(
        str(name).endswith(("LMHeadModel", "ForCausalLM")) for name in config.get("architectures", [])
    )
    if "lm_head.weight" in tensors or named:
        width = config.positive("n_embd" if kind == "gpt2" else "hidden_size")
        return {"lm_head": nn.Linear(width, config.positive("vocab_size"), bias=False)}
    return {}


def _tied(module: nn.Module, config: _Config, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Return head weight -> embedding weight when the checkpoint leaves the head out because they are one."""
    if "lm_head" not in dict(module.named_children()) or "lm_head.weight" in tensors:
        return {}
    tied = config.get("tie_word_embeddings", config.entries["model_type"] == "gpt2")
    embedding = "wte.weight" if config.entries["model_type"] == "gpt2" else "embed_tokens.weight"
    embedding = f"{prefix}.{embedding}" if prefix else embedding
    return {"lm_head.weight": embedding} if tied and embedding in tensors else {}


def _load(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path, tied: Mapping[str, str]) -> None:
    """Give the module the checkpoint's tensors themselves; tied weights become one tensor."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {**tensors, **{name: tensors[source] for name, source in tied.items()}}
    missing, unexpected = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    for names, what in ((missing, "misses"), (unexpected, "has, beyond what config.json describes,")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ArchitectureError(f"{folder}: the checkpoint {what} {', '.join(names[:3])}{more}")
    for name, shape in wanted.items():
        if tuple(given[name].shape) != shape:
            raise ArchitectureError(
                f"{folder}: {name} has shape {tuple(given[name].shape)}, but config.json says {shape}"
            )
    dtypes = {tensor.dtype for tensor in given.values()}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:  # mixed precision: the widest holds all
        given = {name: tensor.float() for name, tensor in given.items()}
    module.load_state_dict(given, assign=True)
    for name, source in tied.items():
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, module.get_parameter(source))
