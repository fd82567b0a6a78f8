"""Planted dictionaries are what they say, and recovery knows a dictionary up to order, sign and shift."""

import pytest
import torch

from interp.autoencoders.planted import plant_functions, plant_vectors, recovery
from weightspace.errors import ShapeError

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@PRECISIONS
@pytest.mark.parametrize("decibels", [20.0, 0.0])
def test_vectors_are_sums_of_few_atoms_and_noise_of_the_stated_size(decibels, dtype):
    options = {"samples": 3000, "dtype": dtype}
    clean = plant_vectors(32, 48, **options, decibels=300, generator=generator())
    noisy = plant_vectors(32, 48, **options, decibels=decibels, generator=generator())
    torch.testing.assert_close(clean.atoms.norm(dim=1), torch.ones(48, dtype=dtype))
    assert torch.equal(clean.atoms, noisy.atoms)
    ratio = (noisy.samples - clean.samples).square().sum() / clean.samples.square().sum()
    torch.testing.assert_close(10 * ratio.log10(), torch.tensor(-decibels, dtype=dtype), rtol=0, atol=0.1)


def test_every_sample_lies_in_the_span_of_its_atoms():
    planted = plant_vectors(16, 6, samples=40, active=2, decibels=300, dtype=torch.float64)
    codes = torch.linalg.lstsq(planted.atoms.mT, planted.samples.mT).solution.mT
    active = codes > 1e-9
    assert (active.sum(1) == 2).all()
    assert codes[active].min() >= 0.5
    assert codes[active].max() <= 1.5
    assert codes[~active].abs().max() < 1e-9


def test_condition_is_that_of_the_covariance_of_the_atoms():
    options = {"samples": 1, "dtype": torch.float64}
    for condition, lowest in ((1.0, 0.95), (100.0, 30.0)):  # making atoms of norm 1 evens the spectrum
        atoms = plant_vectors(8, 200_000, **options, condition=condition, generator=generator()).atoms
        values = torch.linalg.eigvalsh(atoms.mT @ atoms / len(atoms))
        assert lowest < values[-1] / values[0] < condition * 1.05


@PRECISIONS
@pytest.mark.parametrize("channels", [1, 3])
def test_functions_are_shifted_kernels(channels, dtype):
    options = {"samples": 50, "active": 1, "channels": channels, "decibels": 300, "dtype": dtype}
    planted = plant_functions(64, 5, **options, generator=generator())
    norms = planted.atoms.square().mean(-1).sum(1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    spectrum = torch.fft.rfft(planted.atoms)[..., 13:]
    assert spectrum.abs().max() < 1e-4 * 64
    assert planted.atoms.abs().amax((0, 1)).argmax() in range(16, 48)  # bumps stand in the middle
    # On a fine grid every sample is one kernel, shifted.
    fine = [torch.fft.irfft(torch.fft.rfft(x), 1024) for x in (planted.atoms, planted.samples)]
    torch.testing.assert_close(recovery(*fine), torch.ones(50, dtype=dtype), rtol=0, atol=5e-3)
    amplitudes = planted.samples.square().mean(-1).sum(1).sqrt()
    assert amplitudes.min() >= 0.499
    assert amplitudes.max() <= 1.501


def test_recovery_of_vectors_ignores_order_sign_and_length():
    atoms = plant_vectors(16, 10, samples=1, dtype=torch.float64).atoms
    found = torch.cat([-3 * atoms.flip(0), torch.zeros(1, 16, dtype=torch.float64)])
    torch.testing.assert_close(recovery(found, atoms), torch.ones(10, dtype=torch.float64))
    one = recovery(atoms[:1], atoms)
    torch.testing.assert_close(one, (atoms @ atoms[0]).abs())


def test_recovery_of_functions_ignores_order_sign_length_and_shift():
    atoms = plant_functions(48, 6, samples=1, modes=10, dtype=torch.float64).atoms
    found = -2 * atoms.flip(0).roll(7, -1)
    torch.testing.assert_close(recovery(found, atoms), torch.ones(6, dtype=torch.float64))
    direct = torch.stack([(atoms * atoms[0].roll(shift, -1)).mean(-1).sum(1) for shift in range(48)])
    torch.testing.assert_close(recovery(atoms[:1], atoms), direct.abs().amax(0))


def test_refusals_name_the_culprit():
    with pytest.raises(ShapeError, match="5 atoms cannot be active among 4"):
        plant_vectors(8, 4, samples=1, active=5)
    with pytest.raises(ShapeError, match=r"24 points.*modes up to 12.*25"):
        plant_functions(24, 4, samples=1)
    with pytest.raises(ShapeError, match=r"\(8,\).*\(9,\)"):
        recovery(torch.zeros(2, 9), torch.zeros(2, 8))
