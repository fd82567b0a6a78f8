"""Laws of sparse autoencoders: every loss is its formula, written out densely."""

import math

import pytest
import torch
from torch import nn

import interp
from interp import AuxiliaryLoss, BatchTopK, Gated, JumpReLU, ReLU, Resampling, SparseAutoencoder, TopK
from weightspace.errors import ShapeError

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
RULES = [TopK(4), BatchTopK(4), ReLU(0.3), JumpReLU(0.2), JumpReLU(0.2, target_l0=3.0), Gated(0.3)]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
D, M, N = 6, 20, 40


def data(dtype, seed=0, features=D):
    return 2 * torch.randn(N, features, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 1


def scrambled(autoencoder, seed=0):
    """Weights that satisfy no accidental identity; decoder rows keep their norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            if name not in ("decoder_weight", "log_threshold"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return autoencoder


def take_step(a, optimizer, x):
    optimizer.zero_grad()
    a.loss(x).total.backward()
    a.after_backward()
    optimizer.step()
    a.after_step(optimizer)


def codes_of(a, h, rule):
    if isinstance(rule, TopK | BatchTopK):
        h = h.relu()
        kept = torch.zeros_like(h, dtype=torch.bool)
        if isinstance(rule, TopK):
            kept.scatter_(1, h.topk(rule.k).indices, True)
        else:
            kept.view(-1)[h.flatten().topk(rule.k * len(h)).indices] = True
        return torch.where(kept, h, 0.0)
    if isinstance(rule, ReLU):
        return h.relu()
    if isinstance(rule, JumpReLU):
        return torch.where(h > a.log_threshold.exp(), h.relu(), 0.0)
    return (h > 0) * ((h - a.encoder_bias) * a.gate_scale.exp() + a.magnitude_bias).relu()


@dtypes
@rules
@pytest.mark.parametrize("prefixes", [(), (3, 11)], ids=["flat", "matryoshka"])
@pytest.mark.parametrize("scaling", ["none", "standard", "root_norm"])
@pytest.mark.parametrize("tied", [False, True], ids=["free", "tied"])
def test_the_loss_is_its_formula(dtype, rule, prefixes, scaling, tied):
    x = data(dtype)
    a = SparseAutoencoder(D, M, rule, matryoshka=prefixes, scaling=scaling, tied=tied, dtype=dtype)
    a.prepare(x)
    scrambled(a)
    loss = a.loss(x)
    s = a.scaling.apply(x)[0]
    h = (s - a.decoder_bias) @ a.encoder_weight.mT + a.encoder_bias
    f = codes_of(a, h, rule)
    errors = [
        (s - f[:, :m] @ a.decoder_weight[:m] - a.decoder_bias).square().sum(1).mean() for m in (*prefixes, M)
    ]
    wanted = sum(errors) / len(errors)
    norms = a.decoder_weight.norm(dim=1)
    if isinstance(rule, ReLU):
        wanted = wanted + 0.3 * (f * norms).sum(1).mean()
    if isinstance(rule, JumpReLU):
        l0 = (f != 0).sum(1).to(dtype).mean()
        wanted = wanted + 0.2 * (l0 if rule.target_l0 is None else (l0 / 3 - 1) ** 2)
    if isinstance(rule, Gated):
        gate = h.relu()
        seen = gate @ a.decoder_weight + a.decoder_bias
        wanted = wanted + 0.3 * (gate * norms).sum(1).mean() + (s - seen).square().sum(1).mean()
    assert math.isclose(loss.total.item(), wanted.item(), rel_tol=TOLERANCE[dtype])
    assert math.isclose(loss.l0.item(), (f != 0).sum().item() / N, rel_tol=1e-6)
    assert math.isclose(loss.error.item(), errors[-1].item() * N, rel_tol=TOLERANCE[dtype])
    assert math.isclose(loss.variance.item(), (s - s.mean(0)).square().sum().item(), rel_tol=TOLERANCE[dtype])
    if not isinstance(rule, BatchTopK):
        assert torch.allclose(a.encode(x), f, atol=TOLERANCE[dtype])
        assert torch.allclose(
            a(x),
            a.scaling.invert(f @ a.decoder_weight + a.decoder_bias, a.scaling.apply(x)[1]),
            atol=5 * TOLERANCE[dtype],
        )


@dtypes
@pytest.mark.parametrize("rule", [TopK(4), BatchTopK(4), ReLU(0.3)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("prefixes", [(), (3, 11)], ids=["flat", "matryoshka"])
def test_gradients_are_those_of_the_dense_formula(dtype, rule, prefixes):
    x = data(dtype)
    a = scrambled(SparseAutoencoder(D, M, rule, matryoshka=prefixes, dtype=dtype))
    a.loss(x).total.backward()
    ours = {name: parameter.grad.clone() for name, parameter in a.named_parameters()}
    a.zero_grad()
    f = codes_of(a, (x - a.decoder_bias) @ a.encoder_weight.mT + a.encoder_bias, rule)
    errors = [
        (x - f[:, :m] @ a.decoder_weight[:m] - a.decoder_bias).square().sum(1).mean() for m in (*prefixes, M)
    ]
    total = sum(errors) / len(errors)
    if isinstance(rule, ReLU):
        total = total + 0.3 * (f * a.decoder_weight.norm(dim=1)).sum(1).mean()
    total.backward()
    for name, parameter in a.named_parameters():
        scale = parameter.grad.abs().max()
        assert (
            (ours[name] - parameter.grad).abs().max() <= 5e-6 * scale
            if dtype == torch.float32
            else 1e-12 * scale
        )


@dtypes
@pytest.mark.parametrize("tied", [False, True], ids=["free", "tied"])
def test_only_tied_weights_share_memory(dtype, tied):
    a = SparseAutoencoder(D, M, tied=tied, activation=TopK(4), dtype=dtype)
    assert (a.encoder_weight.data_ptr() == a.decoder_weight.data_ptr()) is tied
    assert torch.equal(a.encoder_weight, a.decoder_weight)


@dtypes
@rules
def test_codes_are_differentiable(dtype, rule):
    a = scrambled(SparseAutoencoder(D, M, rule, dtype=dtype))
    x = data(dtype).requires_grad_()
    cotangent = torch.randn(N, D, dtype=dtype)
    ours = torch.autograd.grad((a(x) * cotangent).sum(), x)[0]
    h = (x - a.decoder_bias) @ a.encoder_weight.mT + a.encoder_bias
    wanted = torch.autograd.grad((codes_of(a, h, rule) @ a.decoder_weight * cotangent).sum(), x)[0]
    assert torch.allclose(ours, wanted, atol=5 * TOLERANCE[dtype])


@dtypes
def test_pseudo_gradients_of_the_jump(dtype):
    a = scrambled(SparseAutoencoder(D, M, JumpReLU(0.2, bandwidth=0.5), dtype=dtype))
    with torch.no_grad():
        a.log_threshold += 3.0
    x = data(dtype)
    theta = a.log_threshold.detach().exp()
    h = ((x - a.decoder_bias) @ a.encoder_weight.mT + a.encoder_bias).detach()
    f = torch.where(h > theta, h.relu(), 0.0)
    residual = x - f @ a.decoder_weight - a.decoder_bias
    for_codes = -2 * residual @ a.decoder_weight.mT / N
    near = ((h - theta).abs() < 0.25).to(dtype)
    wanted = -(theta / 0.5) * (for_codes * near).sum(0) - 0.2 * near.sum(0) / 0.5 / N
    a.loss(x).total.backward()
    assert near.any()
    assert torch.allclose(
        a.log_threshold.grad, (wanted * theta).detach(), rtol=10 * TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )
    through = (for_codes * (f > 0)).detach()
    assert torch.allclose(
        a.encoder_bias.grad, through.sum(0), rtol=10 * TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@dtypes
@rules
def test_transcoders_predict_targets(dtype, rule):
    x, y = data(dtype), data(dtype, 1, 9)
    a = SparseAutoencoder(D, M, rule, output_features=9, skip=True, scaling="standard", dtype=dtype)
    a.prepare(x, y)
    scrambled(a)
    s, t = a.scaling.apply(x)[0], a.output_scaling.apply(y)[0]
    h = s @ a.encoder_weight.mT + a.encoder_bias
    made = codes_of(a, h, rule) @ a.decoder_weight + a.decoder_bias + s @ a.skip_weight.mT
    loss = a.loss(x, y)
    assert math.isclose(
        loss.parts["reconstruction"].item(),
        (t - made).square().sum(1).mean().item(),
        rel_tol=TOLERANCE[dtype],
    )
    assert loss.total.item() >= loss.parts["reconstruction"].item()
    if not isinstance(rule, BatchTopK):
        assert torch.allclose(a(x), a.output_scaling.invert(made), atol=5 * TOLERANCE[dtype])
        assert torch.allclose(
            a.compare(x, y).error, (y - a(x)).square().sum(1).double(), rtol=10 * TOLERANCE[dtype]
        )
    with pytest.raises(ShapeError, match="no targets"):
        a.loss(x)


@dtypes
def test_crosscoders_pay_for_the_norm_at_every_site(dtype):
    x = data(dtype)
    a = scrambled(SparseAutoencoder(D, M, ReLU(0.3), sites=(2, 4), normalize_decoder=False, dtype=dtype))
    f = ((x - a.decoder_bias) @ a.encoder_weight.mT + a.encoder_bias).relu()
    norms = a.decoder_weight[:, :2].norm(dim=1) + a.decoder_weight[:, 2:].norm(dim=1)
    assert torch.allclose(a.feature_norms(), norms)
    assert math.isclose(
        a.loss(x).parts["l1"].item(), 0.3 * (f @ norms).mean().item(), rel_tol=TOLERANCE[dtype]
    )


@dtypes
@rules
def test_constraints_hold_while_it_learns(dtype, rule):
    x = data(dtype)
    a = SparseAutoencoder(D, M, rule, scaling="standard", dtype=dtype)
    before = None
    optimizer = None
    a.prepare(x)
    optimizer = a.make_optimizer(3e-3)
    for step in range(150):
        loss = a.loss(x, progress=step / 150)
        before = loss.total.item() if before is None else before
        optimizer.zero_grad()
        loss.total.backward()
        a.after_backward()
        assert (a.decoder_weight.grad * a.decoder_weight).sum(1).abs().max() < 1e-5
        optimizer.step()
        a.after_step(optimizer)
        assert torch.allclose(a.decoder_weight.norm(dim=1), torch.ones(M, dtype=dtype))
    assert loss.total.item() < 0.7 * before


@dtypes
def test_batch_top_k_ends_with_a_threshold_that_keeps_k(dtype):
    x = torch.randn(4000, D, generator=torch.Generator().manual_seed(0), dtype=dtype)
    a = SparseAutoencoder(D, M, BatchTopK(4), dtype=dtype)
    optimizer = a.make_optimizer(1e-3)
    for batch in x.split(400):
        a.loss(batch).total.backward()
        a.after_step(optimizer)
    a.eval()
    assert a.threshold > 0
    codes = a.encode(x)
    assert math.isclose((codes != 0).sum().item() / len(x), 4, rel_tol=0.1)
    assert torch.allclose(codes[:7], a.encode(x[:7]))  # of every sample on its own
    assert codes[codes != 0].min() > a.threshold


@dtypes
def test_dead_latents_explain_what_is_left(dtype):
    x = data(dtype)
    a = scrambled(SparseAutoencoder(D, M, TopK(3), dead=AuxiliaryLoss(0.5, silent=100), dtype=dtype))
    a.silent_for[:5] = 100
    h = (x - a.decoder_bias) @ a.encoder_weight.mT + a.encoder_bias
    f = codes_of(a, h, a.activation)
    e = (x - f @ a.decoder_weight - a.decoder_bias).detach()
    g = h[:, :5].relu()
    g = torch.where(torch.zeros_like(g, dtype=torch.bool).scatter_(1, g.topk(3).indices, True), g, 0.0)
    wanted = 0.5 * (e - g @ a.decoder_weight[:5]).square().sum() / (e - e.mean(0)).square().sum()
    loss = a.loss(x)
    assert math.isclose(loss.parts["auxiliary"].item(), wanted.item(), rel_tol=TOLERANCE[dtype])
    loss.total.backward()
    assert a.encoder_weight.grad[:5].abs().sum() > 0
    a.silent_for.zero_()
    assert "auxiliary" not in a.loss(x).parts


def test_silence_is_counted_in_samples():
    x = data(torch.float32)
    a = SparseAutoencoder(D, M, TopK(1))
    optimizer = a.make_optimizer()
    with torch.no_grad():
        a.encoder_bias[3] = -1e6
    for _ in range(3):
        a.loss(x).total.backward()
        a.after_step(optimizer)
    assert a.silent_for[3] == 3 * N
    fired = (a.encode(x) != 0).any(0)
    assert not a.silent_for[fired].any()


@pytest.mark.parametrize("tied", [False, True])
def test_resampling_points_dead_latents_at_samples(tied):
    x = data(torch.float64)
    a = SparseAutoencoder(D, M, ReLU(0.1), dead=Resampling(every=2, silent=1), tied=tied, dtype=torch.float64)
    optimizer = a.make_optimizer(1e-3)
    with torch.no_grad():
        a.encoder_bias[:4] = -1e6
    for _ in range(2):
        take_step(a, optimizer, x)
    rows = nn.functional.normalize(x - a.decoder_bias.detach())
    assert (a.encoder_bias[:4] == 0).all()
    for feature in a.decoder_weight[:4]:  # directions of samples (up to the last step of the bias)
        assert (rows @ feature).max() > 0.999
    assert not optimizer.state[a.encoder_weight]["exp_avg"][:4].any()
    assert optimizer.state[a.encoder_weight]["exp_avg"][4:].any()
    assert torch.allclose(a.decoder_weight.norm(dim=1), torch.ones(M, dtype=torch.float64))


@pytest.mark.parametrize("rule", [JumpReLU(0.1), Gated(0.1)], ids=lambda rule: type(rule).__name__)
def test_resampling_revives_latents_of_every_rule(rule):
    x = data(torch.float64)
    a = SparseAutoencoder(D, M, rule, dead=Resampling(every=2, silent=1), dtype=torch.float64)
    optimizer = a.make_optimizer(1e-3)
    with torch.no_grad():
        name = "log_threshold" if isinstance(rule, JumpReLU) else "magnitude_bias"
        a.get_parameter(name)[:4] = 100.0 if isinstance(rule, JumpReLU) else -1e6
    assert not a.encode(x)[:, :4].any()
    for _ in range(2):
        take_step(a, optimizer, x)
    assert a.encode(x)[:, :4].any(0).all()


@rules
@pytest.mark.parametrize(
    "options",
    [{}, {"matryoshka": (3, 11)}, {"output_features": 4, "skip": True}, {"sites": (2, 4), "tied": True}],
    ids=lambda options: ",".join(options) or "plain",
)
def test_configuration_builds_it_again(rule, options):
    a = SparseAutoencoder(D, M, rule, dead=Resampling(), scaling="standard", **options)
    again = SparseAutoencoder(**a.configuration())
    again.load_state_dict(a.state_dict())
    assert again.configuration() == a.configuration()
    assert again.activation == a.activation
    assert again.dead == a.dead


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"activation": TopK(21)}, "keeps more than the 20"),
        ({"matryoshka": (5, 3)}, "ascending"),
        ({"matryoshka": (5, 30)}, "at most 20"),
        ({"skip": True}, "output_features"),
        ({"tied": True, "output_features": 3}, "as many outputs"),
        ({"sites": (2, 2)}, "add up to 6"),
        ({"scaling": "norm"}, "unit_norm"),
        ({"output_features": 6, "scaling": "unit_norm"}, "another for every sample"),
        ({"activation": {"rule": "Softmax"}}, "no rule is named 'Softmax'"),
        ({"activation": "topk"}, "such as TopK"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, text):
    with pytest.raises(ShapeError, match=text):
        SparseAutoencoder(D, M, **{"activation": TopK(4), **arguments})


def test_samples_of_another_shape_are_refused():
    a = SparseAutoencoder(D, M, TopK(4))
    for x in (torch.zeros(3, D + 1), torch.zeros(3, D, dtype=torch.int64), torch.zeros(D)):
        with pytest.raises(ShapeError, match="takes floating-point samples"):
            a.loss(x)
    with pytest.raises(ShapeError, match="different for every sample"):
        SparseAutoencoder(D, M, TopK(4), scaling="unit_norm").decode(torch.zeros(2, M))


@rules
def test_no_samples_have_no_codes(rule):
    assert SparseAutoencoder(D, M, rule).encode(torch.zeros(0, D)).shape == (0, M)


def test_public_names():
    assert interp.SparseAutoencoder is SparseAutoencoder
