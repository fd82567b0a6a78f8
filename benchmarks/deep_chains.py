"""LipSDP on chains of 17, 33 and 65 layers of width 64: useful networks, and collapsed ones as numerical stress.

    WEIGHTSPACE_DATA=... OMP_NUM_THREADS=1 python benchmarks/deep_chains.py [CACHE]

The useful ones start from looks-linear orthogonal matrices (Balduzzi et al., The shattered gradients problem, 2017), so
that depth does not hinder training. The stress chains are trained with spectral normalization and collapse to
nearly constant functions. CACHE, a folder, keeps the trained weights between runs.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from pathlib import Path

import measure
import numpy as np
import torch
from torch import nn

import certify
from weightspace.state_dicts import perceptron

WIDTH = 64
DEPTHS = (17, 33, 65)  # matrices


def looks_linear(rows: int, columns: int, first: bool) -> torch.Tensor:
    """Return (W, -W; -W, W) with W orthogonal: behind a ReLU its input is recovered as a difference."""
    if first:
        half = nn.init.orthogonal_(torch.empty(rows // 2, columns))
        return torch.cat([half, -half])
    half = nn.init.orthogonal_(torch.empty(rows // 2, columns // 2))
    return torch.cat([torch.cat([half, -half], 1), torch.cat([-half, half], 1)])


def network(depth: int, spectral: bool) -> nn.Sequential:
    sizes = [784, *[WIDTH] * (depth - 1), 10]
    layers: list[nn.Module] = []
    for k in range(depth):
        linear = nn.Linear(sizes[k], sizes[k + 1])
        nn.init.zeros_(linear.bias)
        if spectral:
            nn.init.orthogonal_(linear.weight)
            nn.utils.parametrizations.spectral_norm(linear)
        else:
            with torch.no_grad():
                linear.weight.copy_(looks_linear(sizes[k + 1], sizes[k], k == 0))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(depth: int, spectral: bool, data: Path) -> tuple[list[np.ndarray], float]:
    """Return the matrices and the test accuracy."""
    with np.load(data / "mnist" / "mnist_full.npz") as file:
        keys = sorted(file.files)
        arrays = {key: torch.from_numpy(file[key]) for key in keys}
    images = {k: (v.reshape(len(v), -1).float() / 255 - 0.13) / 0.31 for k, v in arrays.items() if v.ndim > 1}
    (test_x, train_x) = sorted(images.values(), key=len)
    (test_y, train_y) = sorted((v.long() for v in arrays.values() if v.ndim == 1), key=len)
    torch.manual_seed(depth)
    model = network(depth, spectral)
    steps, batch = (400, 128) if spectral else (2400, 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if spectral else 4e-4 * (17 / depth) ** 0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], steps)
    for _ in range(steps):
        rows = torch.randint(len(train_x), (batch,))
        loss = nn.functional.cross_entropy(model(train_x[rows]), train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        accuracy = float((model(test_x).argmax(1) == test_y).double().mean())
        weights = [layer.weight.detach().numpy().copy() for layer in model if isinstance(layer, nn.Linear)]
    return weights, accuracy


def main() -> None:
    data = os.environ.get("WEIGHTSPACE_DATA")
    if not data:
        sys.exit("set WEIGHTSPACE_DATA to the folder that holds mnist/mnist_full.npz")
    cache = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    rows = []
    for depth in DEPTHS:
        for spectral in (False, True):
            file = cache / f"chain_{depth}_{spectral}.npz" if cache else None
            if file is not None and file.exists():
                with np.load(file) as saved:
                    accuracy = float(saved["accuracy"])
                    weights = [saved[f"w{k}"] for k in range(depth)]
            else:
                weights, accuracy = train(depth, spectral, Path(data))
                if file is not None:
                    np.savez(file, accuracy=accuracy, **{f"w{k}": w for k, w in enumerate(weights)})
            model = perceptron({f"{k}.weight": torch.from_numpy(w) for k, w in enumerate(weights)})
            product = math.prod(float(np.linalg.norm(w, 2)) for w in weights)
            started = time.process_time()
            certificate = certify.lipschitz(model, bounder=certify.LipSDP(tolerance=1e-4))
            seconds = time.process_time() - started
            closed = certify.lipschitz(model, bounder=certify.ClosedForm()).upper_bound
            bound, lower = certificate.upper_bound, certificate.optimum_lower_bound
            rows.append(
                {
                    "layers": depth,
                    "kind": "stress: spectral normalization" if spectral else "trained",
                    "test_accuracy": accuracy,
                    "upper_bound": bound,
                    "dual_bound": lower,
                    "gap_of_rho": 1 - (lower / bound) ** 2,
                    "closed_form": closed,
                    "norm_product": product,
                    "sampled": certificate.sampled_lower_bound,
                    "cpu_seconds": seconds,
                    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                    "checked": certify.check(certificate, model).valid,
                }
            )
            print(rows[-1], flush=True)
    measure.write("deep_chains", rows, "torch", "numpy", "scipy")


if __name__ == "__main__":
    main()
