"""Data made from known dictionaries, and how much of a dictionary was found again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.autoencoders.fourier_operator import shift_cosines
from weightspace.errors import ShapeError


@dataclass(frozen=True, eq=False)
class PlantedDictionary:
    """Samples made from atoms.

    Attributes:
        atoms: of unit norm, (atoms, d), or (atoms, channels, points) of functions.
        samples: sums of few atoms and noise, (n, d) or (n, channels, points).
        active: how many atoms a sample has.
    """

    atoms: Tensor
    samples: Tensor
    active: int

    def __repr__(self) -> str:
        return (
            f"PlantedDictionary({len(self.atoms)} atoms of shape {tuple(self.atoms.shape[1:])}, {self.active} active, "
            f"{len(self.samples)} samples)"
        )


def plant_vectors(
    d: int = 64,
    atoms: int = 128,
    *,
    samples: int,
    active: int = 4,
    decibels: float = 20.0,
    condition: float = 1.0,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> PlantedDictionary:
    r"""Draw sums of `active` random unit atoms, amplitudes uniform in [0.5, 1.5], with white noise.

    Args:
        decibels: ratio of signal and noise, $10 \log_{10}(E|x|^2 / E|\varepsilon|^2)$.
        condition: of the covariance that the directions of the atoms are drawn from: its eigenvalues fall
            geometrically from 1 to 1 / condition along random axes. 1 draws directions uniformly; else the covariance
            of the samples has a somewhat smaller condition number, since the atoms are made unit vectors.
    Raises:
        ShapeError: more active atoms than there are.

    Examples:
        >>> import interp, torch
        >>> planted = interp.plant_vectors(16, 32, samples=100, generator=torch.Generator().manual_seed(0))
        >>> planted.samples.shape, planted.atoms.shape
        (torch.Size([100, 16]), torch.Size([32, 16]))
    """
    generator = generator or torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": dtype}
    axes = torch.linalg.qr(torch.randn(d, d, **options))[0]
    spread = torch.logspace(0, -0.5, d, base=condition, dtype=dtype) if condition != 1 else axes.new_ones(d)
    directions = (torch.randn(atoms, d, **options) * spread) @ axes.mT
    dictionary = directions / directions.norm(dim=1, keepdim=True)
    chosen = _choose(atoms, active, samples, generator)
    amplitudes = 0.5 + torch.rand(samples, active, **options)
    x = (dictionary[chosen] * amplitudes[..., None]).sum(1)
    return PlantedDictionary(dictionary, _add_noise(x, decibels, generator), active)


def plant_functions(
    points: int = 64,
    atoms: int = 8,
    *,
    samples: int,
    active: int = 4,
    channels: int = 1,
    modes: int = 12,
    width: float = 0.04,
    decibels: float = 20.0,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> PlantedDictionary:
    r"""Draw sums of `active` smooth kernels at random positions of the circle, amplitudes uniform in [0.5, 1.5].

    A kernel is a bump $e^{-t^2 / 2 w^2}$ times a random trigonometric polynomial, cut to the modes $|\xi| \le K$, of
    norm 1 in $L^2$ (the mean of squares over points). Positions are real numbers, not grid points. An atom may appear
    more than once in a sample.

    Args:
        modes: K, the largest frequency of a kernel.
        width: w, in units of the circle.
        decibels: ratio of signal and noise, $10 \log_{10}(E|x|^2 / E|\varepsilon|^2)$; the noise is white on the grid.
    Raises:
        ShapeError: the points do not resolve the modes.
    """
    generator = generator or torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": dtype}
    if points <= 2 * modes:
        raise ShapeError(
            f"{points} points do not resolve kernels of modes up to {modes}; ask for {2 * modes + 1}"
        )
    t = torch.arange(points, dtype=dtype) / points - 0.5
    window = torch.exp(-(t**2) / (2 * width**2))
    phases = 2 * torch.pi * torch.arange(1, modes + 1)[:, None] * t
    basis = torch.cat([torch.ones_like(t)[None], phases.cos(), phases.sin()])
    spectrum = torch.fft.rfft(window * (torch.randn(atoms, channels, len(basis), **options) @ basis))
    spectrum[..., modes + 1 :] = 0
    kernels = torch.fft.irfft(spectrum, points)
    scale = kernels.square().mean(-1, keepdim=True).sum(1, keepdim=True).sqrt()
    kernels, spectrum = kernels / scale, spectrum / scale
    chosen = torch.randint(atoms, (samples, active), generator=generator)
    amplitudes = 0.5 + torch.rand(samples, active, 1, **options)
    frequencies = torch.arange(spectrum.shape[-1], dtype=dtype)
    shifts = -2 * torch.pi * torch.rand(samples, active, 1, **options) * frequencies
    phases = torch.polar(amplitudes.expand_as(shifts), shifts)
    x = torch.fft.irfft((spectrum[chosen] * phases[:, :, None]).sum(1), points)
    return PlantedDictionary(kernels, _add_noise(x, decibels, generator), active)


def recovery(found: Tensor, planted: Tensor) -> Tensor:
    """How well each planted atom was found: its largest |cosine| with a found one; the mean is the usual number.

    Args:
        found: (m, d) vectors, or (m, channels, points) functions, which may be shifted around the circle by any number
            of grid points (`FourierOperator.kernels` gives functions on a finer grid).
        planted: (atoms, d) or (atoms, channels, points).
    Returns:
        (atoms,), each in [0, 1].
    Raises:
        ShapeError: atoms of different shapes.

    Examples:
        >>> import interp, torch
        >>> interp.recovery(found=-torch.eye(3), planted=torch.eye(3)).round(decimals=4)
        tensor([1., 1., 1.])
    """
    if found.shape[1:] != planted.shape[1:]:
        raise ShapeError(
            f"the planted atoms have the shape {tuple(planted.shape[1:])}, the found ones {tuple(found.shape[1:])}; "
            "give both on the same grid"
        )
    if found.ndim == 2:
        normalized = [torch.nn.functional.normalize(atoms, dim=1) for atoms in (planted, found)]
        return (normalized[0] @ normalized[1].mT).abs().amax(1)
    return torch.maximum(shift_cosines(planted, found), shift_cosines(planted, -found)).amax(1)


def _choose(atoms: int, active: int, samples: int, generator: torch.Generator) -> Tensor:
    if active > atoms:
        raise ShapeError(f"{active} atoms cannot be active among {atoms}; lower active")
    return torch.rand(samples, atoms, generator=generator).topk(active, dim=1).indices


def _add_noise(x: Tensor, decibels: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x + noise * (x.square().mean().sqrt() * 10 ** (-decibels / 20))
