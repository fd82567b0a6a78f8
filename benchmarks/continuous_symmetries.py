"""Two independently trained transformers on one line: permutations only, and rotations and invertible maps too.

A character-level language model (on the text of Python's own standard library) and a small vision transformer (on
MNIST, from WEIGHTSPACE_DATA) are trained here twice each, gains folded. Every pair is joined as it is, after
permutations (the default matcher, and by activations) and after the continuous groups (ProcrustesMatching, by weights
alone and with data), and the loss on held-out data is measured along the line. About 8 minutes.

    OMP_NUM_THREADS=1 python benchmarks/continuous_symmetries.py
"""

from __future__ import annotations

import math
import os
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor, nn

import weightspace
from weightspace.folding import fold_gains
from weightspace.matching import ActivationMatching, ProcrustesMatching

SEEDS = (0, 1)
CONTEXT, WIDTH, HEADS, DEPTH = 64, 64, 4, 2
LANGUAGE_STEPS, VISION_STEPS = 1500, 1200
POINTS = 11


class Block(nn.Module):
    def __init__(self, causal: bool):
        super().__init__()
        self.causal = causal
        self.attention_norm, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention_norm(x)
        q, k, v = (
            f(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.output(a.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block(causal=True) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens) + self.positions)))


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(49, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(16, WIDTH))
        self.blocks = nn.Sequential(*(Block(causal=False) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, patches: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(patches) + self.positions)).mean(1))


def text() -> Tensor:
    """The source text of the standard library's top-level modules as indices of characters."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    joined = "".join(
        path.read_text(encoding="ascii", errors="ignore") for path in sorted(folder.glob("*.py"))
    )
    return torch.tensor([min(ord(c), 127) for c in joined[:2_000_000]])


def language_batches(data: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(data) - CONTEXT - 1, (count,), generator=generator)
    rows = data[starts[:, None] + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with np.load(Path(os.environ["WEIGHTSPACE_DATA"]) / "mnist" / "mnist_full.npz") as file:
        x_train, y_train, x_test, y_test = (
            torch.from_numpy(file[k]) for k in ("x_train", "y_train", "x_test", "y_test")
        )

    def patches(x: Tensor) -> Tensor:
        x = (x.float() / 255 - 0.13) / 0.31
        return x.unfold(1, 7, 7).unfold(2, 7, 7).flatten(1, 2).flatten(2)

    return patches(x_train), y_train.long(), patches(x_test[:4000]), y_test[:4000].long()


def train(model: nn.Module, batches, steps: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for _ in range(steps):
        x, y = batches()
        loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def language_models() -> tuple[list[nn.Module], Tensor, Tensor, Tensor]:
    data = text()
    split = int(0.95 * len(data))
    models = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        models.append(
            train(
                LanguageModel(128), lambda g=generator: language_batches(data[:split], 32, g), LANGUAGE_STEPS
            )
        )
    x, y = language_batches(data[split:], 256, torch.Generator().manual_seed(99))
    return models, x, y, language_batches(data[:split], 48, torch.Generator().manual_seed(5))[0]


def vision_transformers() -> tuple[list[nn.Module], Tensor, Tensor, Tensor]:
    x_train, y_train, x_test, y_test = images()
    models = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)

        def batch(g=generator):
            rows = torch.randint(len(x_train), (64,), generator=g)
            return x_train[rows], y_train[rows]

        models.append(train(VisionTransformer(), batch, VISION_STEPS))
    return models, x_test, y_test, x_train[:300]


def measure(name: str, models: list[nn.Module], x: Tensor, y: Tensor, data: Tensor) -> list[dict]:
    """Barrier and middle loss of one pair by every method."""
    a, b = (fold_gains(weightspace.trace(model, x[:3])) for model in models)

    def loss(module: nn.Module) -> float:
        return float(F.cross_entropy(module(x).flatten(0, -2), y.flatten()))

    rows = []
    plain, everything = (weightspace.symmetry(a, continuous=flag) for flag in (False, True))
    methods = {
        "as they are": None,
        "permutations": (plain, None),
        "permutations, by activations": (plain, ActivationMatching(data)),
        "continuous": (everything, ProcrustesMatching()),
        "continuous, with data": (everything, ProcrustesMatching(data=data)),
    }
    for method, choice in methods.items():
        started = time.process_time()
        if choice is None:
            moved, distance = b, None
        else:
            alignment = weightspace.align(a, b, spec=choice[0], matcher=choice[1])
            moved, distance = alignment.model, alignment.distance / alignment.distance_before
        seconds = time.process_time() - started
        curve = weightspace.barrier(a, moved, loss, points=POINTS)
        rows.append(
            {
                "pair": name,
                "method": method,
                "ends": round((curve.losses[0] + curve.losses[-1]) / 2, 4),
                "middle": round(curve.losses[POINTS // 2], 4),
                "barrier": round(curve.barrier, 4),
                "distance": distance,
                "cpu_seconds": round(seconds, 1),
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    rows = []
    rows += measure("character-level transformer", *language_models())
    rows += measure("vision transformer", *vision_transformers())
    write("continuous_symmetries", rows, "torch", "weightspace")


if __name__ == "__main__":
    main()
