"""How pairs of input features interact on an output feature of a bilinear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.quadratic_form import QuadraticForm
from interp.recognition import recognize
from weightspace.errors import ShapeError
from weightspace.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class FeatureInteractions:
    r"""Interactions $b_{abc} = f^{out}_a \cdot B(f_b, f_c)$ of input features b, c on output features a.

    Attributes:
        values: the strongest of every output feature by magnitude, (a, k), b < c each pair once, or b = c.
        first, second: their b and c, (a, k).
    """

    values: Tensor
    first: Tensor
    second: Tensor
    _form: QuadraticForm
    _outputs: Tensor
    _inputs: Tensor

    @property
    def features(self) -> int:
        """Number of input features n."""
        return len(self._inputs)

    def matrix(self, output: int) -> Tensor:
        """Return all interactions on one output feature, symmetric, (n, n)."""
        return _matrix(self._form, self._outputs[output], self._inputs)

    def __repr__(self) -> str:
        outputs, kept = self.values.shape
        return f"FeatureInteractions({outputs} outputs, the {kept} strongest pairs of {len(self._inputs)} features)"


def find_interactions(
    layer_or_model: nn.Module | Network,
    outputs: Tensor,
    inputs: Tensor,
    *,
    top: int = 20,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
) -> FeatureInteractions:
    r"""Find the pairs of input features that act most on each output feature, from the weights alone.

    $b_{abc} = \tfrac12 f^{out}_a \cdot P[(Wf_b) \odot (Vf_c) + (Wf_c) \odot (Vf_b)]$, the interaction of the quadratic
    part; biases do not enter. One (n, n) matrix is held at a time.

    Args:
        outputs: rows (a, o), decoder or encoder directions of the dictionary after the layer.
        inputs: rows (n, d), decoder directions of the dictionary before it.
        top: pairs to keep per output.
    Raises:
        ShapeError: rows of another length; further errors as of `interp.decompose`.
    Source: Pearce et al., Bilinear MLPs enable weight-based mechanistic interpretability (2024), section 5.
    """
    form = recognize(layer_or_model, example_inputs)
    size = form.left.shape[1] - 1
    if (
        outputs.ndim != 2
        or inputs.ndim != 2
        or outputs.shape[1] != len(form.output)
        or inputs.shape[1] != size
    ):
        raise ShapeError(
            f"find_interactions needs outputs (a, {len(form.output)}) and inputs (n, {size}); got "
            f"{tuple(outputs.shape)} and {tuple(inputs.shape)}"
        )
    outputs, inputs = outputs.detach().double().cpu(), inputs.detach().double().cpu()
    rows, columns = torch.triu_indices(len(inputs), len(inputs))
    kept = min(top, len(rows))
    values, places = [], []
    for output in outputs:
        pairs = _matrix(form, output, inputs)[rows, columns]
        place = pairs.abs().topk(kept).indices
        values.append(pairs[place])
        places.append(place)
    found = torch.stack(places) if places else torch.zeros(0, kept, dtype=torch.long)
    strongest = torch.stack(values) if values else torch.zeros(0, kept, dtype=torch.float64)
    return FeatureInteractions(strongest, rows[found], columns[found], form, outputs, inputs)


def _matrix(form: QuadraticForm, output: Tensor, inputs: Tensor) -> Tensor:
    left, right = inputs @ form.left[:, :-1].mT, inputs @ form.right[:, :-1].mT
    product = (left * (output @ form.output)) @ right.mT
    return (product + product.mT) / 2
