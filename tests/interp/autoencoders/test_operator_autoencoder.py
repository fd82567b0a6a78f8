"""Laws of Fourier operators and of autoencoders of functions: convolution, resolution, translation, descent."""

import json
import math

import pytest
import torch
from torch import Tensor

from interp.autoencoders.formats.registry import load_autoencoder
from interp.autoencoders.fourier_neural_operator import FourierNeuralOperator
from interp.autoencoders.fourier_operator import FourierOperator, shift_cosines
from interp.autoencoders.operator_autoencoder import OperatorAutoencoder
from interp.autoencoders.planted import plant_functions, recovery
from interp.autoencoders.training import train
from weightspace.errors import ShapeError, UnsupportedOperationError

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
VARIANTS = {
    "plain": {},
    "concepts": {"concept_sparsity": 0.1},
    "unrolled": {"unrolled": 3},
    "tied": {"tied": True},
    "tied_unrolled": {"tied": True, "unrolled": 2},
    "proximal": {"thresholds": "proximal", "concept_sparsity": 0.1},
    "proximal_gradient": {"thresholds": "proximal", "concept_sparsity": 0.1, "tied": True, "unrolled": 3},
    "standard": {"scaling": "standard"},
    "root_norm": {"scaling": "root_norm"},
}
EVERY_VARIANT = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def convolve(kernels: Tensor, x: Tensor) -> Tensor:
    """The sum over channels and points itself: kernels (o, i, n), x (b, i, n)."""
    points = x.shape[-1]
    difference = (torch.arange(points)[:, None] - torch.arange(points)) % points
    return torch.einsum("oits,bis->bot", kernels[..., difference], x) / points


def band_limited(points: int, modes: int, *, samples: int = 5, channels: int = 2) -> Tensor:
    """Values on a grid of functions that are the same for every grid."""
    coefficients = torch.randn(samples, channels, 2 * modes + 1, generator=generator(7), dtype=torch.float64)
    angles = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    waves = [torch.ones_like(angles)]
    waves += [wave(k * angles) for wave in (torch.cos, torch.sin) for k in range(1, modes + 1)]
    return coefficients @ torch.stack(waves)


def functions(points: int = 32, *, samples: int = 6, channels: int = 2, dtype=torch.float64) -> Tensor:
    return torch.randn(samples, channels, points, generator=generator(3), dtype=dtype)


def build(modes: int = 6, *, dtype=torch.float64, **options) -> OperatorAutoencoder:
    autoencoder = OperatorAutoencoder(2, 5, modes=modes, dtype=dtype, generator=generator(1), **options)
    autoencoder.prepare(functions(dtype=dtype))
    with torch.no_grad():
        if autoencoder.threshold is not None:
            autoencoder.threshold += 0.1
        if autoencoder.encoder is not None:  # an encoder that is not the adjoint
            weight = autoencoder.encoder.weight
            weight += 0.1 * torch.randn(weight.shape, generator=generator(2), dtype=dtype)
    return autoencoder


# ---- Fourier operators -----------------------------------------------------------------------------------


@PRECISIONS
@pytest.mark.parametrize(("points", "modes"), [(16, 8), (17, 8), (32, 5), (1, 0)])
def test_operator_is_the_circular_convolution_with_its_kernels(points, modes, dtype):
    operator = FourierOperator(2, 3, modes, dtype=dtype, generator=generator())
    x = functions(points, dtype=dtype)
    expected = convolve(operator.kernels(points), x)
    torch.testing.assert_close(operator(x), expected, rtol=0, atol=4 * TOLERANCE[dtype])


@pytest.mark.parametrize("points", [16, 17])
def test_any_kernels_are_taken_with_all_modes(points):
    kernels = torch.randn(3, 2, points, generator=generator(), dtype=torch.float64)
    operator = FourierOperator(2, 3, points // 2, dtype=torch.float64)
    operator.set_kernels(kernels)
    torch.testing.assert_close(operator.kernels(points), kernels, rtol=0, atol=1e-12)


@pytest.mark.parametrize("points", [12, 13, 40])
def test_adjoint(points):
    operator = FourierOperator(2, 3, 6, dtype=torch.float64, generator=generator())
    x, y = functions(points), functions(points, channels=3)
    forward, backward = (operator(x) * y).mean(-1).sum(1), (x * operator.adjoint(y)).mean(-1).sum(1)
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-12)


def test_weights_are_coefficients_in_an_orthonormal_basis():
    operator = FourierOperator(2, 3, 6, dtype=torch.float64, generator=generator())
    for points in (13, 64):
        integrals = operator.kernels(points).square().mean(-1)
        torch.testing.assert_close(operator.weight.square().sum(-1), integrals, rtol=0, atol=1e-12)


def test_norm_is_the_largest_amplification():
    operator = FourierOperator(2, 3, 6, dtype=torch.float64, generator=generator())
    matrix = operator(torch.eye(2 * 24, dtype=torch.float64).reshape(48, 2, 24)).flatten(1)
    torch.testing.assert_close(operator.norm(), torch.linalg.matrix_norm(matrix, 2), rtol=0, atol=1e-12)


def test_shift_cosines_find_shifted_functions():
    first = functions(20, samples=3)
    shifted = torch.stack([first[0].roll(3, -1) * 2, -first[1], first[2].roll(-5, -1)])
    cosines = shift_cosines(first, shifted)
    torch.testing.assert_close(cosines.diagonal()[[0, 2]], torch.ones(2, dtype=torch.float64))
    direct = torch.stack([(first[1] * shifted[1].roll(s, -1)).sum() for s in range(20)]).amax()
    torch.testing.assert_close(cosines[1, 1], direct / first[1].square().sum())


# ---- codes at any resolution -----------------------------------------------------------------------------


@EVERY_VARIANT
def test_full_modes_are_a_convolutional_autoencoder(options):
    autoencoder, x = build(modes=16, **{**options, "scaling": "none"}), functions(32)
    kernels = autoencoder.kernels(32)
    reflected = kernels.flip(-1).roll(1, -1)
    encoder = reflected if autoencoder.encoder is None else autoencoder.encoder.kernels(32)
    step = 1 / autoencoder.decoder.norm() ** 2
    if autoencoder.encoder is None:
        encoder = encoder * (step if autoencoder.gain is None else autoencoder.gain[:, None, None])

    def shrink(response: Tensor, refinement: int) -> Tensor:
        if autoencoder.threshold is not None:
            return (response - autoencoder.threshold[refinement][:, None]).relu()
        codes = (response - step * autoencoder.domain_sparsity / 2).relu()
        norms = codes.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-300)
        return codes * (1 - step * autoencoder.concept_sparsity / 2 / norms).relu()

    codes = shrink(convolve(encoder, x), 0)
    for refinement in range(autoencoder.unrolled):
        residual = x - convolve(kernels.transpose(0, 1), codes)
        codes = shrink(codes + step * convolve(reflected, residual), refinement + 1)
    assert (codes > 0).any()
    torch.testing.assert_close(autoencoder.encode(x), codes, rtol=0, atol=1e-11)
    torch.testing.assert_close(autoencoder(x), convolve(kernels.transpose(0, 1), codes), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["plain", "concepts", "tied", "standard", "root_norm"])
def test_codes_agree_at_shared_points(name):
    autoencoder = build(modes=6, **VARIANTS[name])
    coarse, *finer = (autoencoder.encode(band_limited(points, 6)) for points in (64, 128, 256))
    for codes, factor in zip(finer, (2, 4)):
        torch.testing.assert_close(codes[..., ::factor], coarse, rtol=0, atol=1e-11)


@EVERY_VARIANT
def test_only_aliasing_of_the_relu_depends_on_the_resolution(options):
    autoencoder = build(modes=6, **options)
    finest = autoencoder(band_limited(4096, 6)).detach()
    errors = []
    for points in (32, 128, 512):
        difference = autoencoder(band_limited(points, 6)).detach() - finest[..., :: 4096 // points]
        errors.append(float(difference.norm() / finest[..., :: 4096 // points].norm()))
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 2  # the spectrum of a kink falls off as frequency^-2
    assert errors[2] < 1e-3


def test_loss_and_comparison_are_integrals():
    autoencoder = build(modes=6, concept_sparsity=0.1, scaling="standard")
    losses = [autoencoder.loss(band_limited(points, 6)) for points in (256, 1024)]
    for name, part in losses[0].parts.items():
        torch.testing.assert_close(part, losses[1].parts[name], rtol=1e-3, atol=0)
    coarse, fine = (autoencoder.compare(band_limited(points, 6)) for points in (256, 1024))
    for name in ("target", "cross", "reconstruction", "error"):
        torch.testing.assert_close(getattr(coarse, name), getattr(fine, name), rtol=2e-3, atol=0)
    norms = [comparison.target_sum.norm() for comparison in (coarse, fine)]
    torch.testing.assert_close(*norms, rtol=1e-12, atol=0)
    variance = coarse.target.sum() - coarse.target_sum.square().sum() / 5
    scale = autoencoder.scaling.scale.square()
    torch.testing.assert_close(losses[0].variance * scale, variance)
    torch.testing.assert_close(losses[0].error * scale, coarse.error.sum())


@EVERY_VARIANT
def test_codes_follow_translations(options):
    autoencoder, x = build(**options), functions(32)
    codes = autoencoder.encode(x)
    torch.testing.assert_close(autoencoder.encode(x.roll(5, -1)), codes.roll(5, -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(autoencoder(x.roll(5, -1)), autoencoder(x).roll(5, -1), rtol=0, atol=1e-12)


def test_neural_operator_is_resolution_free_and_follows_translations():
    network = FourierNeuralOperator(2, 1, width=8, modes=4, layers=2, dtype=torch.float64)
    x = functions(32)
    torch.testing.assert_close(network(x.roll(3, -1)), network(x).roll(3, -1), rtol=0, atol=1e-12)
    fine, coarse = (network(band_limited(points, 4)).detach() for points in (1024, 512))
    assert float((fine[..., ::2] - coarse).norm() / coarse.norm()) < 1e-9  # gelu is smooth: little aliases


# ---- training --------------------------------------------------------------------------------------------


def test_refinements_of_the_proximal_gradient_method_lower_the_loss_of_every_sample():
    options = {"tied": True, "thresholds": "proximal", "domain_sparsity": 0.1, "concept_sparsity": 0.2}
    x, losses = functions(32), []
    for unrolled in range(6):
        autoencoder = build(unrolled=unrolled, **options)
        codes = autoencoder.encode(x)
        error = (x - autoencoder.decode(codes)).square().mean(-1).sum(1)
        losses.append(error + sum(autoencoder.penalties(codes)))
    torch.testing.assert_close(losses[5].mean(), build(unrolled=5, **options).loss(x).total)
    assert (torch.stack(losses).diff(dim=0) < 0).all()


def test_concept_sparsity_silences_whole_concepts():
    x = functions(32)
    options = {"tied": True, "thresholds": "proximal", "domain_sparsity": 0.0, "unrolled": 30}
    silent = [
        (build(concept_sparsity=strength, **options).encode(x) == 0).all(-1).double().mean().item()
        for strength in (0.0, 0.15, 50.0)
    ]
    assert silent[0] < silent[1] < silent[2] == 1


@PRECISIONS
@EVERY_VARIANT
def test_a_step_keeps_atoms_of_norm_one_and_gradients_finite(options, dtype):
    autoencoder = OperatorAutoencoder(2, 5, modes=6, dtype=dtype, **options)
    x = functions(dtype=dtype)
    x[0] = 0  # where codes and norms vanish
    autoencoder.prepare(x)
    optimizer = torch.optim.SGD(autoencoder.parameters(), 1e-3)
    before = autoencoder.loss(x)
    before.total.backward()
    assert before.total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in autoencoder.parameters())
    autoencoder.after_backward()
    weight = autoencoder.decoder.weight
    assert ((weight.grad * weight).sum((0, 2)).abs() / weight.grad.norm()).max() < TOLERANCE[dtype]
    optimizer.step()
    autoencoder.after_step(optimizer)
    norms = autoencoder.kernels(32).square().mean(-1).sum(1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert autoencoder.loss(x).total < before.total


@pytest.mark.parametrize("options", [{}, {"tied": True}], ids=["free", "tied"])
def test_prepared_reconstructions_have_the_right_size(options):
    autoencoder = OperatorAutoencoder(2, 5, modes=6, dtype=torch.float64, **options)
    x = functions(samples=50)
    autoencoder.prepare(x)
    reconstruction = autoencoder(x)
    torch.testing.assert_close((x * reconstruction).sum(), reconstruction.square().sum())


def test_planted_kernels_are_found():
    planted = plant_functions(32, 4, samples=4000, active=2, modes=8, width=0.06, generator=generator())
    autoencoder = OperatorAutoencoder(1, 8, modes=8, domain_sparsity=0.1, unrolled=2, generator=generator(1))
    train(autoencoder, planted.samples, steps=200, batch_size=128, learning_rate=1e-2, progress=False)
    assert recovery(autoencoder.kernels(32).detach(), planted.atoms).mean() > 0.95
    # What was learned at 32 points holds at 64.
    fine = torch.fft.irfft(torch.fft.rfft(planted.samples[:200], norm="forward"), 64, norm="forward")
    comparison = autoencoder.compare(fine)
    assert comparison.error.sum() / comparison.target.sum() < 0.03


# ---- the rest --------------------------------------------------------------------------------------------


@EVERY_VARIANT
def test_configuration_and_weights_make_it_again(options):
    autoencoder, x = build(**options), functions(32)
    again = OperatorAutoencoder(**json.loads(json.dumps(autoencoder.configuration())), dtype=torch.float64)
    again.load_state_dict(autoencoder.state_dict())
    torch.testing.assert_close(again(x), autoencoder(x), rtol=0, atol=0)


def test_files_hold_it(tmp_path):
    autoencoder = build(dtype=torch.float32, tied=True, unrolled=1, scaling="standard")
    autoencoder.save(tmp_path / "operator.safetensors")
    again = load_autoencoder(tmp_path / "operator.safetensors")
    x = functions(48, dtype=torch.float32)
    torch.testing.assert_close(again(x), autoencoder(x))


def test_cosines_ignore_shifts():
    autoencoder = OperatorAutoencoder(2, 4, modes=5, dtype=torch.float64)
    with torch.no_grad():
        autoencoder.decoder.set_kernels(autoencoder.kernels(16).transpose(0, 1).roll(3, -1))
        kernels = autoencoder.decoder.kernels(16)
        kernels[:, 1] = kernels[:, 0].roll(4, -1)
        autoencoder.decoder.set_kernels(kernels)
    cosines = autoencoder.decoder_cosines()
    torch.testing.assert_close(cosines.diagonal(), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(cosines[0, 1], cosines[0, 0])
    assert cosines[0, 2] < 0.99
    other = OperatorAutoencoder(2, 3, modes=7, dtype=torch.float64, generator=generator(5))
    assert autoencoder.decoder_cosines(slice(1, 3), other).shape == (2, 3)
    torch.testing.assert_close(autoencoder.encoder_cosines().diagonal(), torch.ones(4, dtype=torch.float64))


def test_refusals_name_the_culprit():
    autoencoder = OperatorAutoencoder(2, 4, modes=8)
    x = functions(16, dtype=torch.float32)
    for wrong in (x[:, :1], x[0], x.long(), x[..., None]):
        with pytest.raises(ShapeError, match="2 channels"):
            autoencoder.encode(wrong)
    with pytest.raises(ShapeError, match=r"15 points do not resolve the modes up to 8.*16 points"):
        autoencoder(x[..., :15])
    with pytest.raises(ShapeError, match="4 concepts"):
        autoencoder.decode(x)
    with pytest.raises(ShapeError, match="root_norm"):
        OperatorAutoencoder(2, 4, modes=8, scaling="unit_norm")
    with pytest.raises(ShapeError, match="hard"):
        OperatorAutoencoder(2, 4, modes=8, thresholds="hard")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="-1"):
        OperatorAutoencoder(2, 4, modes=-1)
    with pytest.raises(ShapeError, match=r"2 and 3 channels"):
        autoencoder.decoder_cosines(other=OperatorAutoencoder(3, 4, modes=8))
    with pytest.raises(UnsupportedOperationError, match="target"):
        autoencoder.loss(x, x)
    with pytest.raises(ShapeError, match="channels"):
        autoencoder.decoder.set_kernels(torch.zeros(1, 4, 16))
