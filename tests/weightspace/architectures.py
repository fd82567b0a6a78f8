"""Small modules of many architectures, each with the permutation groups its hidden units have.

`expected` writes one string per group, in no particular order: `P8` is S_8 on single units; `B(12×16)` is S_12 on
units that occupy 16 consecutive entries of a flattened axis; `Wr(4;2)` is S_4 on heads or channel groups with an
independent S_2 inside each, and `Wr(4;4,4)` has two such inner permutations (query-key and value-output). Grouped
queries add a third, the queries of one key head, which comes first: `Wr(2;2,4,4)`. `4 shared` is one inner
permutation for all heads, `fixed 4` says that the heads themselves stay while their insides move.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """A module, the shapes of its inputs (token inputs when `vocabulary` is given) and the groups it has."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    expected: tuple[str, ...]
    vocabulary: int | None = None

    def module(self, seed: int = 0) -> nn.Module:
        """Return the module in float64 and eval mode, everything in it random."""
        return random_parameters(self.make(), seed)

    def inputs(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random example inputs."""
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary is not None:
            return tuple(torch.randint(self.vocabulary, shape, generator=generator) for shape in self.shapes)
        return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in self.shapes)


def random_parameters(module: nn.Module, seed: int = 0) -> nn.Module:
    """Make every floating parameter and buffer random, variances positive; float64, eval mode, in place.

    Matrices are scaled by 1/sqrt(fan-in), so that deep modules neither explode nor vanish. Integer and boolean
    buffers (masks, positions, counters) stay.
    """
    generator = torch.Generator().manual_seed(seed)
    module.to(torch.float64).eval()
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith("var"):
                value = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5
            else:
                value = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
            tensor.copy_(value / math.sqrt(max(fan_in, 1)))
    return module


# ---- convolutional ---------------------------------------------------------------------------------------


def conv(inner: int, outer: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, padding=kernel // 2, **options)


class ResidualBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int = 1):
        super().__init__()
        self.conv1, self.norm1 = conv(inner, outer, stride=stride), nn.BatchNorm2d(outer)
        self.conv2, self.norm2 = conv(outer, outer), nn.BatchNorm2d(outer)
        self.shortcut = (
            nn.Sequential(conv(inner, outer, 1, stride=stride), nn.BatchNorm2d(outer))
            if inner != outer or stride != 1
            else nn.Identity()
        )

    def forward(self, x):
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class GlobalPool(nn.Module):
    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def residual_network() -> nn.Module:
    return nn.Sequential(
        conv(2, 8), nn.BatchNorm2d(8), nn.ReLU(),
        ResidualBlock(8, 8), ResidualBlock(8, 8), ResidualBlock(8, 16, stride=2), ResidualBlock(16, 16),
        GlobalPool(), nn.Linear(16, 5),
    )  # fmt: skip


def grouped_convolutions() -> nn.Module:
    return nn.Sequential(
        conv(2, 8), nn.ReLU(), conv(8, 8, groups=8), nn.ReLU(), conv(8, 16, 1), nn.ReLU(),
        conv(16, 16, groups=4), nn.ReLU(), conv(16, 8, 1), nn.ReLU(), GlobalPool(), nn.Linear(8, 5),
    )  # fmt: skip


def flattened_convolutions() -> nn.Module:
    return nn.Sequential(
        conv(2, 8), nn.ReLU(), conv(8, 12), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(12 * 16, 20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip


def normalized_convolutions(*norms: nn.Module) -> nn.Module:
    layers: list[nn.Module] = []
    for index, norm in enumerate(norms):
        layers += [conv(8 if index else 2, 8), norm, nn.ReLU()]
    return nn.Sequential(*layers, GlobalPool(), nn.Linear(8, 5))


class Dense(nn.Module):
    """Every layer sees all earlier ones (DenseNet)."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(2, 6), conv(6, 4), conv(10, 4)
        self.head = nn.Linear(14, 5)

    def forward(self, x):
        h = F.relu(self.first(x))
        h = torch.cat([h, F.relu(self.second(h))], 1)
        h = torch.cat([h, F.relu(self.third(h))], 1)
        return self.head(h.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.down = conv(2, 6), conv(6, 8, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1)
        self.leave = conv(12, 2)

    def forward(self, x):
        skip = F.relu(self.enter(x))
        return self.leave(torch.cat([skip, F.relu(self.up(F.relu(self.down(skip))))], 1))


class Interpolated(nn.Module):
    """A decoder that enlarges by interpolation, nearest and bilinear."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(2, 6), conv(6, 8), conv(8, 2)

    def forward(self, x):
        h = F.interpolate(F.relu(self.first(x)), scale_factor=2)
        h = F.interpolate(F.relu(self.second(h)), size=(13, 17), mode="bilinear", align_corners=False)
        return self.third(h)


class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.leave = conv(2, 8), conv(8, 2)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x):
        h = F.relu(self.enter(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(h.mean((2, 3))))))
        return self.leave(h * gate[:, :, None, None])


class ConvNeXt(nn.Module):
    """Depthwise convolution, LayerNorm over the channels, widening, layer scale."""

    def __init__(self):
        super().__init__()
        self.enter, self.depthwise = conv(2, 8), conv(8, 8, 7, groups=8)
        self.norm, self.scale = nn.LayerNorm(8), nn.Parameter(torch.ones(8))
        self.up, self.down, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.enter(x)
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.scale * self.down(F.gelu(self.up(h)))
        return self.head((x + h.permute(0, 3, 1, 2)).mean((-2, -1)))


class ShuffledChannels(nn.Module):
    """ShuffleNet: grouped 1x1 convolutions with the channel shuffle between them."""

    def __init__(self):
        super().__init__()
        self.enter, self.first = conv(2, 8), conv(8, 8, 1, groups=2)
        self.second, self.head = conv(8, 8, 1, groups=4), nn.Linear(8, 5)

    def forward(self, x):
        h = F.relu(self.first(F.relu(self.enter(x))))
        h = h.reshape(-1, 2, 4, *h.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(F.relu(self.second(h)).mean((2, 3)))


# ---- attention -------------------------------------------------------------------------------------------


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class RootMeanSquare(nn.Module):
    """RMSNorm as Llama writes it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class SelfAttention(nn.Module):
    """Separate projections; options for causal masks, head norms and linear position biases."""

    def __init__(self, causal: bool = False, head_norm: bool = False, alibi: bool = False):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(16, 16) for _ in range(4))
        self.causal = causal
        self.query_norm = RootMeanSquare(4) if head_norm else nn.Identity()
        self.key_norm = RootMeanSquare(4) if head_norm else nn.Identity()
        self.register_buffer("slopes", torch.tensor([0.5, 0.25, 0.125, 0.0625]) if alibi else None)

    def forward(self, x):
        q, k, v = (split_heads(f(x), 4) for f in (self.query, self.key, self.value))
        q, k = self.query_norm(q), self.key_norm(k)
        bias = None
        if self.slopes is not None:
            positions = torch.arange(x.shape[1])
            bias = (positions[None, :] - positions[:, None]) * self.slopes[:, None, None]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=self.causal)
        return self.output(join_heads(h))


class PackedAttention(nn.Module):
    """One projection for queries, keys and values; `layout` says how its rows are ordered.

    "vit": (3, heads, width), "neox": (heads, 3 * width).
    """

    def __init__(self, layout: str):
        super().__init__()
        self.packed, self.output, self.layout = nn.Linear(16, 48), nn.Linear(16, 16), layout

    def forward(self, x):
        batch, time, _ = x.shape
        packed = self.packed(x)
        if self.layout == "vit":
            q, k, v = packed.reshape(batch, time, 3, 4, 4).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = packed.view(batch, time, 4, 12).transpose(1, 2).chunk(3, dim=-1)
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
        return self.output(join_heads(weights @ v))


class EinsumAttention(nn.Module):
    """Projections kept as (width, heads, inner) tensors, everything by einsum."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.randn(16, 4, 4)) for _ in range(3))
        self.output = nn.Parameter(torch.randn(4, 4, 16))

    def forward(self, x):
        q, k, v = (torch.einsum("btd,dhk->bthk", x, w) for w in (self.query, self.key, self.value))
        weights = torch.einsum("bthk,bshk->bhts", q, k).div(2).softmax(-1)
        return torch.einsum("bhts,bshk,hkd->btd", weights, v, self.output)


class GroupedAttention(nn.Module):
    """Four query heads on two key and value heads; optionally rotary positions."""

    def __init__(self, rotary: bool):
        super().__init__()
        self.query, self.output = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.key, self.value = nn.Linear(16, 8, bias=False), nn.Linear(16, 8, bias=False)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]) if rotary else None, persistent=False)

    def rotated(self, x):
        if self.frequencies is None:
            return x
        angles = torch.arange(x.shape[2])[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        half = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * angles.cos() + half * angles.sin()

    def forward(self, x):
        q = self.rotated(split_heads(self.query(x), 4))
        k, v = self.rotated(split_heads(self.key(x), 2)), split_heads(self.value(x), 2)
        k, v = (
            t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(t.shape[0], 4, t.shape[2], -1) for t in (k, v)
        )
        return self.output(join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class Multihead(nn.Module):
    """x + attention(x) by torch's own module, which also hands back its weights."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x)[0]


class FeedForward(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(16, 24, bias=False), nn.Linear(16, 24, bias=False)
        self.down = nn.Linear(24, 16, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, attention: nn.Module, forward: nn.Module, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.attention, self.feed_forward = attention, forward
        self.norm1, self.norm2 = norm(16), norm(16)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Between(nn.Module):
    """A stream of width 16 between a linear layer in and one out, so that its units are free."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.enter, self.layers, self.leave = nn.Linear(7, 16), nn.Sequential(*layers), nn.Linear(16, 5)

    def forward(self, x):
        return self.leave(self.layers(self.enter(x)))


class LanguageModel(nn.Module):
    def __init__(self, *blocks: nn.Module, norm: nn.Module, positions: bool, tied: bool = False):
        super().__init__()
        self.tokens, self.head = nn.Embedding(17, 16), nn.Linear(16, 17, bias=False)
        self.positions = nn.Embedding(7, 16) if positions else None
        self.blocks, self.norm = nn.Sequential(*blocks), norm
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def gpt(tied: bool) -> nn.Module:
    blocks = [Block(SelfAttention(causal=True), FeedForward(), nn.LayerNorm) for _ in range(2)]
    return LanguageModel(*blocks, norm=nn.LayerNorm(16), positions=True, tied=tied)


def llama(rotary: bool) -> nn.Module:
    block = Block(GroupedAttention(rotary), SwiGLU(), RootMeanSquare)
    return LanguageModel(block, norm=RootMeanSquare(16), positions=False)


def attending(attention: nn.Module) -> nn.Module:
    return Between(Block(attention, FeedForward(), nn.LayerNorm))


class Mixer(nn.Module):
    """MLP-Mixer: one block mixes the 6 patches, one the 16 channels."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(2, 16, 3, stride=3)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))
        self.channels, self.head = FeedForward(), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


# ---- recurrent, gated, shared ----------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent layer and a linear head on its outputs."""

    def __init__(self, recurrent: nn.Module, width: int = 12):
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.recurrent(x)[0])


class LastState(nn.Module):
    """A head on the final state instead of the outputs."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.GRU(6, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.recurrent(x)[1][-1])


class GivenState(nn.Module):
    """The first state is a second input: its units are the caller's."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.GRU(6, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x, state):
        return self.head(self.recurrent(x, state[None])[0])


class GatedLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(12, 5)

    def forward(self, x):
        value, gate = self.up(x).chunk(2, -1)
        return self.down(value * torch.sigmoid(gate))


class ResidualMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(7, 16), nn.Linear(16, 5)
        self.up = nn.ModuleList(nn.Linear(16, 12) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(12, 16) for _ in range(3))

    def forward(self, x):
        x = self.enter(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(x)))
        return self.leave(x)


class BilinearForm(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(7, 6), nn.Linear(7, 4)
        self.form, self.head = nn.Bilinear(6, 4, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(F.relu(self.form(torch.tanh(self.first(x)), torch.tanh(self.second(x)))))


class Siamese(nn.Module):
    """The same layers applied to two inputs."""

    def __init__(self):
        super().__init__()
        self.twin = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, a, b):
        return self.head((self.twin(a) - self.twin(b)).abs())


class Shared(nn.Module):
    """One square layer applied three times, as in an unrolled recurrence."""

    def __init__(self):
        super().__init__()
        self.enter, self.step, self.leave = nn.Linear(7, 12), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x):
        h = self.enter(x)
        for _ in range(3):
            h = torch.tanh(self.step(h))
        return self.leave(h)


def weight_normalized() -> nn.Module:
    normalized = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        normalized(nn.Linear(7, 16)), nn.ReLU(), normalized(nn.Linear(16, 12)), nn.ReLU(), nn.Linear(12, 5)
    )


HEADS = "Wr(4;4,4)"
SEQUENCE = ((3, 5, 7),)
IMAGE = ((3, 2, 7, 5),)

ZOO = {
    "mlp": Architecture(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)),
        ((3, 8),),
        ("P16", "P16"),
    ),
    "resnet": Architecture(residual_network, IMAGE, ("P8", "P16", "P8", "P8", "P16", "P16")),
    "grouped convolutions": Architecture(grouped_convolutions, IMAGE, ("P8", "Wr(4;4,4)", "P8")),
    "flattened convolutions": Architecture(
        flattened_convolutions, ((3, 2, 8, 8),), ("P8", "B(12×16)", "P20")
    ),
    "group norm": Architecture(
        lambda: normalized_convolutions(nn.GroupNorm(4, 8), nn.Identity()), IMAGE, ("Wr(4;2)", "P8")
    ),
    "densenet": Architecture(Dense, IMAGE, ("P6", "P4", "P4")),
    "u-net": Architecture(UNet, IMAGE, ("P6", "P8", "P6")),
    "encoder layer": Architecture(
        lambda: Between(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)),
        SEQUENCE,
        ("P16", HEADS, "P32"),
    ),
    "gpt": Architecture(lambda: gpt(tied=False), ((3, 5),), ("P16", HEADS, "P32", HEADS, "P32"), 17),
    "tied gpt": Architecture(lambda: gpt(tied=True), ((3, 5),), ("P16", HEADS, "P32", HEADS, "P32"), 17),
    "llama": Architecture(lambda: llama(rotary=False), ((3, 5),), ("P16", "Wr(2;2,4,4)", "P24"), 17),
    "lstm": Architecture(lambda: Recurrent(nn.LSTM(6, 12, batch_first=True)), ((3, 5, 6),), ("P12",)),
    "glu": Architecture(GatedLinear, ((3, 8),), ("P12",)),
}

FURTHER = {
    "rotary llama": Architecture(lambda: llama(rotary=True), ((3, 5),), ("P16", "Wr(2;2,4)", "P24"), 17),
    "gru": Architecture(lambda: Recurrent(nn.GRU(6, 12, batch_first=True)), ((3, 5, 6),), ("P12",)),
    "rnn": Architecture(lambda: Recurrent(nn.RNN(6, 12, batch_first=True)), ((3, 5, 6),), ("P12",)),
    "rnn relu, time first": Architecture(
        lambda: Recurrent(nn.RNN(6, 12, nonlinearity="relu", bias=False)), ((5, 3, 6),), ("P12",)
    ),
    "bidirectional lstm": Architecture(
        lambda: Recurrent(nn.LSTM(6, 12, batch_first=True, bidirectional=True), 24),
        ((3, 5, 6),),
        ("P12", "P12"),
    ),
    "deep gru": Architecture(
        lambda: Recurrent(nn.GRU(6, 12, num_layers=2, batch_first=True)), ((3, 5, 6),), ("P12", "P12")
    ),
    "projected lstm": Architecture(
        lambda: Recurrent(nn.LSTM(6, 12, batch_first=True, proj_size=4), 4), ((3, 5, 6),), ("P12", "P4")
    ),
    "last state": Architecture(LastState, ((3, 5, 6),), ("P12",)),
    "given state": Architecture(GivenState, ((3, 5, 6), (3, 12)), ()),
    "packed attention": Architecture(
        lambda: attending(PackedAttention("vit")), SEQUENCE, ("P16", HEADS, "P32")
    ),
    "interleaved attention": Architecture(
        lambda: attending(PackedAttention("neox")), SEQUENCE, ("P16", HEADS, "P32")
    ),
    "head norms": Architecture(
        lambda: attending(SelfAttention(head_norm=True)), SEQUENCE, ("P16", "Wr(4;4 shared,4)", "P32")
    ),
    "linear position biases": Architecture(
        lambda: attending(SelfAttention(alibi=True)), SEQUENCE, ("P16", "Wr(fixed 4;4,4)", "P32")
    ),
    "einsum attention": Architecture(lambda: attending(EinsumAttention()), SEQUENCE, ("P16", HEADS, "P32")),
    "multihead attention": Architecture(
        lambda: Between(Multihead(), Multihead()), SEQUENCE, ("P16", HEADS, HEADS)
    ),
    "prelu": Architecture(
        lambda: nn.Sequential(
            nn.Linear(7, 16), nn.PReLU(16), nn.Linear(16, 12), nn.PReLU(), nn.Linear(12, 5)
        ),
        ((3, 7),),
        ("P16", "P12"),
    ),
    "pixel shuffle": Architecture(
        lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 24), nn.PixelShuffle(2), nn.ReLU(), conv(6, 2)),
        IMAGE,
        ("P8", "B(6×4)"),
    ),
    "interpolation": Architecture(Interpolated, IMAGE, ("P6", "P8")),
    "shuffled channels": Architecture(ShuffledChannels, IMAGE, ("Wr(2;4)", "Wr(4;2)")),
    "squeeze and excitation": Architecture(SqueezeExcitation, IMAGE, ("P8", "P4")),
    "mlp-mixer": Architecture(Mixer, ((3, 2, 9, 7),), ("P16", "P10", "P32")),
    "convnext": Architecture(ConvNeXt, IMAGE, ("P8", "P32")),
    "layer norm over images": Architecture(
        lambda: normalized_convolutions(nn.LayerNorm((8, 7, 5)), nn.Identity()), IMAGE, ("P8", "P8")
    ),
    "instance norm": Architecture(
        lambda: normalized_convolutions(
            nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        ),
        IMAGE,
        ("P8", "P8"),
    ),
    "residual mlp": Architecture(ResidualMLP, ((3, 7),), ("P16", "P12", "P12", "P12")),
    "weight norm": Architecture(weight_normalized, ((3, 7),), ("P16", "P12")),
    "bilinear form": Architecture(BilinearForm, ((3, 7),), ("P6", "P4", "P8")),
    "siamese": Architecture(Siamese, ((3, 7), (3, 7)), ("P16", "P12")),
    "shared layer": Architecture(Shared, ((3, 7),), ("P12",)),
}

ARCHITECTURES = {**ZOO, **FURTHER}
