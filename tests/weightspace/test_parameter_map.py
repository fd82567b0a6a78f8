"""Laws of `GraphParameterMap`: it commutes with permutations, and one set of weights reads every width."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from weightspace import symmetry, trace
from weightspace.errors import ShapeError
from weightspace.graph import NeuralGraphNet, NeuralGraphTransformer, describe_graphs, encode
from weightspace.graph.parameter_map import GraphParameterMap, widen_vocabulary
from weightspace.zoo import permute_zoo

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
BOTH = pytest.mark.parametrize("dtype", list(TOLERANCE))
OPTIONS = {
    NeuralGraphNet: {"width": 8, "layers": 2},
    NeuralGraphTransformer: {"width": 8, "edge_width": 4, "heads": 2, "layers": 2},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(network, channels: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(2, *channels, *tensor.shape, generator=seeded(len(name)), dtype=dtype)
        for name, tensor in network.parameters.items()
    }


def mapping(cls, graph, dtype, channels: int = 1, out: int = 1, **options) -> GraphParameterMap:
    vocabulary = widen_vocabulary(describe_graphs([graph]), channels)
    net = cls(vocabulary, level="edge", generator=seeded(), dtype=dtype, **OPTIONS[cls], **options)
    return GraphParameterMap(net, graph.structure, out, generator=seeded()).eval()


def perceptron(*sizes: int) -> nn.Module:
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@BOTH
@pytest.mark.parametrize("cls", list(OPTIONS))
@pytest.mark.parametrize("name", ["mlp", "resnet_bn", "conv"])
def test_commutes_with_permutations_and_with_nothing_on_the_inputs(cls, name, dtype):
    network, inputs = modules()[name]
    network = trace(network.eval(), inputs).astype(dtype)
    spec, graph = symmetry(network), encode(network)
    learned = mapping(cls, graph, dtype)
    values = {
        key: v for key, v in drawn(network, (), dtype).items() if key in dict(graph.structure.parameters)
    }
    owned = replace(
        spec,
        axes={key: axes for key, axes in spec.axes.items() if key in values},
        shapes={key: shape for key, shape in spec.shapes.items() if key in values},
    )
    moved = permute_zoo(values, owned, seeded(1))
    before = {key: tensor[:, 0] for key, tensor in learned(values).items()}
    wanted, after = permute_zoo(before, owned, seeded(1)), learned(moved)
    for key, tensor in wanted.items():
        assert after[key].shape == (2, 1, *values[key].shape[1:])
        assert (after[key][:, 0] - tensor).abs().max() < TOLERANCE[dtype] * max(1, tensor.abs().max())
    assert any((wanted[key] - before[key]).abs().max() > 1e-2 for key in wanted)
    first = next(iter(values))
    flipped = {**values, first: values[first].flip(2)}
    assert (learned(flipped)[first] - learned(values)[first].flip(3)).abs().max() > 1e-2


def modules():
    return {
        "mlp": (perceptron(3, 5, 4, 2), torch.randn(3, 3)),
        "conv": (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
            torch.randn(3, 2, 4, 4),
        ),
        "resnet_bn": (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)),
            torch.randn(3, 2, 4, 4),
        ),
    }


@BOTH
def test_the_same_weights_read_other_widths(dtype):
    small, wide = (
        trace(perceptron(3, width, 2).to(dtype), torch.randn(3, 3, dtype=dtype)) for width in (4, 9)
    )
    learned = mapping(NeuralGraphNet, encode(small), dtype, channels=2, out=3)
    other = learned.with_structure(encode(wide).structure)
    assert {id(p) for p in other.parameters()} == {id(p) for p in learned.parameters()}
    results = other(drawn(wide, (2,), dtype))
    assert {key: tuple(v.shape) for key, v in results.items()} == {
        key: (2, 3, *tensor.shape) for key, tensor in wide.parameters.items()
    }
    again = other.with_structure(encode(small).structure)
    values = drawn(small, (2,), dtype)
    assert all(torch.equal(again(values)[key], learned(values)[key]) for key in values)


def test_every_parameter_receives_what_is_read_at_its_place():
    network = trace(perceptron(2, 3, 2).double(), torch.randn(3, 2).double())
    graph = encode(network)
    learned = mapping(NeuralGraphNet, graph, torch.float64)
    with torch.no_grad():
        for part in (
            learned.readout.nodes,
            learned.readout.edges,
            learned.readout.source,
            learned.readout.target,
        ):
            part.weight.zero_()
        learned.readout.nodes.bias.fill_(5.0)
        learned.readout.edges.bias.fill_(7.0)
    for key, tensor in learned(drawn(network, (), torch.float64)).items():
        assert (tensor == (7.0 if key.endswith("weight") else 5.0)).all()


def test_refuses_by_name():
    graph = encode(trace(perceptron(2, 3, 2), torch.randn(3, 2)))
    vocabulary = describe_graphs([graph])
    with pytest.raises(ShapeError, match='level="edge"'):
        GraphParameterMap(NeuralGraphNet(vocabulary, level="node"), graph.structure)
    wide = replace(vocabulary, edge_channels=2)
    with pytest.raises(ShapeError, match="widen_vocabulary"):
        GraphParameterMap(NeuralGraphNet(wide, level="edge"), graph.structure)
    learned = mapping(NeuralGraphNet, graph, torch.float32)
    with pytest.raises(ShapeError, match=r"0\.weight"):
        learned({})
    shapes = {name: torch.zeros(2, 3, *shape) for name, shape in graph.structure.parameters}
    with pytest.raises(ShapeError, match="batch, 1"):
        learned(shapes)
