"""Three transformer families in plain torch, their parameters named as in Hugging Face checkpoints.

Written from the published descriptions: GPT-2 (Radford et al. 2019), Llama (Touvron et al. 2023; rotary
positions after Su et al. 2021, grouped queries after Ainslie et al. 2023) and ViT (Dosovitskiy et al. 2021).
They exist to be traced: inference only, one call per operation that analyses know by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
}


def _heads(x: Tensor, heads: int) -> Tensor:
    """(batch, time, heads * width) -> (batch, heads, time, width)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(batch, heads, time, width) -> (batch, time, heads * width)."""
    return x.transpose(1, 2).flatten(2)


# ---- GPT-2 -----------------------------------------------------------------------------------------------


class TransposedLinear(nn.Module):
    """x W + b with W stored (in, out), as GPT-2 checkpoints have it."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GPT2Attention(nn.Module):
    """Causal self-attention; query, key and value in one product."""

    def __init__(self, width: int, heads: int, scale: float):
        super().__init__()
        self.heads, self.scale = heads, scale
        self.c_attn = TransposedLinear(width, 3 * width)
        self.c_proj = TransposedLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (_heads(part, self.heads) for part in self.c_attn(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        return self.c_proj(_joined(mixed))


class GPT2Perceptron(nn.Module):
    """Two layers, widening in between."""

    def __init__(self, width: int, inner: int, activation: str):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.c_fc = TransposedLinear(width, inner)
        self.c_proj = TransposedLinear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class GPT2Block(nn.Module):
    """Attention and perceptron, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, width: int, heads: int, inner: int, activation: str, epsilon: float, scale: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, epsilon)
        self.attn = GPT2Attention(width, heads, scale)
        self.ln_2 = nn.LayerNorm(width, epsilon)
        self.mlp = GPT2Perceptron(width, inner, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """Token ids (batch, time) -> hidden states (batch, time, width)."""

    def __init__(
        self, *, vocabulary: int, positions: int, width: int, layers: int, heads: int, inner: int,
        activation: str,
        epsilon: float, scaled: bool, scaled_by_depth: bool,
    ):  # fmt: skip
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(positions, width)
        base = math.sqrt(heads / width) if scaled else 1.0
        scales = [base / (depth + 1) if scaled_by_depth else base for depth in range(layers)]
        self.h = nn.ModuleList(GPT2Block(width, heads, inner, activation, epsilon, scale) for scale in scales)
        self.ln_f = nn.LayerNorm(width, epsilon)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


# ---- Llama -----------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


def rotary_tables(time: int, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    r"""Return cos and sin, each (time, width), of $t\,\theta^{-2i/\text{width}}$, the halves repeated."""
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(time, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the plane of coordinates (i, i + width/2) of position t by its angle: the checkpoints' pairing."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class LlamaAttention(nn.Module):
    """Causal attention with rotary positions; several query heads may share a key and value head."""

    def __init__(self, width: int, heads: int, shared_heads: int, head_width: int, bias: bool):
        super().__init__()
        self.heads, self.shared_heads = heads, shared_heads
        self.q_proj = nn.Linear(width, heads * head_width, bias)
        self.k_proj = nn.Linear(width, shared_heads * head_width, bias)
        self.v_proj = nn.Linear(width, shared_heads * head_width, bias)
        self.o_proj = nn.Linear(heads * head_width, width, bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query = rotate(_heads(self.q_proj(x), self.heads), cos, sin)
        key = rotate(_heads(self.k_proj(x), self.shared_heads), cos, sin)
        value = _heads(self.v_proj(x), self.shared_heads)
        grouped = self.heads != self.shared_heads
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return self.o_proj(_joined(mixed))


class GatedPerceptron(nn.Module):
    """down(activation(gate(x)) * up(x)): SwiGLU when the activation is silu."""

    def __init__(self, width: int, inner: int, activation: str, bias: bool):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate_proj = nn.Linear(width, inner, bias)
        self.up_proj = nn.Linear(width, inner, bias)
        self.down_proj = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class LlamaBlock(nn.Module):
    """Attention and gated perceptron, each behind an RMSNorm and beside a residual connection."""

    def __init__(
        self, *, width: int, heads: int, shared_heads: int, head_width: int, inner: int, activation: str,
        epsilon: float, attention_bias: bool, perceptron_bias: bool,
    ):  # fmt: skip
        super().__init__()
        self.input_layernorm = RMSNorm(width, epsilon)
        self.self_attn = LlamaAttention(width, heads, shared_heads, head_width, attention_bias)
        self.post_attention_layernorm = RMSNorm(width, epsilon)
        self.mlp = GatedPerceptron(width, inner, activation, perceptron_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids (batch, time) -> hidden states (batch, time, width); `block` goes to LlamaBlock."""

    def __init__(self, *, vocabulary: int, layers: int, theta: float, **block):
        super().__init__()
        self.head_width, self.theta = block["head_width"], theta
        self.embed_tokens = nn.Embedding(vocabulary, block["width"])
        self.layers = nn.ModuleList(LlamaBlock(**block) for _ in range(layers))
        self.norm = RMSNorm(block["width"], block["epsilon"])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        cos, sin = rotary_tables(tokens.shape[1], self.head_width, self.theta, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


# ---- ViT -------------------------------------------------------------------------------------------------


class Dense(nn.Module):
    """A linear map under the name `dense`: ViT checkpoints nest without computing anything more."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class ViTAttention(nn.Module):
    """Self-attention; its four maps stand under `attention.query` ... and `output.dense`."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict(
            {name: nn.Linear(width, width, bias) for name in ("query", "key", "value")}
        )
        self.output = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            _heads(self.attention[name](x), self.heads) for name in ("query", "key", "value")
        )
        return self.output(_joined(F.scaled_dot_product_attention(query, key, value)))


class ViTBlock(nn.Module):
    """Attention and perceptron, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, width: int, heads: int, inner: int, activation: str, epsilon: float, bias: bool):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.layernorm_before = nn.LayerNorm(width, epsilon)
        self.attention = ViTAttention(width, heads, bias)
        self.layernorm_after = nn.LayerNorm(width, epsilon)
        self.intermediate = Dense(width, inner)
        self.output = Dense(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output(self.activation(self.intermediate(self.layernorm_after(x))))


class ViTEmbeddings(nn.Module):
    """Patches as tokens, a class token in front, learned positions."""

    def __init__(self, width: int, channels: int, patch: tuple[int, int], tokens: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(1, tokens + 1, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(channels, width, patch, patch)})

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embeddings["projection"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1)
        return tokens + self.position_embeddings


class ViT(nn.Module):
    """Images (batch, channels, height, width) -> hidden states (batch, 1 + patches, width)."""

    def __init__(
        self, *, width: int, layers: int, heads: int, inner: int, activation: str, epsilon: float, bias: bool,
        channels: int, image: tuple[int, int], patch: tuple[int, int],
    ):  # fmt: skip
        super().__init__()
        tokens = (image[0] // patch[0]) * (image[1] // patch[1])
        self.embeddings = ViTEmbeddings(width, channels, patch, tokens)
        blocks = (ViTBlock(width, heads, inner, activation, epsilon, bias) for _ in range(layers))
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(blocks)})
        self.block_names = [f"encoder.layer.{depth}" for depth in range(layers)]
        self.layernorm = nn.LayerNorm(width, epsilon)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embeddings(images)
        for name in self.block_names:
            x = self.get_submodule(name)(x)
        return self.layernorm(x)


# ---- heads -----------------------------------------------------------------------------------------------


class WithHead(nn.Module):
    """An encoder, held under the checkpoint's own prefix, and the head that reads its hidden states.

    Args:
        prefix: name of the encoder in the checkpoint; empty when its parts stand at the top.
        heads: name -> linear map. `lm_head` reads every position, `classifier` the first; `pooler` adds
            tanh of a map of the first position as a second output. None leaves the hidden states as they are.
    """

    def __init__(self, encoder: nn.Module, prefix: str, heads: dict[str, nn.Module]):
        super().__init__()
        self._encoder = (encoder,)  # a tuple is not registered: the names below are the only ones
        for name, child in {prefix: encoder}.items() if prefix else encoder.named_children():
            self.add_module(name, child)
        for name, head in heads.items():
            self.add_module(name, head)
        self.head_names = tuple(heads)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = self._encoder[0](x)
        if "lm_head" in self.head_names:
            return self.get_submodule("lm_head")(hidden)
        if "classifier" in self.head_names:
            return self.get_submodule("classifier")(hidden[:, 0])
        if "pooler" in self.head_names:
            return hidden, torch.tanh(self.get_submodule("pooler")(hidden[:, 0]))
        return hidden
