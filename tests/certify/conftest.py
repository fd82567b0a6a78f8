"""Networks that the tests of `certify` draw."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from weightspace.builder import NetworkBuilder
from weightspace.operations import Linear, ReLU


@pytest.fixture(scope="session")
def build():
    """build(matrices, activation=ReLU(), dtype=..., biases=None) -> Network: Linear and activations in turn."""

    def make(matrices, activation=None, dtype=torch.float64, biases=None, parameters=None):
        builder = NetworkBuilder()
        for name, tensor in (parameters or {}).items():
            builder.parameter(name, tensor)
        node = builder.input("x", (None, np.shape(matrices[0])[1]), dtype)
        for k, matrix in enumerate(matrices):
            weight = builder.parameter(
                f"weight_{k}", torch.as_tensor(np.array(matrix, dtype=np.float64)).to(dtype)
            )
            bias = (
                None
                if biases is None
                else builder.parameter(f"bias_{k}", torch.as_tensor(biases[k]).to(dtype))
            )
            node = builder.add(Linear(weight=weight, bias=bias), node)
            if k < len(matrices) - 1:
                node = builder.add(ReLU() if activation is None else activation, node)
        return builder.build([node])

    return make


@pytest.fixture(scope="session")
def he():
    """he(widths, seed) -> matrices with entries of variance 2 / fan-in."""

    def draw(widths, seed=0):
        rng = np.random.default_rng(seed)
        return [rng.normal(size=(b, a)) * np.sqrt(2 / a) for a, b in itertools.pairwise(widths)]

    return draw


@pytest.fixture(scope="session")
def lipsdp_example():
    """lipsdp_example(name) -> the matrices of an example network of the LipSDP repository."""

    def load(name):
        folder = os.environ.get("WEIGHTSPACE_DATA")
        path = Path(folder or ".") / "lipsdp" / f"{name}.mat"
        if not folder or not path.exists():
            pytest.skip(f"WEIGHTSPACE_DATA holds no lipsdp/{name}.mat")
        import scipy.io

        return [np.asarray(w, dtype=np.float64) for w in scipy.io.loadmat(path)["weights"].ravel()]

    return load
