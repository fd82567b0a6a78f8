r"""The dynamics of an autoencoder: what is left of noise when it is reconstructed again and again.

An autoencoder is a map $F(x) = \mathrm{decode}(\mathrm{encode}(x))$ of samples, or
$F(z) = \mathrm{encode}(\mathrm{decode}(z))$ of codes, and so a vector field $V = F - \mathrm{id}$. Its attractors are
found from noise, without data: one that memorized its training samples has them as attractors; one that generalizes
has attractors that are near none of them, or a continuum of fixed points.
Sources: Fumero, Moschella, Rodolà, Locatello, Navigating the latent space dynamics of neural models (2025),
arXiv:2505.22785; Radhakrishnan, Belkin, Uhler, Overparameterized neural networks implement associative memory (2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.errors import ConvergenceError, ShapeError, UnsupportedOperationError

SPACES = ("input", "latent")
ESCAPED = 1e6  # a start this many times farther out than the others began is not waited for


@dataclass(frozen=True, eq=False, repr=False)
class Attractors:
    r"""Distinct fixed points that starts reached, the one with the largest basin first.

    Attributes:
        points: (k, *shape), each the member of its cluster with the least $|V|$.
        samples: the points in the space of the data: `points`, or decode(points) of the space "latent".
        basins: share of all starts that ended there, (k,); what is missing to 1 did not converge.
        spectral_radius: the largest magnitude of the eigenvalues of the Jacobian of F at the points, (k,): below 1 the
            point attracts all its surroundings, at 1 it is not isolated or attracts slowly.
        starts, ends: where every start began and where it was at the last step, (n, *shape).
        membership: the attractor of every start, (n,); -1 where it did not converge.
        iterations: steps every start took, (n,).
        residuals: $|V|$ of every start at its end, (n,).
        scale: root mean square norm of the starts; what tolerances are relative to.
        space: "input" or "latent".
    """

    points: Tensor
    samples: Tensor
    basins: Tensor
    spectral_radius: Tensor
    starts: Tensor
    ends: Tensor
    membership: Tensor
    iterations: Tensor
    residuals: Tensor
    scale: float
    space: str

    @property
    def stable(self) -> Tensor:
        """Which points attract all their surroundings, (k,)."""
        return self.spectral_radius < 1

    @property
    def converged(self) -> Tensor:
        """Which starts reached a fixed point, (n,)."""
        return self.membership >= 0

    def __repr__(self) -> str:
        return (
            f"Attractors({len(self.points)} from {len(self.ends)} starts in {self.space} space, "
            f"{int(self.stable.sum())} stable, largest basin {float(self.basins[0]):.1%}, "
            f"{float(self.converged.double().mean()):.1%} converged)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Memorization:
    r"""How near attractors are to the samples an autoencoder was trained on, and to others it was not.

    Distances are relative to the spread of the training samples, the root mean square distance from their mean (of a
    single sample its norm).

    Attributes:
        memorization: share of attractors within `tolerance` of a training sample.
        basin_share: share of the starts that ended in such an attractor.
        recall: share of training samples within `tolerance` of an attractor.
        training_distance, training_cosine: of every attractor, the distance to the nearest training sample and the
            largest cosine with one, (k,).
        training_index: the nearest training sample, (k,).
        test_distance, test_cosine: the same for test samples; None without any. Memorization is seen where
            attractors are nearer to training samples than to as many test samples.
        tolerance: of the distance.
    """

    memorization: float
    basin_share: float
    recall: float
    training_distance: Tensor
    training_cosine: Tensor
    training_index: Tensor
    test_distance: Tensor | None
    test_cosine: Tensor | None
    tolerance: float

    def __repr__(self) -> str:
        text = (
            f"Memorization({self.memorization:.1%} of {len(self.training_distance)} attractors are training samples, "
            f"{self.basin_share:.1%} of the starts end there, {self.recall:.1%} of the training samples found; cosine "
            f"with the nearest training sample {float(self.training_cosine.mean()):.3f}"
        )
        if self.test_cosine is not None:
            text += f", test sample {float(self.test_cosine.mean()):.3f}"
        return text + ")"


def vector_field(
    autoencoder: nn.Module | Callable[[Tensor], Tensor], x: Tensor, *, space: str = "input"
) -> Tensor:
    r"""Return $V(x) = F(x) - x$ for points (n, *shape), without gradients; arguments as of `find_attractors`."""
    with torch.no_grad():
        return _map(autoencoder, space)(x) - x


def follow_trajectories(
    autoencoder: nn.Module | Callable[[Tensor], Tensor],
    starts: Tensor,
    *,
    steps: int = 100,
    space: str = "input",
    damping: float = 1.0,
) -> Tensor:
    r"""Return the points $x_{t+1} = x_t + \eta V(x_t)$, t = 0 .. steps, shape (steps + 1, n, *shape).

    Args:
        damping: $\eta$; the other arguments are those of `find_attractors`.
    """
    points = [starts]
    for _ in range(steps):
        points.append(points[-1] + damping * vector_field(autoencoder, points[-1], space=space))
    return torch.stack(points)


def find_attractors(
    autoencoder: nn.Module | Callable[[Tensor], Tensor],
    starts: Tensor,
    *,
    space: str = "input",
    damping: float = 1.0,
    iterations: int = 2000,
    tolerance: float | None = None,
    distinct: float = 0.01,
    batch_size: int = 1024,
) -> Attractors:
    r"""Iterate $x \leftarrow x + \eta V(x)$ from every start until $|V(x)|$ is small, and group the ends.

    Near a point with spectral radius $\rho$ the distance left is about $|V| / (1 - \rho)$; ends closer than
    `distinct` to all of a group belong to it (complete linkage, so that a continuum of fixed points is cut in pieces,
    not chained into one). Grouping takes memory in the square of the number of starts: some thousands.

    Args:
        autoencoder: an `Autoencoder`, any module with `encode` and `decode`, or for the space "input" any callable
            from (n, *shape) to the same shape; run in the mode it is in, `eval()` as a rule; samples of
            a batch must not depend on each other.
        starts: noise, (n, *shape): of samples, or of codes in the space "latent".
        space: "input", F = decode after encode, or "latent", F = encode after decode.
        damping: $\eta$, in (0, 1]; less than 1 calms cycles and changes no fixed point.
        iterations: the most steps of a start.
        tolerance: of $|V|$, relative to the root mean square norm of the starts; default the precision of the dtype to
            the power 3/4 (6e-6 in float32, 2e-12 in float64).
        distinct: two ends farther apart than this, in the same units, are two attractors.
        batch_size: starts iterated at a time.
    Raises:
        ConvergenceError: no start converged.
        ShapeError: `starts`, `space` or `damping` do not fit.
        UnsupportedOperationError: the space "latent" of a module without `encode` and `decode`.

    Examples:
        >>> import interp, torch
        >>> found = interp.find_attractors(lambda x: x / 2, torch.randn(20, 3))
        >>> found.points.shape, found.basins.tolist()
        (torch.Size([1, 3]), [1.0])
    """
    step = _map(autoencoder, space)
    if starts.ndim < 2 or not len(starts) or not starts.is_floating_point() or not starts.isfinite().all():
        raise ShapeError(
            f"find_attractors needs finite floating-point starts (n, ...), at least one; these are "
            f"{tuple(starts.shape)} {starts.dtype}"
        )
    if not 0 < damping <= 1:
        raise ShapeError(f"the damping is in (0, 1], 1 for none; it is {damping}")
    limit = torch.finfo(starts.dtype).eps ** 0.75 if tolerance is None else tolerance
    scale = float(starts.detach().double().flatten(1).square().sum(1).mean().sqrt()) or 1.0
    parts = [
        _iterate(step, part, damping, iterations, limit * scale, ESCAPED * scale)
        for part in starts.detach().split(batch_size)
    ]
    ends, residuals, taken = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    converged = residuals <= limit * scale
    if not converged.any():
        escaped = int((~residuals.isfinite() | (ends.flatten(1).norm(dim=1) >= ESCAPED * scale)).sum())
        raise ConvergenceError(
            f"none of {len(starts)} starts came to rest in {iterations} iterations: {escaped} escaped to infinity, the "
            f"least |V| is {float(residuals.min()):.2g}, asked was {limit * scale:.2g}; raise iterations or tolerance, "
            "set damping below 1 if the starts run in cycles, or start nearer to the data if they escape"
        )
    membership = torch.full((len(starts),), -1, dtype=torch.int64, device=starts.device)
    membership[converged] = _cluster(ends[converged], distinct * scale).to(starts.device)
    order = membership[converged].bincount().argsort(descending=True, stable=True)
    membership[converged] = order.argsort()[membership[converged]]
    rest = residuals.where(converged, torch.inf)
    best = torch.stack([rest.where(membership == index, torch.inf).argmin() for index in range(len(order))])
    points = ends[best]
    with torch.no_grad():
        samples = points if space == "input" else autoencoder.decode(points)  # pyright: ignore
    return Attractors(
        points,
        samples,
        membership[converged].bincount().double() / len(starts),
        spectral_radius(step, points),
        starts.detach(),
        ends,
        membership,
        taken,
        residuals,
        scale,
        space,
    )


def measure_memorization(
    attractors: Attractors, training: Tensor, test: Tensor | None = None, *, tolerance: float = 0.1
) -> Memorization:
    """Compare attractors with the samples the autoencoder was trained on, and with others.

    Args:
        attractors: of `find_attractors`.
        training, test: samples (n, *sample_shape). As there is a nearest among more of them, compare with as many
            test as training samples.
        tolerance: an attractor this near to a training sample, relative to the spread of the training samples, is
            a memory of it.
    Raises:
        ShapeError: the samples have another shape than the attractors.
    """
    points = attractors.samples.flatten(1).double()
    for name, samples in (("training", training), ("test", test)):
        if samples is not None and (samples.shape[1:] != attractors.samples.shape[1:] or not len(samples)):
            raise ShapeError(
                f"the attractors have samples of shape {tuple(attractors.samples.shape[1:])}; `{name}` is "
                f"{tuple(samples.shape)}"
            )
    known = training.detach().flatten(1).to(points)
    spread = float((known - known.mean(0)).square().sum(1).mean().sqrt()) or float(known.norm()) or 1.0
    distances = torch.cdist(points, known, compute_mode="donot_use_mm_for_euclid_dist") / spread
    nearest, index = distances.min(1)
    memories = nearest <= tolerance
    other = None if test is None else test.detach().flatten(1).to(points)
    return Memorization(
        float(memories.double().mean()),
        float(attractors.basins.to(memories.device)[memories].sum()),
        float((distances.amin(0) <= tolerance).double().mean()),
        nearest,
        _largest_cosine(points, known),
        index,
        None if other is None else torch.cdist(points, other).amin(1) / spread,
        None if other is None else _largest_cosine(points, other),
        tolerance,
    )


def spectral_radius(step: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the largest magnitude of the eigenvalues of the Jacobian of a map at points (k, *shape), shape (k,)."""
    shape = points.shape[1:]
    size = shape.numel()
    unit = torch.eye(size, dtype=points.dtype, device=points.device)
    radii = []
    for point in points.detach():
        # Copies of one point, each with the gradient of another output: all rows of the Jacobian in one pass.
        copies = point.expand(size, *shape).clone().requires_grad_()
        with torch.enable_grad():
            (jacobian,) = torch.autograd.grad(step(copies).flatten(1), copies, unit, allow_unused=True)
        rows = torch.zeros_like(unit) if jacobian is None else jacobian.flatten(1)
        radii.append(torch.linalg.eigvals(rows).abs().max())
    return torch.stack(radii)


def _map(autoencoder: nn.Module | Callable[[Tensor], Tensor], space: str) -> Callable[[Tensor], Tensor]:
    if space not in SPACES:
        raise ShapeError(f"the space is {space!r}; it is one of {', '.join(SPACES)}")
    if space == "input":
        return autoencoder
    encode, decode = getattr(autoencoder, "encode", None), getattr(autoencoder, "decode", None)
    if not (callable(encode) and callable(decode)):
        raise UnsupportedOperationError(
            f"{type(autoencoder).__name__} has no methods encode and decode, which the space 'latent' needs; use "
            "space='input'"
        )
    return lambda codes: encode(decode(codes))  # pyright: ignore


@torch.no_grad()
def _iterate(
    step: Callable[[Tensor], Tensor],
    starts: Tensor,
    damping: float,
    iterations: int,
    tolerance: float,
    horizon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ends, |V| there and steps taken; starts that came to rest or escaped are no longer moved."""
    ends = starts.clone()
    residuals = torch.full((len(starts),), torch.inf, dtype=starts.dtype, device=starts.device)
    taken = torch.zeros(len(starts), dtype=torch.int64, device=starts.device)
    moving = torch.arange(len(starts), device=starts.device)
    for turn in range(iterations + 1):
        here = ends[moving]
        image = step(here)
        if image.shape != here.shape:
            raise ShapeError(
                f"the map takes {tuple(here.shape)} to {tuple(image.shape)}; only maps of a space to itself have "
                "fixed points"
            )
        field = image - here
        speed = field.flatten(1).norm(dim=1)
        residuals[moving], taken[moving] = speed, turn
        on = (speed > tolerance) & (here.flatten(1).norm(dim=1) < horizon) & speed.isfinite()
        if turn == iterations or not on.any():
            break
        moving = moving[on]
        ends[moving] = here[on] + damping * field[on]
    return ends, residuals.nan_to_num(nan=torch.inf), taken


def _cluster(points: Tensor, diameter: float) -> Tensor:
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(points) == 1:
        return torch.zeros(1, dtype=torch.int64)
    tree = linkage(points.flatten(1).double().cpu().numpy(), "complete")
    return torch.from_numpy(fcluster(tree, diameter, "distance")).long() - 1


def _largest_cosine(a: Tensor, b: Tensor) -> Tensor:
    return (nn.functional.normalize(a) @ nn.functional.normalize(b).mT).amax(1)
