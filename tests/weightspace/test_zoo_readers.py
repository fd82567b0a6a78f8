"""Readers of zoos: invariant to the order of units, trained to the same result whether or not they are interrupted."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from weightspace.equivariant import DeepWeightSpaceNet
from weightspace.errors import CheckpointError, NonFiniteError, ShapeError
from weightspace.graph import NeuralGraphNet, ProbeFeatures, describe_graphs, encode
from weightspace.zoo import (
    FlatReader,
    GraphReader,
    WeightSpaceReader,
    WeightZoo,
    canonicalize_sine_units,
    fit_inrs,
    flip_sine_units,
    permute_zoo,
    render_inrs,
    run_training,
    standardize,
)

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(scope="module")
def zoo() -> WeightZoo:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 5, 5, generator=generator)
    labels = torch.arange(12) % 3
    return fit_inrs(images, hidden=(6, 5), steps=5, labels=labels, generator=generator, progress=False)


def reader(kind: str, zoo: WeightZoo, probes: int, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    standardization = standardize(zoo)
    template = zoo.template.astype(dtype)
    learned = ProbeFeatures(template, probes, dtype=dtype) if probes else None
    if kind == "deep weight space":
        net = DeepWeightSpaceNet(zoo.spec, 3, in_channels=1 + probes, channels=(8, 8), dtype=dtype)
        return WeightSpaceReader(net, standardization, learned).eval()
    if kind == "neural graph":
        graph = encode(template)
        net = NeuralGraphNet(
            describe_graphs([graph]), out_features=3, width=8, layers=2, probes=probes, dtype=dtype
        )
        return GraphReader(net, graph, standardization, learned).eval()
    return FlatReader(zoo.weights, 3, standardization).to(dtype).eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("probes", [0, 3])
@pytest.mark.parametrize("kind", ["deep weight space", "neural graph"])
def test_readers_do_not_see_the_order_of_units(zoo, kind, probes, dtype):
    parameters = zoo.to(dtype=dtype).parameters
    model = reader(kind, zoo, probes, dtype)
    moved = permute_zoo(parameters, zoo.spec, torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = model(parameters), model(moved)
    assert before.std() > 1e-3
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("kind", ["deep weight space", "neural graph"])
def test_probes_change_the_result_and_are_learned(zoo, kind):
    model = reader(kind, zoo, 3, torch.float32)
    model(zoo.parameters).square().sum().backward()
    (probes,) = model.probes.inputs
    assert probes.grad.abs().max() > 0


def test_the_flat_reader_sees_the_order(zoo):
    model = reader("flat", zoo, 0, torch.float64)
    parameters = zoo.to(dtype=torch.float64).parameters
    moved = permute_zoo(parameters, zoo.spec, torch.Generator().manual_seed(1))
    assert (model(parameters) - model(moved)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("omega", [30.0, 4.0])
def test_canonical_sine_units_leave_the_function(dtype, omega):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 5, 5, generator=generator)
    zoo = fit_inrs(
        images, hidden=(6, 5), omega=omega, steps=3, generator=generator, dtype=dtype, progress=False
    )
    spec = zoo.continuous_spec
    canonical = canonicalize_sine_units(zoo.parameters, spec, omega=omega)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    before, after = (render_inrs(p, (7, 7), omega=omega) for p in (zoo.parameters, canonical))
    torch.testing.assert_close(after, before, rtol=0, atol=tolerance)
    for layer in range(2):
        bias = canonical[f"layers.{layer}.bias"]
        assert bias.min() >= 0
        assert bias.max() <= math.pi / (2 * omega) * (1 + 1e-6)
    assert (zoo.parameters["layers.0.bias"] - canonical["layers.0.bias"]).abs().max() > 0.01
    flipped = flip_sine_units(zoo.parameters, spec, torch.Generator().manual_seed(1))
    again = canonicalize_sine_units(flipped, spec, omega=omega)
    for name, tensor in canonical.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=tolerance)


def test_canonical_sine_units_need_signs(zoo):
    with pytest.raises(ShapeError, match="no signs"):
        canonicalize_sine_units(zoo.parameters, zoo.spec, omega=30.0)


class Killed(Exception):
    pass


def trained(zoo, path, kill_at=None, steps=12, objective="accuracy"):
    model = reader("deep weight space", zoo, 0, torch.float32)
    model.net.dropout.p = 0.2
    calls = 0

    def loss(generator):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise Killed
        batch = torch.randint(len(zoo), (4,), generator=generator)
        parameters = {name: tensor[batch] for name, tensor in zoo.parameters.items()}
        return torch.nn.functional.cross_entropy(model(parameters), zoo.labels[batch])

    def evaluate():
        return {"accuracy": (model(zoo.parameters).argmax(-1) == zoo.labels).double().mean()}

    return run_training(
        model,
        loss,
        evaluate,
        steps=steps,
        objective=objective,
        evaluations=4,
        warmup=3,
        checkpoint=path,
        seconds_between_checkpoints=0,
        progress=False,
    )


def without_seconds(history):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


def test_a_killed_training_continues_to_the_same_result(zoo, tmp_path):
    whole = trained(zoo, None)
    path = tmp_path / "run.pt"
    for kill_at in (5, 3, 1):  # calls of the loss in this life
        with pytest.raises(Killed):
            trained(zoo, path, kill_at)
        assert path.exists()
    continued = trained(zoo, path)
    assert not path.exists()
    assert without_seconds(continued.history) == without_seconds(whole.history)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(continued.model.state_dict()[name], tensor), name
    continued.save_metrics(tmp_path / "metrics.json")
    assert len(json.loads((tmp_path / "metrics.json").read_text())["history"]) == 4


def test_the_best_weights_are_kept(zoo):
    run = trained(zoo, None)
    accuracy = (run.model(zoo.parameters).argmax(-1) == zoo.labels).double().mean()
    assert run.best["accuracy"] == max(entry["accuracy"] for entry in run.history) == accuracy


def test_a_foreign_or_broken_checkpoint_is_refused(zoo, tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        trained(zoo, path, kill_at=2)
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match="another number of steps"):
        trained(zoo, path, steps=99)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="remove it to start anew"):
        trained(zoo, path)


def test_a_diverging_loss_is_named(zoo):
    broken = {name: torch.full_like(tensor, math.nan) for name, tensor in zoo.parameters.items()}
    with pytest.raises(NonFiniteError, match="at step 0; lower learning_rate"):
        trained(replace(zoo, parameters=broken), None)


def test_wrong_settings_are_named(zoo):
    with pytest.raises(ShapeError, match="steps is 0"):
        trained(zoo, None, steps=0)
    with pytest.raises(ShapeError, match="evaluate returned accuracy, not the objective 'tau'"):
        trained(zoo, None, objective="tau")


def test_the_global_generator_is_left_as_it_was(zoo):
    reader("deep weight space", zoo, 0, torch.float32)
    expected = torch.rand(3)
    trained(zoo, None, steps=2)
    assert torch.equal(torch.rand(3), expected)
