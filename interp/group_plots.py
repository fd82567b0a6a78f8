"""Figures of networks on groups: spectra over the representations, and which unit works in which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp.group_units import GroupUnits


def fourier_spectrum_figure(spectra: Mapping[str, Tensor], *, names: Sequence[str] | None = None) -> Figure:
    """Draw the energy of several matrices in every representation, one row of bars per matrix.

    Args:
        spectra: by title, shape (k,) or (k, columns), from `fourier_spectrum`; columns are added up, and every
            spectrum is drawn as shares of its total.
        names: of the representations; default their number, which is the frequency for addition.
    Returns:
        A matplotlib Figure that is registered nowhere: `figure.savefig(path)`.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: no spectrum, or of different lengths.
    """
    sizes = {len(spectrum) for spectrum in spectra.values()}
    if len(sizes) != 1 or (names is not None and {len(names)} != sizes):
        raise ShapeError(
            "fourier_spectrum_figure needs spectra over the same representations, and as many names; got "
            f"lengths {sorted(sizes)} and {None if names is None else len(names)} names"
        )
    figure = new_figure(7.0, 0.6 + 1.3 * len(spectra))
    rows = figure.subplots(len(spectra), 1, squeeze=False, sharex=True)[:, 0]
    (size,) = sizes
    for axes, (title, spectrum) in zip(rows, spectra.items(), strict=True):
        energy = spectrum.detach().double().cpu().reshape(size, -1).sum(1)
        axes.bar(range(size), (energy / energy.sum().clamp_min(1e-300)).tolist(), color="#2166ac")
        axes.set_title(title, fontsize=9, loc="left", pad=3)
        axes.tick_params(labelsize=7, length=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    if names is not None:
        rows[-1].set_xticks(range(size), names)
    rows[-1].set_xlabel("frequency" if names is None else "representation", fontsize=8)
    figure.supylabel("share of the energy", fontsize=8)
    return figure


def unit_spectrum_figure(units: GroupUnits) -> Figure:
    """Draw the energy share of every active unit in every representation, as a picture.

    Columns are units, ordered by their representation and by strength within it; a network of one
    representation per unit shows a staircase.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: no unit is active.
    """
    active = units.active.nonzero().flatten()
    if not len(active):
        raise ShapeError("unit_spectrum_figure needs an active unit; all weights are 0")
    by_strength = active[units.strength[active].argsort(descending=True, stable=True)]
    order = by_strength[units.representation[by_strength].argsort(stable=True)]
    figure = new_figure(7.0, 1.2 + 0.16 * len(units.names))
    axes = figure.subplots()
    picture = axes.imshow(
        units.spectrum[order].mT.numpy(),
        aspect="auto",
        cmap="Blues",
        vmin=0.0,
        vmax=1.0,
        interpolation="none",
    )
    axes.set_yticks(range(len(units.names)), units.names)
    axes.tick_params(labelsize=7, length=2)
    axes.set_xlabel("active unit", fontsize=8)
    axes.set_ylabel("representation", fontsize=8)
    figure.colorbar(picture, ax=axes, label="share of the energy")
    return figure
