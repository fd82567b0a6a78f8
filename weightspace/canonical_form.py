"""Canonical form: one representative for all networks that differ by the order of their neurons only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from weightspace.color_refinement import Units, exact_bits, mixed
from weightspace.errors import SymmetryError
from weightspace.network import Network, tensor_digest
from weightspace.permutation import identity, permute, permute_tensor
from weightspace.symmetry_spec import PERMUTATION, Group, SymmetrySpec

RANK = np.uint64(0xD1B54A32D192ED03)
SEARCH_LIMIT = 2000  # refinements after which a tie is given up; each reads the tied tensors a few times


def canonical_hash(network: Network, *, spec: SymmetrySpec | None = None) -> str:
    """Return the SHA-256 (hexadecimal) that a network shares with all reorderings of its hidden units.

    It is `Network.hash` of the `canonicalize`, hence covers architecture, dtypes, running statistics and
    constants, but no names. Made from exact bytes: one changed bit, -0.0 for 0.0 or another dtype is another network.

    Args, Raises: as for `canonicalize`.

    Examples:
        >>> import torch, weightspace
        >>> from weightspace import permutation
        >>> from weightspace.bundled import load
        >>> a = load("digits_mlp_a")
        >>> spec = weightspace.symmetry(a)
        >>> b = permutation.permute(a, spec, permutation.random_permutations(spec, torch.Generator()))
        >>> b.hash == a.hash, weightspace.canonical_hash(b) == weightspace.canonical_hash(a)
        (False, True)
    """
    return canonicalize(network, spec=spec).hash


def canonicalize(network: Network, *, spec: SymmetrySpec | None = None) -> Network:
    """Return the network with its hidden units in an order that depends on their weights alone.

    For all elements p of the permutation group, canonicalize(p network) = canonicalize(network), byte for byte.
    Units stand in the order of their colors (`weightspace.color_refinement`). The rule for equal colors: units that
    may be exchanged alone without changing a byte (duplicates, pruned units) keep their places, which makes no
    difference; any other tie is broken in every way, and the order with the smallest digest of all weights is taken.

    Args:
        spec: the symmetry to take the form under; default `weightspace.symmetry(network)`. Scalings and linear groups
            in it are left out.
    Raises:
        NonFiniteError: NaN or infinite weights, when the symmetry has to be derived.
        SymmetryError: the weights are so symmetric (a large graph's adjacency matrix, say) that the search for the
            smallest order would not end.
        ShapeError: the spec does not fit the network.
    Source: McKay, Piperno, Practical graph isomorphism, II (2014), individualization and refinement.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> form = weightspace.canonicalize(load("digits_mlp_a"))
        >>> form.hash == weightspace.canonical_hash(load("digits_mlp_a"))
        True
        >>> weightspace.canonicalize(form) == form
        True
    """
    spec = permutations_of(network, spec)
    return permute(network, spec, canonical_order(network, spec)) if spec.groups else network


def permutations_of(network: Network, spec: SymmetrySpec | None = None) -> SymmetrySpec:
    """Return the permutation part of the spec, that of `weightspace.symmetry` by default."""
    if spec is None:
        from weightspace.verification import symmetry

        spec = symmetry(network)
    spec.require_fits({name: tensor.shape for name, tensor in network.parameters.items()})
    return spec.only((PERMUTATION,))


def canonical_order(network: Network, spec: SymmetrySpec) -> dict[str, Tensor]:
    """Return the element that brings a network into its canonical form: group -> gather index.

    Raises:
        SymmetryError: as for `canonicalize`.
    """
    units = Units.of(network, spec)
    colors = units.refine(units.initial_colors())
    return units.order(_Search(spec, units).best(colors).colors if units.tied(colors) else colors)


@dataclass(frozen=True)
class _Leaf:
    """A complete order of all units, their numbers in that order, and the digest of the weights."""

    colors: np.ndarray
    units: np.ndarray
    digest: str


@dataclass(frozen=True)
class _Choice:
    """A unit that was put first among its equals, and the refinement that follows."""

    unit: int
    colors: np.ndarray


@dataclass
class _Search:
    """Individualization and refinement over the ties that color refinement leaves."""

    spec: SymmetrySpec
    units: Units
    steps: int = field(default=0)

    def best(self, colors: np.ndarray) -> _Leaf:
        """Return the leaf of smallest digest below a stable coloring."""
        colors, choices = self._choices(colors)
        if not choices:
            return self._leaf(colors)
        best = self.best(choices[0].colors)
        if len(choices) == 1:
            return best
        known = [best, self._first_leaf(choices[0].colors)]
        explored = {choices[0].unit}
        automorphisms: list[np.ndarray] = []
        for choice in choices[1:]:
            if not explored.isdisjoint(_orbit(choice.unit, automorphisms)):
                continue  # the same weights lie below an explored choice
            leaf = self._first_leaf(choice.colors)
            same = next((other for other in known if other.digest == leaf.digest), None)
            if same is not None:
                automorphisms.append(leaf.units[np.argsort(same.units)])  # unit -> the one in its place
                continue
            found = self.best(choice.colors)
            known += [leaf, found]
            explored.add(choice.unit)
            best = min(best, found, key=lambda leaf: leaf.digest)
        return best

    def _first_leaf(self, colors: np.ndarray) -> _Leaf:
        while True:
            colors, choices = self._choices(colors)
            if not choices:
                return self._leaf(colors)
            colors = choices[0].colors

    def _leaf(self, colors: np.ndarray) -> _Leaf:
        order = self.units.order(colors)
        digest = hashlib.sha256()
        for name, incidence in sorted(self.units.incidences.items(), key=lambda item: item[1].salt):
            moved = permute_tensor(incidence.tensor, self.spec.axes[name], order, self.spec.by_name)
            digest.update(tensor_digest(moved).encode())
        units = [self.units.placed(group, colors).reshape(-1) for group in self.spec.groups]
        return _Leaf(colors, np.concatenate(units), digest.hexdigest())

    def _choices(self, colors: np.ndarray) -> tuple[np.ndarray, list[_Choice]]:
        """Split the ties of exchangeable units; return the coloring, and its equally good refinements at a tie."""
        while tied := self.units.tied(colors):
            group = min(
                (self.spec.by_name[name] for name in tied),
                key=lambda g: (self._depth(g), _smallest(tied[g.name])),
            )
            cells = self._cells(group, colors)
            order = self.units.order(colors)
            carriers = {
                name: _bits(permute_tensor(incidence.tensor, self.spec.axes[name], order, self.spec.by_name))
                for name, incidence in self.units.incidences.items()
                if group.name in incidence.groups
            }
            apart = self._several_classes(group, cells, carriers)
            if len(apart) < len(cells):
                colors = colors.copy()
                for cell in cells:
                    if not any(cell is other for other in apart):
                        _tell_apart(colors, cell.units)
                colors = self._refine(colors)
                continue
            cell = min(apart, key=lambda cell: colors[cell.units[0]])
            choices = []
            for members in self._classes(group, cell, colors, carriers):
                chosen = colors.copy()
                _tell_apart(chosen, members, first=1)
                choices.append(_Choice(int(members[0]), self._refine(chosen)))
            traces = [np.sort(choice.colors).tobytes() for choice in choices]
            return colors, [
                choice for choice, trace in zip(choices, traces, strict=True) if trace == min(traces)
            ]
        return colors, []

    def _refine(self, colors: np.ndarray) -> np.ndarray:
        self.steps += 1
        if self.steps > SEARCH_LIMIT:
            tied = ", ".join(
                str(self.spec.by_name[name]) for name in self.units.tied(self.units.initial_colors())
            )
            raise SymmetryError(
                f"the weights are too symmetric for a canonical order of the neurons: {SEARCH_LIMIT} refinements did "
                f"not tell apart the units of some of {tied or 'the groups'}; compare with weightspace.align instead"
            )
        return self.units.refine(colors)

    def _depth(self, group: Group) -> int:
        parents = [self.spec.by_name[name] for name in group.within if name in self.spec.by_name]
        return 1 + max((self._depth(parent) for parent in parents), default=0)

    def _cells(self, group: Group, colors: np.ndarray) -> list[_Cell]:
        """The runs of equal color in the current order of every copy."""
        placed = self.units.placed(group, colors)
        cells = []
        for copy in np.ndindex(*group.copies):
            own = colors[placed[copy]]
            ends = [0, *(np.flatnonzero(own[1:] != own[:-1]) + 1).tolist(), group.size]
            cells += [
                _Cell(copy, start, placed[copy][start:stop])
                for start, stop in pairwise(ends)
                if stop - start > 1
            ]
        return cells

    def _several_classes(self, group: Group, cells: list[_Cell], carriers: dict[str, Tensor]) -> list[_Cell]:
        """The cells whose units may not all be exchanged for one another.

        A cycle and a transposition generate all orders of a cell. Where no tensor carries the group on two axes,
        a cycle says that each row equals the next, hence does alone, and for all cells at once.
        """
        cycle = identity(self.spec)[group.name]
        for cell in cells:
            cycle[cell.copy] = cell.cycled(cycle[cell.copy])
        once = all(
            len({slot.axis for slot in self.units.incidences[name].slots if slot.group == group.name}) == 1
            for name in carriers
        )
        if once and self._fixes(group, cycle, carriers):
            return []
        return [cell for cell in cells if not self._exchangeable(group, cell, carriers)]

    def _exchangeable(self, group: Group, cell: _Cell, carriers: dict[str, Tensor]) -> bool:
        rest = identity(self.spec)[group.name]
        cycle, swap = rest.clone(), rest.clone()
        cycle[cell.copy] = cell.cycled(rest[cell.copy])
        swap[cell.copy] = cell.swapped(rest[cell.copy], 0, 1)
        return self._fixes(group, swap, carriers) and self._fixes(group, cycle, carriers)

    def _classes(
        self, group: Group, cell: _Cell, colors: np.ndarray, carriers: dict[str, Tensor]
    ) -> list[np.ndarray]:
        """The units of a cell in classes of exchangeable ones."""
        # Exchangeable units have equal entries at every other unit; that rules most pairs out at once.
        identities = mixed(np.argsort(np.argsort(colors)).astype(np.uint64))
        identities[cell.units] = 0
        sums = np.zeros_like(colors)
        for name in carriers:
            self.units.incidences[name].add_sums(identities, sums)
        rest = identity(self.spec)[group.name]
        classes: list[list[int]] = []
        for place, unit in enumerate(cell.units):
            for members in classes:
                if sums[cell.units[members[0]]] != sums[unit]:
                    continue
                swap = rest.clone()
                swap[cell.copy] = cell.swapped(rest[cell.copy], members[0], place)
                if self._fixes(group, swap, carriers):
                    members.append(place)
                    break
            else:
                classes.append([place])
        return [cell.units[members] for members in classes]

    def _fixes(self, group: Group, element: Tensor, carriers: dict[str, Tensor]) -> bool:
        return all(
            torch.equal(
                permute_tensor(bits, self.spec.axes[name], {group.name: element}, self.spec.by_name), bits
            )
            for name, bits in carriers.items()
        )


@dataclass(frozen=True, eq=False)
class _Cell:
    """Units of equal color in one copy of a group: where they start in the current order, and their numbers."""

    copy: tuple[int, ...]
    start: int
    units: np.ndarray

    def cycled(self, index: Tensor) -> Tensor:
        """Move every unit of the cell one place on."""
        index = index.clone()
        index[self.start : self.start + len(self.units)] = index[
            self.start : self.start + len(self.units)
        ].roll(1)
        return index

    def swapped(self, index: Tensor, first: int, second: int) -> Tensor:
        """Exchange two units of the cell."""
        index = index.clone()
        index[[self.start + first, self.start + second]] = index[[self.start + second, self.start + first]]
        return index


def _orbit(unit: int, automorphisms: list[np.ndarray]) -> set[int]:
    """The units that the group made by some automorphisms takes a unit to."""
    orbit, waiting = {unit}, [unit]
    while waiting:
        images = {int(images[waiting[-1]]) for images in automorphisms}
        waiting.pop()
        waiting += images - orbit
        orbit |= images
    return orbit


def _tell_apart(colors: np.ndarray, units: np.ndarray, first: int = 0) -> None:
    """Give units of one color different ones, the first of them the old one when `first` is 0."""
    ranks = np.arange(first, first + len(units), dtype=np.uint64)
    colors[units] = np.where(ranks == 0, colors[units], mixed(colors[units] + ranks * RANK))


def _smallest(ordered: np.ndarray) -> int:
    """The smallest color that two units of a copy share."""
    return int(ordered[..., 1:][ordered[..., 1:] == ordered[..., :-1]].min())


def _bits(tensor: Tensor) -> Tensor:
    return torch.from_numpy(exact_bits(tensor).view(np.int64))
