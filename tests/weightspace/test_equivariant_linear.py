"""The equivariant layer commutes with every permutation and spans the whole space of maps that do."""

from __future__ import annotations

import math

import pytest
import torch

from tests.weightspace.architectures import ARCHITECTURES, ZOO
from tests.weightspace.specs import (
    count_orbits,
    random_features,
    random_spec,
)
from weightspace.equivariant import (
    Attention,
    Embedded,
    EquivariantLinear,
    EquivariantSetLayer,
    Full,
    InvariantLinear,
    LowRank,
    Max,
    Mean,
    Sum,
    count_maps,
    describe_perceptron,
)
from weightspace.equivariant.features import flatten_features
from weightspace.errors import ShapeError
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.testing import assert_equivariant
from weightspace.tracing import trace
from weightspace.verification import symmetry

DTYPES = [torch.float32, torch.float64]


def rank_of_span(layer: EquivariantLinear) -> int:
    """Rank of the linear maps that single parameters make: each applied to a few random inputs."""
    spec = layer.spec
    parameters = [p for name, p in layer.named_parameters() if name != "constants"]
    entries = sum(map(math.prod, spec.shapes.values()))
    features = random_features(spec, entries, 1, torch.float64, seed=5)
    rows = []
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
        if layer.constants is not None:
            layer.constants.zero_()
        for parameter in parameters:
            for place in range(parameter.numel()):
                parameter.view(-1)[place] = 1
                rows.append(flatten_features(layer(features), spec).reshape(-1))
                parameter.view(-1)[place] = 0
    return int(torch.linalg.matrix_rank(torch.stack(rows), rtol=1e-9))


@pytest.mark.parametrize(
    ("sizes", "linear", "constant"),
    [
        ((2, 3, 1), 41, 5),
        ((2, 1, 3, 2), 97, 9),
        ((2, 3, 3, 2), 114, 9),
        ((2, 3, 4, 3, 2), 164, 11),
        ((2, 3, 4, 3, 3, 2), 222, 13),
        ((2, 3, 4, 3, 3, 1), 167, 11),
    ],
)
def test_perceptrons_have_rank_parameters_and_orbits_of_the_theory(sizes, linear, constant):
    spec = describe_perceptron(sizes)
    layer = EquivariantLinear(spec, 1, 1, dtype=torch.float64)
    assert sum(p.numel() for p in layer.parameters()) == linear + constant
    assert count_orbits(spec, pairs=True) == linear == count_maps(spec).linear == rank_of_span(layer)
    assert count_orbits(spec, pairs=False) == constant == count_maps(spec).constant


def test_dimensions_of_large_perceptrons():
    for sizes, linear, constant in [((2, 32, 32, 1), 75, 7), ((2, 32, 32, 3), 163, 11), ((3, 64, 64, 64, 1), 145, 10),
                                    ((784, 512, 512, 512, 10), 1_272_432, 809)]:  # fmt: skip
        counted = count_maps(describe_perceptron(sizes))
        assert (counted.linear, counted.constant) == (linear, constant)


@pytest.mark.parametrize("seed", range(40))
def test_random_specs_have_rank_parameters_and_orbits_of_the_theory(seed):
    spec = random_spec(seed)
    layer = EquivariantLinear(spec, 1, 1, fixed=Full(), dtype=torch.float64)
    counted = count_maps(spec)
    assert sum(p.numel() for p in layer.parameters()) == counted.linear + counted.constant
    assert count_orbits(spec, pairs=True) == counted.linear == rank_of_span(layer)
    assert count_orbits(spec, pairs=False) == counted.constant
    for dtype in DTYPES:
        layer = EquivariantLinear(spec, 2, 3, fixed=Full(), dtype=dtype)
        assert_equivariant(layer, spec, channels=2, dtype=dtype)


LAYERS = {
    "linear": lambda spec, **o: EquivariantLinear(spec, 2, 3, **o),
    "full": lambda spec, **o: EquivariantLinear(spec, 2, 3, fixed=Full(), **o),
    "embedded": lambda spec, **o: EquivariantLinear(spec, 2, 3, fixed=Embedded(1), **o),
    "low rank": lambda spec, **o: EquivariantLinear(spec, 2, 3, fixed=LowRank(2), **o),
    "sum": lambda spec, **o: EquivariantSetLayer(spec, 2, 3, pooling=Sum(), **o),
    "max": lambda spec, **o: EquivariantSetLayer(spec, 2, 3, pooling=Max(), **o),
    "attention": lambda spec, **o: EquivariantSetLayer(spec, 2, 3, pooling=Attention(), **o),
    "invariant": lambda spec, **o: InvariantLinear(spec, 2, 3, **o),
    "invariant max": lambda spec, **o: InvariantLinear(spec, 2, 3, pooling=Max(), **o),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("sizes", [(2, 3, 4, 2), (3, 5, 1, 4, 1)])
def test_every_layer_commutes_with_permutations(kind, sizes, dtype):
    torch.manual_seed(0)
    spec = describe_perceptron(sizes)
    assert_equivariant(LAYERS[kind](spec, dtype=dtype), spec, channels=2, dtype=dtype)


@pytest.mark.parametrize("name", [*ZOO, "linear position biases", "shuffled channels", "projected lstm"])
def test_layers_on_real_architectures_commute_with_permutations(name):
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    spec = symmetry(trace(architecture.module(), architecture.inputs()))
    for dtype in DTYPES:
        assert_equivariant(EquivariantLinear(spec, 1, 2, dtype=dtype), spec, dtype=dtype)


@pytest.mark.parametrize("kind", ["linear", "full", "low rank", "max", "attention", "invariant"])
def test_permuting_inputs_changes_the_result(kind):
    torch.manual_seed(0)
    layer = LAYERS[kind](describe_perceptron((3, 4, 2)), dtype=torch.float64)
    features = random_features(layer.spec, 2, 2, torch.float64)
    swapped = {**features, "layers.0.weight": features["layers.0.weight"][..., [1, 0, 2]]}
    before, after = layer(features), layer(swapped)
    if isinstance(before, dict):
        before = {**before, "layers.0.weight": before["layers.0.weight"][..., [1, 0, 2]]}
        before, after = flatten_features(before, layer.spec), flatten_features(after, layer.spec)
    assert (before - after).abs().max() > 0.01


def test_embedded_inputs_are_told_apart_after_two_layers():
    torch.manual_seed(0)
    spec = describe_perceptron((70, 4, 2))
    layers = [
        EquivariantLinear(spec, 1, 4, dtype=torch.float64),
        InvariantLinear(spec, 4, 2, dtype=torch.float64),
    ]
    features = random_features(spec, 2, 1, torch.float64)
    swapped = {**features, "layers.0.weight": features["layers.0.weight"].flip(-1)}

    def run(x):
        hidden = layers[0](x)
        return layers[1]({name: value.relu() for name, value in hidden.items()})

    assert sum(p.numel() for p in layers[0].matrices.parameters()) < 4000
    assert (run(features) - run(swapped)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_needs_few_parameters(dtype):
    layer = EquivariantLinear(describe_perceptron((100, 8, 10)), 4, 4, fixed=LowRank(8), dtype=dtype)
    whole = EquivariantLinear(layer.spec, 4, 4, fixed=Full(), dtype=dtype)
    assert sum(p.numel() for p in layer.parameters()) < 0.1 * sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("pooling", [Mean(), Sum(), Max()])
@pytest.mark.parametrize("width", [8, 64, 512])
def test_results_have_unit_scale_for_every_width(width, pooling):
    torch.manual_seed(0)
    spec = describe_perceptron((2, width, width, 1))
    layer = EquivariantSetLayer(spec, 8, 8, pooling=pooling)
    with torch.no_grad():
        written = layer(random_features(spec, 4, 8, torch.float32))
    for name, x in written.items():
        assert 0.2 < x.square().mean().sqrt() < (2.5 if not isinstance(pooling, Max) else 8), name


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    for kind, make in LAYERS.items():
        layer = make(describe_perceptron((2, 3, 3, 2)), dtype=torch.float64)
        written = layer(random_features(layer.spec, 3, 2, torch.float64))
        written = flatten_features(written, layer.spec) if isinstance(written, dict) else written
        written.square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.numel() == 0 or (
                parameter.grad is not None and parameter.grad.abs().max() > 0
            ), (kind, name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", [0, 3])
def test_compiles_without_graph_breaks(seed):
    torch.manual_seed(0)
    spec = random_spec(seed) if seed else describe_perceptron((2, 5, 5, 1))
    layer = EquivariantLinear(spec, 2, 3)
    features = random_features(spec, 2, 2, torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        flatten_features(compiled(features), spec), flatten_features(layer(features), spec)
    )


def test_wrong_input_is_named():
    spec = describe_perceptron((2, 3, 1))
    layer = EquivariantLinear(spec, 1, 1)
    features = random_features(spec, 2, 1, torch.float32)
    with pytest.raises(ShapeError, match=r"'layers.0.weight' must have shape \(batch, 1, 3, 2\)"):
        layer({**features, "layers.0.weight": features["layers.0.weight"][:, 0]})
    with pytest.raises(ShapeError, match=r"'layers\.1\.bias', which is not among"):
        layer({name: x for name, x in features.items() if name != "layers.1.bias"})
    with pytest.raises(ShapeError, match="does not know the shape"):
        EquivariantLinear(SymmetrySpec(spec.groups, spec.axes), 1, 1)
    with pytest.raises(ShapeError, match="at least 1 channel"):
        EquivariantLinear(spec, 0, 1)
    with pytest.raises(ShapeError, match="two sizes"):
        describe_perceptron((3,))
