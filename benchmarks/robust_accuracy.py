"""Certified accuracy and accuracy under attack of MNIST classifiers, by constants of four kinds and by linear bounds.

WEIGHTSPACE_DATA=... python benchmarks/robust_accuracy.py [NETWORK ...]

With networks named, the rows of the others stay as they are in the result.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import measure
import numpy as np
import torch
from torch import Tensor, nn

import certify
from certify.classifiers import lower_margins, rebuild
from certify.pair_constants import bound_pairs
from certify.robustness import certified_radii, robust_accuracy
from weightspace.network import Network
from weightspace.reading import as_network
from weightspace.state_dicts import perceptron

DENSE = {"linf": (0.02, 0.05, 0.1), "l2": (0.1, 0.3, 0.5, 1.0)}
CONVOLUTIONAL = {"linf": (0.02, 0.05, 0.1), "l2": (0.05, 0.1, 0.3, 1.0)}


def mipverify(data: Path) -> Network:
    names = {"0.weight": "W1", "0.bias": "B1", "2.weight": "W2", "2.bias": "B2"}
    arrays = {
        key: torch.from_numpy(np.load(data / "mipverify" / f"{name}.npy")) for key, name in names.items()
    }
    return perceptron(arrays, layout="in-out")


def dense(data: Path) -> Network:
    tensors = torch.load(data / "auto_lirpa" / "mnist_fc_3layer.pth", weights_only=True, map_location="cpu")
    return perceptron(tensors, layout="out-in")


def convolutional(file: str):
    def build(data: Path):
        model = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip
        model.load_state_dict(torch.load(data / file, weights_only=True, map_location="cpu"))
        return as_network(model, torch.zeros(2, 1, 28, 28))

    return build


NETWORKS = {
    "mipverify 784-500-10": (mipverify, 1000, DENSE),
    "auto_lirpa mnist_fc_3layer": (dense, 1000, DENSE),
    "kw_provable mnist": (convolutional("kw_provable/mnist.pth"), 100, CONVOLUTIONAL),
    "auto_lirpa mnist_a_adv": (convolutional("auto_lirpa/mnist_a_adv.pth"), 100, CONVOLUTIONAL),
    "mipverify CNN": (convolutional("mipverify/master_seed_1_epochs_100.pth"), 100, CONVOLUTIONAL),
}


def bound_of(network: Network, norm: str, bounder: certify.NormProduct | None) -> float:
    bound = certify.lipschitz(network, norm=norm, bounder=bounder).upper_bound
    return np.inf if bound is None else bound


def rows_of(
    name: str, network: Network, x: Tensor, y: Tensor, radii_of_norm: Mapping[str, Sequence[float]]
) -> list[dict]:
    model = rebuild(network)
    points, labels = x.flatten(1).double().numpy(), y.numpy()
    margins = lower_margins(model, points, labels)
    rows = []
    for norm, epsilons in radii_of_norm.items():
        # any difference of two outputs: sqrt(2) L in l2, 2 L in l-infinity
        factor = 2**0.5 * (1 + 1e-15) if norm == "l2" else 2.0
        started = time.perf_counter()
        product = bound_of(network, norm, certify.NormProduct())
        whole = bound_of(network, norm, None) if norm == "l2" else product
        middle = time.perf_counter()
        constants = bound_pairs(network, norm=norm)
        seconds = {"whole_seconds": middle - started, "pairs_seconds": time.perf_counter() - middle}
        everywhere = np.ones_like(constants.values)
        for epsilon in epsilons:
            result = robust_accuracy(
                network, x, y, epsilon=epsilon, norm=norm, constants=constants, clip=(0.0, 1.0), restarts=4
            )
            share = {
                kind: float((certified_radii(margins, labels, factor * bound * everywhere) >= epsilon).mean())
                for kind, bound in (("norm_product", product), ("whole", whole))
            }
            upper = constants.values[np.triu_indices(len(constants.values), 1)]
            rows.append(
                {
                    "network": name,
                    "norm": norm,
                    "epsilon": epsilon,
                    "samples": len(y),
                    "clean": result.clean_accuracy,
                    "under_attack": result.attacked_accuracy,
                    "certified": result.certified_accuracy,
                    "by_linear_bounds": float(result.certified["linear bounds"].double().mean()),
                    "by_pair_constants": float(result.certified["pair constants"].double().mean()),
                    "by_whole_constant": share["whole"],
                    "by_norm_product": share["norm_product"],
                    "median_radius": float(result.radii.median()),
                    "median_pair_constant": float(np.median(upper)),
                    "whole_constant": whole,
                    "norm_product": product,
                    "pairs": len(constants.certificates),
                    "seconds": result.seconds,
                    **seconds,
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    folder = os.environ.get("WEIGHTSPACE_DATA")
    if not folder:
        sys.exit("set WEIGHTSPACE_DATA to the folder that holds mnist, mipverify, kw_provable and auto_lirpa")
    data, chosen = Path(folder), sys.argv[1:] or [*NETWORKS]
    mnist = np.load(data / "mnist" / "mnist_full.npz")
    known = measure.RESULTS / "robust_accuracy.json"
    rows = json.loads(known.read_text())["rows"] if known.exists() else []
    rows = [row for row in rows if row["network"] not in chosen]
    for name in chosen:
        build, samples, radii_of_norm = NETWORKS[name]
        network = build(data)
        images = torch.tensor(mnist["x_test"][:samples] / 255.0, dtype=torch.float32)
        x = images[:, None] if len(network.inputs[0].shape) == 4 else images.flatten(1)
        y = torch.tensor(mnist["y_test"][:samples], dtype=torch.int64)
        rows += rows_of(name, network, x, y, radii_of_norm)
    measure.write("robust_accuracy", rows, "torch", "numpy", "scipy")


if __name__ == "__main__":
    main()
