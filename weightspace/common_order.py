"""`compare`: many networks of one architecture in one neuron order, as far as they are related, and their distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from weightspace.canonical_form import canonical_hash, permutations_of
from weightspace.distances import reordered, reordering, sums_between
from weightspace.errors import ShapeError, SymmetryError
from weightspace.kinship import DERIVED, DRAWS, SAME_ORDER, shares_untouched, stranger, under_names_of
from weightspace.network import Network, require_finite
from weightspace.permutation import permute, random_permutations
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.untouched_weights import trained

if TYPE_CHECKING:
    from weightspace.matching import Matcher

BLOCK_ENTRIES = 1 << 18


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
    progress: bool = False,
) -> Comparison:
    """Put networks of one architecture in a common neuron order and measure all distances.

    Networks whose weights agree in the order they stand in, by more than six standard deviations of random orders, stay
    together; such groups, most of them single networks, are aligned to the groups already placed: one alignment per
    group and family instead of one per pair. A group joins a family when it is
    derived from a member as `weightspace.provenance` judges, and is then aligned again to its nearest relative.

    Args:
        networks: name -> network, or networks and paths; names are then numbers or file names.
        matcher: for `weightspace.align`.
        spec: the symmetries, under the first network's parameter names; default `weightspace.symmetry` of it.
        progress: show a progress bar on a terminal.
    Raises:
        ShapeError: the structures differ, or there are fewer than two networks.
        NonFiniteError, CheckpointError, ArchitectureError: of the networks or files.
    """
    names, given = _named(networks)
    if len(given) < 2:
        raise ShapeError(f"two networks or more are needed to compare; there are {len(given)}")
    spec = permutations_of(given[0], spec)
    common = [_renamed(given[0], name, network) for name, network in zip(names, given, strict=True)]
    own = {name: name for name in trained(given[0])}
    hashes = tuple(_hash(network, spec) for network in common)
    placing = _Placing(common, spec, matcher)
    placing.place(progress)
    products = gram(placing.networks, centered=True)
    squares = products.diagonal()
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0.0))
    equal = np.array([[own is not None and own == other for other in hashes] for own in hashes])
    distances[equal] = 0.0
    norms = np.sqrt([sums_between(n, n, own).squares_a for n in placing.networks])
    return Comparison(names, distances, norms, tuple(placing.families), hashes, tuple(placing.networks))


def _hash(network: Network, spec: SymmetrySpec) -> str | None:
    try:
        return canonical_hash(network, spec=spec)
    except SymmetryError:
        return None


def _named(
    networks: Mapping[str, Network] | Sequence[Network | str | Path],
) -> tuple[tuple[str, ...], list[Network]]:
    from weightspace.reading import read

    if isinstance(networks, Mapping):
        return tuple(networks), list(networks.values())
    names = [str(n) if isinstance(item, Network) else str(item) for n, item in enumerate(networks)]
    return tuple(names), [item if isinstance(item, Network) else read(item) for item in networks]


def _renamed(first: Network, name: str, network: Network) -> Network:
    """The first network with another one's tensors; in its dtype."""
    from weightspace.matching.alignment import corresponding_parameters

    try:
        places = corresponding_parameters(first, network)
    except ShapeError as error:
        raise ShapeError(f"{name}: {error}") from error
    require_finite(network)
    return under_names_of(first, network, places)


def gram(networks: Sequence[Network], *, centered: bool = False) -> np.ndarray:
    """Inner products (n, n) of the weights, or of their differences to the first, a block of one tensor at a time."""
    total = torch.zeros(len(networks), len(networks), dtype=torch.float64)
    for name in trained(networks[0]):
        flat = [network.parameters[name].reshape(-1) for network in networks]
        for start in range(0, flat[0].numel(), BLOCK_ENTRIES):
            block = torch.stack([tensor[start : start + BLOCK_ENTRIES].double() for tensor in flat])
            if centered:
                block = block - block[0].clone()
            total.addmm_(block, block.mT)
    return total.numpy()


class _Placing:
    """The networks on their way into a common order; `families` holds the first member of each one's family."""

    def __init__(self, networks: list[Network], spec: SymmetrySpec, matcher: Matcher | None):
        self.networks = networks
        self.spec = spec
        self.matcher = matcher
        self.names = {name: name for name in trained(networks[0])}
        self.families = list(range(len(networks)))
        self.generator = torch.Generator().manual_seed(0)

    def place(self, progress: bool) -> None:
        groups = self._same_order()
        placed: dict[int, list[int]] = {}
        for group in tqdm(groups, desc="aligning", disable=None if progress else True):
            medoid = self._medoid(group)
            ratios = {
                family: self._align(group, medoid, self._medoid(members))
                for family, members in placed.items()
            }
            family = min(ratios, key=lambda family: ratios[family][0], default=None)
            if family is None:
                placed[min(group)] = group
                continue
            ratio, moved = ratios[family]
            for member, network in zip(group, moved, strict=True):
                self.networks[member] = network
            if ratio > DERIVED:
                placed[min(group)] = group
                continue
            self._align_to_nearest(group, medoid, placed[family])
            placed[min(family, min(group))] = placed.pop(family) + group
        for family, members in placed.items():
            for member in members:
                self.families[member] = family

    def _same_order(self) -> list[list[int]]:
        """Networks that agree as they stand, the largest such group first."""
        from scipy.sparse.csgraph import connected_components

        count = len(self.networks)
        if not self.spec.groups:
            return [list(range(count))]
        chance = []
        for _ in range(DRAWS):
            i, j = torch.randint(0, count, (2,), generator=self.generator).tolist()
            other = permute(self.networks[j], self.spec, random_permutations(self.spec, self.generator))
            chance.append(sums_between(self.networks[i], other, self.names).cosine or 0.0)
        products = gram(self.networks)
        norms = np.sqrt(np.maximum(products.diagonal(), 1e-300))
        cosines = products / norms[:, None] / norms
        _, labels = connected_components(
            cosines > np.mean(chance) + SAME_ORDER * np.std(chance), directed=False
        )
        groups = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
        return sorted(groups, key=lambda group: (-len(group), group))

    def _distance(self, i: int, j: int) -> float:
        return sums_between(self.networks[i], self.networks[j], self.names).distance

    def _medoid(self, members: Sequence[int]) -> int:
        """The member with the smallest sum of distances to the others."""
        if len(members) < 3:
            return members[0]
        products = gram([self.networks[member] for member in members], centered=True)
        squares = products.diagonal()
        totals = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0.0)).sum(0)
        return members[int(totals.argmin())]

    def _align(self, group: Sequence[int], medoid: int, reference: int) -> tuple[float, list[Network]]:
        """Move a group as its medoid moves to fit the reference; also its gap in units of a stranger's."""
        a, b = self.networks[reference], self.networks[medoid]
        moved = self._moved(group, medoid, a)
        other = stranger(b, self.spec, self.generator)
        other = reordered(a, other, self.names, spec=self.spec, matcher=self.matcher)
        aligned = moved[list(group).index(medoid)]
        gap = sums_between(a, aligned, self.names).gap
        expected = sums_between(a, other, self.names).gap
        if shares_untouched(a, aligned, other):
            return 0.0, moved
        return (gap / expected if expected else 0.0), moved

    def _moved(self, group: Sequence[int], medoid: int, reference: Network) -> list[Network]:
        element = reordering(reference, self.networks[medoid], self.names, self.spec, self.matcher)
        return [permute(self.networks[member], self.spec, element) for member in group]

    def _align_to_nearest(self, group: Sequence[int], medoid: int, members: Sequence[int]) -> None:
        nearest = min(members, key=lambda member: self._distance(member, medoid))
        before = self._distance(nearest, medoid)
        moved = self._moved(group, medoid, self.networks[nearest])
        after = moved[list(group).index(medoid)]
        if sums_between(self.networks[nearest], after, self.names).distance < before:
            for member, network in zip(group, moved, strict=True):
                self.networks[member] = network
