"""Adversarial masks read from the weights: additive patterns that move one eigenvector's component alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.classifier_training import accuracy
from interp.decomposition import Decomposition
from weightspace.errors import ShapeError


@dataclass(frozen=True, eq=False, repr=False)
class AdversarialMasks:
    r"""Unit masks $m_i$ with $v_j \cdot m_i = g_i\, \delta_{ij}$ over the chosen eigenvectors, and their baselines.

    Attributes:
        masks: shape (m, d), unit rows: columns of $V^+$, each divided by its norm.
        permuted: the baseline, shape (m, d): every mask with its own entries in a random order.
        gains: $g$, shape (m,), in (0, 1]: how far a step of length 1 moves the component; 1 where the
            eigenvector is orthogonal to the others.
        vectors: $V$, the eigenvectors in input space, shape (m, d); of padded ones without the last entry.
        origins: for every mask the indices of its direction and of its term in the decomposition.
        input_shape: of one sample.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
        interpretability (2024), section 4 and appendix on adversarial masks.
    """

    masks: Tensor
    permuted: Tensor
    gains: Tensor
    vectors: Tensor
    origins: tuple[tuple[int, int], ...]
    input_shape: tuple[int, ...]

    def __repr__(self) -> str:
        count, size = self.masks.shape
        gains = f"{self.gains.min():.2f} to {self.gains.max():.2f}"
        return f"AdversarialMasks({count} masks of {size} axes, gains {gains})"


@dataclass(frozen=True, eq=False, repr=False)
class MaskEffect:
    """Accuracy of a model on shifted inputs x + sign x strength x mask.

    Attributes:
        strengths: Euclidean norms of the shift, shape (s,).
        accuracies, permuted: shares of right predictions under the masks and under their baselines, shape
            (s, m, 2); the last axis is the sign, plus first.
        clean: without a mask.
    """

    strengths: Tensor
    accuracies: Tensor
    permuted: Tensor
    clean: float

    @property
    def lowest(self) -> Tensor:
        """Accuracy under the best single mask and sign, shape (s,)."""
        return self.accuracies.flatten(1).amin(1)

    @property
    def lowest_permuted(self) -> Tensor:
        """Accuracy under the best of all baselines and signs, shape (s,)."""
        return self.permuted.flatten(1).amin(1)

    def strongest(self, index: int = -1) -> tuple[int, int]:
        """Return which mask takes most accuracy at strength number `index`, and its sign, 1 or -1."""
        best = int(self.accuracies[index].argmin())
        return best // 2, 1 - 2 * (best % 2)

    def __repr__(self) -> str:
        mask, sign = self.strongest()
        return (
            f"MaskEffect(clean {self.clean:.4f}; strength {self.strengths[-1]:g}: {self.lowest[-1]:.4f} under "
            f"mask {mask} (sign {sign:+d}), {self.lowest_permuted[-1]:.4f} under the best permuted one)"
        )


def adversarial_masks(
    decomposition: Decomposition,
    *,
    terms: int = 1,
    directions: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> AdversarialMasks:
    r"""Build a mask for each chosen eigenvector that leaves the components along all the others alone.

    With the eigenvectors as rows of V, mask i is column i of the pseudo-inverse: $V V^+ = I$, so
    $V(x + \varepsilon m_i) = Vx + \varepsilon g_i e_i$. Of all shifts with that property it moves component i
    furthest for its norm. No data are needed.

    Args:
        terms: leading eigenvectors of every direction.
        directions: which of the decomposition's; default all.
        generator: of the permutations, on the CPU; None is a new one with seed 0.
    Raises:
        ShapeError: `terms` or `directions` do not exist, or the chosen eigenvectors are linearly dependent:
            then no such masks exist.
    Source: Pearce et al. (2024), appendix on adversarial masks.

    Examples:
        >>> import interp, torch
        >>> from weightspace.layers import Bilinear
        >>> found = interp.adversarial_masks(interp.decompose(Bilinear(64, 8, 10)))
        >>> found.masks.shape
        torch.Size([10, 64])
        >>> moved = found.vectors @ found.masks.T  # every mask moves its own eigenvector alone
        >>> torch.allclose(moved, torch.diag(found.gains), atol=1e-4)
        True
    """
    count, kept, _ = decomposition.vectors.shape
    chosen = list(range(count)) if directions is None else list(directions)
    if not chosen or any(not 0 <= index < count for index in chosen):
        raise ShapeError(f"adversarial_masks has directions 0 to {count - 1} to choose from; got {chosen}")
    if not 1 <= terms <= kept:
        raise ShapeError(f"adversarial_masks needs terms from 1 to the {kept} there are; terms is {terms}")
    size = decomposition.vectors.shape[2] - decomposition.padded
    vectors = decomposition.vectors[chosen, :terms, :size].flatten(0, 1).double()
    rank = int(torch.linalg.matrix_rank(vectors, rtol=decomposition.tolerance))
    if rank < len(vectors):
        raise ShapeError(
            f"the {len(vectors)} chosen eigenvectors span only {rank} dimensions of the input, so none can be "
            "moved alone; choose fewer terms or directions"
        )
    columns = torch.linalg.pinv(vectors).mT
    norms = columns.norm(dim=1, keepdim=True)
    masks = columns / norms
    generator = generator or torch.Generator().manual_seed(0)
    orders = torch.rand(masks.shape, generator=generator).argsort(1)
    dtype = decomposition.vectors.dtype
    return AdversarialMasks(
        masks.to(dtype),
        masks.gather(1, orders).to(dtype),
        (1 / norms[:, 0]).to(dtype),
        vectors.to(dtype),
        tuple((direction, term) for direction in chosen for term in range(terms)),
        decomposition.input_shape,
    )


def measure_masks(
    masks: AdversarialMasks,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    strengths: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
) -> MaskEffect:
    """Measure the accuracy of a classifier while one mask at a time is added to all inputs.

    Args:
        model: (n, *input_shape) -> logits (n, classes).
        data: inputs (n, *input_shape) and classes (n,).
        strengths: Euclidean norms of the shift, in units of the input.
    Raises:
        ShapeError: the inputs have another shape than the masks.
    """
    x, y = data
    if tuple(x.shape[1:]) != masks.input_shape:
        raise ShapeError(f"the masks fit inputs (n, *{masks.input_shape}); x has shape {tuple(x.shape)}")

    def accuracies(patterns: Tensor) -> Tensor:
        shifts = patterns.to(x).reshape(-1, *masks.input_shape)
        return torch.tensor(
            [
                [[accuracy(model, x + sign * strength * shift, y) for sign in (1, -1)] for shift in shifts]
                for strength in strengths
            ]
        )

    return MaskEffect(
        torch.tensor(list(strengths)),
        accuracies(masks.masks),
        accuracies(masks.permuted),
        accuracy(model, x, y),
    )
