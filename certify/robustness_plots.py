"""Figures of robust accuracy; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from certify.robustness import RobustAccuracy
from weightspace.errors import ShapeError
from weightspace.report.figures import BLUE, GRAY, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def robustness_figure(results: RobustAccuracy | Sequence[RobustAccuracy]) -> Figure:
    """Draw the certified accuracy over the radius, and beside it what the attack left; the truth lies between.

    The curve is the share of samples whose certified radius is at least the abscissa. Every result adds two points at
    its epsilon: the accuracy certified by any method, and the accuracy under attack.

    Args:
        results: of one network, norm and set of samples, at one or several epsilons.
    Returns:
        A matplotlib Figure that is registered nowhere: `figure.savefig(path)`.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: no results, or results of different norms or samples.
    """
    chosen = (
        [results] if isinstance(results, RobustAccuracy) else sorted(results, key=lambda one: one.epsilon)
    )
    if not chosen or len({(one.norm, len(one.correct)) for one in chosen}) > 1:
        raise ShapeError("robustness_figure needs results of one norm on the same samples")
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    first, epsilons = chosen[0], [one.epsilon for one in chosen]
    axes.axhline(first.clean_accuracy, color=GRAY, linewidth=1, label="clean")
    radii = np.sort(first.radii[first.correct].numpy())
    finite = radii[np.isfinite(radii)]
    end = 1.08 * max([*epsilons, float(finite[-1]) if len(finite) else 0.0]) or 1.0
    if first.constants is not None:
        left = (len(radii) - np.arange(len(finite) + 1)) / len(first.correct)
        axes.step([0.0, *finite, end], [left[0], *left], where="pre", color=BLUE, label="certified radius")
    attacked = [(one.epsilon, one.attacked_accuracy) for one in chosen if one.attack is not None]
    if attacked:
        axes.plot(*zip(*attacked, strict=True), "v--", color=RED, label="left by the attack (upper bound)")
    certified = [one.certified_accuracy for one in chosen]
    axes.plot(epsilons, certified, "^", color=BLUE, label="certified by any method (lower bound)")
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"radius, {'l-infinity' if first.norm == 'linf' else first.norm} norm")
    axes.set_ylabel(f"share of {len(first.correct)} samples")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    return figure
