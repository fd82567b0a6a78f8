"""Laws of `decompose`: the sum of squares is the layer, and depends on its function alone."""

import json

import pytest
import torch
from torch import nn

import interp
import weightspace
from interp.truncation import TruncatedForm
from weightspace.layers import Bilinear, BilinearMLP

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


class Packed(nn.Module):
    """One matrix for both factors, batch normalization behind, written with other operations."""

    def __init__(self):
        super().__init__()
        self.both = nn.Linear(6, 10)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        first, second = self.both(x).chunk(2, -1)
        return 2 * self.head(self.norm(first * second)) - 1.0


class Square(nn.Module):
    """A picture in, the squares of its linear features out."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(6, 4)

    def forward(self, x):
        return self.features(x.flatten(1)) ** 2


class SelfBilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(6, 4)
        self.bilinear = nn.Bilinear(4, 4, 3)

    def forward(self, x):
        h = self.embedding(x)
        return self.bilinear(h, h)


MODELS = {
    "bilinear": lambda: Bilinear(6, 4, 3),
    "wide bilinear": lambda: Bilinear(6, 20, 3),
    "narrow bilinear": lambda: Bilinear(6, 1, 3),
    "bilinear, bias": lambda: Bilinear(6, 4, 3, bias=True),
    "mlp": lambda: BilinearMLP(6, 5, 3),
    "mlp, bias": lambda: BilinearMLP(6, 5, 3, bias=True),
    "mlp, residual": lambda: BilinearMLP(6, 5, 3, residual=True),
    "mlp, bias, residual": lambda: BilinearMLP(6, 5, 3, residual=True, bias=True, hidden=2),
    "mlp, wider than the input": lambda: BilinearMLP(6, 30, 3, residual=True, bias=True),
    "packed": Packed,
    "self bilinear": SelfBilinear,
    "square": Square,
}
models = pytest.mark.parametrize("name", MODELS)
pads = pytest.mark.parametrize("pad", [True, False], ids=["padded", "apart"])


def build(name, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]().to(dtype).eval()


def samples(name, dtype=torch.float64, count=200):
    x = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.reshape(count, 2, 3) if name == "square" else x


def decomposed(model, name, **options):
    example = samples(name, next(model.parameters()).dtype, 2) if name == "square" else None
    return interp.decompose(model, example_inputs=example, **options)


def matrices(decomposition):
    """The forms Q from their eigenpairs."""
    vectors = decomposition.vectors
    return vectors.mT @ (decomposition.values[..., None] * vectors)


def randomized_bilinear(bias=True):
    torch.manual_seed(3)
    return Bilinear(6, 4, 3, bias=bias).double()


# ---- exactness -------------------------------------------------------------------------------------------


@dtypes
@models
@pads
def test_terms_add_up_to_the_forward_pass(name, pad, dtype):
    model, x = build(name, dtype), samples(name, dtype)
    decomposition = decomposed(model, name, pad=pad)
    expected = model(x).detach()
    scale = expected.abs().max()
    assert decomposition.values.dtype == dtype
    assert (decomposition.explain(x).sum(-1) - expected).abs().max() <= TOLERANCE[dtype] * scale
    full = decomposition.truncate(decomposition.values.shape[1])
    assert (full(x) - expected).abs().max() <= TOLERANCE[dtype] * scale
    assert decomposition.residual == 0.0
    assert (decomposition.discarded == 0).all()


@models
def test_vectors_are_orthonormal_and_ordered(name):
    decomposition = decomposed(build(name), name)
    directions, terms, size = decomposition.vectors.shape
    gram = decomposition.vectors @ decomposition.vectors.mT
    assert (gram - torch.eye(terms, dtype=gram.dtype)).abs().max() <= 1e-12
    assert (decomposition.values.abs().diff(dim=1) <= 0).all()
    assert directions == len(decomposition.directions)
    assert size == 6 + decomposition.padded


def test_closed_form_of_the_parts():
    layer = randomized_bilinear()
    decomposition = interp.decompose(layer)
    parts = (layer.left, layer.right, layer.output)
    (w, b), (v, c), (p, a) = ((m.weight.detach(), m.bias.detach()) for m in parts)
    assert decomposition.padded
    forms = matrices(decomposition)
    for u in range(3):
        q = p[u]
        interaction = w.T @ torch.diag(q) @ v
        linear = w.T @ (q * c) + v.T @ (q * b)
        constant = q @ (b * c) + a[u]
        torch.testing.assert_close(forms[u, :6, :6], (interaction + interaction.T) / 2)
        torch.testing.assert_close(2 * forms[u, :6, 6], linear)
        torch.testing.assert_close(forms[u, 6, 6], constant)
        torch.testing.assert_close(decomposition.linear[u], linear)
        torch.testing.assert_close(decomposition.constant[u], constant)


def test_without_biases_nothing_is_padded():
    decomposition = interp.decompose(randomized_bilinear(bias=False))
    assert not decomposition.padded
    assert decomposition.vectors.shape == (3, 6, 6)
    assert not decomposition.linear.any()
    assert not decomposition.constant.any()


def test_residual_connection_raises_the_rank_by_at_most_two():
    torch.manual_seed(0)
    plain = BilinearMLP(12, 12, 2, hidden=2, residual=False).double()
    residual = BilinearMLP(12, 12, 2, hidden=2, residual=True).double()
    residual.load_state_dict(plain.state_dict())
    ranks = [(interp.decompose(m).values.abs() > 1e-10).sum(1).tolist() for m in (plain, residual)]
    assert ranks == [[4, 4], [6, 6]]


# ---- invariances -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["swap", "permute", "rescale"])
def test_symmetries_of_the_layer(change):
    layer, other = randomized_bilinear(), randomized_bilinear()
    with torch.no_grad():
        if change == "swap":
            other.left, other.right = other.right, other.left
        elif change == "permute":
            order = torch.tensor([2, 0, 3, 1])
            for part in (other.left, other.right):
                part.weight.copy_(part.weight[order])
                part.bias.copy_(part.bias[order])
            other.output.weight.copy_(other.output.weight[:, order])
        else:
            factor = torch.tensor([2.0, -0.5, 3.0, 1.0], dtype=torch.float64)
            for part, t in ((other.left, factor), (other.right, 1 / factor)):
                part.weight.mul_(t[:, None])
                part.bias.mul_(t)
    expected, got = interp.decompose(layer), interp.decompose(other)
    torch.testing.assert_close(got.values, expected.values, rtol=0, atol=1e-13)
    torch.testing.assert_close(got.vectors, expected.vectors, rtol=0, atol=1e-11)


def test_basis_of_the_embedding_does_not_matter():
    torch.manual_seed(0)
    model, other = BilinearMLP(6, 5, 3).double(), BilinearMLP(6, 5, 3).double()
    other.load_state_dict(model.state_dict())
    change = torch.randn(5, 5, dtype=torch.float64) + 3 * torch.eye(5, dtype=torch.float64)
    with torch.no_grad():
        other.embedding.weight.copy_(change @ model.embedding.weight)
        for part in ("left", "right"):
            weight = getattr(model.layers[0], part).weight
            getattr(other.layers[0], part).weight.copy_(weight @ torch.linalg.inv(change))
    expected, got = interp.decompose(model), interp.decompose(other)
    torch.testing.assert_close(got.values, expected.values, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrices(got), matrices(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp, bias, residual", "bilinear, bias", "packed"])
def test_module_network_and_state_give_the_same(name, tmp_path):
    model = build(name)
    network = weightspace.trace(model, samples(name, count=2))
    network.save(tmp_path / "network.safetensors")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    read = [
        network,
        network.to_module(),
        weightspace.read(tmp_path / "network.safetensors"),
        weightspace.read(tmp_path / "state.pt", architecture=build(name, seed=9)),
        nn.Sequential(model),
    ]
    expected = interp.decompose(model)
    for source in read:
        got = interp.decompose(source, example_inputs=samples(name, count=2))
        torch.testing.assert_close(got.values, expected.values, rtol=0, atol=1e-13)
        torch.testing.assert_close(matrices(got), matrices(expected), rtol=0, atol=1e-13)


def test_self_bilinear_layer_of_torch():
    torch.manual_seed(0)
    layer = nn.Bilinear(5, 5, 3).double()
    decomposition = interp.decompose(layer)
    x = torch.randn(50, 5, dtype=torch.float64)
    torch.testing.assert_close(decomposition.explain(x).sum(-1), layer(x, x).detach())


# ---- truncation and directions ---------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(7))
def test_truncation_error_is_the_discarded_mass(k):
    layer = randomized_bilinear(bias=False)
    full, cut = interp.decompose(layer), interp.decompose(layer, top=k)
    assert cut.values.shape == (3, min(k, 6))
    torch.testing.assert_close(cut.values, full.values[:, :k], rtol=0, atol=0)
    torch.testing.assert_close(cut.effective_rank, full.effective_rank)
    error = matrices(full) - matrices(cut)
    torch.testing.assert_close(cut.discarded, error.square().sum((1, 2)).sqrt(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(cut.discarded, full.values[:, k:].square().sum(1).sqrt())
    x = samples("bilinear")
    expected = torch.einsum("ni,uij,nj->nu", x, matrices(cut), x)
    torch.testing.assert_close(full.truncate(k)(x), expected, rtol=1e-12, atol=1e-12)


@pads
def test_truncation_keeps_affine_parts_that_are_apart(pad):
    decomposition = interp.decompose(randomized_bilinear(), pad=pad)
    x = samples("bilinear")
    constant_part = decomposition.truncate(0)(x)
    expected = torch.zeros(200, 3) if pad else x @ decomposition.linear.T + decomposition.constant
    torch.testing.assert_close(constant_part, expected.double())


def test_a_truncation_runs_saves_and_moves(tmp_path):
    decomposition = interp.decompose(randomized_bilinear(), top=2)
    module = decomposition.truncate(2)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = TruncatedForm(torch.zeros(3, 2), torch.zeros(3, 2, 7), None, None).double()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    x = samples("bilinear")
    assert torch.equal(other(x), module(x))
    assert module.float()(x.float()).dtype == torch.float32


def test_directions_combine_outputs():
    layer = randomized_bilinear()
    directions = torch.tensor([[1.0, -1.0, 0.0], [0.3, 0.3, 2.0]], dtype=torch.float64)
    decomposition = interp.decompose(layer, directions=directions)
    x = samples("bilinear")
    torch.testing.assert_close(decomposition.explain(x).sum(-1), layer(x).detach() @ directions.T)
    expected = torch.einsum("uo,oij->uij", directions, matrices(interp.decompose(layer)))
    torch.testing.assert_close(matrices(decomposition), expected)
    single = interp.decompose(layer, directions=directions[0])
    torch.testing.assert_close(single.values, decomposition.values[:1])


def test_explain_one_sample():
    decomposition = interp.decompose(randomized_bilinear())
    x = samples("bilinear")
    torch.testing.assert_close(decomposition.explain(x[7]), decomposition.explain(x)[7])


# ---- degenerate spectra ----------------------------------------------------------------------------------


def with_form(form):
    """A layer of one output whose form is the given symmetric matrix."""
    size = len(form)
    layer = Bilinear(size, size, 1).double()
    with torch.no_grad():
        layer.left.weight.copy_(torch.eye(size))
        layer.right.weight.copy_(form)
        layer.output.weight.fill_(1.0)
    return layer


def test_degenerate_values_form_clusters_compared_by_projector():
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator))
    spectrum = torch.tensor([3.0, -3.0, 3.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    layer = with_form(basis @ torch.diag(spectrum) @ basis.T)
    decomposition = interp.decompose(layer)
    # 3 and -3 alternate in the order by magnitude, and are not one cluster.
    assert [len(cluster) for cluster in decomposition.clusters[0]] == [2, 2]
    for cluster in decomposition.clusters[0]:
        value = decomposition.values[0, cluster[0]]
        vectors = decomposition.vectors[0, list(cluster)]
        planted = basis[:, (spectrum - value).abs() < 1e-9]
        torch.testing.assert_close(vectors.T @ vectors, planted @ planted.T)


def test_a_cluster_that_top_cuts_is_still_reported():
    layer = with_form(torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)))
    assert interp.decompose(layer, top=1).clusters == (((0,),),)
    assert interp.decompose(layer, top=0).clusters == ((),)


def test_distinct_values_have_no_clusters_and_a_zero_form_is_one():
    assert interp.decompose(with_form(torch.diag(torch.tensor([3.0, 2.0, -1.0]).double()))).clusters == ((),)
    zero = interp.decompose(with_form(torch.zeros(3, 3, dtype=torch.float64)), directions=[[1.0]])
    assert zero.clusters == (((0, 1, 2),),)
    assert zero.effective_rank.tolist() == [0.0]


def test_effective_rank():
    layer = with_form(torch.diag(torch.tensor([1.0, -1.0, 1.0, 0.0]).double()))
    torch.testing.assert_close(interp.decompose(layer).effective_rank, torch.tensor([3.0]).double())


# ---- refusals --------------------------------------------------------------------------------------------


class Gate(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.left, self.right, self.gate = nn.Linear(6, 4), nn.Linear(6, 4), gate

    def forward(self, x):
        return self.gate(self.left(x)) * self.right(x)


REFUSED = {
    "two layers": (lambda: BilinearMLP(6, 5, 3, layers=2), "2 after each other, the second reads 5.*unfold"),
    "relu": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU()), "ReLU at '1'"),
    "layer norm": (lambda: nn.Sequential(Bilinear(6, 4, 4), nn.LayerNorm(4)), "LayerNorm at '1'"),
    "softmax": (lambda: nn.Sequential(Bilinear(6, 4, 4), nn.Softmax(-1)), "Softmax at '1'"),
    "sigmoid gate": (lambda: Gate(nn.Sigmoid()), "Sigmoid at 'gate'"),
    "silu gate": (lambda: Gate(nn.SiLU()), "SiLU at 'gate'"),
    "affine": (lambda: nn.Linear(6, 4), "the network has none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_operation_and_node(name):
    make, text = REFUSED[name]
    with pytest.raises(weightspace.UnsupportedOperationError, match=text):
        interp.decompose(make())


class AcrossSamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Bilinear(6, 4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0, keepdim=True))


def test_functions_of_the_whole_batch_are_refused():
    with pytest.raises(weightspace.UnsupportedOperationError, match=r"Reduce mean .* mixes the samples"):
        interp.decompose(AcrossSamples())


def test_other_refusals():
    layer = randomized_bilinear()
    with pytest.raises(weightspace.ShapeError, match=r"\(u, 3\)"):
        interp.decompose(layer, directions=torch.ones(2, 4))
    with pytest.raises(weightspace.ShapeError, match="top is -1"):
        interp.decompose(layer, top=-1)
    with pytest.raises(weightspace.ShapeError, match="k is 8"):
        interp.decompose(layer).truncate(8)
    with pytest.raises(weightspace.ShapeError, match=r"\(5, 4\)"):
        interp.decompose(layer).explain(torch.zeros(5, 4))
    with pytest.raises(weightspace.ArchitectureError, match="not str"):
        interp.decompose("model.pt")
    with pytest.raises(weightspace.ArchitectureError, match="4 and 5"):
        interp.decompose(nn.Bilinear(4, 5, 3))
    with pytest.raises(weightspace.ArchitectureError, match="example_inputs"):
        interp.decompose(nn.Sequential(nn.Conv2d(1, 2, 3)))
    with torch.no_grad():
        layer.left.weight[0, 0] = torch.nan
    for broken in (layer, nn.Sequential(layer)):
        with pytest.raises(weightspace.NonFiniteError, match="left"):
            interp.decompose(broken)


# ---- how it looks ----------------------------------------------------------------------------------------


def test_representations():
    decomposition = interp.decompose(randomized_bilinear())
    assert repr(decomposition).startswith("Decomposition(3 directions, 7 terms of 7 axes, padded")
    assert "<table>" in decomposition._repr_html_()
    summary = json.loads(json.dumps(decomposition.summary()))
    assert summary["values"] == decomposition.values.tolist()
    assert interp.decompose(randomized_bilinear(), top=0)._repr_html_()


def test_figure_of_the_eigenvectors():
    pytest.importorskip("matplotlib")
    from interp.plots import eigenvector_figure, image_shape

    torch.manual_seed(0)
    square = interp.decompose(Bilinear(16, 4, 3, bias=True))
    assert image_shape(square) == (4, 4)
    figure = eigenvector_figure(square, directions=[0, 2], shown=3, names=["zero", "two"])
    assert len(figure.axes) == 2 * (1 + 3)
    assert figure.axes[0].get_ylabel() == "zero"
    picture = figure.axes[1].images[0]
    assert picture.get_array().shape == (4, 4)
    assert picture.norm.vmin == -picture.norm.vmax
    assert image_shape(interp.decompose(Bilinear(6, 4, 3))) is None
    with pytest.raises(weightspace.ShapeError, match="6 inputs"):
        eigenvector_figure(interp.decompose(Bilinear(6, 4, 3)))
    with pytest.raises(weightspace.ShapeError, match="0 to 2"):
        eigenvector_figure(square, directions=[3])


# ---- smaller spaces: features and embeddings -----------------------------------------------------------------

RELATIVE = {torch.float32: 5e-6, torch.float64: 1e-12}


@dtypes
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("rank", ["full", "low"])
@pytest.mark.parametrize("count", [4, 6, 30])
@pytest.mark.parametrize("hidden", [2, 9])
def test_eigenvectors_over_features_are_those_of_the_full_matrix(hidden, count, rank, bias, dtype):
    torch.manual_seed(0)
    layer = Bilinear(6, hidden, 3, bias=bias).to(dtype)
    features = torch.randn(count, 6, dtype=dtype)
    if rank == "low":
        features[1] = 2 * features[0]
    decomposition = interp.decompose(layer, features=features)
    assert decomposition.padded == bias
    assert decomposition.vectors.shape[2] == count + bias
    activations = torch.rand(50, count, dtype=dtype)
    expected = layer(activations @ features).detach()
    got = decomposition.explain(activations).sum(-1)
    assert float((got - expected).abs().max() / expected.abs().max()) < RELATIVE[dtype]
    full = matrices(interp.decompose(layer)).double()
    wide = torch.block_diag(features, torch.ones(1, 1, dtype=dtype)).double() if bias else features.double()
    expected = wide @ full @ wide.T
    torch.testing.assert_close(
        matrices(decomposition).double(), expected, rtol=0, atol=RELATIVE[dtype] * float(expected.abs().max())
    )
    gram = decomposition.vectors @ decomposition.vectors.mT
    torch.testing.assert_close(gram, torch.eye(gram.shape[1], dtype=dtype).expand_as(gram), rtol=0, atol=1e-5)


def test_features_keep_the_parts_that_are_apart():
    layer, features = randomized_bilinear(), torch.randn(9, 6, dtype=torch.float64)
    decomposition = interp.decompose(layer, features=features, pad=False)
    activations = torch.rand(20, 9, dtype=torch.float64)
    torch.testing.assert_close(
        decomposition.explain(activations).sum(-1), layer(activations @ features).detach()
    )
    with pytest.raises(weightspace.ShapeError, match=r"\(n, 6\)"):
        interp.decompose(layer, features=torch.zeros(4, 5))
    with pytest.raises(weightspace.NonFiniteError, match="features"):
        interp.decompose(layer, features=torch.full((4, 6), torch.nan))


@dtypes
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_an_embedding_is_used_and_leaves_the_spectrum_as_it_is(bias, dtype):
    """The embedding has rank 3 of 12: as many values are not zero, and the vectors live in input space."""
    torch.manual_seed(0)
    model = BilinearMLP(12, 3, 2, hidden=20, bias=bias).to(dtype)
    decomposition = interp.decompose(model)
    assert decomposition.values.shape == (2, 3 + bias)
    x = torch.randn(50, 12, dtype=dtype)
    expected = model(x).detach()
    assert (
        float((decomposition.explain(x).sum(-1) - expected).abs().max() / expected.abs().max())
        < RELATIVE[dtype]
    )
    change = torch.randn(3, 3, dtype=dtype)
    inverse = torch.linalg.inv(change)
    with torch.no_grad():
        model.embedding.weight.copy_(change @ model.embedding.weight)
        if bias:
            model.embedding.bias.copy_(change @ model.embedding.bias)
        for linear in (model.layers[0].left, model.layers[0].right):
            linear.weight.copy_(linear.weight @ inverse)
    other = interp.decompose(model)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(other.values, decomposition.values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("hidden", [2, 9])
def test_eigenproblems_in_single_precision_keep_its_accuracy(hidden):
    torch.manual_seed(0)
    layer = Bilinear(16, hidden, 3, bias=True)
    x = torch.randn(200, 16)
    expected = layer(x).detach()
    got = interp.decompose(layer, solved_in=torch.float32).explain(x).sum(-1)
    assert float((got - expected).abs().max() / expected.abs().max()) < 5e-6


@dtypes
@pytest.mark.parametrize("condition", [10.0, 900.0, 1100.0, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_features_may_be_close_to_dependent(seed, condition, dtype):
    torch.manual_seed(seed)
    layer = Bilinear(12, 15, 3, bias=True).to(dtype)
    left, _, right = torch.linalg.svd(torch.randn(40, 12, dtype=torch.float64), full_matrices=False)
    features = ((left * condition ** -torch.linspace(0, 1, 12, dtype=torch.float64)) @ right).to(dtype)
    decomposition = interp.decompose(layer, features=features)
    activations = torch.rand(50, 40, dtype=dtype)
    expected = layer(activations @ features).detach()
    error = (decomposition.explain(activations).sum(-1) - expected).abs().max() / expected.abs().max()
    assert float(error) < RELATIVE[dtype]
    gram = (decomposition.vectors @ decomposition.vectors.mT).double()
    identity = torch.eye(gram.shape[1], dtype=torch.float64).expand_as(gram)
    torch.testing.assert_close(gram, identity, rtol=0, atol=2e-10 if dtype == torch.float64 else 1e-5)


def test_features_that_are_zero_have_a_zero_form():
    decomposition = interp.decompose(randomized_bilinear(bias=False), features=torch.zeros(9, 6))
    assert not decomposition.values.any()
