"""Laws of attention heads as factored matrices: they give the scores and the outputs of the network that was run."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import interp
import weightspace
from interp.factored_form import FactoredForm
from weightspace import operations as op


class Rotary(nn.Module):
    """Rotates halves of the last axis by the position of axis 2."""

    def __init__(self, width, time):
        super().__init__()
        angles = torch.arange(time)[:, None] * 10.0 ** -torch.arange(width // 2, dtype=torch.float64)
        self.register_buffer("cos", torch.cat([angles, angles], 1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], 1).sin())

    def forward(self, x):
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


class Attention(nn.Module):
    """Causal attention in several spellings."""

    def __init__(
        self, width, heads, key_value=None, *, bias=False, rotary=False, fused=False, eager=False, time=6
    ):
        super().__init__()
        self.heads, self.key_value = heads, key_value or heads
        self.size = width // heads
        sizes = [heads * self.size, self.key_value * self.size, self.key_value * self.size]
        self.fused, self.eager, self.sizes = fused, eager, sizes
        if fused:
            self.all = nn.Linear(width, sum(sizes), bias)
        else:
            self.query, self.key, self.value = (nn.Linear(width, size, bias) for size in sizes)
        self.rotary = Rotary(self.size, time) if rotary else nn.Identity()
        self.output = nn.Linear(heads * self.size, width, bias)

    def forward(self, x):
        if self.fused:
            parts = self.all(x).split(self.sizes, -1)
        else:
            parts = self.query(x), self.key(x), self.value(x)
        q, k, v = (part.unflatten(2, (-1, self.size)).transpose(1, 2) for part in parts)
        q, k = self.rotary(q), self.rotary(k)
        if self.key_value != self.heads:
            k, v = (each.repeat_interleave(self.heads // self.key_value, 1) for each in (k, v))
        if self.eager:
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
            out = torch.softmax(scores, -1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(out.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, width=8, norm=nn.LayerNorm, layers=2, **options):
        super().__init__()
        self.norms = nn.ModuleList(norm(width) for _ in range(layers))
        self.attentions = nn.ModuleList(
            Attention(width, 2 if width < 16 else 4, **options) for _ in range(layers)
        )

    def forward(self, x):
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return x


MODELS = {
    "plain": {},
    "bias": {"bias": True},
    "fused": {"fused": True, "bias": True},
    "eager": {"eager": True},
    "rotary": {"rotary": True},
    "grouped": {"width": 16, "key_value": 2},
    "rms norm": {"norm": nn.RMSNorm},
    "no norm": {"norm": lambda _: nn.Identity()},
}


def build(name):
    torch.manual_seed(0)
    model = Transformer(**MODELS[name]).double()
    for norm in model.norms:
        for parameter in norm.parameters():
            nn.init.normal_(parameter, 1.0, 0.3)
    return model, torch.randn(3, 6, 16 if "width" in MODELS[name] else 8, dtype=torch.float64)


def normalized(network, values, head):
    """What the head's x stands for: the values of its source, before gain and bias of a norm there."""
    node = network.node(head.source)
    x = values[head.source]
    if isinstance(node.operation, op.LayerNorm | op.RMSNorm):
        held = network.weights(node)
        return (x - held.get("bias", 0.0)) / held.get("weight", 1.0)
    return x


def scores_and_values(network, values, head):
    """Queries, keys and values of the head's node, keys not transposed; and the scale."""
    node = network.node(head.name)
    if isinstance(node.operation, op.Attention):
        query, key, value = (values[name] for name in node.inputs[:3])
        scale = node.operation.scale or query.shape[-1] ** -0.5
        return query @ key.mT * scale, value
    softmax = network.node(node.inputs[0])
    return values[softmax.inputs[0]], values[node.inputs[1]]


@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_forms_give_the_scores_of_the_network(name, offset):
    model, x = build(name)
    network = weightspace.trace(model, x)
    heads = interp.find_heads(network, offset=offset)
    assert len(heads) == 2 * (4 if name == "grouped" else 2)
    values = network.to_module().values(x)
    for head in heads:
        assert head.rotary == (name == "rotary")
        assert head.notes == ()
        stream = normalized(network, values, head).double()
        if head.qk.padded:
            stream = F.pad(stream, (0, 1), value=1.0)
        scores, _ = scores_and_values(network, values, head)
        got = torch.einsum("bi,ij,bj->b", stream[:, offset + 1], head.qk.matrix(), stream[:, 1])
        torch.testing.assert_close(got, scores[:, head.index, offset + 1, 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_forms_give_what_heads_write(name):
    """The last token attends to the tokens with known weights: outputs add up over heads."""
    model, x = build(name)
    network = weightspace.trace(model, x)
    heads = [head for head in interp.find_heads(network) if head.name == interp.find_heads(network)[0].name]
    values = network.to_module().values(x)
    written = torch.zeros(3, x.shape[2], dtype=torch.float64)
    for head in heads:
        scores, _ = scores_and_values(network, values, head)
        weights = torch.softmax(scores[:, head.index, -1], -1)
        written += torch.einsum("bt,btd,od->bo", weights, normalized(network, values, head), head.ov.matrix())
    zero = network.to_module().values(torch.zeros_like(x))[heads[0].target][:, -1]
    got = values[heads[0].target][:, -1]
    bias = zero if MODELS[name].get("bias") else torch.zeros_like(zero)
    if MODELS[name].get("bias") or name in ("plain", "eager", "rotary", "grouped"):
        # Biases of values, of the output and of the norm are constant: they are no part of the form.
        difference = got - written
        torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=1e-10)
    else:
        torch.testing.assert_close(got, written + bias, rtol=1e-10, atol=1e-10)


def test_grouped_heads_share_keys_and_values():
    heads = interp.find_heads(build("grouped")[0], build("grouped")[1])
    assert [head.key_value for head in heads[:4]] in ([0, 0, 1, 1], [0, 1, 2, 3])


def test_normalized_queries_are_refused_with_the_reason():
    class Normalized(Attention):
        def forward(self, x):
            q, k, v = (
                part(x).unflatten(2, (-1, self.size)).transpose(1, 2)
                for part in (self.query, self.key, self.value)
            )
            out = F.scaled_dot_product_attention(F.layer_norm(q, q.shape[-1:]), k, v)
            return self.output(out.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    heads = interp.find_heads(Normalized(8, 2), torch.randn(2, 5, 8))
    assert all(head.qk is None and head.ov is not None for head in heads)
    assert "LayerNorm" in heads[0].notes[0]


def test_an_offset_beyond_the_trace_is_refused():
    model, x = build("rotary")
    with pytest.raises(weightspace.ShapeError, match="offset 6 needs a trace with more than 6"):
        interp.find_heads(model, x, offset=6)


# ---- factored forms ------------------------------------------------------------------------------------------


def random_form(size=10, rank=3, seed=0, padded=False):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, rank, size, dtype=torch.float64, generator=generator)
    return FactoredForm(left, right, padded)


@pytest.mark.parametrize("rank", [2, 5, 9])
def test_factored_forms_are_their_matrices(rank):
    form, other = random_form(rank=rank), random_form(rank=4, seed=1)
    matrix = form.matrix()
    assert form.norm == pytest.approx(float(matrix.norm()), rel=1e-12)
    skew = (matrix - matrix.T) / 2
    assert form.antisymmetric_share == pytest.approx(float(skew.norm() / matrix.norm()) ** 2, rel=1e-10)
    assert form.composed_norm(other) == pytest.approx(float((matrix @ other.matrix()).norm()), rel=1e-12)
    u, s, v = form.svd()
    torch.testing.assert_close(u.T @ torch.diag(s) @ v, matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(s[:rank], torch.linalg.svdvals(matrix)[:rank], rtol=1e-12, atol=0)
    decomposition = form.decompose()
    vectors = decomposition.vectors[0]
    symmetric = vectors.T @ torch.diag(decomposition.values[0]) @ vectors
    torch.testing.assert_close(symmetric, (matrix + matrix.T) / 2, rtol=0, atol=1e-12)


def test_padded_forms_decompose_on_the_padded_axis():
    form = random_form(padded=True)
    decomposition = form.decompose()
    assert decomposition.padded
    assert decomposition.vectors.shape == (1, 6, 10)
    matrix = form.matrix()
    vectors = decomposition.vectors[0]
    torch.testing.assert_close(
        vectors.T @ torch.diag(decomposition.values[0]) @ vectors, (matrix + matrix.T) / 2, rtol=0, atol=1e-12
    )


def test_rectangular_forms_have_singular_values_only():
    form = FactoredForm(torch.randn(2, 4).double(), torch.randn(2, 6).double())
    assert form.svd()[1].shape == (2,)
    with pytest.raises(weightspace.ShapeError, match="square"):
        form.decompose()
    with pytest.raises(weightspace.ShapeError, match="cannot be multiplied"):
        form.composed_norm(form)


# ---- composition ---------------------------------------------------------------------------------------------


def test_composition_scores_are_those_of_the_matrices():
    model, x = build("plain")
    heads = interp.find_heads(model, x)
    scores = interp.compose_heads(heads)
    assert bool(scores.query[:2].isnan().all())
    for i in (2, 3):
        for j in (0, 1):
            writes, reads = heads[j].ov.matrix(), heads[i]
            qk = reads.qk.matrix()[:8, :8]
            for table, matrix in ((scores.query, qk.T), (scores.key, qk), (scores.value, reads.ov.matrix())):
                expected = (matrix @ writes).norm() / matrix.norm() / writes.norm()
                torch.testing.assert_close(table[i, j], expected, rtol=1e-10, atol=0)
        assert bool(scores.query[i, 2:].isnan().all())
    assert scores.baseline == pytest.approx(8**-0.5)


def test_a_planted_composition_stands_out():
    """A later head that reads exactly what an earlier one writes."""
    model, x = build("no norm")
    with torch.no_grad():
        written = model.attentions[0].output.weight[:, :4]  # head 0
        model.attentions[1].value.weight[:4] = written.T
    scores = interp.compose_heads(interp.find_heads(model, x))
    assert float(scores.value[2, 0]) > 1.3 * float(scores.value[2, 1])


@pytest.mark.parametrize(
    ("name", "heads", "rotary"), [("llama", 8, True), ("bert", 8, False), ("gemma2", 8, True)]
)
def test_transformers_architectures(name, heads, rotary):
    pytest.importorskip("transformers")
    from tests.weightspace.transformers_architectures import TRANSFORMERS

    architecture = TRANSFORMERS[name]
    inputs = architecture.inputs()
    network = weightspace.trace(architecture.module().double(), inputs)
    found = interp.find_heads(network, offset=1)
    assert len(found) == heads
    values = network.to_module().values(*inputs)
    for head in found:
        assert head.rotary == rotary
        if head.notes:
            assert "Tanh caps" in head.notes[0]
            continue
        stream = normalized(network, values, head).double()
        if head.qk.padded:
            stream = F.pad(stream, (0, 1), value=1.0)
        scores, _ = scores_and_values(network, values, head)
        got = torch.einsum("bi,ij,bj->b", stream[:, 3], head.qk.matrix(), stream[:, 2])
        torch.testing.assert_close(got, scores[:, head.index, 3, 2].double(), rtol=1e-5, atol=1e-7)


def test_learned_positions_are_part_of_the_stream():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.randn(6, 8))
            self.attention = Attention(8, 2)

        def forward(self, x):
            return self.attention(x + self.positions)

    torch.manual_seed(0)
    model, x = Positions().double(), torch.randn(2, 6, 8, dtype=torch.float64)
    network = weightspace.trace(model, x)
    values = network.to_module().values(x)
    for head in interp.find_heads(network):
        assert isinstance(network.node(head.source).operation, op.Add)
        assert not head.qk.padded
        scores, _ = scores_and_values(network, values, head)
        stream = values[head.source]
        got = torch.einsum("bi,ij,bj->b", stream[:, 3], head.qk.matrix(), stream[:, 1])
        torch.testing.assert_close(got, scores[:, head.index, 3, 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_of_torch(batch_first):
    torch.manual_seed(0)
    block = (
        nn.TransformerEncoderLayer(8, 2, batch_first=batch_first, norm_first=True, dropout=0.0)
        .double()
        .eval()
    )
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    first, second = interp.find_heads(block, x) if batch_first else (None, None)
    if not batch_first:
        first, second = interp.find_heads(Transposed(block), x)
    query, key, value = block.self_attn.in_proj_weight.chunk(3)
    gain = block.norm1.weight
    for index, head in enumerate((first, second)):
        rows = slice(4 * index, 4 * index + 4)
        expected = (query[rows] * gain).T @ (key[rows] * gain) / 2
        torch.testing.assert_close(head.qk.matrix()[:8, :8], expected.detach(), rtol=1e-10, atol=1e-12)
        expected = block.self_attn.out_proj.weight[:, rows] @ (value[rows] * gain)
        torch.testing.assert_close(head.ov.matrix(), expected.detach(), rtol=1e-10, atol=1e-12)


class Transposed(nn.Module):
    """A block that takes time first, in a network that takes the batch first."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x.transpose(0, 1)).transpose(0, 1)
