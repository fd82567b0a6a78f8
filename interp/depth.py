"""Stacked bilinear layers: eigenvectors of one layer as output directions of the layer before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from interp.decomposition import Decomposition, decompose_form, output_directions
from interp.quadratic_form import QuadraticForm
from interp.recognition import recognize_layers
from interp.truncation import TruncatedForm
from weightspace.errors import ShapeError
from weightspace.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class Unfolding:
    r"""A network of L bilinear layers as a tree of squares of squares.

    $u \cdot y = \sum_k \lambda_k (v_k \cdot h')^2$ with $v_k \cdot h' = \sum_j \lambda_{kj} (v_{kj} \cdot x')^2$, and
    so on; the monomials of degree $2^L$ are never written out.

    Attributes:
        levels: from the last layer, which the output directions belong to, to the first. The directions of a
            level are the eigenvectors of the one before it in this tuple, row by row.
    """

    levels: tuple[Decomposition, ...]

    @property
    def discarded(self) -> tuple[Tensor, ...]:
        """What `top` left out at each node of each level, in the Frobenius norm of that node's form."""
        return tuple(level.discarded for level in self.levels)

    def to_module(self) -> nn.Module:
        """Return a module (n, *input_shape) -> (n, u) that evaluates the tree."""
        return UnfoldedForms(self.levels)

    def __repr__(self) -> str:
        nodes = ", ".join(str(level.values.numel()) for level in self.levels)
        return f"Unfolding({len(self.levels)} layers, {nodes} terms from the last to the first)"


class UnfoldedForms(nn.Module):
    """Evaluates an `Unfolding`, from the first layer to the last."""

    def __init__(self, levels: Sequence[Decomposition]):
        super().__init__()
        forms = (TruncatedForm(level.values, level.vectors, None, None) for level in reversed(levels))
        self.forms = nn.ModuleList(forms)

    def forward(self, x: Tensor) -> Tensor:
        first, *later = self.forms.children()
        along = first(x)  # v . h' for all eigenvectors of the next layer
        for form in later:
            values = form.get_buffer("values")
            along = (along.unflatten(1, tuple(values.shape)).square() * values).sum(2)
        return along


def unfold(
    model: nn.Module | Network,
    *,
    directions: Tensor | Sequence[Sequence[float]] | None = None,
    top: int | Sequence[int] | None = None,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
) -> Unfolding:
    r"""Decompose a network of several bilinear layers, exactly up to what `top` leaves out.

    The eigenvectors of the last layer, which live on $h' = [h; 1]$, are output directions of the layer before. A
    residual connection $h = x + Pg(x)$ adds $\tfrac12(ue^\top + eu^\top)$ to the form of u, e the axis of the 1.

    Args:
        model: modules and networks of affine maps and bilinear layers, cut where everything passes through one value.
        directions: u, shape (u, o) or (o,); default one for every output.
        top: terms to keep at every node, one number or one for each layer from the last to the first; default all.
    Raises:
        ShapeError: `directions` or `top` do not fit; further errors as of `interp.decompose`.
    Source: Pearce et al., Bilinear MLPs enable weight-based mechanistic interpretability (2024), section 3.

    Examples:
        >>> import interp, torch
        >>> from weightspace.layers import BilinearMLP
        >>> model, x = BilinearMLP(8, 6, 3, layers=2), torch.ones(1, 8)
        >>> unfolding = interp.unfold(model)
        >>> torch.allclose(unfolding.to_module()(x), model(x), atol=1e-4)
        True
    """
    forms = recognize_layers(model, example_inputs)
    tops = [top] * len(forms) if top is None or isinstance(top, int) else list(top)
    if len(tops) != len(forms) or any(k is not None and k < 0 for k in tops):
        raise ShapeError(f"unfold needs one number of terms for each of {len(forms)} layers; top is {top}")
    chosen = output_directions(directions, len(forms[-1].output))
    padded = any(not form.is_homogeneous for form in forms)
    levels = []
    for position, form in reversed(list(enumerate(forms))):
        if position < len(forms) - 1 and padded:
            form = _with_one(form)
        level = decompose_form(form, chosen, top=tops[len(forms) - 1 - position], padded=padded)
        levels.append(level)
        chosen = level.vectors.flatten(0, 1).double()
    return Unfolding(tuple(levels))


def _with_one(form: QuadraticForm) -> QuadraticForm:
    """The same form with the constant 1 as a further output."""
    one = torch.zeros(1, form.affine.shape[1], dtype=torch.float64)
    one[:, -1] = 1.0
    output = torch.cat([form.output, form.output.new_zeros(1, form.output.shape[1])])
    return replace(form, output=output, affine=torch.cat([form.affine, one]))
