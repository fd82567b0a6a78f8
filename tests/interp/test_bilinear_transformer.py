"""Laws of the bilinear transformer and of the interactions of tokens read from its weights."""

import copy

import pytest
import torch

import weightspace
from interp.bilinear_transformer import BilinearTransformer
from interp.classifier_training import train_classifier
from interp.token_interactions import PATHS, confirm_interactions, isolate_interaction, read_interactions

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}
SIZE, CONTEXT = 5, 6


def transformer(dtype=torch.float64, seed=0) -> BilinearTransformer:
    torch.manual_seed(seed)
    model = BilinearTransformer(SIZE, 12, heads=3, hidden=7, context=CONTEXT)
    with torch.no_grad():
        model.query.weight.mul_(8.0)  # so that attention depends on the tokens
    return model.to(dtype).eval()


def pair_logits(model, context=()) -> torch.Tensor:
    """Logits behind every pair of last tokens, axes next, current, previous."""
    rows = [[*context, previous, current] for current in range(SIZE) for previous in range(SIZE)]
    logits = model(torch.tensor(rows))[:, -1, :SIZE].detach()
    return logits.reshape(SIZE, SIZE, SIZE).permute(2, 0, 1)


# ---- the network -----------------------------------------------------------------------------------------


@dtypes
def test_a_token_does_not_see_what_follows(dtype):
    model = transformer(dtype)
    tokens = torch.randint(SIZE, (4, CONTEXT))
    changed = tokens.clone()
    changed[:, 4:] = (tokens[:, 4:] + 1) % SIZE
    before, after = model(tokens), model(changed)
    assert before.shape == (4, CONTEXT, SIZE)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    shorter = model(tokens[:, :3])
    assert (shorter - before[:, :3]).abs().max() <= TOLERANCE[dtype] * before.abs().max()


@dtypes
def test_the_traced_network_computes_the_same(dtype):
    model = transformer(dtype)
    tokens = torch.randint(SIZE, (4, CONTEXT))
    network = weightspace.trace(model, torch.zeros(2, CONTEXT, dtype=torch.int64))
    expected = model(tokens)
    assert (network.to_module()(tokens) - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_behind_the_attention_the_logits_are_quadratic():
    model = transformer()
    r = torch.randn(1, CONTEXT, 12, dtype=torch.float64)
    head = lambda scale: model.head(scale * r + model.mlp(scale * r))  # noqa: E731
    assert torch.allclose(head(2.0) - 2 * head(1.0), 2 * model.head(model.mlp(r)))
    assert torch.allclose(head(-1.0) + head(1.0), 2 * model.head(model.mlp(r)))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(weightspace.ShapeError, match="multiple of heads"):
        BilinearTransformer(5, 10, heads=3, context=4)
    with pytest.raises(weightspace.ShapeError, match="context is 6 tokens"):
        transformer()(torch.zeros(1, 7, dtype=torch.int64))


# ---- reading ---------------------------------------------------------------------------------------------


@dtypes
def test_of_two_tokens_the_reading_is_the_network(dtype):
    model = transformer(dtype)
    found = read_interactions(model, position=1)
    expected = pair_logits(model)
    assert tuple(found.paths) == PATHS
    assert (found.logits - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    assert found.paths["context"].abs().max() < 1e-12
    assert found.attention.shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("position", [1, 2, 5])
def test_elsewhere_it_is_the_network_among_mean_tokens(position):
    model = transformer()
    wider = BilinearTransformer(SIZE + 1, 12, heads=3, hidden=7, context=CONTEXT).double()
    weights = model.state_dict()
    mean = weights["embedding.weight"].mean(0, keepdim=True)
    weights["embedding.weight"] = torch.cat([weights["embedding.weight"], mean])
    weights["head.weight"] = torch.cat([weights["head.weight"], mean])
    wider.load_state_dict(weights)
    found = read_interactions(model, position=position)
    expected = pair_logits(wider, [SIZE] * (position - 1))
    assert torch.allclose(found.logits, expected, rtol=0, atol=1e-12)
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_the_product_of_the_mlp_is_the_only_path_that_multiplies_both_tokens():
    model = transformer()
    with torch.no_grad():  # attention the same for all tokens
        model.query.weight.zero_()
    found = read_interactions(model)
    assert found.shares["current x previous"] == pytest.approx(1.0)
    for name in ("direct", "current x current", "previous x previous", "context"):
        assert isolate_interaction(found.paths[name]).abs().max() < 1e-12
    with torch.no_grad():
        model.mlp.output.weight.zero_()
    assert read_interactions(model).interaction.abs().max() < 1e-12


def test_the_reading_depends_on_the_function_alone():
    model = transformer()
    other = copy.deepcopy(model)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q  # inside the second head
    order = torch.randperm(7)
    with torch.no_grad():
        other.mlp.left.weight.copy_(3 * model.mlp.right.weight[order])
        other.mlp.right.weight.copy_(model.mlp.left.weight[order] / 3)
        other.mlp.output.weight.copy_(model.mlp.output.weight[:, order])
        other.value.weight[4:8] = turn @ model.value.weight[4:8]
        other.output.weight[:, 4:8] = model.output.weight[:, 4:8] @ turn.mT
    for name, path in read_interactions(model).paths.items():
        assert torch.allclose(path, read_interactions(other).paths[name], rtol=0, atol=1e-12)


def test_an_isolated_interaction_is_in_no_two_of_the_three():
    a, b, c = (torch.randn(SIZE, SIZE, dtype=torch.float64) for _ in range(3))
    assert isolate_interaction(a[:, :, None] + b[:, None] + c[None]).abs().max() < 1e-12
    x = torch.randn(SIZE, SIZE, SIZE, dtype=torch.float64)
    once = isolate_interaction(x + a[:, :, None] + b[:, None] + c[None])
    assert torch.allclose(once, isolate_interaction(x), atol=1e-12)
    assert torch.allclose(once, isolate_interaction(once), atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_strongest_triples_are_sorted_and_expected(sign):
    found = read_interactions(transformer())
    triples = found.strongest(10, sign=sign)
    values = [sign * triple.interaction for triple in triples]
    assert values == sorted(values, reverse=True)
    for triple in triples:
        place = (triple.next, triple.current, triple.previous)
        assert triple.interaction == found.interaction[place].item()
        assert found.bigram[triple.current, triple.previous] > 1 / SIZE
        assert sign > 0 or found.bigram[triple.next, triple.current] > 1 / SIZE
    everything = found.strongest(SIZE**3, sign=sign)
    assert everything[: len(triples)] == triples
    expected = found.bigram > 1 / SIZE
    matters = expected[None].expand(SIZE, -1, -1) & (expected[:, :, None] | (sign > 0))
    assert len(everything) == (matters & (sign * found.interaction > 0)).sum()
    assert torch.allclose(found.bigram.sum(0), torch.ones(SIZE, dtype=torch.float64))


def test_positions_and_contexts_that_do_not_fit_are_refused():
    model = transformer()
    for position in (0, CONTEXT):
        with pytest.raises(weightspace.ShapeError, match="from 1 to 5"):
            read_interactions(model, position=position)
    with pytest.raises(weightspace.ShapeError, match=r"\(n, 6\)"):
        confirm_interactions(read_interactions(model), model, torch.zeros(2, 5, dtype=torch.int64))


# ---- intervening -----------------------------------------------------------------------------------------


@dtypes
def test_written_into_contexts_of_two_every_pair_does_what_was_read(dtype):
    model = transformer(dtype)
    found = confirm_interactions(read_interactions(model, position=1), model, torch.randint(SIZE, (3, 2)))
    assert found.correlation == pytest.approx(1.0)
    assert found.slope == pytest.approx(1.0, rel=1e-4)
    assert (found.predicted - found.measured).abs().max() <= 10 * TOLERANCE[dtype]


def test_the_measurement_is_the_mean_over_contexts():
    model = transformer()
    contexts = torch.randint(SIZE, (4, CONTEXT))
    found = confirm_interactions(read_interactions(model), model, contexts)
    mean = torch.stack([pair_logits(model, row[:-2].tolist()) for row in contexts]).mean(0)
    assert torch.allclose(found.measured, isolate_interaction(mean), atol=1e-12)
    assert found.contexts == 4


def test_the_circuit_of_exclusive_or_is_found_and_confirmed():
    """The next token is 1 if the last two differ: nothing but an interaction, so every sign is known."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (512, 8), generator=generator)
    y = torch.cat([x[:, :1], x[:, 1:] ^ x[:, :-1]], 1)
    torch.manual_seed(0)
    model = BilinearTransformer(2, 16, heads=1, hidden=16, context=8)
    run = train_classifier(
        model, x, y, epochs=25, batch_size=64, learning_rate=1e-2, weight_decay=0.01, noise=0, progress=False
    )
    assert run.train_accuracy > 0.99
    found = read_interactions(model)
    signs = torch.tensor([[[1.0, -1], [-1, 1]], [[-1, 1], [1, -1]]], dtype=torch.float64)
    assert torch.equal(found.interaction.sign(), signs)
    assert found.interaction.abs().min() > 1.0
    confirmed = confirm_interactions(found, model, x[:20])
    assert confirmed.correlation > 0.99
    assert "correlation" in repr(confirmed)
    assert "product" in repr(found)
