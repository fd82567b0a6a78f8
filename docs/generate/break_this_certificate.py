"""What the page "break this certificate" works on: networks, their certificates, and the checker itself.

The certificates are made and checked while the site is built. ACAS Xu is read from WEIGHTSPACE_DATA and left out where
that is missing. `generic_solver.json` holds what a generic solver returned (`measure_generic_solver.py` writes it).
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import fetch_pyodide

ROOT = Path(__file__).parents[2]
ANSWER = Path(__file__).with_name("generic_solver.json")
ACASXU = "acasxu/ACASXU_run2a_1_1_batch_2000.onnx"


def runtime_files() -> list[Path]:
    """Return Pyodide's files from the cache; empty where `python docs/fetch_pyodide.py` has not been run."""
    return fetch_pyodide.cached_files()


def files() -> tuple[dict[str, bytes], list[str]]:
    """Return name -> content of the data files, and notes on what had to be left out."""
    from weightspace import bundled, read

    found = {"checker.py": (ROOT / "certify/checker.py").read_bytes()}
    notes, choices = [], []
    networks = {
        name: (f"Digits: {bundled.accuracies()[name]['description']}", bundled.load(name))
        for name in ("digits_mlp_a", "digits_maxmin")
    }
    acasxu = Path(os.environ.get("WEIGHTSPACE_DATA", "")) / ACASXU
    if os.environ.get("WEIGHTSPACE_DATA") and acasxu.is_file():
        networks["acasxu_1_1"] = (
            "ACAS Xu 1-1: ReLU perceptron 5-50-50-50-50-50-50-5, collision avoidance",
            read(acasxu),
        )
    else:
        notes.append(
            "ACAS Xu is not among the networks: WEIGHTSPACE_DATA was not set when the site was built"
        )
    for name, (title, network) in networks.items():
        found |= _pair(name, network)
        choices.append({"name": name, "title": title})
    found |= _generic_solver()
    runtime = runtime_files()
    if not runtime:
        notes.append("no Python runtime in the cache: python docs/fetch_pyodide.py")
    index = {
        "networks": choices,
        "notes": [note for note in notes if "ACAS" in note],
        "runtime_bytes": sum(path.stat().st_size for path in runtime),
    }
    found["networks.json"] = json.dumps(index, indent=1).encode()
    return {f"data/{name}": content for name, content in found.items()}, notes


def _pair(name: str, network) -> dict[str, bytes]:
    import certify

    certificate = certify.lipschitz(network)
    if not certify.check(certificate, network).valid:
        raise RuntimeError(f"the certificate of {name} is not valid: {certificate.status}")
    return {f"{name}.json": certificate.to_json().encode(), f"{name}.npz": _npz(network)}


def _npz(network) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.npz"
        network.save_npz(path)
        return path.read_bytes()


def _generic_solver() -> dict[str, bytes]:
    """Return the network that the solver was given, our certificate of it, and the one its answer would make."""
    import certify
    from certify.certificate import Proof, Status

    answer = json.loads(ANSWER.read_text(encoding="utf-8"))
    network = random_network()
    if network.hash != answer["network_hash"]:
        raise RuntimeError("the random network is not the one measured; run measure_generic_solver.py again")
    ours = certify.lipschitz(network)
    multipliers = tuple(tuple(map(float.fromhex, layer)) for layer in answer["multipliers"])
    rho = float.fromhex(answer["rho"])
    claimed = replace(
        ours,
        upper_bound=float.fromhex(answer["bound"]),
        optimum_lower_bound=None,
        status=Status.CERTIFIED,
        method=f"{answer['solver']}, status {answer['status']!r}, its answer taken as it is",
        proofs=(Proof(rho, multipliers, None, None),),
        seconds=answer["seconds"],
        versions=answer["versions"],
    )
    return {
        "generic_solver.npz": _npz(network),
        "generic_solver.json": claimed.to_json().encode(),
        "generic_solver_ours.json": ours.to_json().encode(),
    }


def random_network():
    """Return the network of the measurement: ReLU, ten hidden layers of 32, He's initialization, seed 0, no biases."""
    import itertools

    import numpy as np
    import torch

    import weightspace

    generator, layers = np.random.default_rng(0), []
    for inputs, outputs in itertools.pairwise([32, *[32] * 10, 10]):
        layer = torch.nn.Linear(inputs, outputs, bias=False)
        values = generator.normal(size=(outputs, inputs)) * np.sqrt(2 / inputs)
        layer.weight.data = torch.tensor(values, dtype=torch.float32)
        layers += [layer, torch.nn.ReLU()]
    return weightspace.trace(torch.nn.Sequential(*layers[:-1]), torch.zeros(1, 32))
