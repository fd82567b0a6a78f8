"""Stacks of equivariant layers stay equivariant, whatever stands between them, and can tell inputs apart."""

from __future__ import annotations

import pytest
import torch

from tests.weightspace.specs import random_features, random_spec
from weightspace.equivariant import (
    Attention,
    DeepWeightSpaceNet,
    Full,
    LowRank,
    Max,
    Mean,
    describe_perceptron,
)
from weightspace.errors import ArchitectureError, ShapeError
from weightspace.testing import assert_equivariant

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_features", [None, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization": "channel", "dropout": 0.1},
        {"normalization": None, "pooling": Max()},
        {"pooling": Attention(), "residual": False},
        {"fixed": LowRank(3), "channels": (8, 8)},
    ],
)
def test_nets_commute_with_permutations(options, out_features, dtype):
    torch.manual_seed(0)
    for spec in (describe_perceptron((2, 4, 4, 3)), random_spec(7)):
        net = DeepWeightSpaceNet(spec, out_features, in_channels=2, dtype=dtype, **options).eval()
        # float32 rounding grows through the layers; one layer alone is held to 1e-6
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        assert_equivariant(net, spec, channels=2, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("large", [False, True])
def test_permuting_inputs_changes_the_result(large):
    torch.manual_seed(0)
    spec = describe_perceptron((70 if large else 4, 5, 3))
    net = DeepWeightSpaceNet(spec, 2, dtype=torch.float64).eval()
    features = {name: x[:, 0] for name, x in random_features(spec, 3, 1, torch.float64).items()}
    swapped = {**features, "layers.0.weight": features["layers.0.weight"].flip(-1)}
    assert (net(features) - net(swapped)).abs().max() > 1e-4


@pytest.mark.parametrize("fixed", [Full(), LowRank(4)])
@pytest.mark.parametrize("pooling", [Mean(), Max()])
def test_training_reduces_the_loss(pooling, fixed):
    torch.manual_seed(0)
    spec = describe_perceptron((2, 6, 1))
    net = DeepWeightSpaceNet(spec, 2, channels=(8, 8), pooling=pooling, fixed=fixed)
    features = random_features(spec, 64, 1, torch.float32)
    target = features["layers.0.weight"][:, 0].amax(1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (net(features) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_state_dict_round_trip():
    torch.manual_seed(0)
    spec = random_spec(3)
    first, second = (DeepWeightSpaceNet(spec, 2, channels=(4, 4)).eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    features = random_features(spec, 2, 1, torch.float32)
    torch.testing.assert_close(first(features), second(features), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_without_graph_breaks():
    torch.manual_seed(0)
    spec = describe_perceptron((2, 5, 5, 1))
    net = DeepWeightSpaceNet(spec, 2, channels=(4, 4)).eval()
    features = {name: x[:, 0] for name, x in random_features(spec, 3, 1, torch.float32).items()}
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), net(features))


def test_wrong_settings_are_named():
    spec = describe_perceptron((2, 3, 1))
    with pytest.raises(ShapeError, match="at least one layer"):
        DeepWeightSpaceNet(spec, 2, channels=())
    with pytest.raises(ArchitectureError, match="got 'layer'"):
        DeepWeightSpaceNet(spec, 2, normalization="layer")
    with pytest.raises(ShapeError, match=r"'layers\.0\.weight', which is not among"):
        DeepWeightSpaceNet(spec, 2)({})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_result_on_the_gpu():
    torch.manual_seed(0)
    spec = random_spec(5)
    net = DeepWeightSpaceNet(spec, 2, in_channels=2, dtype=torch.float64).eval()
    features = random_features(spec, 3, 2, torch.float64)
    expected = net(features)
    found = net.cuda()({name: x.cuda() for name, x in features.items()})
    torch.testing.assert_close(found.cpu(), expected)
