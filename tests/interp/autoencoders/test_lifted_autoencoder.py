"""Laws of lifted autoencoders: they are sparse autoencoders whose gradient steps are preconditioned."""

import json

import pytest
import torch
from torch import Tensor

from interp.autoencoders.batch_top_k import BatchTopK
from interp.autoencoders.dead_latents import Resampling
from interp.autoencoders.formats.registry import load_autoencoder
from interp.autoencoders.gated import Gated
from interp.autoencoders.jump_relu import JumpReLU
from interp.autoencoders.lifted_autoencoder import LiftedAutoencoder
from interp.autoencoders.planted import plant_vectors, recovery
from interp.autoencoders.relu import ReLU
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.autoencoders.top_k import TopK
from interp.autoencoders.training import train
from weightspace.errors import ShapeError, UnsupportedOperationError

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
RULES = [TopK(3), BatchTopK(3), ReLU(0.05), JumpReLU(), Gated()]
EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(d: int = 8, n: int = 200, *, dtype=torch.float64) -> Tensor:
    scales = torch.logspace(0, -1, d, dtype=dtype)
    return torch.randn(n, d, generator=generator(4), dtype=dtype) * scales + 0.3


def general_lift(lifted: int = 11, d: int = 8) -> Tensor:
    return torch.randn(lifted, d, generator=generator(5), dtype=torch.float64)


EVERY_LIFT = pytest.mark.parametrize(
    "lift", ["isometry", "whitening", general_lift()], ids=["isometry", "whitening", "given"]
)


def take_step(autoencoder, x: Tensor, rate: float) -> Tensor:
    optimizer = torch.optim.SGD(autoencoder.parameters(), rate)
    optimizer.zero_grad()
    loss = autoencoder.loss(x)
    loss.total.backward()
    autoencoder.after_backward()
    optimizer.step()
    autoencoder.after_step(optimizer)
    return loss.total.detach()


@PRECISIONS
@EVERY_RULE
@EVERY_LIFT
@torch.no_grad()
def test_folding_leaves_the_function_and_the_loss(lift, rule, dtype):
    x = samples(dtype=dtype)
    lifted = LiftedAutoencoder(8, 20, rule, lift=lift, lifted=11, scaling="standard", dtype=dtype)
    lifted.prepare(x)
    with torch.enable_grad():
        take_step(lifted, x, 1e-2)
    plain, tolerance = lifted.fold(), {"rtol": 0, "atol": 10 * TOLERANCE[dtype]}
    assert type(plain) is SparseAutoencoder
    lifted.eval(), plain.eval()
    torch.testing.assert_close(plain(x), lifted(x), **tolerance)
    torch.testing.assert_close(plain.encode(x), lifted.encode(x), **tolerance)
    torch.testing.assert_close(plain.loss(x).total, lifted.loss(x).total, **tolerance)
    torch.testing.assert_close(plain.compare(x).error, lifted.compare(x).error, **tolerance)


@EVERY_RULE
def test_steps_of_an_isometric_lift_are_those_of_the_plain_autoencoder(rule):
    x = samples()
    lifted = LiftedAutoencoder(8, 20, rule, lifted=13, dtype=torch.float64)
    plain = lifted.fold()
    torch.testing.assert_close(lifted.lift.mT @ lifted.lift, torch.eye(8, dtype=torch.float64))
    for autoencoder in (plain, lifted):
        autoencoder.prepare(x)
        for _ in range(3):
            take_step(autoencoder, x, 0.05)
    for name in ("encoder_weight", "decoder_weight"):
        torch.testing.assert_close(getattr(lifted, name), getattr(plain, name), rtol=0, atol=1e-12)
    for name in ("encoder_bias", "decoder_bias"):
        torch.testing.assert_close(getattr(lifted.folded, name), getattr(plain, name), rtol=0, atol=1e-12)


@EVERY_RULE
def test_steps_of_a_general_lift_are_preconditioned(rule):
    x, rate, lift = samples(), 1e-3, general_lift()
    lifted = LiftedAutoencoder(8, 20, rule, lift=lift, normalize_decoder=False, dtype=torch.float64)
    lifted.prepare(x)
    plain = lifted.fold()
    plain.loss(x).total.backward()
    take_step(lifted, x, rate)
    projection = torch.linalg.pinv(lift)
    for name, preconditioner in (
        ("encoder_weight", lift.mT @ lift),
        ("decoder_weight", projection @ projection.mT),
    ):
        before = getattr(plain, name)
        expected = before - rate * before.grad @ preconditioner
        torch.testing.assert_close(getattr(lifted, name), expected, rtol=0, atol=1e-12)


@PRECISIONS
def test_steps_keep_effective_features_of_norm_one(dtype):
    x = samples(dtype=dtype)
    autoencoder = LiftedAutoencoder(8, 20, TopK(3), lift="whitening", lifted=11, dtype=dtype)
    autoencoder.prepare(x)
    before = take_step(autoencoder, x, 1e-3)
    norms = autoencoder.decoder_weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert autoencoder.loss(x).total < before
    # What is left of the gradient moves no norm to first order.
    autoencoder.zero_grad()
    autoencoder.loss(x).total.backward()
    autoencoder.after_backward()
    weight = autoencoder.lifted_weight("decoder_weight")
    projection = torch.linalg.pinv(autoencoder.lift)
    change = ((weight.grad @ projection.mT) * autoencoder.decoder_weight).sum(1)
    assert change.abs().max() < TOLERANCE[dtype] * weight.grad.norm()


def test_whitening_whitens_and_leaves_the_features():
    x = samples()
    autoencoder = LiftedAutoencoder(8, 20, TopK(3), lift="whitening", lifted=11, dtype=torch.float64)
    before = autoencoder.decoder_weight.detach()
    autoencoder.prepare(x)
    torch.testing.assert_close(autoencoder.decoder_weight, before, rtol=0, atol=1e-12)
    torch.testing.assert_close(autoencoder.encoder_weight, before, rtol=0, atol=1e-12)
    y = (x - x.mean(0)) @ autoencoder.lift.mT
    values = torch.linalg.eigvalsh(y.mT @ y)
    torch.testing.assert_close(values[:3], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(values[3:], values[3].expand(8))
    torch.testing.assert_close(y.square().sum(), (x - x.mean(0)).square().sum())
    projection = torch.linalg.pinv(autoencoder.lift)
    torch.testing.assert_close(projection.square().sum(), torch.tensor(8.0, dtype=torch.float64))


@EVERY_LIFT
def test_configuration_and_weights_make_it_again(lift):
    x = samples()
    autoencoder = LiftedAutoencoder(
        8, 20, BatchTopK(3), lift=lift, lifted=11, matryoshka=(5, 20), scaling="standard", dtype=torch.float64
    )
    autoencoder.prepare(x)
    take_step(autoencoder, x, 1e-2)
    configuration = json.loads(json.dumps(autoencoder.configuration()))
    again = LiftedAutoencoder(**configuration, dtype=torch.float64, generator=generator(9))
    again.load_state_dict(autoencoder.state_dict())
    assert again.configuration() == autoencoder.configuration()
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), autoencoder.eval()(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(again.lift, autoencoder.lift, rtol=0, atol=0)


@EVERY_LIFT
def test_files_hold_the_lift(lift, tmp_path):
    x = samples(dtype=torch.float32)
    autoencoder = LiftedAutoencoder(8, 20, TopK(3), lift=lift, lifted=11)
    autoencoder.prepare(x)
    autoencoder.save(tmp_path / "lifted.safetensors")
    again = load_autoencoder(tmp_path / "lifted.safetensors")
    assert isinstance(again, LiftedAutoencoder)
    torch.testing.assert_close(again.compare(x).error, autoencoder.compare(x).error, rtol=0, atol=1e-5)


def test_cosines_are_those_of_effective_features():
    lifted = LiftedAutoencoder(8, 20, TopK(3), lift=general_lift(), dtype=torch.float64)
    plain = lifted.fold()
    for other in (None, lifted, plain):
        torch.testing.assert_close(
            lifted.decoder_cosines(slice(2, 5), other), plain.decoder_cosines(slice(2, 5))
        )
    torch.testing.assert_close(lifted.encoder_cosines(), plain.encoder_cosines())


def test_planted_atoms_are_found():
    planted = plant_vectors(16, 20, samples=4000, active=2, condition=30, generator=generator())
    autoencoder = LiftedAutoencoder(16, 40, TopK(2), lift="whitening", generator=generator(1))
    train(autoencoder, planted.samples, steps=200, batch_size=256, learning_rate=1e-2, progress=False)
    assert recovery(autoencoder.decoder_weight.detach(), planted.atoms).mean() > 0.95


def test_refusals_name_the_culprit():
    with pytest.raises(ShapeError, match="lifted=7 loses"):
        LiftedAutoencoder(8, 20, TopK(3), lifted=7)
    with pytest.raises(ShapeError, match=r"\(9, 8\).*\(9, 7\)"):
        LiftedAutoencoder(8, 20, TopK(3), lift=torch.zeros(9, 7))
    with pytest.raises(ShapeError, match="of rank 1"):
        LiftedAutoencoder(8, 20, TopK(3), lift=torch.ones(9, 8))
    with pytest.raises(ShapeError, match="finite"):
        LiftedAutoencoder(8, 20, TopK(3), lift=torch.full((9, 8), torch.nan))
    with pytest.raises(ShapeError, match="isometric"):
        LiftedAutoencoder(8, 20, TopK(3), lift="isometric")
    with pytest.raises(UnsupportedOperationError, match="Resampling"):
        LiftedAutoencoder(8, 20, TopK(3), dead=Resampling())  # pyright: ignore[reportArgumentType]
    autoencoder = LiftedAutoencoder(8, 20, TopK(3), lift="whitening")
    with pytest.raises(ShapeError, match=r"\(n, 8\).*\(5, 7\)"):
        autoencoder(torch.zeros(5, 7))
    with pytest.raises(ShapeError, match=r"5 samples.*no variance"):
        autoencoder.prepare(torch.randn(5, 8, generator=generator()))
