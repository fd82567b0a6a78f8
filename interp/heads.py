"""Attention heads of any traced transformer as factored matrices: what they compare (QK) and what they move (OV)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from interp.attention_patterns import Attention, find_attention
from interp.factored_form import FactoredForm
from interp.projections import ProjectionReader
from weightspace.errors import NonFiniteError, ShapeError
from weightspace.network import Network
from weightspace.reading import as_network


@dataclass(frozen=True, eq=False, repr=False)
class AttentionHead:
    r"""One head: score $x_i'^\top M_{QK}\, x_j'$ of query i on key j, output $M_{OV}\, x_j'$ where it attends.

    Attributes:
        name: of the node that attends, or multiplies scores with values.
        index: of the head there; `key_value` that of the keys and values it reads (fewer under GQA).
        source: the node that holds x, "" if there is none; the gain and bias of a norm there are part of the matrices,
            so that x stands for the normalized values.
        target: the node that holds the sum of all heads' outputs.
        qk: $M_{QK} = s W_Q^\top W_K$, scale s included, padded where there are biases; None if `notes` says why.
        ov: $M_{OV} = W_O W_V$, biases left out; None if `notes` says why.
        rotary: whether queries or keys depend on the position; then `qk` is that of `offset`.
        offset: position of the query minus position of the key.
        notes: why a form is missing, or what stands between it and the attention.
    """

    name: str
    index: int
    key_value: int
    source: str
    target: str
    qk: FactoredForm | None
    ov: FactoredForm | None
    rotary: bool
    offset: int = 0
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = [f"{self.name} head {self.index}"]
        parts += [f"keys and values {self.key_value}"] if self.key_value != self.index else []
        parts += [f"rotary, offset {self.offset}"] if self.rotary else []
        parts += [f"{label} {form!r}" for label, form in (("QK", self.qk), ("OV", self.ov)) if form]
        return f"AttentionHead({', '.join([*parts, *self.notes])})"


@dataclass(frozen=True)
class CompositionScores:
    r"""How much head h reads of what an earlier head g wrote, relative to the sizes of their matrices.

    Attributes:
        query, key, value: $|M_{QK}^{h\top} M_{OV}^g|$, $|M_{QK}^h M_{OV}^g|$ and $|M_{OV}^h M_{OV}^g|$, each
            divided by the norms of both, (heads, heads) with h as row; NaN where a form is missing or g is not
            in an earlier layer.
        baseline: $1/\sqrt d$, the root mean square for independent Gaussian matrices.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    baseline: float


def find_heads(
    model: nn.Module | Network,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    offset: int = 0,
) -> tuple[AttentionHead, ...]:
    r"""Read the attention heads of a network, from the first to the last.

    The projections are found by running the graph between the stream and the scores on basis vectors, whatever
    operations it is made of: fused or separate matrices, grouped queries, rotary positions.

    Args:
        example_inputs: to trace a module; their length bounds `offset`.
        offset: of the positions of query and key, at least 0; matters for rotary positions alone, whose form is
            $W_Q^\top R_{offset} W_K$.
    Raises:
        ShapeError: the traced sequence is not longer than `offset`.
        ArchitectureError, NonFiniteError: a module that cannot be traced, NaN or infinite weights.
    Source: Elhage et al., A mathematical framework for transformer circuits (2021), QK and OV circuits.

    Examples:
        >>> import interp, torch
        >>> model = interp.BilinearTransformer(5, 8, heads=2, context=4)
        >>> heads = interp.find_heads(model, torch.zeros(1, 4, dtype=torch.long))
        >>> heads[0].qk, heads[0].ov
        (FactoredForm(8 x 8, rank at most 4), FactoredForm(8 x 8, rank at most 4))
    """
    network = as_network(model, example_inputs)
    exact = network.astype(torch.float64)
    reader = ProjectionReader(exact)
    heads: list[AttentionHead] = []
    with torch.no_grad():
        for node in exact.nodes:
            attention = find_attention(exact, node, reader.constants)
            if attention and len(node.shape) == 4:
                heads += _heads(reader, attention, offset, getattr(torch, network.node(node.name).dtype))
    return tuple(heads)


def _heads(
    reader: ProjectionReader, attention: Attention, offset: int, dtype: torch.dtype
) -> list[AttentionHead]:
    node = reader.network.node(attention.name)
    notes: list[str] = []
    if attention.capped:
        notes.append(f"a Tanh caps the scores of {node.name!r}: QK holds for small ones")
    query = reader.projection(attention.query, notes)
    key = reader.projection(attention.key, notes, attention.keys_transposed)
    value = reader.projection(attention.value, notes)
    target, outputs = reader.output(node, notes)
    if query and key and query.source != key.source:
        notes.append(f"queries read {query.source!r} and keys {key.source!r}: no form on one stream")
    rotary = any(each.depends_on_position for each in (query, key) if each)
    known, group, count = query or value or key, key or value, node.shape[1] or 0
    result = []
    for index in range(count):
        qk = ov = None
        place = index * len(group.weight) // count if group else index
        if query and key and query.source == key.source:
            scale = query.weight.shape[2] ** -0.5 if attention.scale is None else attention.scale
            qk = _scores(query.at(index, offset if rotary else 0), key.at(place, 0), scale, dtype)
        if value and outputs is not None:
            ov = FactoredForm(outputs[index].mT, value.weight[place, 0], dtype=dtype)
        for form in (qk, ov):
            if form and not (form.left.isfinite().all() and form.right.isfinite().all()):
                raise NonFiniteError(f"the weights of head {index} of {node.name!r} are NaN or infinite")
        head = AttentionHead(node.name, index, place, known.source if known else "", target, qk, ov, rotary)
        result.append(replace(head, offset=offset if rotary else 0, notes=tuple(notes)))
    return result


def _scores(query: Tensor, key: Tensor, scale: float, dtype: torch.dtype) -> FactoredForm:
    """The form of padded queries and keys (width, d + 1); the padding is dropped where there is no bias."""
    padded = bool(query[:, -1].any() or key[:, -1].any())
    left, right = (factor if padded else factor[:, :-1] for factor in (query, key))
    return FactoredForm(left * scale, right, padded, dtype)


def compose_heads(heads: Sequence[AttentionHead]) -> CompositionScores:
    """Score how heads build on earlier ones; heads of the same node do not.

    Raises:
        ShapeError: no heads.
    Source: Elhage et al. (2021), Q-, K- and V-composition.

    Examples:
        >>> import interp, torch
        >>> model = interp.BilinearTransformer(5, 8, heads=2, context=4)
        >>> scores = interp.compose_heads(interp.find_heads(model, torch.zeros(1, 4, dtype=torch.long)))
        >>> scores.value.shape
        torch.Size([2, 2])
    """
    if not heads:
        raise ShapeError("compose_heads needs at least one head; find_heads has found none")
    scores = torch.full((3, len(heads), len(heads)), torch.nan, dtype=torch.float64)
    order = {name: place for place, name in enumerate(dict.fromkeys(head.name for head in heads))}
    width = 1
    for i, later in enumerate(heads):
        qk, ov = later.qk and _unpadded(later.qk), later.ov
        for j, earlier in enumerate(heads):
            if order[earlier.name] >= order[later.name] or earlier.ov is None:
                continue
            width = earlier.ov.shape[0]
            readers = (qk and qk.transposed, qk, ov)
            for kind, form in enumerate(readers):
                if form is not None and form.shape[1] == width:
                    norms = form.norm * earlier.ov.norm
                    scores[kind, i, j] = form.composed_norm(earlier.ov) / norms if norms else 0.0
    return CompositionScores(scores[0], scores[1], scores[2], width**-0.5)


def _unpadded(form: FactoredForm) -> FactoredForm:
    if not form.padded:
        return form
    return replace(form, left=form.left[:, :-1], right=form.right[:, :-1], padded=False)
