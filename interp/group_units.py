"""The hidden units of a network trained on a group: representation, concentration, alignment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.finite_groups import FiniteGroup
from interp.group_spectra import fourier_spectrum
from interp.group_tasks import recognize_task
from interp.representations import irreducible_representations, isotypic_projectors
from weightspace.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class GroupUnits:
    r"""Hidden units $w(c)\,(u(a) + v(b))\,(u'(a) + v'(b))$ of a network on a group.

    Attributes:
        names: of the real irreducible representations, k of them.
        spectrum: energy shares of every unit in them, the mean of those of (u, v), (u', v') and w, shape
            (h, k); rows add up to 1, rows of dead units are 0.
        representation: the largest that is not trivial, shape (h,).
        concentration: its share, shape (h,).
        strength: $\|(u, v)\| \, \|(u', v')\| \, \|w\|$, shape (h,): no rescaling inside a unit changes it.
        alignment: what the unit's part in its representation adds to the right answers, $\sum_{ab} [u(a)v'(b)
            + u'(a)v(b)]\, w(ab)$, divided by the largest value for parts of these norms; shape (h,), from
            -1 to 1. Margin maximization predicts 1. For addition that needs the phases to add up and
            equal norms of u and v'.
        phase: for addition, $\varphi_a + \varphi_b - \varphi_c$ at the unit's frequency, in radians between
            $-\pi$ and $\pi$, shape (h,), 0 predicted; None for other groups, whose counterpart is the
            alignment.
        threshold: of `active`.
    """

    names: tuple[str, ...]
    spectrum: Tensor
    representation: Tensor
    concentration: Tensor
    strength: Tensor
    alignment: Tensor
    phase: Tensor | None
    threshold: float

    @property
    def active(self) -> Tensor:
        """Units whose strength is above `threshold` times the largest, shape (h,), bool."""
        return self.strength > self.threshold * self.strength.max()

    @property
    def counts(self) -> Tensor:
        """Number of active units of every representation, shape (k,)."""
        return torch.bincount(self.representation[self.active], minlength=len(self.names))

    @property
    def shares(self) -> Tensor:
        r"""Share of every representation in the total strength, shape (k,).

        The cube of the norm $\|\theta\|_{2,3}$ is proportional to the strength once each unit is balanced.
        """
        return self.strength @ self.spectrum / self.strength.sum()

    def average(self, of: Tensor) -> float:
        """Return the mean of a value of each unit, (h,), weighted by strength."""
        return float((of * self.strength).sum() / self.strength.sum())

    def __repr__(self) -> str:
        return (
            f"GroupUnits({int(self.active.sum())} of {len(self.strength)} active, concentration "
            f"{self.average(self.concentration):.3f}, alignment {self.average(self.alignment):.3f})"
        )


def describe_units(
    layer_or_model: nn.Module | Network, group: FiniteGroup, *, threshold: float = 0.01
) -> GroupUnits:
    """Say of every hidden unit which representation it works in, how purely and how well aligned.

    Args:
        layer_or_model: of one bilinear layer or squares; 2n inputs, one-hot(a) before one-hot(b), n logits.
            Affine maps before and after it are folded into the units; biases are left out.
        threshold: a unit with less than this share of the largest strength counts as dead.
    Raises:
        ShapeError: the network has other numbers of inputs or outputs.
        UnsupportedOperationError: it is no quadratic form; see `recognize`.
    Source: Morwani, Edelman, Oncescu, Zhao, Kakade, Feature emergence via margin maximization (2023),
        for what to expect: one representation per unit, phases that add up.

    Examples:
        >>> import interp
        >>> from weightspace.layers import Bilinear
        >>> units = interp.describe_units(Bilinear(10, 16, 5), interp.FiniteGroup.cyclic(5))
        >>> units.spectrum.shape  # 16 units, frequencies 0 to 2
        torch.Size([16, 3])
    """
    form = recognize_task(layer_or_model, group)
    count = group.order
    # Softmax ignores a common shift of the logits.
    readout = (form.output - form.output.mean(0)).mT
    sides = [form.left[:, :-1], form.right[:, :-1]]
    halves = [half for side in sides for half in (side[:, :count], side[:, count:])]
    strength = sides[0].norm(dim=1) * sides[1].norm(dim=1) * readout.norm(dim=1)
    energies = [fourier_spectrum(part.mT, group).mT for part in (*halves, readout)]
    shares = [_share(energies[0] + energies[1]), _share(energies[2] + energies[3]), _share(energies[4])]
    spectrum = torch.stack(shares).mean(0)
    concentration, representation = spectrum[:, 1:].max(1)
    representation = representation + 1

    projectors = isotypic_projectors(group)[representation]
    u, v, u_right, v_right, w = (torch.einsum("hxy,hy->hx", projectors, part) for part in (*halves, readout))
    answers = w[:, group.table]
    gain = torch.einsum("ha,hb,hab->h", u, v_right, answers) + torch.einsum(
        "ha,hb,hab->h", u_right, v, answers
    )
    norms = torch.cat([u, v], 1).norm(dim=1) * torch.cat([u_right, v_right], 1).norm(dim=1) * w.norm(dim=1)
    dimensions = torch.tensor([float(own.dimension) for own in irreducible_representations(group)])
    largest = norms * (count / dimensions[representation].double()).sqrt()
    phase = None
    if group.is_cyclic_table:
        rows = torch.arange(len(w))
        fourier = [torch.fft.fft(part)[rows, representation] for part in (*halves, readout)]
        products = fourier[0] * fourier[3] + fourier[2] * fourier[1]
        phase = (products * fourier[4].conj()).angle()
    return GroupUnits(
        tuple(own.name for own in irreducible_representations(group)),
        spectrum,
        representation,
        concentration,
        strength,
        torch.where(largest > 0, gain / largest, 0.0),
        phase,
        threshold,
    )


def _share(energy: Tensor) -> Tensor:
    total = energy.sum(1, keepdim=True)
    return torch.where(total > 0, energy / total, 0.0)
