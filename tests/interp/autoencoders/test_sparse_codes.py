"""Laws of the sparse step: it selects, multiplies and differentiates as the dense computation does."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from interp import BatchTopK, SparseAutoencoder, TopK
from interp.autoencoders import sparse_codes

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


def dense_codes(h, k, rule):
    """The dense computation: relu, then the k largest per row or the n k largest of all."""
    h = h.relu()
    kept = torch.zeros_like(h, dtype=torch.bool)
    if rule == "row":
        kept.scatter_(1, h.topk(k).indices, True)
    else:
        kept.view(-1)[h.flatten().topk(min(k * len(h), h.numel())).indices] = True
    return torch.where(kept, h, 0.0)


def select(x, weight, bias, k, rule):
    chosen = sparse_codes.select_top if rule == "row" else sparse_codes.select_batch_top
    return chosen(x.detach(), weight.detach(), bias.detach(), k)


def relative(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


@dtypes
@pytest.mark.parametrize("rule", ["row", "batch"])
@pytest.mark.parametrize("centered", [True, False])
@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 40), d=st.integers(1, 12), m=st.integers(2, 60), seed=st.integers(0, 99), data=st.data()
)
def test_values_and_gradients_are_those_of_dense_autograd(dtype, rule, centered, n, d, m, seed, data):
    k = data.draw(st.integers(1, m))
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, d), (d,), (m, d), (m,), (m, d)]
    leaves = [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]
    cotangent = torch.randn(n, d, generator=generator, dtype=dtype)
    x, center, weight, bias, decoder = leaves

    selected = select(x - center if centered else x, weight, bias, k, rule)
    values = sparse_codes.encode(x, center if centered else None, weight, bias, selected)
    ours = sparse_codes.decode(values, decoder, selected[1])
    used = leaves if centered else [x, weight, bias, decoder]
    gradients = torch.autograd.grad((ours * cotangent).sum(), used)

    h = (x - center if centered else x) @ weight.mT + bias
    codes = dense_codes(h, k, rule)
    wanted = codes @ decoder
    wanted_gradients = torch.autograd.grad((wanted * cotangent).sum(), used)

    assert relative(selected[1].dense(values), codes) < TOLERANCE[dtype]
    assert relative(ours, wanted) < TOLERANCE[dtype]
    # Relative to the largest gradient: one that is a sum over samples may cancel.
    scale = max(float(gradient.abs().max()) for gradient in wanted_gradients)
    for ours_gradient, gradient in zip(gradients, wanted_gradients):
        assert float((ours_gradient - gradient).abs().max()) < TOLERANCE[dtype] * max(scale, 1e-30)


@dtypes
def test_at_the_size_people_train(dtype):
    generator = torch.Generator().manual_seed(1)
    n, d, m, k = 512, 64, 1024, 16
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    weight = (torch.randn(m, d, generator=generator, dtype=dtype) / 8).requires_grad_()
    bias = torch.zeros(m, dtype=dtype, requires_grad=True)
    center = torch.randn(d, generator=generator, dtype=dtype, requires_grad=True)
    decoder = (torch.randn(m, d, generator=generator, dtype=dtype) / 8).requires_grad_()
    leaves = [weight, bias, center, decoder]
    selected = select(x - center, weight, bias, k, "row")
    ours = sparse_codes.decode(sparse_codes.encode(x, center, weight, bias, selected), decoder, selected[1])
    gradients = torch.autograd.grad((ours + center - x).square().sum(1).mean(), leaves)
    codes = dense_codes((x - center) @ weight.mT + bias, k, "row")
    wanted = torch.autograd.grad((codes @ decoder + center - x).square().sum(1).mean(), leaves)
    for a, b in zip(gradients, wanted):
        assert relative(a, b) < TOLERANCE[dtype]


@dtypes
def test_chunks_do_not_change_the_selection(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    x, weight = (torch.randn(s, generator=generator, dtype=dtype) for s in [(100, 8), (50, 8)])
    bias = torch.randn(50, generator=generator, dtype=dtype)
    for rule in ("row", "batch"):
        values, pattern = select(x, weight, bias, 5, rule)
        monkeypatch.setattr(sparse_codes, "CHUNK_ENTRIES", 7 * 50)
        again, same = select(x, weight, bias, 5, rule)
        monkeypatch.undo()
        assert relative(same.dense(again), pattern.dense(values)) < TOLERANCE[dtype]


@dtypes
def test_products_are_those_of_the_dense_matrix(dtype):
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(9, 7, generator=generator, dtype=dtype)
    dense[torch.rand(9, 7, generator=generator) < 0.6] = 0
    dense[4], dense[:, 2] = 0, 0  # an empty row and an empty column
    places = dense.flatten().nonzero()[:, 0]
    pattern, values = sparse_codes._pattern_of(places, 9, 7), dense.flatten()[places]
    left, right = (torch.randn(s, generator=generator, dtype=dtype) for s in [(9, 3), (7, 3)])
    assert torch.equal(pattern.dense(values), dense)
    assert relative(pattern.multiply(values, right), dense @ right) < TOLERANCE[dtype]
    assert relative(pattern.multiply_transposed(values, left), dense.mT @ left) < TOLERANCE[dtype]
    assert relative(pattern.column_sums(values), dense.sum(0)) < TOLERANCE[dtype]
    product = torch.where(dense != 0, left @ right.mT, 0.0)
    assert relative(pattern.dense(pattern.sample_product(left, right)), product) < TOLERANCE[dtype]
    for counted, sorted_ in zip(sparse_codes._by_counting(pattern), sparse_codes._by_sorting(pattern)):
        assert torch.equal(counted.long(), sorted_.long())
    parts = pattern.split([2, 3, 7])
    assert torch.equal(sum(part.dense(values[kept]) for part, kept in parts), dense)
    assert not parts[0][0].dense(values[parts[0][1]])[:, 2:].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@dtypes
@pytest.mark.parametrize("rule", [TopK(8), BatchTopK(8)], ids=["TopK", "BatchTopK"])
def test_a_device_trains_as_the_cpu_does(dtype, rule):
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0), dtype=dtype)
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        a = SparseAutoencoder(16, 64, rule, dtype=dtype, device=device)
        loss = a.loss(x.to(device)).total
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad.cpu() for parameter in a.parameters()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for ours, theirs in zip(*gradients):
        assert relative(theirs, ours) < 1e-4
