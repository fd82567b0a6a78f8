"""Laws of stacked bilinear layers: the tree is the network, truncation errs by no more than it says."""

import pytest
import torch
from torch import nn

import interp
import weightspace
from interp.recognition import recognize_layers
from interp.tensor_similarity import chain_factors, hidden_kernel
from weightspace.layers import BilinearMLP

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
stacks = pytest.mark.parametrize("layers", [1, 2, 3])
residuals = pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
biases = pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def model(layers, residual=False, bias=False, dtype=torch.float64, width=4):
    torch.manual_seed(layers)
    return BilinearMLP(5, width, 3, layers=layers, residual=residual, bias=bias).to(dtype)


def samples(dtype=torch.float64, count=100):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)


def relative(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@dtypes
@biases
@residuals
@stacks
def test_the_tree_is_the_network(layers, residual, bias, dtype):
    stack, x = model(layers, residual, bias, dtype), samples(dtype)
    unfolding = interp.unfold(stack)
    assert len(unfolding.levels) == layers
    with torch.no_grad():
        assert relative(unfolding.to_module()(x), stack(x)) < TOLERANCE[dtype]
    for level in unfolding.levels:
        vectors = level.vectors
        gram = vectors @ vectors.mT
        torch.testing.assert_close(
            gram, torch.eye(gram.shape[1], dtype=dtype).expand_as(gram), rtol=0, atol=1e-5
        )


def test_directions_and_terms():
    stack, x = model(2, True, True), samples()
    direction = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    full = interp.unfold(stack, directions=direction)
    assert relative(full.to_module()(x)[:, 0], stack(x).detach() @ direction) < 1e-12
    cut = interp.unfold(stack, directions=direction, top=(2, 3))
    assert [level.values.shape for level in cut.levels] == [(1, 2), (2, 3)]
    torch.testing.assert_close(cut.levels[0].values, full.levels[0].values[:, :2])
    assert all(bool((lost > 0).all()) for lost in cut.discarded)
    with pytest.raises(weightspace.ShapeError, match="each of 2 layers"):
        interp.unfold(stack, top=(1, 2, 3))


def test_the_first_level_errs_by_what_it_discards():
    """Cutting only the last layer: |error| <= discarded |h'|^2 for every sample."""
    stack, x = model(2, True, True), samples()
    cut = interp.unfold(stack, top=(2, None))
    with torch.no_grad():
        h = stack.embedding(x) + stack.layers[0](stack.embedding(x))
        error = (cut.to_module()(x) - stack(x)).abs()
    assert bool((error <= cut.levels[0].discarded * (h.square().sum(1, keepdim=True) + 1)).all())


# ---- truncation of bonds -----------------------------------------------------------------------------------


def inner(a, b):
    """Inner product of two chains of factors as trees."""
    gram = None
    for first, second in zip(a, b, strict=True):
        gram = first[2] @ hidden_kernel(first, second, gram) @ second[2].mT
    return gram.diagonal().sum()


@residuals
@biases
@pytest.mark.parametrize("layers", [2, 3])
def test_nothing_left_out_is_the_network(layers, residual, bias):
    stack, x = model(layers, residual, bias), samples()
    found = interp.truncate_bonds(stack)
    with torch.no_grad():
        assert relative(found.to_module()(x), stack(x)) < 1e-9
    original = chain_factors(recognize_layers(stack), found.padded)
    for spectrum in found.spectra:
        torch.testing.assert_close(spectrum.sum(), inner(original, original), rtol=1e-9, atol=0)


@residuals
@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_error_is_within_the_bound(layers, residual, rank):
    stack = model(layers, residual, bias=True)
    found = interp.truncate_bonds(stack, ranks=[rank] * (layers - 1))
    assert found.ranks == (rank,) * (layers - 1)
    original = chain_factors(recognize_layers(stack), found.padded)
    norm = inner(original, original)
    error = inner(original, original) - 2 * inner(original, found.layers) + inner(found.layers, found.layers)
    assert 0 < float((error / norm).clamp_min(0).sqrt()) <= found.bound * (1 + 1e-9)


def test_tolerance_bounds_the_bound():
    stack = model(3, bias=True)
    for tolerance in (1e-3, 0.1, 0.5):
        assert interp.truncate_bonds(stack, tolerance=tolerance).bound <= tolerance


def test_low_rank_bonds_are_found():
    """A bond of which the next layer reads two directions is truncated to two without error."""
    stack, x = model(2, width=6), samples()
    torch.manual_seed(9)
    reads = torch.randn(2, 6, dtype=torch.float64)
    with torch.no_grad():
        for linear in (stack.layers[1].left, stack.layers[1].right):
            linear.weight.copy_(torch.randn(6, 2, dtype=torch.float64) @ reads)
    found = interp.truncate_bonds(stack, tolerance=1e-6)
    assert found.ranks == (2,)
    with torch.no_grad():
        assert relative(found.to_module()(x), stack(x)) < 1e-9


def test_unfold_names_what_it_cannot_take():
    deep = nn.Sequential(BilinearMLP(5, 4, 4), nn.LayerNorm(4), BilinearMLP(4, 4, 2))
    with pytest.raises(weightspace.UnsupportedOperationError, match="LayerNorm at '1'"):
        interp.unfold(deep)
    with pytest.raises(weightspace.ShapeError, match="each of 1 bonds"):
        interp.truncate_bonds(model(2), ranks=[1, 1])
