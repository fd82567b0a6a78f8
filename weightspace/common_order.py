"""`compare`: many networks of one architecture in one neuron order, as far as they are related, and their distances."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weightspace.canonical_form import permutations_of
from weightspace.distances import sums_between
from weightspace.errors import ShapeError
from weightspace.family_placement import (
    CanonicalOrder,
    decode_order,
    encode_order,
    find_order,
    place_in_families,
)
from weightspace.gram_matrices import gram as gram
from weightspace.journal import Journal
from weightspace.kinship import under_names_of
from weightspace.mapping import map_over
from weightspace.network import Network, require_finite
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.untouched_weights import trained
from weightspace.verification import require_verified

if TYPE_CHECKING:
    from weightspace.matching import Matcher


@dataclass(frozen=True, eq=False)
class Comparison:
    """Result of `compare`.

    Attributes:
        names: of the networks.
        distances: (n, n) float64, Frobenius distances over the trained floating tensors in the common order. Within a
            family they are as good as the alignment; between families they are upper estimates.
        norms: (n,), Frobenius norm of every network over the same tensors.
        families: (n,) integers: networks of common origin share one, numbered by their first member.
        hashes: canonical hashes, equal for one network in several orders; None where the weights are too symmetric.
        networks: the networks in the common order, under the parameter names of the first.
    """

    names: tuple[str, ...]
    distances: np.ndarray
    norms: np.ndarray
    families: tuple[int, ...]
    hashes: tuple[str | None, ...]
    networks: tuple[Network, ...] = field(repr=False)

    @property
    def relative(self) -> np.ndarray:
        """Distances divided by the root mean square of the two norms; strangers have about sqrt(2) before alignment."""
        scale = np.sqrt((self.norms[:, None] ** 2 + self.norms**2) / 2)
        return np.divide(self.distances, scale, out=np.zeros_like(self.distances), where=scale > 0)

    def linkage(self) -> np.ndarray:
        """Return scipy's linkage matrix (n - 1, 4) of average clustering on the relative distances."""
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform

        return linkage(squareform(self.relative, checks=False), "average")


def compare(
    networks: Mapping[str, Network] | Sequence[Network | str | Path],
    *,
    matcher: Matcher | None = None,
    spec: SymmetrySpec | None = None,
    executor: Executor | None = None,
    journal: str | Path | None = None,
    progress: bool = False,
) -> Comparison:
    """Put networks of one architecture in a common neuron order and measure all distances.

    Networks whose weights agree in the order they stand in, by more than six standard deviations of random orders, stay
    together; such groups, most of them single networks, are aligned to the groups already placed: to the middle of the
    four families whose units resemble theirs most, instead of one alignment per pair. A group joins a family when it is
    derived from its middle as `weightspace.provenance` judges, and is then aligned again to its nearest relative.

    Args:
        networks: name -> network, or networks and paths; names are then numbers or file names.
        matcher: for `weightspace.align`.
        spec: the symmetries, under the first network's parameter names; default `weightspace.symmetry` of it.
        executor: reads, hashes and aligns; for example of `concurrent.futures`, or a Dask client's `get_executor()`.
        journal: a file that takes every hash and alignment, by the weights that they are of. The same call finds them
            there and does the rest.
        progress: show a progress bar on a terminal.
    Raises:
        ShapeError: the structures differ, or there are fewer than two networks.
        NonFiniteError, CheckpointError, ArchitectureError: of the networks or files. CheckpointError also where the
            journal belongs to another call.
        ExecutorError: the workers were lost; the message says what is kept.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> a, b = load("digits_mlp_a"), load("digits_mlp_b")
        >>> found = weightspace.compare({"a": a, "again": a, "b": b})
        >>> found.families  # b was trained on its own
        (0, 0, 2)
        >>> float(found.distances[0, 1]), found.distances.shape
        (0.0, (3, 3))
    """
    names, given = _named(networks, executor, progress)
    if len(given) < 2:
        raise ShapeError(f"two networks or more are needed to compare; there are {len(given)}")
    permutations = permutations_of(given[0], spec)
    spec = permutations if spec is None else require_verified(permutations, given[0])
    common = [_renamed(given[0], name, network) for name, network in zip(names, given, strict=True)]
    own = {name: name for name in trained(given[0])}
    with (
        nullcontext() if journal is None else Journal(journal, "compare", _arguments(spec, matcher)) as record
    ):
        run = partial(map_over, executor=executor, journal=record)
        orders = run(
            _Ordering(spec),
            list(zip(names, common, strict=True)),
            key=_key,
            encode=encode_order,
            decode=decode_order,
            describe=_first,
            progress="hashing" if progress else None,
        )
        placed, families = place_in_families(names, common, orders, spec, matcher, run, progress)
    hashes = tuple(order.hash for order in orders)
    products = gram(placed, centered=True)
    squares = products.diagonal()
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0.0))
    numbers = {own: number for number, own in enumerate(dict.fromkeys(hashes)) if own is not None}
    known = np.array(
        [numbers.get(own, -1 - n) if own is not None else -1 - n for n, own in enumerate(hashes)]
    )
    distances[known[:, None] == known] = 0.0
    norms = np.sqrt([sums_between(n, n, own).squares_a for n in placed])
    return Comparison(names, distances, norms, tuple(families), hashes, tuple(placed))


def _arguments(spec: SymmetrySpec, matcher: Matcher | None) -> dict[str, str | None]:
    """What alignments depend on beside the weights."""
    parts = {"spec": spec.to_json().encode(), "matcher": None if matcher is None else pickle.dumps(matcher)}
    return {name: part and hashlib.sha256(part).hexdigest() for name, part in parts.items()}


@dataclass(frozen=True)
class _Ordering:
    """`find_order` of a network that comes with its name."""

    spec: SymmetrySpec

    def __call__(self, named: tuple[str, Network]) -> CanonicalOrder:
        return find_order(named[1], spec=self.spec)


def _first(named: tuple[str, Network]) -> str:
    return named[0]


def _key(named: tuple[str, Network]) -> str:
    return f"order {named[1].hash}"


def _named(
    networks: Mapping[str, Network] | Sequence[Network | str | Path],
    executor: Executor | None,
    progress: bool,
) -> tuple[tuple[str, ...], list[Network]]:
    if isinstance(networks, Mapping):
        return tuple(networks), list(networks.values())
    names = [str(n) if isinstance(item, Network) else str(item) for n, item in enumerate(networks)]
    return tuple(names), map_over(
        _read, networks, executor=executor, describe=_place, progress="reading" if progress else None
    )


def _read(item: Network | str | Path) -> Network:
    from weightspace.reading import read

    return item if isinstance(item, Network) else read(item)


def _place(item: Network | str | Path) -> str:
    return "a network that was given" if isinstance(item, Network) else str(item)


def _renamed(first: Network, name: str, network: Network) -> Network:
    """The first network with another one's tensors; in its dtype."""
    from weightspace.matching.alignment import corresponding_parameters

    try:
        places = corresponding_parameters(first, network)
    except ShapeError as error:
        raise ShapeError(f"{name}: {error}") from error
    require_finite(network)
    return under_names_of(first, network, places)
