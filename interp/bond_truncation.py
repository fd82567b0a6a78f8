"""Low-rank bonds of stacked bilinear layers: orthogonalize, diagonalize, truncate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from interp.recognition import recognize_layers
from interp.tensor_similarity import Factors, chain_factors, hidden_kernel
from weightspace.errors import ShapeError
from weightspace.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class TruncatedStack:
    r"""A stack of bilinear layers whose hidden states have few, orthonormal coordinates.

    Attributes:
        layers: (L, R, P) of every layer, $h' = P[(Lh) \odot (Rh)]$, the first reading x, or [x; 1] where `padded`.
        spectra: for every bond between two layers the eigenvalues of its density matrix before truncation,
            descending; their sum is the squared norm of the stack's tensor.
        ranks: of the bonds.
        bound: on $|T - \tilde T|_F / |T|_F$: the root of the sum over bonds of its number of copies in the tree
            times the eigenvalues left out.
        padded: whether the input gets a 1 appended.
    """

    layers: tuple[Factors, ...]
    spectra: tuple[Tensor, ...]
    ranks: tuple[int, ...]
    bound: float
    padded: bool

    def to_module(self) -> nn.Module:
        """Return a module (n, *input_shape) -> (n, o) in float64."""
        return _Stack(self.layers, self.padded)

    def __repr__(self) -> str:
        return f"TruncatedStack({len(self.layers)} layers, ranks {self.ranks}, relative error at most {self.bound:.2g})"


class _Stack(nn.Module):
    def __init__(self, layers: Sequence[Factors], padded: bool):
        super().__init__()
        self.padded, self.count = padded, len(layers)
        for position, factors in enumerate(layers):
            for name, tensor in zip(("left", "right", "output"), factors, strict=True):
                self.register_buffer(f"{name}_{position}", tensor.clone())

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        if self.padded:
            h = F.pad(h, (0, 1), value=1.0)
        for position in range(self.count):
            left, right, output = (
                getattr(self, f"{name}_{position}") for name in ("left", "right", "output")
            )
            h = F.linear(F.linear(h, left) * F.linear(h, right), output)
        return h


def truncate_bonds(
    model: nn.Module | Network,
    *,
    ranks: Sequence[int] | None = None,
    tolerance: float = 0.0,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
) -> TruncatedStack:
    r"""Compress the hidden states of stacked bilinear layers by what the whole tensor needs of them.

    From the input on, every layer's outputs are made orthonormal as tensors: their Gram matrix
    $G = PKP^\top = CC^\top$ goes into the layer after, $L \leftarrow LC$. From the output back, the density matrix of
    a bond is $\rho = \tfrac12\, \partial |T|^2 / \partial G$ at $G = I$: its eigenvectors of small eigenvalue are what
    the layers after do not use. A bond occurs $2^{l}$ times in the tree of l layers after it; leaving out
    eigenvalues of sum s changes the tensor by at most the root of $2^l s$.

    Args:
        ranks: to keep, one for each bond from the first to the last; default by `tolerance`.
        tolerance: leave out so much that `bound` is at most this.
    Raises:
        ShapeError: other ranks than there are bonds, or below 1; further errors as of `interp.decompose`.
    Cost: $O(\sum h^2 w + h w^2)$ for h hidden units and widths w.
    Source: Dooms et al., Compositionality unlocks deep interpretable models (2025), the orthogonalization,
        diagonalization and truncation of chi-nets; derived here for any hidden size, with the error bound.

    Examples:
        >>> import interp
        >>> from weightspace.layers import BilinearMLP
        >>> stack = interp.truncate_bonds(BilinearMLP(8, 6, 3, layers=2), ranks=[2])
        >>> stack.bound > 0  # the most by which the tensor changed
        True
    """
    forms = recognize_layers(model, example_inputs)
    bonds = len(forms) - 1
    if ranks is not None and (len(ranks) != bonds or any(rank < 1 for rank in ranks)):
        raise ShapeError(
            f"truncate_bonds needs a rank of at least 1 for each of {bonds} bonds; ranks is {ranks}"
        )
    padded = any(not form.is_homogeneous for form in forms)
    layers = _orthogonalized(chain_factors(forms, padded))
    total, densities = _densities(layers)
    spectra, bases, squared = [], [], 0.0
    for bond, density in enumerate(densities):
        values, vectors = kernels.eigh((density + density.mT) / 2)
        values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
        copies = 2 ** (bonds - bond)
        # left_out[r] is what remains beyond r eigenvalues.
        left_out = copies * torch.cat([values, values.new_zeros(1)]).flip(0).cumsum(0).flip(0)
        budget = tolerance**2 * total / bonds
        rank = ranks[bond] if ranks is not None else int((left_out > budget).sum())
        rank = max(1, min(rank, len(values)))
        squared += float(left_out[rank])
        spectra.append(values)
        bases.append(vectors[:, :rank])
    bound = (squared / float(total)) ** 0.5 if total > 0 else 0.0
    truncated = list(layers)
    for bond, basis in enumerate(bases):
        left, right, output = truncated[bond]
        truncated[bond] = (left, right, basis.mT @ output)
        left, right, output = truncated[bond + 1]
        truncated[bond + 1] = (left @ basis, right @ basis, output)
    rank_of = tuple(basis.shape[1] for basis in bases)
    return TruncatedStack(tuple(truncated), tuple(spectra), rank_of, bound, padded)


def _orthogonalized(layers: Sequence[Factors]) -> tuple[Factors, ...]:
    """Change the bases of the bonds so that every layer's outputs are orthonormal as tensors."""
    result = list(layers)
    for position in range(len(layers) - 1):
        left, right, output = result[position]
        gram = output @ hidden_kernel(result[position], result[position]) @ output.mT
        values, vectors = kernels.eigh((gram + gram.mT) / 2)
        kept = values > 1e-14 * values.max()
        roots, basis = values[kept].sqrt(), vectors[:, kept]
        result[position] = (left, right, (basis / roots).mT @ output)
        left, right, output = result[position + 1]
        result[position + 1] = (left @ (basis * roots), right @ (basis * roots), output)
    return tuple(result)


def _densities(layers: Sequence[Factors]) -> tuple[Tensor, list[Tensor]]:
    """Squared norm of the stack, and the density matrix of every bond, from the first to the last."""
    environment = torch.eye(len(layers[-1][2]), dtype=torch.float64)
    densities: list[Tensor] = []
    for left, right, output in reversed(layers[1:]):
        weights = output.mT @ environment @ output
        environment = (
            left.mT @ (weights * (right @ right.mT)) @ left
            + right.mT @ (weights * (left @ left.mT)) @ right
            + left.mT @ (weights * (right @ left.mT)) @ right
            + right.mT @ (weights * (left @ right.mT)) @ left
        ) / 4
        densities.insert(0, environment)
    first = layers[0]
    total = (first[2].mT @ environment @ first[2] * hidden_kernel(first, first)).sum()
    return total, densities
