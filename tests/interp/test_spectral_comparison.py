"""Laws of the comparison of spectra: it sees the function alone, and spans where vectors are arbitrary."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

import interp
import weightspace
from interp.spectral_comparison import compare_spectra
from weightspace.layers import Bilinear

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def layer(seed, hidden=9, dtype=torch.float64):
    torch.manual_seed(seed)
    return Bilinear(6, hidden, 3).to(dtype)


@dtypes
def test_the_same_function_in_other_weights_and_sizes_is_similar_throughout(dtype):
    first = layer(0, dtype=dtype)
    second = Bilinear(6, 18, 3).to(dtype)
    with torch.no_grad():  # every unit twice, at half weight; factors swapped and rescaled
        second.left.weight.copy_(4 * first.right.weight.repeat(2, 1))
        second.right.weight.copy_(0.25 * first.left.weight.repeat(2, 1))
        second.output.weight.copy_(0.5 * first.output.weight.repeat(1, 2))
    found = compare_spectra([interp.decompose(first), interp.decompose(second)])
    assert found.similarity.shape == (1, 3, 6)
    assert (found.similarity - 1).abs().max() <= TOLERANCE[dtype]
    assert found.by_rank.shape == (6,)


def test_single_vectors_are_compared_by_their_cosine():
    a, b, c = (interp.decompose(layer(seed)) for seed in range(3))
    found = compare_spectra([a, b, c], terms=4)
    assert found.pairs == ((0, 1), (0, 2), (1, 2))
    for row, (first, second) in zip(found.similarity, ((a, b), (a, c), (b, c))):
        cosines = (first.vectors[:, :4] * second.vectors[:, :4]).sum(-1).abs()
        assert torch.allclose(row, cosines, atol=1e-12)
    other = [(a.vectors[i, 2] @ b.vectors[j, 2]).abs() for i in range(3) for j in range(3) if i != j]
    assert found.unrelated[0, 2] == pytest.approx(float(torch.stack(other).mean()))


def test_arbitrary_vectors_of_one_eigenvalue_are_compared_by_their_span():
    model = Bilinear(5, 5, 1).double()
    with torch.no_grad():
        model.left.weight.copy_(torch.eye(5))
        model.right.weight.copy_(torch.diag(torch.tensor([3.0, 2, 2, 2, 1])))
        model.output.weight.fill_(1.0)
    first = interp.decompose(model)
    assert first.clusters == (((1, 2, 3),),)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator)).Q
    vectors = first.vectors.clone()
    vectors[0, 1:4] = turn @ vectors[0, 1:4]
    second = replace(first, vectors=vectors)
    assert (first.vectors * second.vectors).sum(-1).abs().min() < 0.9
    # Two terms only: the third and fourth still belong to the span that is compared.
    for terms in (2, 5):
        found = compare_spectra([first, second], terms=terms)
        assert torch.allclose(found.similarity, torch.ones(1, 1, terms, dtype=torch.float64))
    assert found.unrelated is None
    # One vector against a span of three that contains it: cosine of the projectors 1 / sqrt(3).
    alone = replace(first, clusters=((),))
    found = compare_spectra([first, alone], terms=3)
    assert found.similarity[0, 0, 1] == pytest.approx(3**-0.25)


@dtypes
def test_matched_vectors_are_found_in_any_order(dtype):
    first = interp.decompose(layer(0, dtype=dtype))
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    second = replace(first, vectors=first.vectors[:, order])
    assert compare_spectra([first, second]).similarity.max() <= TOLERANCE[dtype]
    found = compare_spectra([first, second], matched=True)
    assert (found.similarity - 1).abs().max() <= TOLERANCE[dtype]
    assert found.matched


def test_no_assignment_is_better_than_the_matched_one():
    a, b = (interp.decompose(layer(seed)) for seed in range(2))
    found = compare_spectra([a, b], terms=4, matched=True)
    for direction in range(3):
        cosines = (a.vectors[direction, :4] @ b.vectors[direction, :4].mT).abs()
        sums = [sum(cosines[i, j] for i, j in enumerate(order)) for order in permutations(range(4))]
        assert found.similarity[0, direction].sum() == pytest.approx(float(max(sums)))


@pytest.mark.parametrize("size", [2, 6, 40])
def test_chance_is_what_random_vectors_have(size):
    found = compare_spectra([interp.decompose(Bilinear(size, 3, 2)) for _ in range(2)])
    generator = torch.Generator().manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 40000, size, generator=generator), dim=-1)
    cosines = (a * b).sum(-1).abs()
    assert found.chance == pytest.approx(float(cosines.mean()), abs=float(4 * cosines.std() / 200))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(weightspace.ShapeError, match="two or more"):
        compare_spectra([interp.decompose(layer(0))])
    with pytest.raises(weightspace.ShapeError, match=r"\(3, 6\), \(3, 7\)"):
        compare_spectra([interp.decompose(layer(0)), interp.decompose(Bilinear(6, 4, 3, bias=True))])
    with pytest.raises(weightspace.ShapeError, match="terms is 0"):
        compare_spectra([interp.decompose(layer(0)), interp.decompose(layer(1))], terms=0)
