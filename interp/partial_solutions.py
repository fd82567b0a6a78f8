"""Composed solutions of modular addition: how the units of one frequency cancel what is not the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn

from interp.finite_groups import FiniteGroup
from interp.group_tasks import recognize_task
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network


@dataclass(frozen=True)
class PartialSolution:
    r"""The units $w(c)\,(u(a) + v(b))^2$ of one frequency k of a network that adds modulo n.

    With $z_a, z_b, z_c$ the Fourier coefficients of u, v, w at k, j counting units:

    Attributes:
        frequency: k, 1 .. n/2.
        units: their indices in the network; their number is the order of the solution.
        alignment: $|\sum_j z_a z_b \bar z_c| / \sum_j |z_a z_b z_c|$; 1 if all phases add up.
        spurious: energy of the terms in both inputs that these units produce besides the answer's, $\cos k(a -
            b \pm c)$, $\cos k(a + b + c)$, $\cos k(2a \pm c)$ and $\cos k(2b \pm c)$, divided by the energy
            of $\cos k(a + b - c)$; 0 in a composed solution.
        offset: the same for $\cos kc$, which no input changes. 0 of order 6; order 4 leaves it for units of
            other frequencies to cancel, so not all frequencies have order 4.
        factors: (2, 2) or (2, 3) for order 4 or 6, else None.
        factorization_error: how far the units are from a product of two solutions of those orders, $z_{ij}
            = x_i y_j$ for each of a, b, c with the same assignment of units to pairs (i, j): the best
            assignment's relative distance of $z_a^2$, $z_a z_b$ and $z_c$, which do not know a unit's sign,
            from rank 1, root mean square; None without factors.
    """

    frequency: int
    units: tuple[int, ...]
    alignment: float
    spurious: float
    offset: float
    factors: tuple[int, int] | None
    factorization_error: float | None

    @property
    def order(self) -> int:
        """Number of units."""
        return len(self.units)


def find_partial_solutions(
    layer_or_model: nn.Module | Network, group: FiniteGroup, *, threshold: float = 0.05
) -> tuple[PartialSolution, ...]:
    """Group the units of a quadratic network by frequency and compare them with composed solutions.

    The theory composes global solutions from partial ones, of orders 2 and 3 by multiplication within a
    frequency, and by addition across frequencies: orders 4 = 2 x 2 and 6 = 2 x 3 at each. It is about the
    squared loss; what a trained network does is measured here, not assumed.

    Args:
        layer_or_model: a layer of squares; 2n inputs, one-hot(a) before one-hot(b), n logits.
        group: addition modulo n.
        threshold: a unit whose amplitude is below this share of the largest counts as dead.
    Raises:
        UnsupportedOperationError: another group; a bilinear layer, whose units are no squares.
        ShapeError: the network has other numbers of inputs or outputs.
    Source: Tian, Composing global solutions to reasoning tasks via algebraic objects in neural nets (2024),
        sections 4 and 5.
    """
    if not group.is_cyclic_table:
        raise UnsupportedOperationError(
            f"composed solutions are those of addition modulo n; {group.name} is another group or another order "
            "of its elements"
        )
    form = recognize_task(layer_or_model, group)
    if not torch.equal(form.left, form.right):
        raise UnsupportedOperationError(
            "composed solutions are those of squared units; this network multiplies two different maps"
        )
    count = group.order
    features, readout = form.left[:, :-1], form.output.mT
    # Balanced units: the scale that can move inside a unit is no part of its solution.
    norms = features.norm(dim=1) * 2**-0.5, readout.norm(dim=1)
    scale = torch.where(norms[0] > 0, (norms[1] / norms[0].clamp_min(1e-300)) ** (1 / 3), 0.0)[:, None]
    safe = scale.clamp_min(1e-300)
    parts = (features[:, :count] * scale, features[:, count:] * scale, readout / safe.square() * (scale > 0))
    z = torch.stack([torch.fft.rfft(part)[:, 1:] for part in parts])  # (3, h, n // 2)
    amplitudes = z.abs().square().sum(0)
    peak, frequency = amplitudes.max(1)
    active = peak.sqrt() > threshold * peak.max().sqrt()
    found = []
    for index in range(z.shape[2]):
        units = (active & (frequency == index)).nonzero().flatten()
        if len(units):
            found.append(_describe(index + 1, units, z[:, units, index]))
    return tuple(found)


def _describe(frequency: int, units: Tensor, z: Tensor) -> PartialSolution:
    a, b, c = z
    target = (a * b * c.conj()).sum()
    mixed = [a * b.conj() * c.conj(), a.conj() * b * c.conj(), a.conj() * b.conj() * c.conj()]
    doubled = [part.square() * other / 2 for part in (a, b) for other in (c, c.conj())]
    spurious = torch.stack([term.sum() for term in (*mixed, *doubled)])
    offset = ((a.abs().square() + b.abs().square()) * c).sum()
    energy = float(target.abs().square().clamp_min(1e-300))
    factors = {4: (2, 2), 6: (2, 3)}.get(len(units))
    return PartialSolution(
        frequency,
        tuple(units.tolist()),
        float(target.abs() / (a * b * c).abs().sum()),
        float(spurious.abs().square().sum()) / energy,
        float(offset.abs().square()) / energy,
        factors,
        None if factors is None else factorization_error(z, factors),
    )


def factorization_error(z: Tensor, factors: tuple[int, int]) -> float:
    r"""Return how far units are from a product of two solutions; see `PartialSolution`.

    Args:
        z: coefficients of a, b, c, shape (3, r s), complex.
        factors: r and s.
    """
    features = torch.stack([z[0].square(), z[0] * z[1], z[2]])
    features = features / features.norm(dim=1, keepdim=True).clamp_min(1e-300)
    arrangements = torch.tensor(list(_arrangements(z.shape[1])))
    grids = features[:, arrangements].unflatten(2, factors)  # (3, arrangements, r, s)
    leading = torch.linalg.svdvals(grids)[..., 0].square()
    return float((1 - leading.mean(0).max()).clamp_min(0).sqrt())


def _arrangements(count: int) -> Iterator[tuple[int, ...]]:
    """Orders of the units; the first stays first, since rows and columns may be exchanged."""
    return ((0, *rest) for rest in permutations(range(1, count)))
