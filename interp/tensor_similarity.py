"""Inner products, similarity and distance of bilinear layers and models, without forming their tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.quadratic_form import QuadraticForm
from interp.recognition import recognize_layers
from weightspace.errors import ShapeError, UnsupportedOperationError
from weightspace.network import Network

Model = nn.Module | Network
Factors = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Gaussian:
    r"""Inputs $x \sim \mathcal N(\mu, S S^\top)$ for `similarity`; `mean` (d,), `factor` S (d, r); None are 0 and I.

    Examples:
        >>> import interp, torch
        >>> from weightspace.layers import Bilinear
        >>> a, b = Bilinear(4, 8, 2), Bilinear(4, 8, 2)
        >>> inputs = interp.Gaussian(mean=torch.ones(4))
        >>> -1 <= interp.similarity(a, b, inputs=inputs).cosine <= 1
        True
    """

    mean: Tensor | None = None
    factor: Tensor | None = None


@dataclass(frozen=True)
class Similarity:
    r"""Two models as vectors of a space with an inner product.

    Attributes:
        cosine: $\langle A, B\rangle / (|A||B|)$; 0 where one of them is zero.
        distance: $|A - B|$, exact up to the root of the precision times the norms.
        inner, norms: $\langle A, B\rangle$ and $(|A|, |B|)$.
        by_output: the cosine of every output alone, shape (o,).
    """

    cosine: float
    distance: float
    inner: float
    norms: tuple[float, float]
    by_output: tuple[float, ...]


def similarity(a: Model, b: Model, *, inputs: Gaussian | None = None) -> Similarity:
    r"""Compare two bilinear layers, or two stacks of as many bilinear layers, exactly.

    Without `inputs`, as tensors: $\langle A, B\rangle = \sum_u \langle Q'^A_u, Q'^B_u \rangle
    = \sum P_A^\top P_B \odot K$ with the kernel of the hidden units,
    $K = \tfrac12[(W_A W_B^\top) \odot (V_A V_B^\top) + (W_A V_B^\top) \odot (V_A W_B^\top)]$, biases being padded.
    A stack is the tree of its layers, $K$ of one layer made with the Gram matrix of the layer before in between.
    Trees are symmetrized at every node, not over all their leaves: stacks of equal function and different trees
    may differ, $x_1^2 x_2^2$ from $(x_1 x_2)^2$.

    With `inputs`, as functions: $E[f_A \cdot f_B] = \sum_u 2\langle Q_A, Q_B\rangle
    + (\mathrm{tr}\,Q_A + k_A)(\mathrm{tr}\,Q_B + k_B) + l_A \cdot l_B$ for $x \sim \mathcal N(0, I)$; other means
    and factors change Q, l and k. One layer only: hidden states of a second layer are not Gaussian.

    Args:
        a, b: `Bilinear`, `BilinearMLP`, any module or `Network` that `interp.decompose` or `interp.unfold` takes.
    Raises:
        ShapeError: different inputs, outputs or depths; `inputs` of another size.
        UnsupportedOperationError: `inputs` for more than one layer; layers that are not bilinear, by name.
    Source: Pearce et al., Bilinear MLPs enable weight-based mechanistic interpretability (2024), section 3, for the
        tensors; the Gaussian moments by Isserlis' theorem.

    Examples:
        >>> import interp
        >>> from weightspace.bundled import load
        >>> network = load("digits_bilinear")
        >>> round(interp.similarity(network, network).cosine, 6)
        1.0
    """
    first, second = recognize_layers(a), recognize_layers(b)
    _require_comparable(first, second)
    if inputs is None:
        padded = any(not form.is_homogeneous for form in (*first, *second))
        gram = _Gram(chain_factors(first, padded), chain_factors(second, padded))
    else:
        layer_a, *later = first
        if later:
            raise UnsupportedOperationError(
                f"the Gaussian similarity is exact for one bilinear layer; these models have {len(first)}: "
                "compare them as tensors, or layer by layer"
            )
        gram = _GaussianMoments(_standardized(layer_a, inputs), _standardized(second[-1], inputs))
    aa, ab, bb = gram(0, 0), gram(0, 1), gram(1, 1)
    norms = tuple(float(value.sum().clamp_min(0).sqrt()) for value in (aa, bb))
    inner = float(ab.sum())
    squared = (aa + bb - 2 * ab).sum()
    by_output = ab / (aa * bb).clamp_min(0).sqrt()
    return Similarity(
        inner / (norms[0] * norms[1]) if norms[0] * norms[1] else 0.0,
        float(squared.clamp_min(0).sqrt()),
        inner,
        (norms[0], norms[1]),
        tuple(by_output.nan_to_num(0.0).tolist()),
    )


def hidden_kernel(a: Factors, b: Factors, gram: Tensor | None = None) -> Tensor:
    r"""Inner products of the symmetrized products of two layers' hidden units, shape (h_a, h_b).

    `gram` (d_a, d_b) holds the inner products of their inputs, None is the identity.
    """
    (left_a, right_a, _), (left_b, right_b, _) = a, b
    if gram is not None:
        left_a, right_a = left_a @ gram, right_a @ gram
    same = (left_a @ left_b.mT) * (right_a @ right_b.mT)
    return (same + (left_a @ right_b.mT) * (right_a @ left_b.mT)) / 2


def chain_factors(forms: tuple[QuadraticForm, ...], padded: bool) -> tuple[Factors, ...]:
    r"""Return every layer as $h' = P'[(L'x') \odot (R'x')]$ without any further terms.

    Padded, every layer but the last hands on the 1 as well, as the product of the 1 with itself.
    """
    if not padded:
        return tuple((form.left[:, :-1], form.right[:, :-1], form.output) for form in forms)
    result = []
    for position, form in enumerate(forms):
        left, right, output = form.padded_factors()
        if position < len(forms) - 1:
            one = left.new_zeros(1, left.shape[1])
            one[:, -1] = 1.0
            left, right = torch.cat([left, one]), torch.cat([right, one])
            output = torch.block_diag(output, output.new_ones(1, 1))
        result.append((left, right, output))
    return tuple(result)


class _Gram:
    """Inner products by output of two stacks of layers, as trees."""

    def __init__(self, *stacks: tuple[Factors, ...]):
        self.stacks = stacks

    def __call__(self, i: int, j: int) -> Tensor:
        gram = None
        *below, last = zip(self.stacks[i], self.stacks[j], strict=True)
        for a, b in below:
            gram = a[2] @ hidden_kernel(a, b, gram) @ b[2].mT
        a, b = last
        return ((a[2] @ hidden_kernel(a, b, gram)) * b[2]).sum(1)


class _GaussianMoments:
    """E[f_A f_B] by output, for standard normal inputs."""

    def __init__(self, *forms: QuadraticForm):
        self.forms = forms

    def __call__(self, i: int, j: int) -> Tensor:
        a, b = self.forms[i], self.forms[j]
        factors = [(form.left[:, :-1], form.right[:, :-1], form.output) for form in (a, b)]
        quadratic = ((a.output @ hidden_kernel(factors[0], factors[1])) * b.output).sum(1)
        means = [
            form.output @ (left * right).sum(1)
            for form, (left, right, _) in zip((a, b), factors, strict=True)
        ]
        (linear_a, constant_a), (linear_b, constant_b) = a.affine_parts(), b.affine_parts()
        return (
            2 * quadratic + (means[0] + constant_a) * (means[1] + constant_b) + (linear_a * linear_b).sum(1)
        )


def _standardized(form: QuadraticForm, inputs: Gaussian) -> QuadraticForm:
    """The form as a function of z, x = mean + S z."""
    size = form.left.shape[1] - 1
    mean = torch.zeros(size) if inputs.mean is None else inputs.mean
    factor = torch.eye(size) if inputs.factor is None else inputs.factor
    if mean.shape != (size,) or factor.ndim != 2 or factor.shape[0] != size:
        raise ShapeError(
            f"Gaussian inputs of these models need a mean ({size},) and a factor ({size}, r); they have "
            f"{tuple(mean.shape)} and {tuple(factor.shape)}"
        )
    change = torch.zeros(size + 1, factor.shape[1] + 1, dtype=torch.float64)
    change[:-1, :-1], change[:-1, -1], change[-1, -1] = factor.double(), mean.double(), 1.0
    return QuadraticForm(
        form.left @ change,
        form.right @ change,
        form.output,
        form.affine @ change,
        (factor.shape[1],),
        form.dtype,
    )


def _require_comparable(first: tuple[QuadraticForm, ...], second: tuple[QuadraticForm, ...]) -> None:
    shapes = [(forms[0].left.shape[1] - 1, len(forms[-1].output), len(forms)) for forms in (first, second)]
    if shapes[0] != shapes[1]:
        (d, o, depth), (other_d, other_o, other_depth) = shapes
        raise ShapeError(
            "similarity needs models of equal inputs, outputs and numbers of bilinear layers; got "
            f"{d} -> {o} in {depth} and {other_d} -> {other_o} in {other_depth}"
        )
