"""One equivariant layer, forward and backward: ours, per-block code, and a dense masked matrix.

Claim: at equal result at least 3x faster than straightforward code that maps every pair of parameters by itself, in
memory linear in the weights; a dense matrix over all weights is out of reach but for the smallest networks.

    OMP_NUM_THREADS=1 python benchmarks/weight_space_layers.py

Per-block code is what one writes from the theory: for each pair of parameters and each set of hidden layers that they
share, average, multiply by a matrix, broadcast, add. It is given the weights of our layer, so that results agree. For
inputs of 784 both treat input and output axes as permuted ones with learned constants (`Embedded`).
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, write
from torch import Tensor

from weightspace.equivariant import EquivariantLinear, describe_perceptron

BATCH = 64
CASES = [
    ((2, 32, 32, 1), 4),
    ((2, 32, 32, 1), 32),
    ((2, 64, 64, 64, 3), 32),
    ((2, 128, 128, 1), 16),
    ((64, 128, 128, 10), 4),
    ((784, 128, 128, 10), 4),
    ((784, 512, 512, 512, 10), 1),
]


def per_block(layer: EquivariantLinear) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The layer written pair by pair, channels last, with matrices cut from those of `layer`."""
    inner, outer = layer.in_channels, layer.out_channels
    blocks = layer.plan.blocks
    maps = []
    for matrix, channel in zip(layer.matrices, layer.plan.channels, strict=True):
        row = 0
        for writing, written in zip(channel.writings, channel.written_fixed, strict=True):
            column = 0
            for reading, read in zip(channel.readings, channel.read_fixed, strict=True):
                part = matrix.weight[row : row + written * outer, column : column + read * inner].detach()
                part = part.reshape(outer, written, inner, read).permute(1, 0, 3, 2)  # channels last here
                weight = part.reshape(written * outer, read * inner).clone().requires_grad_()
                maps.append((reading, writing, weight))
                column += read * inner
            row += written * outer
    # Fixed rows (of the last layer) stand first and are moved to the channels.
    rows_fixed = [
        layer.spec.axes.get(block.parameter, ((),))[0] == () and block.sizes != () for block in blocks
    ]

    def forward(features: dict[str, Tensor]) -> dict[str, Tensor]:
        sums: dict[int, Tensor] = {}
        inputs = []
        for number, block in enumerate(blocks):
            x = features[block.parameter]
            x = x.movedim(1, -2) if rows_fixed[number] else x
            inputs.append(x.reshape(BATCH, *block.sizes, block.fixed * inner))
        for reading, writing, weight in maps:
            x, target = inputs[reading.block], blocks[writing.block]
            pooled = tuple(p + 1 for p in range(len(reading.partition)) if p not in reading.kept)
            x = (x.mean(pooled) if pooled else x) @ weight.mT
            for axis in range(len(writing.partition)):
                if axis not in writing.kept:
                    x = x.unsqueeze(axis + 1)
            x = x.expand(BATCH, *target.sizes, target.fixed * outer)
            sums[writing.block] = sums[writing.block] + x if writing.block in sums else x
        results = {}
        for number, block in enumerate(blocks):
            x = sums[number].unflatten(-1, (block.fixed, outer))
            x = x.movedim(-2, 1) if rows_fixed[number] else x
            results[block.parameter] = x.reshape(BATCH, *layer.spec.shapes[block.parameter], outer)
        return results

    forward.weights = [weight for *_, weight in maps]  # type: ignore[attr-defined]
    return forward


def dense(layer: EquivariantLinear) -> Tensor:
    """The matrix over all entries and channels."""
    size = layer.in_channels * sum(map(math.prod, layer.spec.shapes.values()))
    columns = []
    for chunk in torch.eye(size).split(256):
        parts = chunk.split([layer.in_channels * math.prod(shape) for shape in layer.spec.shapes.values()], 1)
        features = {
            name: part.reshape(-1, layer.in_channels, *shape)
            for (name, shape), part in zip(layer.spec.shapes.items(), parts, strict=True)
        }
        with torch.no_grad():
            columns.append(torch.cat([x.flatten(1) for x in layer(features).values()], 1))
    return torch.cat(columns).mT.contiguous()


def step(run: Callable, features: dict[str, Tensor], parameters: list[Tensor]) -> None:
    """One forward and backward pass, with respect to the features and the parameters."""
    inputs = {name: value.detach().requires_grad_() for name, value in features.items()}
    written = run(inputs)
    ones = [torch.ones_like(x) for x in written.values()]
    torch.autograd.grad(list(written.values()), [*inputs.values(), *parameters], ones)


def measured(sizes: tuple[int, ...], channels: int) -> dict[str, Any]:
    torch.manual_seed(0)
    spec = describe_perceptron(sizes)
    layer = EquivariantLinear(spec, channels, channels, bias=False)
    features = {name: torch.randn(BATCH, channels, *shape) for name, shape in spec.shapes.items()}
    channels_last = {name: x.movedim(1, -1).contiguous() for name, x in features.items()}
    slow = per_block(layer)
    with torch.no_grad():
        ours = layer(features)
        error = max(
            float((x.movedim(-1, 1) - ours[name]).abs().max()) for name, x in slow(channels_last).items()
        )
    runs = {
        "ours": lambda: step(layer, features, list(layer.parameters())),
        "per_block": lambda: step(slow, channels_last, slow.weights),  # type: ignore[attr-defined]
    }
    weights = sum(map(math.prod, spec.shapes.values()))
    if weights * channels <= 5000:
        matrix = dense(layer).requires_grad_()
        mask = (matrix != 0).float()
        flat = {"all": torch.cat([x.flatten(1) for x in features.values()], 1)}
        runs["dense"] = lambda: step(lambda x: {"all": x["all"] @ (matrix * mask).mT}, flat, [matrix])
    seconds = interleaved(runs, repeats=5 if weights > 1e5 else 9)
    return {
        "sizes": "-".join(map(str, sizes)),
        "channels": channels,
        "weights": weights,
        "parameters": sum(p.numel() for p in layer.parameters()),
        "seconds": seconds["ours"],
        "per_block / ours": seconds["per_block"] / seconds["ours"],
        "dense / ours": seconds["dense"] / seconds["ours"] if "dense" in seconds else None,
        "relative difference": error / max(float(x.abs().max()) for x in ours.values()),
    }


def peak(width: int) -> float:
    """Bytes per entry of the features that one pass of (2, width, width, 1) at 4 channels adds, in a new process."""
    code = (
        "import re; from weight_space_layers import *\n"
        "def kilobytes(name): return int(re.search(name + r':\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        f"spec = describe_perceptron((2, {width}, {width}, 1)); layer = EquivariantLinear(spec, 4, 4)\n"
        "features = {name: torch.randn(BATCH, 4, *shape) for name, shape in spec.shapes.items()}\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # the high-water mark starts anew
        "before = kilobytes('VmRSS')\n"
        "step(layer, features, list(layer.parameters()))\n"
        "print((kilobytes('VmHWM') - before) * 1024 / sum(x.numel() for x in features.values()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    return float(run.stdout)


def main() -> None:
    rows = []
    for sizes, channels in CASES:
        rows.append(measured(sizes, channels))
        print(rows[-1], flush=True)
    rows += [{"width": width, "peak bytes per entry": peak(width)} for width in (256, 512, 1024)]
    write("weight_space_layers", rows, "torch")


if __name__ == "__main__":
    main()
