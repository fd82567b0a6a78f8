"""Laws of bilinear autoencoders: everything from inner products of vectors equals the same from matrices."""

import copy
import json
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

import interp
from interp.autoencoders.bilinear_autoencoder import BilinearAutoencoder
from interp.autoencoders.bilinear_kernels import form_gram, norm_increments
from interp.autoencoders.hoyer import hoyer_density, measure_density
from interp.autoencoders.manifold_plots import manifold_figure
from interp.autoencoders.manifolds import project_manifold
from interp.autoencoders.metrics import evaluate
from interp.autoencoders.muon import GramMuon, flatten_spectrum
from interp.autoencoders.training import train
from weightspace.errors import NonFiniteError, ShapeError, UnsupportedOperationError

D, M, MIXED, N = 5, 7, 4, 9
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}
COMBINATIONS = [
    dict(zip(("kernel", "bias", "ordered", "mixing", "sparsity", "scaling"), options, strict=True))
    for options in product(
        ("symmetric", "vanilla"),
        (False, True),
        (False, True),
        (None, MIXED),
        (0.0, 0.3),
        ("unit_norm", "none"),
    )
]
FORMS = [options for options in COMBINATIONS if not options["sparsity"] and options["scaling"] == "none"]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def name(options):
    return "-".join(str(value) for value in options.values())


def build(options, dtype=torch.float64, seed=0, latents=M, d=D, tile=None):
    """An autoencoder whose weights, biases included, are no longer those of the start."""
    found = BilinearAutoencoder(d, latents, **options, tile=tile, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return found


def mixing_weight(auto):
    assert auto.mixing_weight is not None
    return auto.mixing_weight


def samples(dtype=torch.float64, n=N, d=D, seed=1):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got, wanted, tolerance=1e-10):
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, check_dtype=False)


# ---- the slow way: every matrix in full ------------------------------------------------------------------


def matrices(auto):
    """The decoder's matrices of the products, (m, d', d')."""
    full = torch.einsum("mi,mj->mij", auto.left_weight, auto.right_weight)
    return (full + full.mT) / 2 if auto.kernel == "symmetric" else full


def features(auto):
    """The decoder's matrices of the codes, (latents, d', d')."""
    full = matrices(auto)
    return full if auto.mixing is None else torch.einsum("km,mij->kij", auto.mixing_weight, full)


def outer(auto, x):
    """X, (n, d', d'), and the products."""
    if auto.scaling.kind == "unit_norm":
        x = x / x.norm(dim=1, keepdim=True)
    if auto.bias:
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    square = torch.einsum("ni,nj->nij", x, x)
    return square, torch.einsum("nij,mij->nm", square, matrices(auto))


def code(auto, products):
    return products if auto.mixing is None else products @ auto.mixing_weight.mT


def weigh(auto, codes):
    return codes if auto.mixing is None else codes @ auto.mixing_weight


def density(values):
    return ((values.abs().sum(0) / values.norm(dim=0)) - 1) / (math.sqrt(len(values)) - 1)


def slow_loss(auto, x, progress=1.0):
    """The loss by its definition, prefix by prefix."""
    square, products = outer(auto, x)
    weights = weigh(auto, code(auto, products))
    full = matrices(auto)
    prefixes = range(1, M + 1) if auto.ordered else [M]
    errors, densities = [], []
    for prefix in prefixes:
        decoded = torch.einsum("nm,mij->nij", weights[:, :prefix], full[:prefix])
        errors.append((square - decoded).square().sum((1, 2)).mean())
        densities.append(density(products[:, :prefix]).mean())
    ramp = min(1.0, 4 * progress)
    return torch.stack(errors).mean() + auto.sparsity * ramp * torch.stack(densities).mean()


# ---- the loss --------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("options", COMBINATIONS, ids=name)
def test_loss_and_gradients_are_those_of_the_matrices(options, dtype):
    auto, x = build(options, dtype), samples(dtype)
    for progress in (0.1, 1.0):
        fast, slow = auto.loss(x, progress=progress), slow_loss(auto, x, progress)
        close(fast.total, slow, TOLERANCE[dtype])
    wanted = torch.autograd.grad(slow, list(auto.parameters()))
    got = torch.autograd.grad(fast.total, list(auto.parameters()))
    for a, b in zip(got, wanted, strict=True):
        close(a, b, 20 * TOLERANCE[dtype])
    assert fast.total.dtype == dtype
    assert set(fast.parts) == ({"reconstruction", "hoyer"} if auto.sparsity else {"reconstruction"})
    close(sum(fast.parts.values()), fast.total.detach(), TOLERANCE[dtype])
    square, _ = outer(auto, x)
    close(fast.variance, (square - square.mean(0)).square().sum().detach(), 20 * TOLERANCE[dtype])
    close(fast.error, (square - auto(x)).square().sum().detach(), 20 * TOLERANCE[dtype])


@pytest.mark.parametrize("options", FORMS, ids=name)
@pytest.mark.parametrize("tile", [1, 3, 50])
def test_tiles_change_nothing(options, tile):
    whole, tiled, x = build(options), build(options, tile=tile), samples()
    a, b = whole.loss(x), tiled.loss(x)
    close(b.total, a.total, 1e-12)
    close(b.error, a.error, 1e-12)
    for first, second in zip(
        torch.autograd.grad(a.total, list(whole.parameters())),
        torch.autograd.grad(b.total, list(tiled.parameters())),
        strict=True,
    ):
        close(second, first, 1e-11)
    close(tiled.decoder_cosines(), whole.decoder_cosines(), 1e-12)
    close(tiled.compare(x).error, whole.compare(x).error, 1e-12)
    if whole.mixing is not None:
        assert tiled.clusters(0.4) == whole.clusters(0.4)


@given(
    m=st.integers(1, 12),
    d=st.integers(1, 6),
    n=st.integers(1, 5),
    tile=st.none() | st.integers(1, 13),
    symmetric=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_increments_are_the_norms_of_prefixes(m, d, n, tile, symmetric):
    generator = torch.Generator().manual_seed(m + 13 * d + 101 * n)
    left, right, weights = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((m, d), (m, d), (n, m))
    )
    gram = form_gram(left, right, left, right, symmetric=symmetric)
    got = norm_increments(weights, left, right, symmetric=symmetric, tile=tile).cumsum(1)
    for prefix in range(1, m + 1):
        part = weights[:, :prefix]
        close(got[:, prefix - 1], torch.einsum("ni,ij,nj->n", part, gram[:prefix, :prefix], part))


@pytest.mark.parametrize("options", [o for o in FORMS if o["ordered"]], ids=name)
def test_the_ordered_loss_is_the_mean_over_prefixes(options):
    auto, x = build(options), samples()
    errors = auto.prefix_errors(x)
    square, products = outer(auto, x)
    weights, full = weigh(auto, code(auto, products)), matrices(auto)
    for prefix in range(M + 1):
        decoded = torch.einsum("nm,mij->nij", weights[:, :prefix], full[:prefix])
        close(errors[:, prefix], (square - decoded).square().sum((1, 2)).detach())
    close(auto.loss(x).total.detach(), errors[:, 1:].mean())


@pytest.mark.parametrize("options", [o for o in FORMS if o["kernel"] == "vanilla"], ids=name)
@pytest.mark.parametrize("seed", range(3))
def test_the_symmetric_kernel_is_never_worse(options, seed):
    vanilla = build(options, seed=seed)
    symmetric = build({**options, "kernel": "symmetric"}, seed=seed)
    x = samples(seed=seed + 5, n=50)
    a, b = vanilla.compare(x).error, symmetric.compare(x).error
    assert bool((b <= a + 1e-12).all())
    assert bool((b < a - 1e-3).any())
    decoded = vanilla(x)
    close(a - b, ((decoded - decoded.mT) / 2).square().sum((1, 2)).detach())


def test_inputs_are_scaled_to_norm_one_and_zero_rows_stay_zero():
    auto = build({"sparsity": 0.0})
    x = samples()
    close(auto.encode(3 * x), auto.encode(x))
    x[0] = 0
    comparison = auto.compare(x)
    close(comparison.target[1:], torch.ones(N - 1))
    assert comparison.target[0] == 0
    assert comparison.error[0] == 0
    assert not comparison.codes[0].any()
    assert bool(auto.loss(x).total.isfinite())


# ---- metrics ---------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("options", FORMS, ids=name)
def test_comparison_is_that_of_the_matrices(options, dtype):
    auto, x = build(options, dtype), samples(dtype)
    got = auto.compare(x, x)
    square, products = outer(auto, x)
    decoded = torch.einsum("nm,mij->nij", weigh(auto, code(auto, products)), matrices(auto))
    for value, wanted in (
        (got.codes, code(auto, products)),
        (got.error, (square - decoded).square().sum((1, 2))),
        (got.target, square.square().sum((1, 2))),
        (got.cross, (square * decoded).sum((1, 2))),
        (got.reconstruction, decoded.square().sum((1, 2))),
        (got.target_sum, square.sum(0)),
        (auto(x), decoded),
        (auto.decode(got.codes), decoded),
    ):
        close(value.detach(), wanted.detach(), 20 * TOLERANCE[dtype])
    assert got.codes.dtype == dtype
    assert got.error.dtype == torch.float64


@pytest.mark.parametrize("options", FORMS, ids=name)
def test_cosines_are_those_of_the_matrices(options):
    auto = build(options)

    def cosines(a, b):
        return F.normalize(a.flatten(1), dim=1) @ F.normalize(b.flatten(1), dim=1).mT

    own = features(auto)
    close(auto.decoder_cosines(), cosines(own, own).detach())
    close(auto.decoder_cosines(slice(1, 3)), cosines(own[1:3], own).detach())
    forms = (own + own.mT) / 2
    close(auto.encoder_cosines(slice(2, None)), cosines(forms[2:], forms).detach())
    for mixing, kernel in product((None, 3), ("symmetric", "vanilla")):
        other = build({"mixing": mixing, "kernel": kernel, "bias": auto.bias}, seed=8, latents=6)
        close(auto.decoder_cosines(slice(0, 3), other), cosines(own[:3], features(other)).detach())


def test_a_zero_feature_has_cosine_zero():
    auto = build({"mixing": None})
    with torch.no_grad():
        auto.left_weight[2] = 0
    found = auto.decoder_cosines()
    assert not found[2].any()
    assert not found[:, 2].any()
    close(found.diag(), torch.tensor([1.0, 1, 0, 1, 1, 1, 1]))


# ---- Hoyer density ---------------------------------------------------------------------------------------


@dtypes
def test_hoyer_density_is_zero_of_one_sample_and_one_of_all(dtype):
    codes = torch.zeros(16, 4, dtype=dtype)
    codes[3, 0] = -2.0
    codes[:, 1] = torch.tensor([1.0, -1.0]).repeat(8) * 0.3
    codes[:4, 2] = 1.0
    wanted = torch.tensor([0.0, 1.0, (2 - 1) / (4 - 1), 0.0], dtype=dtype)
    close(hoyer_density(codes), wanted, 1e-6)
    close(hoyer_density(100 * codes), wanted, 1e-6)


def test_hoyer_density_of_gaussian_codes():
    normal = torch.randn(2, 200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    root = math.sqrt(200_000)
    close(hoyer_density(normal[0]), torch.tensor([(math.sqrt(2 / math.pi) * root - 1) / (root - 1)]), 5e-3)
    close(hoyer_density(normal[0] * normal[1]), torch.tensor([(2 / math.pi * root - 1) / (root - 1)]), 1e-2)


@pytest.mark.parametrize("mixing", [None, MIXED])
def test_density_over_batches_is_that_of_the_whole(mixing):
    auto, x = build({"mixing": mixing}), samples(n=37)
    found = measure_density(auto, x, batch_size=10)
    close(found.values, hoyer_density(auto.encode(x)).detach())
    assert found.samples == 37
    assert found.mean == pytest.approx(float(found.values.mean()))
    with pytest.raises(ShapeError, match="two samples"):
        hoyer_density(torch.ones(1, 3))


# ---- order, clusters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", FORMS, ids=name)
def test_sorting_permutes_codes_and_keeps_the_function(options):
    auto, x = build(options), samples()
    found = auto.sorted_by_importance()
    importance = auto.importance()
    close(found.importance(), importance.sort(descending=True).values)
    close(found.encode(x), auto.encode(x)[:, importance.argsort(descending=True)])
    close(found(x), auto(x))


def test_clusters_are_the_blocks_of_the_mixing():
    auto = build({"mixing": 3}, latents=8)
    blocks = ((0, 3, 4, 6), (1, 5), (2,), (7,))
    with torch.no_grad():
        weight = mixing_weight(auto).zero_()
        for row, block in enumerate(blocks[:3]):
            weight[row, list(block)] = torch.tensor([1.0, -2.0, 0.5, 3.0]).to(weight)[: len(block)]
    assert auto.clusters() == blocks
    with pytest.raises(UnsupportedOperationError, match="mixing"):
        build({}).clusters()
    with pytest.raises(ShapeError, match="threshold"):
        auto.clusters(0)


# ---- latents as quadratic forms --------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("options", [o for o in FORMS if not o["ordered"]], ids=name)
def test_decompositions_of_latents_add_up_to_the_codes(options, dtype):
    auto, x = build(options, dtype), samples(dtype)
    found = interp.decompose(auto)
    close(found.explain(x).sum(2), auto.encode(x).detach(), TOLERANCE[dtype])
    close(found.values.double().square().sum(1), auto.importance(), 10 * TOLERANCE[dtype])
    one = interp.decompose(auto, directions=torch.eye(auto.latents)[2], top=3)
    close(one.values[0], found.values[2, :3], TOLERANCE[dtype])


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_has_the_two_eigenvalues_of_the_closed_form(bias):
    auto = build({"bias": bias})
    along = (auto.left_weight * auto.right_weight).sum(1)
    norms = auto.left_weight.norm(dim=1) * auto.right_weight.norm(dim=1)
    wanted = torch.stack([(along + norms) / 2, (along - norms) / 2], 1).detach()
    order = wanted.abs().argsort(1, descending=True)
    found = interp.decompose(auto, top=3).values
    close(found[:, :2], wanted.take_along_dim(order, 1))
    close(found[:, 2], torch.zeros(M))


@pytest.mark.parametrize("options", [o for o in FORMS if not o["ordered"]], ids=name)
def test_manifolds_are_the_terms_of_their_latent(options):
    auto, x = build({**options, "scaling": "unit_norm"}), samples(n=30)
    codes, every = auto.encode(x).detach(), interp.decompose(auto)
    for latent in (0, 3):
        full = project_manifold(auto, latent, x, axes=D + 1)
        close(full.activations, codes[:, latent])
        close(full.points.square() @ full.values, codes[:, latent])
        close(full.shown, 1.0)
        found = project_manifold(auto, latent, x)
        rank = min(3, len(full.values))
        close(found.values, every.values[latent, :rank])
        close(found.points, full.points[:, :rank])
        close(found.vectors @ found.vectors.mT, torch.eye(rank))
        assert found.density == pytest.approx(float(hoyer_density(codes)[latent]))
        assert found.importance == pytest.approx(float(auto.importance()[latent]))
        assert found.effective_rank == pytest.approx(float(every.effective_rank[latent]))
        assert found.shown == pytest.approx(float(found.values.square().sum()) / found.importance)
    assert len(project_manifold(auto, 0, x).values) == (2 if auto.mixing is None else 3)
    with pytest.raises(ShapeError, match="latents 0 to"):
        project_manifold(auto, auto.latents, x)


def test_a_figure_has_every_manifold_and_refuses_a_line():
    x = samples(n=30)
    drawn = [project_manifold(build({}), 1, x), project_manifold(build({"mixing": 4}), 2, x)]
    figure = manifold_figure(drawn, labels=torch.arange(30) % 10)
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert len(titled) == 2
    assert len(figure.axes) == 8
    assert [axes.name for axes in titled] == ["rectilinear", "3d"]
    assert "latent 1" in titled[0].get_title()
    assert np.shape(titled[0].collections[0].get_offsets()) == (30, 2)
    with pytest.raises(ShapeError, match="two axes"):
        manifold_figure([project_manifold(build({}), 1, x, axes=1)])
    with pytest.raises(ShapeError, match="labels"):
        manifold_figure(drawn, labels=torch.arange(3))


# ---- starting, training, saving --------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("bias", [False, True])
def test_the_start_is_orthogonal_and_follows_the_generator(bias, dtype):
    def start(seed):
        generator = torch.Generator().manual_seed(seed)
        return BilinearAutoencoder(6, 20, bias=bias, mixing=4, dtype=dtype, generator=generator)

    auto = start(3)
    for weight in (auto.left_weight, auto.right_weight):
        assert weight.dtype == dtype
        assert weight.shape == (20, 7 if bias else 6)
        close(weight[:, :6].mT @ weight[:, :6], torch.eye(6), 1e-5)
        assert not weight[:, 6:].any()
    close(mixing_weight(auto) @ mixing_weight(auto).mT, torch.eye(4), 1e-5)
    assert torch.equal(auto.left_weight, start(3).left_weight)
    assert not torch.equal(auto.left_weight, start(4).left_weight)
    assert not torch.equal(auto.left_weight, auto.right_weight)


@pytest.mark.parametrize("options", [COMBINATIONS[0], COMBINATIONS[-1]], ids=name)
def test_configuration_builds_the_same_autoencoder(options):
    auto, x = build(options, tile=3), samples()
    again = BilinearAutoencoder(**json.loads(json.dumps(auto.configuration())), dtype=torch.float64)
    again.load_state_dict(auto.state_dict())
    assert again.configuration() == auto.configuration()
    assert repr(again) == repr(auto)
    assert torch.equal(again.loss(x).total, auto.loss(x).total)


@pytest.mark.parametrize(
    "options", [{}, {"ordered": True, "mixing": 16, "bias": True, "sparsity": 0.1}], ids=str
)
def test_training_lowers_the_error(options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    auto = BilinearAutoencoder(8, 32, **options)
    before = auto.compare(x).error.mean()
    train(auto, x, steps=60, batch_size=256, decay=1.0, progress=False)
    assert auto.compare(x).error.mean() < 0.2 * before
    square, decoded = outer(auto, x)[0], auto(x).detach()
    wanted = (square - decoded).square().sum() / (square - square.mean(0)).square().sum()
    assert evaluate(auto, x, batch_size=100).fvu == pytest.approx(float(wanted), rel=1e-3)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (9, 9)])
def test_spectra_flattened_on_the_gram_matrix_are_those_of_the_matrix(shape):
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b, c = coefficients = (3.4445, -4.775, 2.0315)
    wanted = matrix / matrix.norm()
    for _ in range(5):
        gram = wanted @ wanted.mT
        wanted = a * wanted + (b * gram + c * gram @ gram) @ wanted
    close(flatten_spectrum(matrix, coefficients, 5), wanted)
    values = torch.linalg.svdvals(flatten_spectrum(matrix.float(), coefficients, 5))
    assert float(values.min()) > 0.4
    assert float(values.max()) < 1.3


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}], ids=str
)
def test_muon_takes_the_steps_of_the_library(options):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, 10, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = GramMuon([ours], 0.02, **options), torch.optim.Muon([theirs], 0.02, **options)
    for _ in range(3):
        gradient = torch.randn(24, 10, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        optimizers[0].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))  # one continues the other
    moved = (theirs - start).norm()
    assert moved > 0
    assert (ours - theirs).norm() < 0.03 * moved


# ---- refusals --------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused():
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"d": 0, "latents": 3}, "d is"),
        ({"d": 3, "latents": 0}, "latents is"),
        ({"d": 3, "latents": 3, "mixing": 0}, "mixing is"),
        ({"d": 3, "latents": 3, "tile": 0}, "tile is"),
        ({"d": 3, "latents": 3, "kernel": "gaussian"}, "gaussian"),
        ({"d": 3, "latents": 3, "sparsity": -1.0}, "sparsity"),
        ({"d": 3, "latents": 3, "scaling": "half"}, "half"),
    )
    for arguments, text in wrong:
        with pytest.raises(ShapeError, match=text):
            BilinearAutoencoder(**arguments)
    auto, x = build({"sparsity": 0.1}), samples()
    with pytest.raises(UnsupportedOperationError, match="input alone"):
        auto.loss(x, x + 1)
    with pytest.raises(ShapeError, match="two samples"):
        auto.loss(x[:1])
    with pytest.raises(ShapeError, match="floating-point samples"):
        auto.loss(x[:, :3])
    with pytest.raises(ShapeError, match="bias"):
        auto.decoder_cosines(other=build({"bias": True}))
    with torch.no_grad():
        auto.right_weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="right_weight"):
        interp.decompose(auto)
