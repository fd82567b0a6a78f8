"""Distances vanish on orbits and nowhere else; provenance grades what was done to a network."""

import copy
import json
import pickle
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightspace.bundled import digits, load
from weightspace.distances import BLOCK_ENTRIES, difference, distance
from weightspace.errors import NonFiniteError, ShapeError
from weightspace.kinship import Kinship, provenance, stranger
from weightspace.permutation import permute, random_permutations
from weightspace.tracing import trace
from weightspace.verification import symmetry

BOTH = [torch.float32, torch.float64]


def perceptron(seed=0, sizes=(64, 16, 12, 10), dtype=torch.float32):
    torch.manual_seed(seed)
    layers = [f for a, b in pairwise(sizes) for f in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).to(dtype)


def network(seed=0, dtype=torch.float32):
    return trace(perceptron(seed, dtype=dtype), torch.zeros(2, 64, dtype=dtype))


def shuffled(original, seed=0):
    spec = symmetry(original)
    return permute(original, spec, random_permutations(spec, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", ["digits_mlp_a", "digits_resnet"])
def test_the_distance_of_reorderings_is_exactly_zero(name, dtype):
    original = load(name).astype(dtype)
    found = distance(original, shuffled(original))
    assert found == 0 == found.value == found.relative == found.gap
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.raw == distance(original, shuffled(original), modulo=None) > 1
    assert distance(original, original, modulo=None) == 0


@pytest.mark.parametrize("dtype", BOTH)
def test_distance_agrees_with_its_definition(dtype):
    a, b = network(0, dtype), network(1, dtype)
    x, y = (torch.cat([t.flatten().double() for t in n.parameters.values()]) for n in (a, b))
    found = distance(a, b, modulo=None)
    assert float(found) == pytest.approx(float((x - y).norm()))
    assert found.gap == pytest.approx(float((x - y).abs().sum() / (x.abs().sum() + y.abs().sum())))
    assert found.cosine == pytest.approx(float(F.cosine_similarity(x, y, 0)))
    assert found.relative == pytest.approx(float((x - y).norm() / ((x @ x + y @ y) / 2).sqrt()))
    modulo = distance(a, b)
    assert modulo < found
    assert modulo.raw == found.value
    assert distance(a, shuffled(b)) == pytest.approx(modulo, rel=0.1)  # two local searches
    copied = pickle.loads(pickle.dumps(modulo))
    assert (float(copied), copied.gap, json.dumps(copied)) == (
        modulo.value,
        modulo.gap,
        json.dumps(modulo.value),
    )


def test_distance_refuses_what_it_cannot_compare():
    a = network()
    with pytest.raises(ShapeError, match="equal widths"):
        distance(a, trace(perceptron(0, (64, 16, 13, 10)), torch.zeros(2, 64)))
    with pytest.raises(ValueError, match="'rotation'"):
        distance(a, a, modulo="rotation")
    with pytest.raises(NonFiniteError):
        distance(a, a.replace_parameters({"0.bias": torch.full((16,), torch.nan)}))
    linear = trace(nn.Linear(3, 2), torch.zeros(2, 3))
    assert distance(linear, linear) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *BOTH])
def test_differences_in_blocks(dtype):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(BLOCK_ENTRIES + 7, generator=generator).to(dtype)
    b = torch.randn(BLOCK_ENTRIES + 7, generator=generator).to(dtype)
    found = difference({"w": a, "gone": a}, {"w": b, "new": b, "n": b})
    x, y = a.double(), b.double()
    row = found.tensors[0]
    assert row.gap == pytest.approx(float((x - y).abs().sum() / (x.abs().sum() + y.abs().sum()))) == found.gap
    assert row.cosine == pytest.approx(float(F.cosine_similarity(x, y, 0)), abs=1e-12)
    assert row.largest == float((x - y).abs().max())
    assert (found.only_a, found.only_b, found.equal) == (("gone",), ("new", "n"), False)


def test_differences_of_what_is_not_finite():
    inf, nan = torch.inf, torch.nan
    a, b = torch.tensor([1.0, inf, nan, -inf, 2.0]), torch.tensor([1.0, inf, nan, -inf, 2.5])
    row = difference({"w": a}, {"w": b}).tensors[0]
    assert (row.largest, row.gap) == (0.5, pytest.approx(0.5 / 6.5))
    assert difference({"w": a}, {"w": a}).equal
    assert difference({"w": a}, {"w": b.flip(0)}).tensors[0].largest == inf
    shapes = difference(
        {"w": torch.zeros(2, 3), "e": torch.zeros(0)}, {"w": torch.zeros(3, 2), "e": torch.zeros(0)}
    )
    assert shapes.reshaped == (("w", (2, 3), (3, 2)),)
    assert difference({"z": torch.tensor([1 + 1j])}, {"z": torch.tensor([1 + 2j])}).tensors[0].largest == 1


def trained(module, steps, seed, classes=10, rate=3e-3):
    x, y, _, _ = digits()
    x, y = x[y < classes], y[y < classes]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        loss = F.cross_entropy(module(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def test_provenance_grades():
    base = trained(perceptron(0), 200, 0)
    x = torch.zeros(2, 64)
    original, tuned = trace(base, x), trace(trained(copy.deepcopy(base), 100, 1, classes=5), x)
    other = trace(trained(perceptron(1), 200, 1), x)
    rounded = original.astype(torch.bfloat16).astype(torch.float32)
    noisy = original.replace_parameters({k: t * (1 + 2e-7) for k, t in original.parameters.items()})
    start = trace(perceptron(0), x)
    expected = [
        (original, Kinship.IDENTICAL),
        (shuffled(original), Kinship.REORDERED),
        (rounded, Kinship.ROUNDED),
        (shuffled(original).astype(torch.float16), Kinship.ROUNDED),
        (shuffled(noisy), Kinship.ROUNDED),
        (tuned, Kinship.DERIVED),
        (shuffled(tuned), Kinship.DERIVED),
        (start, Kinship.DERIVED),  # dead pixels keep the weights that they began with
        (other, Kinship.INDEPENDENT),
        (shuffled(other), Kinship.INDEPENDENT),
    ]
    for second, kinship in expected:
        found = provenance(original, second)
        assert found.kinship is kinship, str(found)
        assert kinship.value in str(found)
        data = json.loads(found.to_json())
        assert data["kinship"] == kinship.value
        assert found.gap <= found.gap_raw + 1e-12
    assert provenance(original, tuned).order_score > 6
    assert provenance(original, tuned).untouched > 0.05
    assert provenance(original, rounded).precision == "bfloat16"


def test_untrained_networks_are_strangers():
    for seed in range(1, 4):
        found = provenance(network(0), network(seed))
        assert found.kinship is Kinship.INDEPENDENT
        assert found.ratio == pytest.approx(1, abs=0.1)
        assert found.untouched == 0
        assert abs(found.order_score) < 5


def test_a_stranger_keeps_the_weights_at_fixed_places():
    original = network()
    other = stranger(original, symmetry(original), torch.Generator().manual_seed(0))
    first, last = (original.parameters[k].sort(n).values for k, n in (("0.weight", 0), ("4.weight", 1)))
    assert torch.equal(first, other.parameters["0.weight"].sort(0).values)
    assert torch.equal(last, other.parameters["4.weight"].sort(1).values)
    assert torch.equal(original.parameters["4.bias"], other.parameters["4.bias"])
    assert not torch.equal(original.parameters["2.weight"], other.parameters["2.weight"])
