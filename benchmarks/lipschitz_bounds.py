"""Bounds and times on the two example networks of LipSDP, beside the values published or recomputed elsewhere.

WEIGHTSPACE_DATA=... python benchmarks/lipschitz_bounds.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import measure
import scipy.io
import torch

import certify
from weightspace.state_dicts import perceptron

# Fazlyab et al. (2019), code repository; Neuron of mnist_weights recomputed with Clarabel, which it does not print.
REFERENCE = {
    ("random_weights", "LipSDP neuron"): 36.482,
    ("random_weights", "LipSDP layer"): 39.839,
    ("random_weights", "LipSDP neuron, cut in the middle"): 37.668,
    ("mnist_weights", "LipSDP neuron"): 24.3663,
}


def main() -> None:
    data = os.environ.get("WEIGHTSPACE_DATA")
    if not data:
        sys.exit("set WEIGHTSPACE_DATA to the folder that holds lipsdp/random_weights.mat")
    rows = []
    for name in ("random_weights", "mnist_weights"):
        matrices = scipy.io.loadmat(Path(data) / "lipsdp" / f"{name}.mat")["weights"].ravel()
        network = perceptron({f"{k}.weight": torch.tensor(matrix) for k, matrix in enumerate(matrices)})
        for method, bounder in {
            "LipSDP neuron": certify.LipSDP(),
            "LipSDP layer": certify.LipSDP(multipliers="layer"),
            "LipSDP neuron, cut in the middle": certify.LipSDP(cuts=(len(matrices) // 2,)),
            "closed form": certify.ClosedForm(),
            "norm product": certify.NormProduct(),
        }.items():
            certificate = certify.lipschitz(network, bounder=bounder)
            rows.append(
                {
                    "network": name,
                    "method": method,
                    "upper_bound": certificate.upper_bound,
                    "dual_bound": certificate.optimum_lower_bound,
                    "sampled": certificate.sampled_lower_bound,
                    "reference": REFERENCE.get((name, method)),
                    "seconds": certificate.seconds,
                    "checked": certify.check(certificate, network).valid,
                }
            )
    measure.write("lipschitz_bounds", rows, "torch", "cvxpy", "scs", "numpy")


if __name__ == "__main__":
    main()
