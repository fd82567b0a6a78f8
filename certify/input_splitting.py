"""Properties proved or refuted by splitting the box of inputs until linear bounds decide every part."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from certify import checker
from certify.bounders.proving import library_versions
from certify.checking import check_text, network_arrays
from certify.counterexamples import search_counterexample, violates
from certify.properties import Property
from certify.verdicts import Counterexample, Verdict, VerdictStatus
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network
from weightspace.reading import as_network

_BATCH = 64  # boxes bounded together: their coefficients stay in cache
_ROOM = 1e-9  # by which a bound must clear its limit, so that a check in another order of summation agrees


def verify(
    model_or_network: nn.Module | Network,
    property: Property,
    *,
    seconds: float = 60.0,
    generator: torch.Generator | None = None,
    example_inputs: Any = None,
) -> Verdict:
    r"""Decide whether $f(x) \notin U$ for all x in a box: proved, refuted or unknown.

    A search for counterexamples comes first. Then the box is split: on each part linear bounds of
    $\max_i (A y - b)_i$ either show that no output is unsafe or name the input whose halving promises most. All
    bounds are those of `certify/checker.py`, outward-rounded; the certificate holds the tree of splits, which the check
    walks again. A counterexample counts when the outward-rounded output at that point is unsafe in real arithmetic.

    Args:
        model_or_network: as for `lipschitz`, without implicit layers.
        property: the box and the unsafe outputs.
        seconds: wall time after which the verdict is unknown.
        generator: of the search for counterexamples; seeded with 0 when None.
        example_inputs: for a module, what it is traced with.
    Raises:
        UnsupportedOperationError: an operation without bounds over a region, named with its node.
        ShapeError: the property does not fit the network's inputs or outputs.
    Source: Wang, Pei, Whitehouse, Yang, Jana, Formal security analysis of neural networks using symbolic intervals
    (2018), for splitting inputs; `checker.Bounds` for the linear bounds.

    Examples:
        >>> import certify, torch
        >>> identity = torch.nn.Linear(1, 1)
        >>> identity.weight.data, identity.bias.data = torch.ones(1, 1), torch.zeros(1)
        >>> unsafe = certify.Polyhedron([[-1.0]], [-2.0])  # y >= 2
        >>> verdict = certify.verify(identity, certify.Property(certify.Box([0.0], [1.0]), (unsafe,)))
        >>> print(verdict.status)
        proved: no input of the region reaches an unsafe output
    """
    started = time.perf_counter()
    network = as_network(model_or_network, example_inputs)
    try:
        model = checker.rebuild(*network_arrays(network))
        checker.region_of(model, {"lower": property.region.lower, "upper": property.region.upper})
    except checker.Refused as error:
        raise UnsupportedOperationError(
            f"the property cannot be decided for this network: {error}"
        ) from error
    property.require_outputs(model.steps[-1].width)
    generator = generator or torch.Generator().manual_seed(0)
    search = _Search(network, model, property, started + seconds)
    try:
        with np.errstate(all="ignore"):
            point = search_counterexample(network, model, property, generator) if property.unsafe else None
            if point is None:
                point = search.run()
    except checker.Refused as error:
        raise UnsupportedOperationError(
            f"the property cannot be decided for this network: {error}"
        ) from error

    def verdict(status: VerdictStatus, reason: str, **found: Any) -> Verdict:
        fields = {"counterexample": None, "certificate": None, **found}
        return Verdict(
            status,
            property,
            network.hash,
            regions=search.regions,
            seconds=time.perf_counter() - started,
            reason=reason,
            **fields,
        )

    if point is not None:
        return verdict(
            VerdictStatus.REFUTED, "an input of the region has an unsafe output", counterexample=point
        )
    if search.pending():
        share = 1 - search.open_share()
        return verdict(
            VerdictStatus.UNKNOWN,
            f"after {search.regions} boxes {share:.1%} of the region's volume is proved; allow more seconds",
        )
    text = _certificate(network, property, search.splits())
    result = check_text(text, network)
    if not result:
        return verdict(VerdictStatus.UNKNOWN, f"the check refused the proof: {result.reason}")
    parts = search.leaves()
    return verdict(
        VerdictStatus.PROVED, f"linear bounds exclude unsafe outputs on {parts} boxes", certificate=text
    )


def _certificate(network: Network, property: Property, splits: list[int]) -> str:
    """Return the property with its proof as JSON; the same question gives the same bytes."""

    def hexes(values: Any) -> list[str]:
        return [float(value).hex() for value in values]

    data = {
        "format": checker.PROPERTY_FORMAT,
        "version": checker.VERSION,
        "claim": checker.PROPERTY_CLAIM,
        "name": property.name,
        "network_hash": network.hash,
        "region": {"lower": hexes(property.region.lower), "upper": hexes(property.region.upper)},
        "unsafe": [
            {"matrix": [hexes(row) for row in one.matrix], "bounds": hexes(one.bounds)}
            for one in property.unsafe
        ],
        "splits": splits,
        "method": "input splitting over linear bounds",
        "versions": dict(library_versions()),
    }
    data["digest"] = checker.digest(data)
    return json.dumps(data)


class _Search:
    """A tree of boxes; the open ones lie on a stack, hardest last."""

    def __init__(self, network: Network, model: checker.Model, property: Property, deadline: float):
        self.network, self.model, self.property, self.deadline = network, model, property, deadline
        self.polyhedra = [{"matrix": one.matrix, "bounds": one.bounds} for one in property.unsafe]
        self.lower_end, self.upper_end = np.array(property.region.lower), np.array(property.region.upper)
        self.lower, self.upper = self.lower_end[None], self.upper_end[None]
        self.nodes = np.zeros(1, dtype=np.int64)
        self.dimensions = [-1]  # of each node of the tree: which input is halved, -1 where none is
        self.children = [-1]  # the lower half; the upper half follows it
        self.regions = 0
        if not self.polyhedra:
            self.lower = self.lower[:0]

    def pending(self) -> int:
        return len(self.lower)

    def leaves(self) -> int:
        return self.dimensions.count(-1)

    def open_share(self) -> float:
        """Return the share of the box's volume that is not decided; inputs that are fixed do not count."""
        whole = self.upper_end - self.lower_end
        sizes = (self.upper - self.lower)[:, whole > 0] / whole[whole > 0]
        return float(sizes.prod(axis=1).sum())

    def splits(self) -> list[int]:
        """Return the tree in preorder, as `checker.divide` reads it."""
        found, stack = [], [0]
        while stack:
            node = stack.pop()
            found.append(self.dimensions[node])
            if self.dimensions[node] >= 0:
                stack += [self.children[node] + 1, self.children[node]]
        return found

    def run(self) -> Counterexample | None:
        """Split until nothing is open, time is up or a counterexample is found, which is returned."""
        while self.pending() and time.perf_counter() < self.deadline:
            lower, upper, nodes = self.lower[-_BATCH:], self.upper[-_BATCH:], self.nodes[-_BATCH:]
            self.lower, self.upper, self.nodes = (
                self.lower[:-_BATCH],
                self.upper[:-_BATCH],
                self.nodes[:-_BATCH],
            )
            self.regions += len(lower)
            excess, coefficients = checker.least_excess(
                self.model, checker.boxes(lower, upper), self.polyhedra
            )
            left = np.flatnonzero((~(excess > _ROOM)).any(axis=1))
            if not left.size:
                continue
            lower, upper, nodes, excess = lower[left], upper[left], nodes[left], excess[left].min(axis=1)
            coefficients = coefficients[left if len(coefficients) > 1 else np.zeros_like(left)]
            point = self.try_points(lower, upper, coefficients)
            if point is not None:
                return point
            self.split(lower, upper, nodes, excess, self.choose(lower, upper, coefficients))
        return None

    def choose(self, lower: np.ndarray, upper: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        r"""Return the input to halve: how far it moves the linear bounds, times the root of its share that is left.

        The root keeps inputs in play whose influence shows only once others are narrow.
        """
        whole = self.upper_end - self.lower_end
        moved, share = np.abs(coefficients).sum(axis=1), (upper - lower) / np.where(whole > 0, whole, 1.0)
        moved = np.where(moved.any(axis=1, keepdims=True), moved * (upper - lower), 1.0)
        return (moved * np.sqrt(share)).argmax(axis=1)

    def try_points(
        self, lower: np.ndarray, upper: np.ndarray, coefficients: np.ndarray
    ) -> Counterexample | None:
        """Look at the middle of each box and at the corner where its linear bounds are least."""
        corners = np.where(coefficients.mean(axis=1) > 0, lower, upper)
        points = np.concatenate([lower / 2 + upper / 2, corners])
        return violates(self.network, self.model, self.property, points)

    def split(
        self,
        lower: np.ndarray,
        upper: np.ndarray,
        nodes: np.ndarray,
        excess: np.ndarray,
        chosen: np.ndarray,
    ) -> None:
        """Halve every box along its chosen input and open both halves."""
        order = np.argsort(-excess)  # hardest last: it is looked at next
        lower, upper, nodes, chosen = lower[order], upper[order], nodes[order], chosen[order]
        each = np.arange(len(lower))
        middle = checker.halfway(lower[each, chosen], upper[each, chosen])
        below, above = upper.copy(), lower.copy()
        below[each, chosen] = above[each, chosen] = middle
        first = len(self.dimensions) + 2 * each
        for node, dimension, child in zip(nodes.tolist(), chosen.tolist(), first.tolist(), strict=True):
            self.dimensions[node], self.children[node] = dimension, child
        self.dimensions += [-1] * (2 * len(lower))
        self.children += [-1] * (2 * len(lower))
        self.lower = np.concatenate(
            [self.lower, np.stack([lower, above], axis=1).reshape(-1, lower.shape[1])]
        )
        self.upper = np.concatenate(
            [self.upper, np.stack([below, upper], axis=1).reshape(-1, lower.shape[1])]
        )
        self.nodes = np.concatenate([self.nodes, np.stack([first, first + 1], axis=1).reshape(-1)])
