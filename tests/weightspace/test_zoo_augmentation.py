"""Laws of augmentation and standardization: functions are preserved, and what is fitted is inverted."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from tests.weightspace.architectures import ARCHITECTURES
from weightspace import symmetry, trace
from weightspace.errors import ArchitectureError, ShapeError
from weightspace.group_action import act
from weightspace.verification import function_change
from weightspace.zoo import (
    Augmentation,
    Siren,
    Standardization,
    WeightZoo,
    add_noise,
    drop_weights,
    flip_sine_units,
    permute_zoo,
    scale_relu_units,
    standardize,
)
from weightspace.zoo.batch_action import act_batch

DTYPES = [torch.float32, torch.float64]
NETWORKS = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def zoo_of(name: str, dtype: torch.dtype) -> WeightZoo:
    """Networks of an architecture whose tensors are all disturbed."""
    network = trace(ARCHITECTURES[name].module(), ARCHITECTURES[name].inputs()).astype(dtype)
    parameters = {}
    for key, tensor in network.parameters.items():
        if key not in network.buffers or "running" in key:
            factor = 1 + 0.2 * torch.rand((NETWORKS, *tensor.shape), generator=seeded(len(key)), dtype=dtype)
            parameters[key] = tensor * factor
    return WeightZoo(parameters, network)


def sines(dtype: torch.dtype, count: int = 4) -> WeightZoo:
    modules = [Siren(2, (6, 5), 1, generator=seeded(i)).to(dtype) for i in range(count)]
    states = [module.state_dict() for module in modules]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return WeightZoo(stacked, trace(modules[0], torch.zeros(3, 2, dtype=dtype)))


def rectified(dtype: torch.dtype) -> WeightZoo:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)
    ).to(dtype)
    stacked = {
        name: torch.randn((NETWORKS, *tensor.shape), generator=seeded(len(name)), dtype=dtype) / 3
        for name, tensor in module.state_dict().items()
    }
    return WeightZoo(stacked, trace(module, torch.zeros(3, 1, 7, 7, dtype=dtype)))


def assert_same_functions(before: WeightZoo, after: dict[str, torch.Tensor], tolerance: float) -> None:
    moved = WeightZoo(after, before.template)
    for index in range(len(before)):
        a, b = before.network(index), moved.network(index)
        assert a != b
        assert function_change(a, b, seeded()) < tolerance


def tolerance_of(dtype: torch.dtype) -> float:
    return 1e-11 if dtype == torch.float64 else 2e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mlp", "resnet", "grouped convolutions", "llama", "lstm"])
def test_permuted_networks_compute_the_same(name, dtype):
    zoo = zoo_of(name, dtype)
    assert_same_functions(zoo, permute_zoo(zoo.parameters, zoo.spec, seeded()), tolerance_of(dtype))


@pytest.mark.parametrize(
    "name",
    ["mlp", "resnet", "grouped convolutions", "flattened convolutions", "u-net", "gpt", "llama", "lstm", "shared layer",
     "shuffled channels", "prelu"],
)  # fmt: skip
def test_a_batch_moves_as_its_networks_one_by_one(name):
    """The vectorized action and `weightspace.group_action` agree, on permutations, signs and scalings."""
    zoo = zoo_of(name, torch.float64)
    spec = zoo.continuous_spec
    spec = spec.only(["permutation", "positive", "sign"])
    elements = {}
    for group in spec.groups:
        shape = (NETWORKS, *group.copies, group.size)
        uniform = torch.rand(shape, generator=seeded(group.size), dtype=torch.float64)
        elements[group.name] = {
            "permutation": uniform.argsort(-1), "positive": uniform + 0.5, "sign": (uniform - 0.5).sign()
        }[group.kind]  # fmt: skip
    moved = WeightZoo(act_batch(zoo.parameters, spec, elements), zoo.template)
    for index in range(NETWORKS):
        own = {group: element[index] for group, element in elements.items()}
        expected = act(zoo.network(index), spec, own).parameters
        for key, tensor in moved.network(index).parameters.items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_units_compute_the_same(dtype):
    zoo = rectified(dtype)
    scaled = scale_relu_units(zoo.parameters, zoo.continuous_spec, seeded(), spread=0.7)
    assert_same_functions(zoo, scaled, tolerance_of(dtype))
    assert not torch.allclose(
        scaled["0.weight"].abs().amax((2, 3, 4)), zoo.parameters["0.weight"].abs().amax((2, 3, 4))
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_flipped_units_compute_the_same(dtype):
    zoo = sines(dtype)
    flipped = flip_sine_units(zoo.parameters, zoo.continuous_spec, seeded())
    assert_same_functions(zoo, flipped, tolerance_of(dtype))
    for name, tensor in flipped.items():
        assert torch.equal(tensor.abs(), zoo.parameters[name].abs())


def test_every_network_gets_an_element_of_its_own():
    zoo = sines(torch.float64)
    same = {name: tensor[:1].expand_as(tensor) for name, tensor in zoo.parameters.items()}
    for move in (permute_zoo, flip_sine_units):
        rows = WeightZoo(move(same, zoo.continuous_spec, seeded()), zoo.template).flat()
        assert len(rows.unique(dim=0)) == len(zoo)


def test_symmetries_that_are_not_there_are_refused():
    zoo = sines(torch.float64)
    with pytest.raises(ShapeError, match="'positive'"):
        scale_relu_units(zoo.parameters, zoo.continuous_spec)
    with pytest.raises(ShapeError, match="'sign'"):
        flip_sine_units(zoo.parameters, zoo.spec)
    with pytest.raises(ShapeError, match="one length"):
        permute_zoo({"a": torch.zeros(2, 3), "b": torch.zeros(3, 3)}, zoo.spec)
    with pytest.raises(ShapeError, match="which the network does not have"):
        permute_zoo({"a": torch.zeros(2, 3)}, zoo.spec)


def test_augmented_weights_are_differentiable():
    zoo = sines(torch.float64)
    augment = Augmentation(zoo.continuous_spec, signs=True, noise=0.1, drop=0.2)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in zoo.parameters.items()}
    sum(tensor.sum() for tensor in augment(leaves, seeded()).values()).backward()
    slopes = torch.cat([tensor.grad.flatten() for tensor in leaves.values()])
    assert set(slopes.tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_and_dropped_weights_have_the_stated_size(dtype):
    parameters = {"a": 3 * torch.randn(50, 40, 10, generator=seeded(1), dtype=dtype) + 1}
    noise = (add_noise(parameters, seeded(), strength=0.1)["a"] - parameters["a"]) / 0.3
    assert abs(float(noise.std()) - 1) < 0.05
    assert abs(float(noise.mean())) < 0.05
    dropped = drop_weights(parameters, seeded(), rate=0.3)["a"]
    assert abs(float((dropped == 0).double().mean()) - 0.3) < 0.02
    assert torch.equal(dropped[dropped != 0], parameters["a"][dropped != 0])
    assert dropped.dtype == noise.dtype == dtype


def test_an_augmentation_draws_from_its_generator():
    zoo = sines(torch.float64)
    augment = Augmentation(zoo.continuous_spec, signs=True, noise=0.1)
    first, again, other = (
        WeightZoo(augment(zoo.parameters, seeded(s)), zoo.template).flat() for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    resting = Augmentation(zoo.spec, permute=False)
    assert torch.equal(WeightZoo(resting(zoo.parameters), zoo.template).flat(), zoo.flat())


# ---- standardization -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_spec", [False, True])
def test_standardized_weights_have_mean_zero_and_deviation_one(dtype, with_spec):
    zoo = zoo_of("mlp", dtype)
    spec = zoo.spec if with_spec else None
    fitted = standardize(zoo, spec)
    again = standardize(fitted.apply(zoo.parameters), spec)
    for name in zoo.parameters:
        torch.testing.assert_close(again.mean[name], torch.zeros_like(again.mean[name]), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            again.deviation[name], torch.ones_like(again.mean[name]), atol=1e-5, rtol=0
        )
    first = fitted.mean["0.weight"]
    assert first.shape == ((1, 1, 8) if with_spec else (1, 1, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverting_gives_the_weights_back_also_through_json(dtype):
    zoo = zoo_of("grouped convolutions", dtype)
    fitted = standardize(zoo.parameters, zoo.spec)
    read = Standardization.from_json(fitted.to_json())
    for one, other in ((fitted, read), (read, fitted)):
        back = other.invert(one.apply(zoo.parameters))
        for name, tensor in zoo.parameters.items():
            torch.testing.assert_close(back[name], tensor, rtol=1e-5, atol=1e-6)
            assert back[name].dtype == dtype


@pytest.mark.parametrize("name", ["mlp", "grouped convolutions", "gpt", "lstm", "flattened convolutions"])
def test_standardizing_commutes_with_permutations(name):
    zoo = zoo_of(name, torch.float64)
    fitted = standardize(zoo, zoo.spec)
    one = fitted.apply(permute_zoo(zoo.parameters, zoo.spec, seeded()))
    other = permute_zoo(fitted.apply(zoo.parameters), zoo.spec, seeded())
    for key in zoo.parameters:
        torch.testing.assert_close(one[key], other[key])


def test_constant_weights_stay_finite():
    fitted = standardize({"a": torch.full((4, 3), 0.1)})
    assert fitted.apply({"a": torch.full((4, 3), 0.1)})["a"].abs().max() < 1e-6
    assert float(fitted.deviation["a"]) == 1.0


def test_standardizations_of_something_else_are_refused():
    fitted = standardize({"a": torch.rand(4, 3)})
    with pytest.raises(ShapeError, match="'b' was not standardized; known are a"):
        fitted.apply({"b": torch.zeros(1)})
    with pytest.raises(ShapeError, match="at least one network"):
        standardize({"a": torch.zeros(0, 3)})
    for text in ("", "{}", "[" * 9999, fitted.to_json().replace('"version": 1', '"version": 2')):
        with pytest.raises(ArchitectureError, match="standardization"):
            Standardization.from_json(text)


def test_spec_of_a_zoo_is_that_of_its_template():
    zoo = zoo_of("mlp", torch.float64)
    assert zoo.spec == symmetry(zoo.template)
