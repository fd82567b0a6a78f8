"""Laws of inner products between bilinear models: equal to those of the tensors, and to moments by sampling."""

import pytest
import torch
from torch import nn

import interp
import weightspace
from interp.recognition import recognize, recognize_layers
from interp.tensor_similarity import Gaussian
from weightspace.layers import Bilinear, BilinearMLP

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def layer(seed, bias=True, hidden=4, dtype=torch.float64):
    torch.manual_seed(seed)
    return Bilinear(5, hidden, 3, bias=bias).to(dtype)


def tensor(model):
    """The symmetric tensor (o, d + 1, d + 1) of a layer."""
    left, right, output = recognize(model).padded_factors()
    product = torch.einsum("oh,hi,hj->oij", output, left, right)
    return (product + product.mT) / 2


def tree(model):
    """The tensor (o, d', d', ...) of a stack of two layers, symmetrized at both nodes."""
    first, second = recognize_layers(model)
    one = torch.zeros(1, 1, first.left.shape[1], first.left.shape[1], dtype=torch.float64)[0]
    one[0, -1, -1] = 1.0
    left, right, output = first.padded_factors()
    below = torch.einsum("oh,hi,hj->oij", output, left, right)
    below = torch.cat([(below + below.mT) / 2, one])
    left, right, output = second.padded_factors()
    above = torch.einsum("oh,hi,hj->oij", output, left, right)
    above = (above + above.mT) / 2
    return torch.einsum("oab,aij,bkl->oijkl", above, below, below)


@dtypes
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_similarity_is_that_of_the_tensors(bias, dtype):
    a, b = layer(0, bias, dtype=dtype), layer(1, bias, hidden=7, dtype=dtype)
    found = interp.similarity(a, b)
    first, second = tensor(a), tensor(b)
    norms = first.norm(), second.norm()
    assert found.inner == pytest.approx(float((first * second).sum()), rel=1e-12)
    assert found.norms == pytest.approx([float(norm) for norm in norms], rel=1e-12)
    assert found.cosine == pytest.approx(float((first * second).sum() / norms[0] / norms[1]), rel=1e-12)
    assert found.distance == pytest.approx(float((first - second).norm()), rel=1e-10)
    expected = (first * second).sum((1, 2)) / first.flatten(1).norm(dim=1) / second.flatten(1).norm(dim=1)
    assert found.by_output == pytest.approx(expected.tolist(), rel=1e-10)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_similarity_of_stacks_is_that_of_the_trees(residual, bias):
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(BilinearMLP(4, 3, 2, layers=2, residual=residual, bias=bias).double())
    found = interp.similarity(*models)
    first, second = (tree(model) for model in models)
    assert found.inner == pytest.approx(float((first * second).sum()), rel=1e-10)
    assert found.norms == pytest.approx([float(first.norm()), float(second.norm())], rel=1e-10)


def test_similarity_does_not_see_how_the_layer_is_written():
    model = layer(0)
    torch.manual_seed(5)
    order, scale = torch.randperm(4), torch.rand(4, dtype=torch.float64) + 0.5
    other = layer(1)
    with torch.no_grad():
        for to, source, factor in (
            (other.left, model.right, scale),
            (other.right, model.left, 1 / scale),
        ):
            to.weight.copy_((source.weight * factor[:, None])[order])
            to.bias.copy_((source.bias * factor)[order])
        other.output.weight.copy_(model.output.weight[:, order])
        other.output.bias.copy_(model.output.bias)
    found = interp.similarity(model, other)
    assert found.cosine == pytest.approx(1.0, abs=1e-12)
    assert found.distance < 1e-7 * found.norms[0]
    assert interp.similarity(model, model, inputs=Gaussian()).cosine == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("which", ["standard", "mean", "factor", "both"])
def test_gaussian_similarity_agrees_with_sampling(which):
    a, b = layer(0), layer(1)
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(5, dtype=torch.float64, generator=generator)
    factor = torch.randn(5, 6, dtype=torch.float64, generator=generator) / 2
    inputs = Gaussian(
        mean if which in ("mean", "both") else None, factor if which in ("factor", "both") else None
    )
    z = torch.randn(400_000, 6 if inputs.factor is not None else 5, dtype=torch.float64, generator=generator)
    x = z if inputs.factor is None else z @ factor.T
    x = x if inputs.mean is None else x + mean
    with torch.no_grad():
        products = (a(x) * b(x)).sum(1)
        squared = (a(x) - b(x)).square().sum(1)
    found = interp.similarity(a, b, inputs=inputs)
    for got, drawn in ((found.inner, products), (found.distance**2, squared)):
        error = float(drawn.std() / len(drawn) ** 0.5)
        assert abs(got - float(drawn.mean())) < 4 * error


def test_refusals():
    with pytest.raises(weightspace.ShapeError, match="5 -> 3 in 1 and 4 -> 3 in 1"):
        interp.similarity(layer(0), Bilinear(4, 3, 3))
    with pytest.raises(weightspace.ShapeError, match="in 1 and 5 -> 3 in 2"):
        interp.similarity(layer(0), BilinearMLP(5, 4, 3, layers=2))
    deep = BilinearMLP(5, 4, 3, layers=2)
    with pytest.raises(weightspace.UnsupportedOperationError, match="these models have 2"):
        interp.similarity(deep, deep, inputs=Gaussian())
    with pytest.raises(weightspace.ShapeError, match=r"mean \(5,\)"):
        interp.similarity(layer(0), layer(1), inputs=Gaussian(torch.zeros(4)))


def test_a_zero_layer_is_similar_to_nothing():
    zero = layer(0, bias=False)
    nn.init.zeros_(zero.output.weight)
    found = interp.similarity(zero, layer(1, bias=False))
    assert found.cosine == 0.0
    assert found.distance == pytest.approx(found.norms[1])


# ---- HOSVD -------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_hosvd_is_the_singular_value_decomposition_of_the_unfolding(bias, dtype):
    model = layer(0, bias, dtype=dtype)
    found = interp.hosvd(model)
    unfolded = tensor(model).flatten(1)
    expected = torch.linalg.svd(unfolded, full_matrices=False)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.values.double(), expected.S, rtol=tolerance, atol=0)
    directions = found.directions.double()
    torch.testing.assert_close(directions @ directions.T, torch.eye(3).double(), rtol=0, atol=10 * tolerance)
    along = (directions @ unfolded).norm(dim=1)
    torch.testing.assert_close(along, expected.S, rtol=10 * tolerance, atol=0)
    forms = directions @ unfolded / expected.S[:, None]
    torch.testing.assert_close(forms @ forms.T, torch.eye(3).double(), rtol=0, atol=100 * tolerance)
    decomposition = found.decompose(2, top=3)
    assert decomposition.values.shape == (2, 3)
    full = found.decompose()
    torch.testing.assert_close(
        full.values.double().square().sum(1).sqrt(), expected.S, rtol=tolerance * 10, atol=0
    )


def test_hosvd_leaves_out_directions_that_are_not_used():
    model = layer(0, bias=False)
    with torch.no_grad():
        model.output.weight[2] = model.output.weight[0] - model.output.weight[1]
    found = interp.hosvd(model)
    assert len(found.values) == 2
    assert "2 of 3" in repr(found)


# ---- interactions ------------------------------------------------------------------------------------------


@dtypes
def test_interactions_are_mixed_second_differences(dtype):
    model = layer(0, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(6, 5, dtype=dtype, generator=generator)
    outputs = torch.randn(2, 3, dtype=dtype, generator=generator)
    found = interp.find_interactions(model, outputs, features, top=4)
    with torch.no_grad():
        pairs = features[:, None] + features[None]
        zero = model(torch.zeros(1, 5, dtype=dtype))
        mixed = model(pairs) - model(features)[:, None] - model(features)[None] + zero
        expected = torch.einsum("ao,bco->abc", outputs, mixed).double() / 2
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for index in range(2):
        matrix = found.matrix(index)
        torch.testing.assert_close(matrix, expected[index], rtol=tolerance, atol=tolerance)
        strongest = matrix.triu().abs().flatten().sort(descending=True).values[:4]
        torch.testing.assert_close(found.values[index].abs(), strongest)
        torch.testing.assert_close(matrix[found.first[index], found.second[index]], found.values[index])


def test_interactions_refuse_other_sizes():
    with pytest.raises(weightspace.ShapeError, match=r"outputs \(a, 3\) and inputs \(n, 5\)"):
        interp.find_interactions(layer(0), torch.zeros(2, 4), torch.zeros(6, 5))
