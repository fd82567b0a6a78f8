"""Fourier spectra on groups: how the energy of weights and activations spreads over the representations."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.finite_groups import FiniteGroup
from interp.representations import isotypic_basis
from weightspace.errors import ShapeError


def fourier_spectrum(weight: Tensor, group: FiniteGroup) -> Tensor:
    r"""Return each column's energy in every real irreducible representation, $\|\Pi_\rho w\|^2$.

    For addition modulo n that is the Fourier power at frequency k and -k together, k = 0 .. n/2.

    Args:
        weight: functions on the group, shape (n, columns) or (n,): an embedding, or the transpose of weights
            that read one-hot inputs.
    Returns:
        Shape (k, columns) or (k,), float64; the sum over k is the energy $\|w\|^2$ of the column.
    Raises:
        ShapeError: the first axis is not the group.

    Examples:
        >>> import interp, math, torch
        >>> wave = torch.cos(2 * math.pi * 2 * torch.arange(7) / 7)
        >>> spectrum = interp.fourier_spectrum(wave, interp.FiniteGroup.cyclic(7))
        >>> spectrum.round(decimals=4).abs()  # frequencies 0 to 3
        tensor([0.0000, 0.0000, 3.5000, 0.0000], dtype=torch.float64)
    """
    if weight.ndim not in (1, 2) or weight.shape[0] != group.order:
        raise ShapeError(
            f"fourier_spectrum needs one row for each of the {group.order} elements of {group.name}; weight "
            f"has shape {tuple(weight.shape)}"
        )
    basis, part = isotypic_basis(group)
    coefficients = basis.mT @ weight.detach().double().cpu()
    energy = coefficients.new_zeros(int(part[-1]) + 1, *coefficients.shape[1:])
    return energy.index_add_(0, part, coefficients.square())


def pair_spectrum(values: Tensor, group: FiniteGroup) -> Tensor:
    r"""Return the energy of functions of two elements in every pair of representations.

    $$E_{\rho\sigma} = \|(\Pi_\rho \otimes \Pi_\sigma) f\|^2$$
    For addition modulo n: the two-dimensional Fourier power at frequencies $(\pm k, \pm l)$.

    Args:
        values: f(a, b) for every unit, shape (n, n, units).
    Returns:
        Shape (k, k, units), float64.
    Raises:
        ShapeError: the first two axes are not the group.
    """
    if values.ndim != 3 or values.shape[:2] != (group.order, group.order):
        raise ShapeError(
            f"pair_spectrum needs values for all pairs in {group.name}, shape ({group.order}, {group.order}, "
            f"units); they have {tuple(values.shape)}"
        )
    basis, part = isotypic_basis(group)
    coefficients = torch.einsum("ai,abu,bj->iju", basis, values.detach().double().cpu(), basis).square()
    count = int(part[-1]) + 1
    rows = coefficients.new_zeros(count, *coefficients.shape[1:]).index_add_(0, part, coefficients)
    return rows.new_zeros(count, count, values.shape[2]).index_add_(1, part, rows)


def dominant_representations(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return which representation dominates each unit's `pair_spectrum`, and with which share.

    The share of $\rho$ is $(E_{\rho 0} + E_{0\rho} + E_{\rho\rho}) / (E - E_{00})$, 0 being the trivial
    representation: 1 for a function of two elements through $\rho$ alone, up to a constant.

    Args:
        spectrum: shape (k, k, units).
    Returns:
        Numbers of representations and shares, both (units,); a constant unit has the share 0.
    """
    own = spectrum[0] + spectrum[:, 0] + spectrum.diagonal(dim1=0, dim2=1).mT
    varying = spectrum.sum((0, 1)) - spectrum[0, 0]
    best = own[1:].max(0)
    return best.indices + 1, torch.where(varying > 0, best.values / varying, 0.0)
