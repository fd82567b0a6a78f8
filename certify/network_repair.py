"""Networks made to obey properties by the least change of their last layer, counterexample by counterexample."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certify.constrained_fit import ConstrainedFit
from certify.evaluation import flat_function
from certify.falsifier import constraints_at, falsify
from certify.input_splitting import verify
from certify.last_layer import LastLayer
from certify.properties import Property
from certify.repairs import Constraint, NetworkRepair, RepairStatus
from certify.verdicts import Verdict, VerdictStatus
from weightspace.errors import NonFiniteError, ShapeError
from weightspace.network import Network
from weightspace.reading import as_network
from weightspace.repair import written_into

_REST = 1e-6  # rho over the mean squared feature: what the samples do not see stays near the old layer
_MARGIN = 5e-2  # of the targets' spread


def repair(
    model_or_network: nn.Module | Network,
    properties: Property | Sequence[Property],
    x: Tensor,
    *,
    targets: Tensor | None = None,
    margin: float | None = None,
    rounds: int = 100,
    seconds: float = 300.0,
    verify_seconds: float = 60.0,
    generator: torch.Generator | None = None,
    example_inputs: Any = None,
) -> NetworkRepair:
    r"""Change the last layer as little as possible on the samples so that every property is proved.

    With h the features that the last layer reads, $\theta$ its parameters and $f = \theta h$, the robust program is

    $$\min_\theta \tfrac{1}{n} \sum_i \|\theta h(x_i) - t_i\|^2 + \rho \|\theta - \theta_0\|^2 \quad \text{s.t.} \quad
      \max_k (A \theta h(x) - b)_k \ge m \text{ for all x of the box}$$

    for every unsafe polyhedron $A y \le b$. Inner and outer problem alternate: gradient descent looks for inputs where
    the maximum is below m / 2, each is taken with the row k that attains it, which makes its constraint linear, and a
    quadratic program over all taken so far gives the next $\theta$. Where descent finds
    nothing, `verify` decides. It alone makes the status REPAIRED; where it can decide neither way, m is doubled.

    Only `rounds` and `seconds` promise termination. For networks in general there is no such promise: the paper
    disproves it in a general setting. For a last layer and fixed m > 0 the argument of linear programs with
    infinitely many constraints applies: a counterexample whose features lie within $m / (2 \|a\| \|\theta\|)$ of those
    of an earlier one with the same row a satisfies the constraint, so that with bounded $\theta$ there are finitely
    many as long as the programs stay feasible. But they may be exponentially many in the number of features, `verify`
    may need more time than there is, and rows are chosen as they come: other rows may be feasible where these are not.

    Args:
        properties: in the network's own units.
        x: (n, ...) samples of the inputs on which the function matters.
        targets: t, (n, outputs); None takes what the network gives.
        margin: m, in units of the outputs; None is 1/20 of the targets' root mean squared deviation.
        rounds: programs to be solved at most.
        seconds: wall time after which it ends; `verify_seconds`, of each call of `verify`.
        generator: of the search for counterexamples, on the CPU; None is a new one with seed 0. The same one gives the
            same repair as long as no time runs out.
        example_inputs: for a module, what it is traced with.
    Raises:
        UnsupportedOperationError: the network does not end in a Linear node of its own, or has an operation without
            bounds over a region.
        ConvergenceError: the solver of the quadratic programs failed.
        ShapeError: no property, x or targets that do not fit, a margin that is not positive.
        NonFiniteError: NaN or infinite x or targets.
    Source: Boetius, Leue, Sutter, A robust optimisation perspective on counterexample-guided repair of neural networks
    (2023).

    Examples:
        >>> import certify, torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> box = certify.Box([0.0, 0.0], [1.0, 1.0])
        >>> unsafe = certify.Polyhedron([[-1.0, 0.0]], [-0.5])  # y_0 >= 0.5
        >>> samples = torch.rand(50, 2)
        >>> print(certify.repair(module, certify.Property(box, (unsafe,)), samples).status)
        repaired: every property is proved
    """
    started = time.perf_counter()
    network = as_network(model_or_network, example_inputs)
    properties = (properties,) if isinstance(properties, Property) else tuple(properties)
    layer = LastLayer.of(network)
    samples = _samples(network, properties, x)
    outputs = _run(network, samples)
    for property in properties:
        property.require_outputs(outputs.shape[1])
    goal = outputs if targets is None else _targets(targets, outputs)
    if margin is None:
        margin = _MARGIN * float(np.sqrt(np.square(goal - goal.mean(axis=0)).mean())) or _MARGIN
    if not (margin > 0 and math.isfinite(margin)):
        raise ShapeError(f"repair needs a finite margin above 0, not {margin}")
    features = layer.features(samples)
    fit = ConstrainedFit(features, goal, layer.theta, _REST * float(np.square(features).mean()))
    loop = _Loop(layer, fit, properties, margin)
    loop.deadline, loop.verify_seconds = started + seconds, verify_seconds
    loop.generator = generator or loop.generator
    status, reason = loop.run(rounds)
    found, new = loop.network, _run(loop.network, samples)
    model: Network | nn.Module = found
    if isinstance(model_or_network, nn.Module):
        model = written_into(model_or_network, network, found)
    return NetworkRepair(
        status,
        model,
        found,
        error_before=float(np.square(outputs - goal).mean()),
        error=float(np.square(new - goal).mean()),
        change=float(np.square(new - outputs).mean()),
        constraints=tuple(loop.constraints),
        rounds=loop.rounds,
        margin=loop.margin,
        verdicts=loop.verdicts,
        seconds=time.perf_counter() - started,
        reason=reason,
    )


def _run(network: Network, samples: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return flat_function(network)(torch.from_numpy(samples)).numpy()


def _samples(network: Network, properties: Sequence[Property], x: Tensor) -> np.ndarray:
    """Return x as (n, inputs) in float64."""
    if not properties:
        raise ShapeError("repair needs at least one property")
    width = math.prod(size or 1 for size in network.inputs[0].shape[len(network.inputs[0].shape) > 1 :])
    if x.ndim < 2 or not len(x) or x[0].numel() != width:
        raise ShapeError(
            f"repair needs samples x of shape (n, ...) with {width} numbers each, as the network takes; "
            f"x is {tuple(x.shape)}"
        )
    for property in properties:
        if len(property.region.lower) != width:
            raise ShapeError(
                f"property {property.name!r} has a region of {len(property.region.lower)} inputs; "
                f"the network has {width}"
            )
    if not bool(x.isfinite().all()):
        raise NonFiniteError("repair needs finite samples; x has NaN or infinite entries; remove those rows")
    return x.detach().cpu().flatten(1).double().numpy()


def _targets(targets: Tensor, outputs: np.ndarray) -> np.ndarray:
    if tuple(targets.shape) != outputs.shape:
        raise ShapeError(
            f"repair needs targets of shape {outputs.shape}, one row per sample, not {tuple(targets.shape)}"
        )
    if not bool(targets.isfinite().all()):
        raise NonFiniteError(
            "repair needs finite targets; they have NaN or infinite entries; remove those rows"
        )
    return targets.detach().cpu().double().numpy()


class _Loop:
    """What is known so far: constraints, the last network and what `verify` says about it."""

    def __init__(
        self,
        layer: LastLayer,
        fit: ConstrainedFit,
        properties: Sequence[Property],
        margin: float,
    ):
        self.layer, self.fit, self.properties, self.margin = layer, fit, properties, margin
        self.generator = torch.Generator().manual_seed(0)
        self.deadline, self.verify_seconds = math.inf, math.inf
        self.network = layer.network
        self.constraints: dict[Constraint, np.ndarray] = {}  # in order, with the features of their inputs
        self.verdicts: tuple[Verdict, ...] = ()
        self.rounds = 0

    def left(self) -> float:
        return max(0.0, self.deadline - time.perf_counter())

    def run(self, rounds: int) -> tuple[RepairStatus, str]:
        found: list[Constraint] = []
        original: tuple[Verdict, ...] | None = None
        while True:
            stop = self.rounds == rounds or not self.left()
            if (stop or not found) and self.proved():
                return RepairStatus.REPAIRED, f"proved with constraints at {len(self.constraints)} inputs"
            original = self.verdicts if original is None else original
            if stop:
                limit = f"{rounds} rounds" if self.rounds == rounds else "the seconds"
                return RepairStatus.NOT_REPAIRED, f"{limit} were used up; allow more, or try another margin"
            self.collect(found or self.refuting() + self.failing())
            theta = self.fit.solve(
                list(self.constraints), np.array(list(self.constraints.values())), self.margin
            )
            if theta is None:
                self.network, self.verdicts = self.layer.network, original
                return (
                    RepairStatus.INFEASIBLE,
                    f"no last layer satisfies the constraints at {len(self.constraints)} inputs by {self.margin:.3g}; "
                    "state weaker properties or a smaller margin",
                )
            self.network = self.layer.replaced(theta)
            self.rounds += 1
            found = self.failing()

    def proved(self) -> bool:
        """Verify the properties in turn, until one is not proved."""
        self.verdicts = ()
        for property in self.properties:
            seconds = min(self.verify_seconds, self.left())
            verdict = verify(self.network, property, seconds=seconds, generator=self.generator)
            self.verdicts += (verdict,)
            if verdict.status is not VerdictStatus.PROVED:
                return False
        return True

    def refuting(self) -> list[Constraint]:
        """Return the constraints at the counterexample of `verify`, if it has one."""
        verdict = self.verdicts[-1]
        if (example := verdict.counterexample) is None:
            return []
        x, y = np.array([example.input]), np.array([example.output])
        return [
            constraint
            for polyhedron in verdict.property.unsafe
            for constraint in constraints_at(x, y, polyhedron, property=verdict.property, limit=0.0)
        ]

    def failing(self) -> list[Constraint]:
        """Return constraints whose margin descent finds to be missed by more than half."""
        return falsify(
            self.network, self.properties, self.constraints, limit=self.margin / 2, generator=self.generator
        )

    def collect(self, found: Sequence[Constraint]) -> None:
        """Take what is new; where nothing is, double the margin.

        Nothing new comes where `verify` can decide neither way, or where rounding to the network's dtype undoes m / 2.
        """
        new = [one for one in found if one not in self.constraints]
        if not new:
            self.margin *= 2
        while not new and not self.constraints:
            new = self.failing()
            self.margin *= 1 if new else 2
        if new:
            features = self.layer.features(np.array([one.input for one in new]))
            self.constraints.update(zip(new, features, strict=True))
