"""Certified l2 bounds of published convolutional networks, beside the product of norms and what search attains.

WEIGHTSPACE_DATA=... python benchmarks/convolutional_bounds.py [NAME ..]

The default bounder: LipSDP where it is affordable, else Split, which here descends from the closed form. Each network
runs in a process of its own, so that `gigabytes`, the largest resident memory, is that of one. Every certificate is
checked by the program that runs alone.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
import torch
from torch import nn

import certify
import weightspace
from certify import checker
from weightspace.network import Network

WIDE, SMALL = (16, 32, 100), (8, 16, 256)
NETWORKS = {  # file: channels and size of the input, widths
    "kw_provable/mnist.pth": (1, 28, WIDE),
    "kw_provable/fashion_mnist.pth": (1, 28, WIDE),
    "kw_provable/svhn.pth": (3, 32, WIDE),
    "auto_lirpa/mnist_a_adv.pth": (1, 28, WIDE),
    "auto_lirpa/mnist_cnn_small.pth": (1, 28, SMALL),
    "auto_lirpa/cifar_2c2f.pth": (3, 32, None),
    "mipverify/master_seed_1_epochs_100.pth": (1, 28, WIDE),
    "marabou_onnx/cifar_deep_kw_simp.onnx": None,
}  # auto_lirpa/kw_mnist.pth is kw_provable/mnist.pth
PAIR = (0, 1)


def load(path: Path, sizes: tuple | None) -> Network:
    """Read a checkpoint: Conv-ReLU-Conv-ReLU-Flatten-Linear-ReLU-Linear, or what its ONNX file says."""
    if sizes is None:
        return weightspace.read(path)
    channels, size, widths = sizes
    if widths is None:  # auto_lirpa's 2c2f: 3 x 3, no stride, no padding
        layers = [nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
        layers += [nn.Linear(4 * (size - 4) ** 2, 32), nn.ReLU(), nn.Linear(32, 10)]
    else:
        first, second, hidden = widths
        layers = [
            nn.Conv2d(channels, first, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(first, second, 4, 2, 1),
            nn.ReLU(),
        ]
        layers += [
            nn.Flatten(),
            nn.Linear(second * (size // 4) ** 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 10),
        ]
    module = nn.Sequential(*layers)
    weights = torch.load(path, weights_only=True, map_location="cpu").values()
    module.load_state_dict(dict(zip(module.state_dict(), weights, strict=True)))
    return weightspace.trace(module, (torch.zeros(2, channels, size, size),))


def rows_of(name: str) -> list[dict]:
    """Certify one network: all outputs, one pair, and the product of norms."""
    network = load(Path(os.environ["WEIGHTSPACE_DATA"]) / name, NETWORKS[name])
    runs = {
        "default": (None, None),
        f"default, outputs {PAIR}": (None, PAIR),
        "product": (certify.NormProduct(), None),
    }
    rows = []
    for run, (bounder, output) in runs.items():
        certificate = certify.lipschitz(network, bounder=bounder, output=output)
        rows.append(
            {
                "network": name,
                "run": run,
                "upper_bound": certificate.upper_bound,
                "sampled": certificate.sampled_lower_bound,
                "method": certificate.method,
                "cuts": list(certificate.cuts),
                "seconds": certificate.seconds,
                "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "checked": check_alone(certificate, network),
            }
        )
    return rows


def check_alone(certificate: certify.Certificate, network: Network) -> bool:
    """Run `python certify/checker.py CERTIFICATE NETWORK` on files."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "certificate.json", Path(folder) / "network.npz"
        files[0].write_text(certificate.to_json())
        network.save_npz(files[1])
        done = subprocess.run([sys.executable, checker.__file__, *files], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.startswith("valid")


def main() -> None:
    if not os.environ.get("WEIGHTSPACE_DATA"):
        sys.exit("set WEIGHTSPACE_DATA to the folder that holds kw_provable/mnist.pth")
    rows = []
    for name in sys.argv[1:] or NETWORKS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows += pool.apply(rows_of, (name,))
        measure.write("convolutional_bounds", rows, "torch", "numpy", "scipy")


if __name__ == "__main__":
    main()
