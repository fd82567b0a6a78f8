"""Alignment and merging one tensor at a time: the same numbers as in memory, and little memory."""

import os
import subprocess
import sys
import weakref
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.weightspace.architectures import ARCHITECTURES
from weightspace.checkpoint import write_safetensors
from weightspace.deferred import DeferredTensors
from weightspace.errors import ShapeError
from weightspace.matching import FrankWolfeMatching, WeightMatching, align
from weightspace.matching.weight_matching import Products
from weightspace.merging import merge
from weightspace.module import evaluate
from weightspace.network import Network
from weightspace.permutation import permute, random_permutations
from weightspace.tracing import trace
from weightspace.universe import Average, MergeMany, Reference, Universe
from weightspace.verification import random_inputs, symmetry

ROOT = Path(__file__).parents[2]
KINDS = ["mlp", "resnet", "grouped convolutions", "gpt", "llama", "lstm"]
CASES = [*((kind, torch.float32) for kind in KINDS), ("mlp", torch.bfloat16), ("resnet", torch.float64)]


@cache
def network(kind, seed=0) -> Network:
    architecture = ARCHITECTURES[kind]
    return trace(architecture.module(seed), architecture.inputs())


def written(network, folder, name) -> bytes:
    network.save(folder / name)
    return (folder / name).read_bytes()


@pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)
@pytest.mark.parametrize(
    "matcher", [FrankWolfeMatching(), WeightMatching(restarts=2)], ids=lambda m: type(m).__name__
)
def test_alignment_is_the_same_bit_for_bit(tmp_path, kind, dtype, matcher):
    a, b = (network(kind, seed).astype(dtype) for seed in (0, 1))
    whole = align(a, b, matcher=matcher)
    streamed = align(a, b, matcher=matcher, deferred=True)
    assert isinstance(streamed.model.parameters, DeferredTensors)
    assert not isinstance(whole.model.parameters, DeferredTensors)
    assert streamed.to_json() == whole.to_json()
    assert written(streamed.model, tmp_path, "streamed") == written(whole.model, tmp_path, "whole")


@pytest.mark.parametrize(
    ("kind", "dtype", "method", "count", "path"),
    [
        ("mlp", torch.float32, Universe(), 3, "linear"), ("resnet", torch.float32, Universe(), 2, "linear"),
        ("mlp", torch.bfloat16, MergeMany(), 3, "linear"), ("gpt", torch.float32, Universe(), 2, "spherical"),
        ("llama", torch.float32, Reference(1), 2, "linear"), ("mlp", torch.float64, Universe(), 2, "linear"),
        ("resnet", torch.bfloat16, Average(), 2, "spherical"),
    ],
    ids=str,
)  # fmt: skip
def test_merging_is_the_same_bit_for_bit(tmp_path, kind, dtype, method, count, path):
    models = [network(kind, seed).astype(dtype) for seed in range(count)]
    whole = merge(models, method=method, path=path)
    streamed = merge(models, method=method, path=path, deferred=True)
    assert isinstance(streamed.model.parameters, DeferredTensors)
    assert streamed.to_json() == whole.to_json()
    assert written(streamed.model, tmp_path, "streamed") == written(whole.model, tmp_path, "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_deferred_networks_are_equal_to_those_in_memory(kind):
    plain = network(kind)
    spec = symmetry(plain)
    elements = random_permutations(spec, torch.Generator().manual_seed(0))
    deferred = permute(plain.deferred(), spec, elements)
    moved = permute(plain, spec, elements)
    assert deferred == moved == deferred.materialized()
    assert deferred.astype(torch.float32) == moved.astype(torch.float32)
    name = next(iter(spec.axes))
    zeros = {name: torch.zeros_like(plain.parameters[name])}
    assert deferred.replace_parameters(zeros) == moved.replace_parameters(zeros)
    with pytest.raises(ShapeError, match="no parameter 'none'"):
        deferred.replace_parameters({"none": torch.zeros(1)})
    inputs = random_inputs(moved, torch.Generator().manual_seed(0))
    expected = moved.to_module()(*inputs)
    (found,) = evaluate(deferred, inputs)
    for x, y in zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_parameters_of_one_node_are_alive(kind):
    plain = network(kind)
    alive = weakref.WeakSet()
    most = 0

    def make(name, tensor):
        nonlocal most
        made = tensor.clone()
        alive.add(made)
        most = max(most, len(alive))
        return made

    watched = plain.deferred().change_parameters(plain.parameters, make)
    assert most == 0
    evaluate(watched, random_inputs(watched, torch.Generator().manual_seed(0)))
    values = sum(
        node.operation.kind == "Parameter" for node in plain.nodes
    )  # values themselves, not parameters
    assert 0 < most <= values + max(len(node.operation.parameters) for node in plain.nodes)
    assert len(alive) == 0


def test_products_are_kept_while_there_is_room():
    products = Products(8)
    for key in range(3):
        products.keep(key, (), torch.full((4,), float(key)))
    assert products.find(0, ()) is None
    for key in (1, 2):
        found = products.find(key, ())
        assert found is not None
        assert torch.equal(found, torch.full((4,), float(key)))
    assert products.find(1, ("another version",)) is None
    products.keep(2, (), torch.zeros(9))
    assert products.find(2, ()) is None


def test_an_interrupted_save_leaves_nothing(tmp_path):
    spec = symmetry(network("mlp"))
    last = sorted(network("mlp").parameters)[-1]

    def stop(name, tensor):
        raise KeyboardInterrupt

    aligned = align(network("mlp"), network("mlp", 1), spec=spec, deferred=True).model
    assert isinstance(aligned, Network)
    with pytest.raises(KeyboardInterrupt):
        aligned.change_parameters([last], stop).save(tmp_path / "x.safetensors")
    assert os.listdir(tmp_path) == []


WIDTH, LAYERS = 512, 40  # 42 MB in float32, 1 MB a matrix
MEASURED = """
import re, sys, threading, time
from weightspace.cli import main

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def run(arguments):
    sys.argv = ["weightspace", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.01)

small, large = sys.argv[1].split(), sys.argv[2].split()
run(small)  # everything is imported before it is measured
start = anonymous()
peak = [start]
threading.Thread(target=watch, daemon=True).start()
run(large)
print(f"GREW {peak[0] - start}")
"""


def write_copies(folder, width, layers):
    """Write a perceptron and a copy of it in another order, a little changed, one tensor at a time."""
    like = {f"{k}.weight": torch.empty(width, width, device="meta") for k in range(layers)}
    orders = [torch.arange(width).roll(7 * k) for k in range(layers)] + [torch.arange(width)]

    def first(name):
        generator = torch.Generator().manual_seed(int(name.split(".")[0]))
        return torch.randn(width, width, generator=generator) / width**0.5

    def second(name):
        layer = int(name.split(".")[0])
        changed = first(name) + 1e-3 * torch.randn(
            width, width, generator=torch.Generator().manual_seed(layer + 999)
        )
        return changed[orders[layer + 1]][:, orders[layer]].contiguous()

    for name, make in (("a", first), ("b", second)):
        write_safetensors(folder / f"{name}.safetensors", DeferredTensors(like, make))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the RssAnon of Linux's /proc")
@pytest.mark.parametrize("command", ["align --low-memory", "merge --method reference --low-memory"])
def test_commands_take_a_fraction_of_the_file_in_memory(tmp_path, command):
    calls = []
    for width, layers in ((16, 4), (WIDTH, LAYERS)):
        folder = tmp_path / str(width)
        folder.mkdir()
        write_copies(folder, width, layers)
        calls.append(
            f"{command} {folder}/a.safetensors {folder}/b.safetensors -o {folder}/c.safetensors --json"
        )
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *calls],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    size = (tmp_path / str(WIDTH) / "c.safetensors").stat().st_size
    assert size > 40e6
    assert int(done.stdout.rpartition("GREW ")[2]) < 0.5 * size
