"""Five seeds of one transformer for addition modulo 113, aligned pairwise: do they share a basin?

The `rib_modadd` checkpoints (WEIGHTSPACE_DATA): one layer, 4 heads, 512 ReLU units, no normalization. Permutations move
heads, what is inside them and the units; the continuous groups add invertible maps of the residual stream and inside
heads, and positive scalings of the units. Loss and accuracy over all 12,769 pairs of numbers along the line.

    OMP_NUM_THREADS=1 python benchmarks/modular_addition.py
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor, nn

import weightspace
from weightspace.matching import ProcrustesMatching

PRIME = 113
POINTS = 11


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.zeros(4, 128, 32)) for _ in range(3))
        self.W_O = nn.Parameter(torch.zeros(4, 32, 128))
        self.b_Q, self.b_K, self.b_V = (nn.Parameter(torch.zeros(4, 32)) for _ in range(3))
        self.b_O = nn.Parameter(torch.zeros(128))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("btd,hdk->bhtk", x, w) + b[:, None]
            for w, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.einsum("bhtk,hkd->btd", z, self.W_O) + self.b_O


class Units(nn.Module):
    def __init__(self):
        super().__init__()
        self.W_in, self.b_in = nn.Parameter(torch.zeros(128, 512)), nn.Parameter(torch.zeros(512))
        self.W_out, self.b_out = nn.Parameter(torch.zeros(512, 128)), nn.Parameter(torch.zeros(128))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


class Named(nn.Module):
    """A module that holds one or two tensors under TransformerLens' names."""

    def __init__(self, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.pos_embed = Named(W_E=(PRIME + 1, 128)), Named(W_pos=(3, 128))
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": Attention(), "mlp": Units()})])
        self.unembed = Named(W_U=(128, PRIME + 1), b_U=(PRIME + 1,))

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.embed.W_E) + self.pos_embed.W_pos
        x = x + self.blocks[0]["attn"](x)
        x = x + self.blocks[0]["mlp"](x)
        return (x @ self.unembed.W_U + self.unembed.b_U)[:, -1]


def load(seed: int) -> weightspace.Network:
    path = Path(os.environ["WEIGHTSPACE_DATA"]) / "rib_modadd" / f"modadd113_seed{seed}.pt"
    state = torch.load(path, weights_only=True, map_location="cpu")
    module = Adder()
    own = module.state_dict()
    module.load_state_dict({name: state[name] for name in own})
    return weightspace.trace(module.eval(), torch.zeros(2, 3, dtype=torch.int64))


def frequencies(network: weightspace.Network, count: int = 5) -> list[int]:
    """The Fourier frequencies over the numbers that carry most of the embedding's power."""
    power = torch.fft.rfft(network.parameters["embed.W_E"][:PRIME], dim=0).abs().square().sum(1)[1:]
    return sorted((power.topk(count).indices + 1).tolist())


def main() -> None:
    a, b = torch.meshgrid(torch.arange(PRIME), torch.arange(PRIME), indexing="ij")
    tokens = torch.stack([a, b, torch.full_like(a, PRIME)], -1).reshape(-1, 3)
    answers = ((a + b) % PRIME).reshape(-1)

    def loss(module: nn.Module) -> float:
        return float(F.cross_entropy(module(tokens)[:, :PRIME], answers))

    def accuracy(module: nn.Module) -> float:
        return float((module(tokens)[:, :PRIME].argmax(-1) == answers).float().mean())

    networks = [load(seed) for seed in range(5)]
    plain, everything = (weightspace.symmetry(networks[0], continuous=flag) for flag in (False, True))
    print(everything, file=sys.stderr)
    methods = {
        "as they are": None,
        "permutations": (plain, None),
        "permutations and continuous": (everything, ProcrustesMatching()),
    }
    rows = []
    spectra = [frequencies(network) for network in networks]
    rows += [{"seed": seed, "frequencies": own} for seed, own in enumerate(spectra)]
    for i, j in combinations(range(5), 2):
        for method, choice in methods.items():
            started = time.process_time()
            model, distance = networks[j], 1.0
            if choice is not None:
                alignment = weightspace.align(networks[i], model, spec=choice[0], matcher=choice[1])
                model, distance = alignment.model, alignment.distance / alignment.distance_before
            seconds = time.process_time() - started
            curve = weightspace.barrier(networks[i], model, loss, points=POINTS, accuracy=accuracy)
            rows.append(
                {
                    "pair": f"{i}-{j}",
                    "shared_frequencies": len({*spectra[i]} & {*spectra[j]}),
                    "method": method,
                    "distance_after_over_before": round(distance, 4),
                    "barrier": round(curve.barrier, 4),
                    "middle_accuracy": round(curve.accuracies[POINTS // 2], 4),
                    "cpu_seconds": round(seconds, 1),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    for method in methods:
        own = [row for row in rows if row.get("method") == method]
        rows.append(
            {
                "pair": "median of ten",
                "method": method,
                **{
                    key: statistics.median(row[key] for row in own)
                    for key in ("distance_after_over_before", "barrier", "middle_accuracy")
                },
            }
        )
    write("modular_addition", rows, "torch", "weightspace")


if __name__ == "__main__":
    main()
