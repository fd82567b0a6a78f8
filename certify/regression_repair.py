"""Linear regression whose model provably obeys properties, corner by corner of their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from certify.constrained_fit import ConstrainedFit
from certify.input_splitting import verify
from certify.properties import Property
from certify.repairs import Constraint, RegressionRepair, RepairStatus
from certify.verdicts import VerdictStatus
from weightspace.builder import NetworkBuilder
from weightspace.errors import ConvergenceError, NonFiniteError, ShapeError, UnsupportedOperationError
from weightspace.network import Network
from weightspace.operations import Linear

_MARGINS = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the targets' size; beyond what rounding moves


def fit_repaired(
    x: Tensor, y: Tensor, properties: Property | Sequence[Property], *, margin: float | None = None
) -> RegressionRepair:
    r"""Fit $f(x) = W x + b$ by least squares so that every property holds for all inputs of its box.

    $$\min_{W, b} \tfrac{1}{n} \sum_i \|W x_i + b - y_i\|^2 \quad \text{s.t.} \quad
      a^T (W x + b) \ge c + m \text{ for all x of the box}$$

    for every unsafe half-space $a^T y \le c$. A linear function is least over a box at the corner that the signs of
    $W^T a$ name. Each round solves the quadratic program over the corners taken so far, rounds (W, b) to the dtype of
    the data, evaluates the worst corner of every half-space in rational arithmetic and takes those with less than
    $c + m / 2$.

    Termination: a corner that was taken before and is the worst one again with less than $c + m / 2$ means that the
    solver and rounding together missed its constraint by m / 2, which is an error and ends the fit. Hence every round
    but the last takes a new pair of a half-space and a corner, and there are at most $1 + h 2^d$ rounds for h
    half-spaces over boxes with d inputs that are not fixed (ties go to the lower end). An optimum over some of the
    corners whose worst corner has at least $c + m / 2$ is no worse than the optimum over all of them, and infeasible
    constraints at some corners are so over the box.

    Args:
        x: (n, inputs), float32 or float64; the model gets its dtype.
        y: (n, outputs) or, for one output, (n,).
        properties: with unsafe polyhedra of one row each: a union of half-spaces.
        margin: m, in units of the outputs; None is 1e-6 in float64, 1e-4 in float32, of the largest |y| or |c|.
    Raises:
        ShapeError: x, y and the properties do not fit each other, no property, a margin that is not positive.
        NonFiniteError: NaN or infinite x or y.
        UnsupportedOperationError: a polyhedron of several rows, whose complement is not convex.
        ConvergenceError: the solver or rounding missed a constraint by half the margin, or `verify` did not prove
            the model.
    Source: Boetius, Leue, Sutter, A robust optimisation perspective on counterexample-guided repair of neural networks
    (2023), who repair linear regression by quadratic programs over counterexamples.

    Examples:
        >>> import certify, torch
        >>> x = torch.linspace(0, 1, 20, dtype=torch.float64).unsqueeze(1)
        >>> below = certify.Polyhedron([[1.0]], [0.0])  # y <= 0
        >>> fitted = certify.fit_repaired(x, x - 0.2, certify.Property(certify.Box([0.0], [1.0]), (below,)))
        >>> print(fitted.status)
        repaired: every property is proved
        >>> fitted.error > fitted.free_error
        True
    """
    properties = (properties,) if isinstance(properties, Property) else tuple(properties)
    samples, targets = _data(x, y, properties)
    halves = [
        (property, polyhedron.matrix[0], polyhedron.bounds[0])
        for property in properties
        for polyhedron in property.unsafe
    ]
    if margin is None:
        margin = (
            _MARGINS[x.dtype] * max([float(np.abs(targets).max()), *(abs(c) for *_, c in halves)]) or 1e-4
        )
    if not (margin > 0 and np.isfinite(margin)):
        raise ShapeError(f"fit_repaired needs a finite margin above 0, not {margin}")
    features = np.concatenate([samples, np.ones((len(samples), 1))], axis=1)
    fit = ConstrainedFit(features, targets, np.zeros((targets.shape[1], features.shape[1])), 0.0)

    def error(theta: np.ndarray) -> float:
        return float(np.square(features @ theta.T - targets).sum(axis=1).mean())

    free_error = error(fit.free())
    taken: dict[Constraint, None] = {}  # in order
    rounds = 0
    while True:
        rounds += 1
        at = np.array([[*one.input, 1.0] for one in taken]).reshape(-1, features.shape[1])
        theta = fit.solve(list(taken), at, margin)
        if theta is None:
            return RegressionRepair(
                RepairStatus.INFEASIBLE,
                None,
                None,
                None,
                np.inf,
                free_error,
                tuple(taken),
                rounds,
                (),
                f"no linear model obeys the properties at {len(taken)} corners by {margin:.3g}",
            )
        rounded = torch.as_tensor(theta, dtype=x.dtype)
        failing = [
            one
            for property, row, bound in halves
            if (one := _worst_corner(rounded, property, row, bound, margin / 2)) is not None
        ]
        if not failing:
            break
        if again := [one for one in failing if one in taken]:
            wider = "" if x.dtype == torch.float64 else ", or float64 data"
            raise ConvergenceError(
                f"rounding and the solver miss a constraint of property {again[0].property.name!r} by more than half "
                f"of the margin {margin:.3g}; give a larger margin{wider}"
            )
        taken.update(dict.fromkeys(failing))
    network = _linear_network(rounded[:, :-1], rounded[:, -1])
    verdicts = tuple(verify(network, property) for property in properties)
    for verdict in verdicts:
        if verdict.status is not VerdictStatus.PROVED:
            raise ConvergenceError(
                f"property {verdict.property.name!r} holds at all corners by {margin / 2:.3g} and is not proved "
                f"({verdict.reason}); give a larger margin"
            )
    return RegressionRepair(
        RepairStatus.REPAIRED,
        network,
        rounded[:, :-1].clone(),
        rounded[:, -1].clone(),
        error(rounded.double().numpy()),
        free_error,
        tuple(taken),
        rounds,
        verdicts,
        f"proved after {rounds} programs over {len(taken)} corners",
    )


def _data(x: Tensor, y: Tensor, properties: Sequence[Property]) -> tuple[np.ndarray, np.ndarray]:
    """Return x (n, inputs) and y (n, outputs) in float64."""
    if x.ndim != 2 or not len(x) or y.ndim not in (1, 2) or len(x) != len(y):
        raise ShapeError(
            f"fit_repaired needs x (n, inputs) and y (n, outputs); they are {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.dtype not in _MARGINS:
        raise ShapeError(f"fit_repaired needs x in float32 or float64, not {x.dtype}")
    if not properties:
        raise ShapeError("fit_repaired needs at least one property")
    outputs = 1 if y.ndim == 1 else y.shape[1]
    for property in properties:
        if len(property.region.lower) != x.shape[1]:
            raise ShapeError(
                f"property {property.name!r} has a region of {len(property.region.lower)} inputs; x has {x.shape[1]}"
            )
        property.require_outputs(outputs, of="y")
        for polyhedron in property.unsafe:
            if len(polyhedron.bounds) > 1:
                raise UnsupportedOperationError(
                    f"property {property.name!r} has a polyhedron of {len(polyhedron.bounds)} rows, whose complement "
                    "is not convex; state which row has to hold, or repair a network (`certify.repair`)"
                )
    for name, tensor in (("x", x), ("y", y)):
        if not bool(tensor.isfinite().all()):
            raise NonFiniteError(
                f"fit_repaired needs finite numbers; {name} has NaN or infinite entries; remove them"
            )
    return x.detach().cpu().double().numpy(), y.detach().cpu().double().reshape(len(y), -1).numpy()


def _worst_corner(
    theta: Tensor, property: Property, row: tuple[float, ...], bound: float, margin: float
) -> Constraint | None:
    """Return the corner where the half-space is approached most, None if the model stays away by the margin there.

    In rational arithmetic: the signs of the slopes decide the corner.
    """
    columns = [[Fraction(value) for value in column] for column in theta.double().T.tolist()]
    exact = [Fraction(value) for value in row]
    slopes = [sum((a * w for a, w in zip(exact, column, strict=True)), Fraction(0)) for column in columns]
    ends = zip(slopes[:-1], property.region.lower, property.region.upper, strict=True)
    corner = tuple(upper if slope < 0 else lower for slope, lower, upper in ends)
    value = slopes[-1] + sum(
        (slope * Fraction(end) for slope, end in zip(slopes[:-1], corner, strict=True)), Fraction(0)
    )
    return None if value >= Fraction(bound) + Fraction(margin) else Constraint(corner, row, bound, property)


def _linear_network(weight: Tensor, bias: Tensor) -> Network:
    builder = NetworkBuilder()
    names = builder.parameter("weight", weight.clone()), builder.parameter("bias", bias.clone())
    node = builder.input("x", (None, weight.shape[1]), weight.dtype)
    return builder.build([builder.add(Linear(weight=names[0], bias=names[1]), node)])
