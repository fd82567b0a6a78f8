r"""Bounds over a region: the slopes that activations take there, and the system they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from certify import checker
from certify.certificate import Relaxation
from certify.constraints import SlopeRestricted
from certify.convolution import Matrix, dense
from certify.regions import Ball, Box, Region
from certify.signals import Signal, System
from weightspace.errors import UnsupportedOperationError


def region_fields(region: Region) -> dict:
    """Return a region as the certificate's field `region` with numbers decoded."""
    if isinstance(region, Ball):
        return {"center": list(region.center), "radius": region.radius}
    if not isinstance(region, Box):
        raise UnsupportedOperationError(f"region={region!r} is neither a Box nor a Ball")
    return {"lower": list(region.lower), "upper": list(region.upper)}


def choose_relaxations(model: checker.Model, regions: checker.Regions) -> tuple[Relaxation, ...]:
    """Return the slopes (lower, upper) of the lines that enclose every activation over one region.

    They are part of a certificate; any slopes are sound, these follow `checker.lines_over`.
    """
    with np.errstate(all="ignore"):
        found = zip(model.steps, checker.Bounds(model, regions).lines, strict=True)
    lines = [lines for step, lines in found if step.rule == "slopes"]
    return tuple(Relaxation(tuple(one.low[0].tolist()), tuple(one.high[0].tolist())) for one in lines)


def localize(model: checker.Model, region: Region) -> tuple[checker.Model, tuple[Relaxation, ...]]:
    """Return the model over a region, as the check will derive it, and the relaxations to be certified.

    Raises:
        checker.Refused: an operation without bounds over a region, or a region that does not fit.
    """
    regions = checker.region_of(model, region_fields(region))
    relaxations = choose_relaxations(model, regions)
    pairs = [(np.array(one.lower), np.array(one.upper)) for one in relaxations]
    with np.errstate(all="ignore"):
        return checker.localize(model, regions, pairs), relaxations


_WIDENED = 1e-2  # of a neuron that is linear here and bends over another region of a batch


def bending_neurons(models: Sequence[checker.Model]) -> dict[str, np.ndarray]:
    """Return per activation which neurons are not linear over some of the regions."""
    bending: dict[str, np.ndarray] = {}
    for model in models:
        for step in model.nonlinear:
            if step.rule == "shifted":
                bending[step.name] = bending.get(step.name, False) | (step.matrix > 0)
    return bending


def local_system(
    system: System, model: checker.Model, bending: Mapping[str, np.ndarray] | None = None
) -> System:
    r"""Return a system over the region of a localized model.

    Inputs that the region fixes do not move. With slopes in [a, b] an activation is $a y + (b - a) w$ with w in
    [0, 1] times y: linear where a = b, which leaves w out.

    Args:
        bending: neurons that keep their w although they may be linear here, so that many regions have one shape. Their
            slopes are widened by 1e-2; multipliers of the wider inequality prove the narrower one, which is what is
            left of it where w = 0.
    """
    steps = {step.name: step for step in model.nonlinear}
    moving = model.steps[0].matrix
    known: dict[int, dict[int, Matrix]] = {
        0: {0: np.eye(system.widths[0])[:, moving]}
    }  # block of z -> what it is now
    layers, widths = [], [int(moving.sum())]
    for k, layer in enumerate(system.layers, 1):
        step, signal = steps[layer.name], _substitute(layer.signal, known)
        if step.rule != "shifted":
            layers.append(replace(layer, signal=signal))
            widths.append(system.widths[k])
            known[k] = {k: np.eye(system.widths[k])}
            continue
        kept, width = step.matrix > 0, step.matrix
        if bending is not None:
            kept = bending[layer.name]
            width = np.where(kept & (width == 0), _WIDENED, width)
        known[k] = {j: step.low[:, None] * matrix for j, matrix in signal.items()}
        known[k][k] = np.diag(width)[:, kept]
        rows = {j: matrix[kept] for j, matrix in signal.items()}
        constraint = SlopeRestricted(np.zeros(kept.sum()), np.ones(kept.sum()))
        layers.append(replace(layer, signal=rows, constraint=constraint, kept=kept))
        widths.append(int(kept.sum()))
    return replace(
        system,
        widths=tuple(widths),
        layers=tuple(layers),
        output=_substitute(system.output, known),
        moving=moving,
        whole=None,
    )


def _substitute(signal: Signal, known: dict[int, dict[int, Matrix]]) -> dict[int, np.ndarray]:
    total: dict[int, np.ndarray] = {}
    for k, matrix in signal.items():
        for j, inner in known[k].items():
            product = dense(matrix @ inner)
            total[j] = total[j] + product if j in total else product
    return total
