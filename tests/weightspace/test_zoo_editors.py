"""Laws of what changes weights: editing a permuted network permutes the edited one; a silent net is Adam."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightspace import trace
from weightspace.equivariant import DeepWeightSpaceNet
from weightspace.errors import ShapeError
from weightspace.graph import NeuralGraphNet, describe_graphs, encode
from weightspace.graph.parameter_map import GraphParameterMap, widen_vocabulary
from weightspace.zoo import PerceptronClassifier, Siren, WeightZoo, permute_zoo, render_inrs, standardize
from weightspace.zoo.editors import WeightEditor
from weightspace.zoo.learned_optimizer import LearnedOptimizer
from weightspace.zoo.perceptrons import run_perceptrons

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
BOTH = pytest.mark.parametrize("dtype", list(TOLERANCE))
FAMILIES = pytest.mark.parametrize("family", ["deep weight space", "neural graph"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def zoo_of(modules: list[nn.Module], inputs: torch.Tensor) -> WeightZoo:
    states = [dict(module.named_parameters()) for module in modules]
    stacked = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}
    return WeightZoo(stacked, trace(modules[0].eval(), inputs))


def sirens(dtype: torch.dtype) -> WeightZoo:
    return zoo_of(
        [Siren(2, (6, 5), 1, generator=seeded(i)).to(dtype) for i in range(4)], torch.zeros(3, 2, dtype=dtype)
    )


def classifiers(dtype: torch.dtype, width: int = 6) -> WeightZoo:
    torch.manual_seed(0)
    modules = [PerceptronClassifier((width, 5))((7,), 3).to(dtype) for _ in range(4)]
    return zoo_of(modules, torch.zeros(3, 7, dtype=dtype))


def equivariant(family: str, zoo: WeightZoo, dtype: torch.dtype, channels: int, out: int) -> nn.Module:
    torch.manual_seed(1)
    if family == "deep weight space":
        return DeepWeightSpaceNet(
            zoo.spec,
            channels=(6, 6),
            in_channels=channels,
            out_channels=out,
            normalization="channel",
            dtype=dtype,
        )
    graph = encode(zoo.template)
    vocabulary = widen_vocabulary(describe_graphs([graph]), channels)
    net = NeuralGraphNet(vocabulary, level="edge", width=8, layers=2, dtype=dtype, generator=seeded())
    return GraphParameterMap(net, graph.structure, out, generator=seeded())


def squares(parameters: dict) -> torch.Tensor:
    return torch.stack([tensor.square().sum() for tensor in parameters.values()]).sum()


def agree(a: dict, b: dict, dtype: torch.dtype) -> bool:
    return all(
        (a[name] - b[name]).abs().max() <= TOLERANCE[dtype] * max(1, b[name].abs().max()) for name in b
    )


@BOTH
@FAMILIES
def test_editing_a_permuted_network_permutes_the_edited_one(family, dtype):
    zoo = sirens(dtype)
    edit = WeightEditor(equivariant(family, zoo, dtype, 1, 1), standardize(zoo), scale=0.3, dtype=dtype)
    edited = edit(zoo.parameters)
    moved = permute_zoo(zoo.parameters, zoo.spec, seeded(2))
    assert agree(edit(moved), permute_zoo(edited, zoo.spec, seeded(2)), dtype)
    assert not agree(edit(moved), edited, dtype)
    images = render_inrs(edited, (4, 5)), render_inrs(edit(moved), (4, 5))
    assert (images[0] - images[1]).abs().max() < 1e3 * TOLERANCE[dtype]
    assert (images[0] - render_inrs(zoo.parameters, (4, 5))).abs().max() > 1e-2


def test_an_editor_starts_near_the_networks_and_its_scale_is_learned():
    zoo = sirens(torch.float64)
    net = equivariant("deep weight space", zoo, torch.float64, 1, 1)
    small, large = (
        WeightEditor(net, standardize(zoo), scale=scale, dtype=torch.float64) for scale in (1e-3, 1e-1)
    )
    for name, tensor in zoo.parameters.items():
        a, b = small(zoo.parameters)[name] - tensor, large(zoo.parameters)[name] - tensor
        assert torch.allclose(100 * a, b, rtol=1e-10)
    (gradient,) = torch.autograd.grad(squares(small(zoo.parameters)), small.log_scales)
    assert (gradient != 0).all()
    with pytest.raises(ShapeError, match="not standardized"):
        small({"other": torch.zeros(2, 3)})


@BOTH
def test_perceptrons_compute_what_their_modules_do(dtype):
    zoo = classifiers(dtype)
    x = torch.randn(4, 9, 7, generator=seeded(), dtype=dtype)
    found, shared = run_perceptrons(zoo.parameters, x), run_perceptrons(zoo.parameters, x[1])
    for index in range(4):
        module = zoo.network(index).to_module()
        assert (found[index] - module(x[index])).abs().max() < TOLERANCE[dtype]
        assert (shared[index] - module(x[1])).abs().max() < TOLERANCE[dtype]
    with pytest.raises(ShapeError, match=r"head\.bias"):
        run_perceptrons({"head.bias": torch.zeros(2, 3)}, x)


def losses_of(parameters: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits = run_perceptrons(parameters, x)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


def trained(optimizer: LearnedOptimizer, parameters: dict, steps: int) -> dict:
    dtype = next(iter(parameters.values())).dtype
    generator, state = seeded(5), optimizer.start(parameters)
    for _ in range(steps):
        live = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        x = torch.randn(len(live["head.bias"]), 8, 7, generator=generator, dtype=dtype)
        y = torch.randint(3, x.shape[:2], generator=generator)
        gradients = torch.autograd.grad(losses_of(live, x, y).sum(), list(live.values()))
        parameters, state = optimizer(live, dict(zip(live, gradients, strict=True)), state)
        parameters = {name: tensor.detach() for name, tensor in parameters.items()}
    assert state.step == steps
    return parameters


@BOTH
def test_a_learned_optimizer_whose_net_is_silent_is_adam(dtype):
    zoo = classifiers(dtype)
    silent = LearnedOptimizer(
        lambda features: {name: 0 * x[:, :2] for name, x in features.items()},
        list(zoo.parameters),
        rate=3e-3,
        dtype=dtype,
    )
    mine = trained(silent, dict(zoo.parameters), 7)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in zoo.parameters.items()}
    adam, generator = torch.optim.Adam(weights.values(), lr=3e-3), seeded(5)
    for _ in range(7):
        x = torch.randn(4, 8, 7, generator=generator, dtype=dtype)
        y = torch.randint(3, x.shape[:2], generator=generator)
        adam.zero_grad()
        losses_of(weights, x, y).sum().backward()
        adam.step()
    assert all((mine[name] - weights[name]).abs().max() < 10 * TOLERANCE[dtype] for name in mine)
    assert all((mine[name] - zoo.parameters[name]).abs().max() > 1e-3 for name in mine)


@BOTH
@FAMILIES
def test_a_learned_optimizer_does_not_know_the_order_of_neurons(family, dtype):
    zoo = classifiers(dtype)
    net = equivariant(family, zoo, dtype, LearnedOptimizer.channels(), 2)
    optimizer = LearnedOptimizer(net, list(zoo.parameters), scale=0.3, dtype=dtype)
    moved = permute_zoo(zoo.parameters, zoo.spec, seeded(2))
    wanted = permute_zoo(trained(optimizer, dict(zoo.parameters), 3), zoo.spec, seeded(2))
    found = trained(optimizer, moved, 3)
    assert all((found[name] - wanted[name]).abs().max() < 100 * TOLERANCE[dtype] for name in wanted)
    assert not agree(found, trained(optimizer, dict(zoo.parameters), 3), dtype)


def test_gradients_reach_the_net_through_the_weights_alone():
    zoo = classifiers(torch.float64)
    net = equivariant("neural graph", zoo, torch.float64, LearnedOptimizer.channels(), 2)
    optimizer = LearnedOptimizer(net, list(zoo.parameters), dtype=torch.float64)
    gradients = {name: tensor.clone().requires_grad_() for name, tensor in zoo.parameters.items()}
    moved, state = optimizer(zoo.parameters, gradients, optimizer.start(zoo.parameters))
    squares(moved).backward()
    assert all(tensor.grad is None for tensor in gradients.values())
    assert all(p.grad is not None for p in optimizer.parameters())
    assert not any(tensor.requires_grad for tensor in (*state.momenta.values(), *state.squares.values()))
