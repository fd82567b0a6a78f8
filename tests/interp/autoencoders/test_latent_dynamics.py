import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from interp.autoencoders.dynamics_plots import attractor_figure
from interp.autoencoders.latent_dynamics import (
    Attractors,
    find_attractors,
    follow_trajectories,
    measure_memorization,
    spectral_radius,
    vector_field,
)
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.autoencoders.top_k import TopK
from weightspace.errors import ConvergenceError, ShapeError, UnsupportedOperationError

DTYPES = [torch.float32, torch.float64]
ACCURACY = {torch.float32: 2e-4, torch.float64: 1e-9}


def noise(n: int, d: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def contraction(d: int, radius: float, dtype: torch.dtype) -> Tensor:
    """A matrix that is not symmetric, of a given spectral radius."""
    matrix = noise(d, d, dtype, 7)
    return matrix * (radius / torch.linalg.eigvals(matrix).abs().max())


class Tanh(nn.Module):
    """decode(encode(x)) = tanh(xE)D: nonlinear, with several fixed points where E D is large."""

    def __init__(self, encoder: Tensor, decoder: Tensor):
        super().__init__()
        self.encoder, self.decoder = nn.Parameter(encoder), nn.Parameter(decoder)

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.encoder)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self.decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Distance of every row of a to the nearest row of b."""
    return torch.cdist(a.flatten(1), b.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").amin(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [0.0, 0.5, 0.9])
def test_a_contraction_has_one_attractor_of_known_radius(dtype: torch.dtype, radius: float) -> None:
    matrix, offset = contraction(5, radius, dtype), noise(1, 5, dtype, 1)[0]
    found = find_attractors(lambda x: x @ matrix.mT + offset, noise(40, 5, dtype))
    expected = torch.linalg.solve(torch.eye(5, dtype=dtype) - matrix, offset)
    torch.testing.assert_close(found.points, expected[None], rtol=0, atol=ACCURACY[dtype])
    assert found.spectral_radius.item() == pytest.approx(radius, abs=1e-3)
    assert found.basins.tolist() == [1.0]
    assert found.stable.all()
    assert found.points.dtype == dtype
    assert "1 from 40 starts in input space, 1 stable" in repr(found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_projection_keeps_a_continuum_of_fixed_points(dtype: torch.dtype) -> None:
    basis = torch.linalg.qr(noise(6, 2, dtype))[0]
    project = Tanh(basis, basis.mT)
    project.encode = lambda x: (
        x @ basis
    )  # a linear autoencoder with orthonormal weights: principal components
    starts = noise(50, 6, dtype)
    found = find_attractors(project, starts)
    torch.testing.assert_close(found.ends, starts @ basis @ basis.mT)
    assert int(found.iterations.max()) == 1
    torch.testing.assert_close(found.spectral_radius, torch.ones_like(found.spectral_radius))
    assert len(found.points) > 25  # not chained into one
    latent = find_attractors(project, noise(50, 2, dtype), space="latent")
    assert int(latent.iterations.max()) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_attractors_and_the_unstable_point_between_them(dtype: torch.dtype) -> None:
    starts = torch.tensor([[-2.0], [-0.1], [0.0], [0.3], [1.5], [4.0]], dtype=dtype)
    found = find_attractors(lambda x: torch.tanh(2 * x), starts)
    fixed = 0.957504024
    assert found.membership.tolist() == [1, 1, 2, 0, 0, 0]
    assert found.points[:, 0].tolist() == pytest.approx([fixed, -fixed, 0], abs=1e-5)
    assert found.basins.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    slope = 2 * (1 - fixed**2)
    assert found.spectral_radius.tolist() == pytest.approx([slope, slope, 2], rel=1e-3)
    assert found.stable.tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_attractors_turn_and_grow_with_the_coordinates(dtype: torch.dtype, scale: float) -> None:
    encoder = noise(4, 8, dtype, 1)
    decoder = encoder.mT  # the Jacobian is symmetric and positive: no cycles
    turn = torch.linalg.qr(noise(4, 4, dtype, 3))[0]
    starts = noise(60, 4, dtype)
    before = find_attractors(Tanh(encoder, decoder), starts)
    after = find_attractors(Tanh(turn.mT @ encoder / scale, decoder @ turn * scale), starts @ turn * scale)
    assert len(before.points) > 1
    torch.testing.assert_close(after.basins, before.basins)
    tolerance = ACCURACY[dtype] * before.scale
    assert float(nearest(before.points @ turn, after.points / scale).max()) < tolerance
    torch.testing.assert_close(
        after.spectral_radius.sort().values, before.spectral_radius.sort().values, rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_decoder_takes_attractors_of_codes_to_those_of_samples(dtype: torch.dtype) -> None:
    """decode(F_latent(z)) = F_input(decode(z)), and both Jacobians have the same nonzero eigenvalues."""
    encoder = noise(6, 3, dtype, 1)
    module = Tanh(encoder, encoder.mT.clone())
    codes = noise(80, 3, dtype)
    latent = find_attractors(module, codes, space="latent")
    samples = find_attractors(module, module.decode(codes).detach())
    tolerance = ACCURACY[dtype] * samples.scale
    assert len(latent.points) == len(samples.points) > 1
    assert float(nearest(latent.samples, samples.points).max()) < tolerance
    torch.testing.assert_close(latent.samples, module.decode(latent.points).detach())
    torch.testing.assert_close(latent.basins, samples.basins)
    torch.testing.assert_close(
        latent.spectral_radius.sort().values, samples.spectral_radius.sort().values, rtol=1e-2, atol=1e-3
    )


def test_damping_calms_a_cycle() -> None:
    starts = noise(10, 3, torch.float64)

    def flip(x: Tensor) -> Tensor:
        return 1 - x

    with pytest.raises(ConvergenceError, match=r"0 escaped .* damping below 1"):
        find_attractors(flip, starts, iterations=50)
    found = find_attractors(flip, starts, damping=0.5)
    torch.testing.assert_close(found.points, torch.full((1, 3), 0.5, dtype=torch.float64))


def test_starts_that_escape_are_left_out() -> None:
    starts = torch.tensor([[0.5], [-0.5], [3.0], [-4.0]], dtype=torch.float64)
    found = find_attractors(lambda x: x**3, starts, tolerance=1e-8)
    assert found.membership.tolist() == [0, 0, -1, -1]
    assert found.converged.tolist() == [True, True, False, False]
    assert float(found.basins.sum()) == 0.5
    with pytest.raises(ConvergenceError, match=r"none of 4 starts .*: 4 escaped"):
        find_attractors(lambda x: 2 * x + 1, starts)
    with pytest.raises(ConvergenceError, match=r"none of 4 starts .*: 4 escaped"):
        find_attractors(lambda x: x * math.nan, starts)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_change_nothing(batch_size: int) -> None:
    module = Tanh(noise(4, 8, torch.float64, 1), noise(8, 4, torch.float64, 2))
    starts = noise(30, 4, torch.float64)
    whole, parts = find_attractors(module, starts), find_attractors(module, starts, batch_size=batch_size)
    assert parts.membership.tolist() == whole.membership.tolist()
    torch.testing.assert_close(parts.points, whole.points)


@pytest.mark.parametrize("dtype", DTYPES)
def test_trajectories_are_steps_along_the_field(dtype: torch.dtype) -> None:
    module = Tanh(noise(4, 8, dtype, 1), noise(8, 4, dtype, 2))
    starts = noise(30, 4, dtype)
    path = follow_trajectories(module, starts, steps=5, damping=0.5)
    assert path.shape == (6, 30, 4)
    torch.testing.assert_close(path[0], starts)
    for before, after in pairwise(path):
        torch.testing.assert_close(after - before, 0.5 * vector_field(module, before))
        torch.testing.assert_close(vector_field(module, before), (module(before) - before).detach())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_radius_is_that_of_the_jacobian(dtype: torch.dtype) -> None:
    module = Tanh(noise(4, 8, dtype, 1), noise(8, 4, dtype, 2))
    points = noise(3, 4, dtype)
    expected = [
        torch.linalg.eigvals(torch.func.jacrev(module)(point).detach()).abs().max().item() for point in points
    ]
    assert spectral_radius(module, points).tolist() == pytest.approx(expected, rel=1e-4)
    assert spectral_radius(torch.round, points).tolist() == [0, 0, 0]


def test_attractors_of_a_sparse_autoencoder_are_its_fixed_points() -> None:
    autoencoder = SparseAutoencoder(5, 12, TopK(3), dtype=torch.float64)
    with torch.no_grad():
        autoencoder.encoder_weight.mul_(0.3)
        autoencoder.decoder_bias.normal_(generator=torch.Generator().manual_seed(0))
    found = find_attractors(autoencoder, noise(50, 5, torch.float64))
    assert float(vector_field(autoencoder, found.points).norm(dim=1).max()) < 1e-10
    assert found.spectral_radius.isfinite().all()


# ---- memorization --------------------------------------------------------------------------------------------


def train(points: Tensor, spread: float, steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 2)).to(
        points
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = (model(points + spread * torch.randn_like(points)) - points).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_overparametrized_autoencoder_memorizes(dtype: torch.dtype) -> None:
    points = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], dtype=dtype)
    model = train(points, 0.15, 800)
    found = find_attractors(model, noise(100, 2, dtype), tolerance=1e-4)
    memory = measure_memorization(found, points, noise(3, 2, dtype, 5), tolerance=0.1)
    assert len(found.points) == 3
    assert (memory.memorization, memory.recall) == (1, 1)
    assert memory.basin_share > 0.99
    assert sorted(memory.training_index.tolist()) == [0, 1, 2]
    assert float(memory.training_cosine.min()) > 0.99
    assert memory.test_distance is not None
    assert float(memory.test_distance.min()) > float(memory.training_distance.max())
    assert found.stable.all()
    assert "100.0% of 3 attractors are training samples" in repr(memory)


def test_distances_shares_and_cosines_by_hand() -> None:
    ends = torch.tensor([[1.0, 0.0], [0.0, 1.1], [5.0, 5.0]])
    found = Attractors(
        points=ends,
        samples=ends,
        basins=torch.tensor([0.5, 0.3, 0.1]),
        spectral_radius=torch.zeros(3),
        starts=torch.zeros(10, 2),
        ends=torch.zeros(10, 2),
        membership=torch.zeros(10, dtype=torch.int64),
        iterations=torch.zeros(10, dtype=torch.int64),
        residuals=torch.zeros(10),
        scale=1.0,
        space="input",
    )
    training = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # spread 1
    memory = measure_memorization(found, training, tolerance=0.2)
    assert memory.training_distance.tolist() == pytest.approx([0, 0.1, math.hypot(4, 5)])
    assert memory.memorization == pytest.approx(2 / 3)
    assert memory.basin_share == pytest.approx(0.8)
    assert memory.recall == 0.5
    assert memory.training_cosine.tolist() == pytest.approx([1, 1, 0.5**0.5])
    assert memory.test_distance is None
    far = measure_memorization(found, 2 * training, training)
    assert far.memorization == 0
    assert far.test_distance.tolist() == pytest.approx([0, 0.05, math.hypot(4, 5) / 2])
    single = measure_memorization(found, training[:1])
    assert single.training_distance[0] == 0


def test_refusals() -> None:
    starts = noise(4, 3, torch.float64)
    with pytest.raises(ShapeError, match="'output'"):
        find_attractors(torch.tanh, starts, space="output")
    with pytest.raises(UnsupportedOperationError, match="Tanh has no methods encode"):
        find_attractors(nn.Tanh(), starts, space="latent")
    with pytest.raises(ShapeError, match="at least one"):
        find_attractors(torch.tanh, starts[:0])
    with pytest.raises(ShapeError, match="finite"):
        find_attractors(torch.tanh, starts * math.inf)
    with pytest.raises(ShapeError, match="damping"):
        find_attractors(torch.tanh, starts, damping=0.0)
    with pytest.raises(ShapeError, match="space to itself"):
        find_attractors(lambda x: x[:, :2], starts)
    found = find_attractors(lambda x: x / 2, starts)
    with pytest.raises(ShapeError, match="`test` is"):
        measure_memorization(found, starts, starts[:, :2])


# ---- figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["input", "latent"])
def test_figure_of_a_plane(space: str) -> None:
    module = Tanh(2 * torch.eye(2), torch.eye(2))
    starts = noise(20, 2, torch.float32)
    found = find_attractors(module, starts, space=space)
    assert len(found.points) == 4
    (axes,) = attractor_figure(module, found, samples=starts).axes
    stars = axes.collections[-1].get_offsets()
    torch.testing.assert_close(torch.as_tensor(stars).float(), found.points)
    (basins,) = axes.images
    corners = {tuple(basins.get_array()[i, j].tolist()) for i in (0, -1) for j in (0, -1)}
    assert len(corners) == 4  # every quadrant belongs to another attractor


def test_figure_of_pictures() -> None:
    targets = noise(3, 9, torch.float64)

    def recall(x: Tensor) -> Tensor:
        return (10 * x @ targets.mT).softmax(1) @ targets

    found = find_attractors(recall, noise(30, 9, torch.float64, 1))
    figure = attractor_figure(recall, found, samples=targets, shape=(3, 3), shown=2)
    plane, *pictures = figure.axes
    assert len(pictures) == 4
    assert len(plane.lines) == 30
    for place, index in zip(pictures[:2], range(2)):
        torch.testing.assert_close(
            torch.as_tensor(place.images[0].get_array()), found.samples[index].reshape(3, 3)
        )
    with pytest.raises(ShapeError, match="height and width"):
        attractor_figure(recall, found, shape=(2, 3))
    with pytest.raises(ShapeError, match="these are"):
        attractor_figure(recall, found, samples=targets[:, :4])
