"""Attention heads of any traced transformer as factored matrices: what they compare (QK) and what they move (OV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from interp.factored_form import FactoredForm
from weightspace import operations as op
from weightspace.errors import NonFiniteError, ShapeError
from weightspace.network import Network, Node
from weightspace.reading import as_network

_AFFINE = (
    op.Linear, op.Scale, op.Cast, op.Add, op.Subtract, op.Multiply, op.Divide, op.Reshape, op.Flatten, op.Permute,
    op.Unsqueeze, op.Squeeze, op.Expand, op.Slice, op.Select, op.Concat, op.Stack, op.Conv, op.MatMul, op.Einsum,
    op.Item, op.Gather,
)  # fmt: skip
_JOINING = (op.Add, op.Subtract, op.Concat, op.Stack)
_PROJECTING = (op.Linear, op.MatMul, op.Conv, op.Einsum)
_GAINS = (op.Multiply, op.Scale, op.Cast, op.Add)
_COLUMNS = 256  # basis vectors that are run through the projections at once


@dataclass(frozen=True, eq=False, repr=False)
class AttentionHead:
    r"""One head: score $x_i'^\top M_{QK}\, x_j'$ of query i on key j, output $M_{OV}\, x_j'$ where it attends.

    Attributes:
        name: of the node that attends, or multiplies scores with values.
        index: of the head there; `key_value` that of the keys and values it reads (fewer under GQA).
        source: the node that holds x, "" if there is none; the gain and bias of a norm there are part of the matrices, so that x stands for
            the normalized values.
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
    """
    network = as_network(model, example_inputs)
    exact = network.astype(torch.float64)
    reader = _Reader(exact, {node.name: node.dtype for node in network.nodes}, offset)
    heads: list[AttentionHead] = []
    with torch.no_grad():
        for node in exact.nodes:
            if attention := _attention(exact, node, reader.constants):
                heads += reader.heads(attention)
    return tuple(heads)


def compose_heads(heads: Sequence[AttentionHead]) -> CompositionScores:
    """Score how heads build on earlier ones; heads of the same node do not.

    Raises:
        ShapeError: no heads.
    Source: Elhage et al. (2021), Q-, K- and V-composition.
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


# ---- finding attention -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attention:
    """Names of queries and keys (batch, heads, time, width), values, and of the result; the scale of the scores."""

    name: str
    query: str
    key: str
    value: str
    scale: float | None
    keys_transposed: bool
    capped: bool = False


def _attention(network: Network, node: Node, constants: Mapping[str, Tensor]) -> _Attention | None:
    if isinstance(node.operation, op.Attention):
        query, key, value = node.inputs[:3]
        return _Attention(node.name, query, key, value, node.operation.scale, False)
    if not isinstance(node.operation, op.MatMul):
        return None
    weights = network.node(node.inputs[0])
    while isinstance(weights.operation, op.Cast):
        weights = network.node(weights.inputs[0])
    found = None
    if isinstance(weights.operation, op.Softmax):
        found = _scores(network, network.node(weights.inputs[0]), constants)
    if found is None:
        return None
    scores, scale, capped = found
    query, key = scores.inputs
    return _Attention(node.name, query, key, node.inputs[1], scale, True, capped)


def _scores(network: Network, node: Node, constants: Mapping[str, Tensor]) -> tuple[Node, float, bool] | None:
    """The product of queries and keys behind what a softmax takes, the factor on it, and whether Tanh caps it."""
    moving = [network.node(name) for name in node.inputs if name not in constants]
    factor, capped = 1.0, False
    match node.operation:
        case op.MatMul() if len(moving) == 2:
            return node, 1.0, False
        case op.Scale(factor=given):
            factor = float(given)
        case op.Multiply() | op.Divide() as operation if len(moving) == 1:
            value = constants[next(name for name in node.inputs if name in constants)]
            if value.numel() == 1:
                factor = float(value) if isinstance(operation, op.Multiply) else 1 / float(value)
            elif not bool(((value == 0) | (value == 1)).all()):  # a mask
                return None
        case op.Tanh():
            capped = True
        case (
            op.Cast() | op.Add() | op.Elementwise(name="where")
        ):  # what is added is a mask or a bias of positions
            pass
        case _:
            return None
    behind = (_scores(network, each, constants) for each in moving if len(each.shape) == len(node.shape))
    found = next((each for each in behind if each), None)
    return found and (found[0], factor * found[1], capped or found[2])


# ---- reading projections -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Projection:
    """An affine map from the stream to heads: weight (heads, time, width, d), bias (heads, time, width)."""

    source: str
    weight: Tensor
    bias: Tensor


class _Reader:
    def __init__(self, network: Network, dtypes: dict[str, str], offset: int):
        self.network, self.dtypes, self.offset = network, dtypes, offset
        self.position = {node.name: index for index, node in enumerate(network.nodes)}
        self.moving: set[str] = set()
        self.constants: dict[str, Tensor] = {}
        for node in network.nodes:
            if isinstance(node.operation, op.Input) or any(name in self.moving for name in node.inputs):
                self.moving.add(node.name)
            else:
                inputs = tuple(self.constants[name] for name in node.inputs)
                self.constants[node.name] = node.operation.evaluate(inputs, network.weights(node))

    def heads(self, attention: _Attention) -> list[AttentionHead]:
        node = self.network.node(attention.name)
        notes = (
            [f"a Tanh caps the scores of {node.name!r}: QK holds for small ones"] if attention.capped else []
        )
        query = self._projection(attention.query, notes)
        key = self._projection(attention.key, notes, attention.keys_transposed)
        value = self._projection(attention.value, notes)
        target, outputs = self._output(node, notes)
        known = query or value or key
        if len(node.shape) != 4:
            return []
        dtype = getattr(torch, self.dtypes[attention.name])
        rotary = any(_depends_on_position(each) for each in (query, key) if each)
        result = []
        count = node.shape[1] or 0
        if query and key and query.source != key.source:
            notes.append(f"queries read {query.source!r} and keys {key.source!r}: no form on one stream")
        for index in range(count):
            qk = ov = None
            group = key or value
            place = index * len(group.weight) // count if group else index
            if query and key and query.source == key.source:
                scale = query.weight.shape[2] ** -0.5 if attention.scale is None else attention.scale
                qk = self._qk(query, key, index, place, scale, dtype)
            if value and outputs is not None:
                ov = FactoredForm(outputs[index].mT, value.weight[place, 0], dtype=dtype)
            for form in (qk, ov):
                if form and not (form.left.isfinite().all() and form.right.isfinite().all()):
                    raise NonFiniteError(f"the weights of head {index} of {node.name!r} are NaN or infinite")
            head = AttentionHead(
                attention.name, index, place, known.source if known else "", target, qk, ov, rotary
            )
            result.append(replace(head, offset=self.offset if rotary else 0, notes=tuple(notes)))
        return result

    def _qk(
        self, query: _Projection, key: _Projection, index: int, place: int, scale: float, dtype: torch.dtype
    ) -> FactoredForm:
        time = query.weight.shape[1]
        if self.offset >= time or self.offset < 0:
            raise ShapeError(
                f"offset {self.offset} needs a trace with more than {self.offset} positions; this one has {time}: "
                "give longer example inputs"
            )
        factors = []
        for each, head, position in ((query, index, self.offset), (key, place, 0)):
            factors.append(torch.cat([each.weight[head, position], each.bias[head, position, :, None]], 1))
        padded = bool(query.bias.any() or key.bias.any())
        left, right = (factor if padded else factor[:, :-1] for factor in factors)
        return FactoredForm(left * scale, right, padded, dtype)

    def _projection(self, name: str, notes: list[str], transposed: bool = False) -> _Projection | None:
        """The affine map from the stream to the value `name`, by walking back to where everything comes from."""
        needed, region = {name}, []
        while True:
            node = self.network.node(max(needed, key=self.position.__getitem__))
            moving = [each for each in node.inputs if each in self.moving]
            # The first value that everything comes from, unless it is the gain or the bias of a norm written out, or
            # has all positions in one axis.
            projected = any(isinstance(each.operation, _PROJECTING) for each in region)
            merged = isinstance(node.operation, op.Reshape) and len(node.shape) == 2
            gain = len(moving) == 1 and isinstance(node.operation, _GAINS)
            if len(needed) == 1 and projected and not (gain or merged):
                break
            if not isinstance(node.operation, _AFFINE) or (
                len(moving) > 1 and not isinstance(node.operation, _JOINING)
            ):
                notes.append(
                    f"{node.operation.kind} at {node.name!r} stands before {name!r}: no linear map of the stream"
                )
                return None
            needed = needed - {node.name} | set(moving)
            region.append(node)
        start = node
        if len(start.shape) != 3 or start.shape[0] is not None:
            notes.append(f"{start.name!r} is no stream of shape (batch, time, d): it has shape {start.shape}")
            return None
        region.sort(key=lambda each: self.position[each.name])
        time, width = start.shape[1] or 1, start.shape[2] or 1
        if not _free_batch(region):
            notes.append(f"{name!r} has a fixed batch size or mixes the samples of a batch")
            return None
        basis = torch.cat([torch.zeros(1, width), torch.eye(width)]).double()
        columns = self._run(start, region, basis[:, None].expand(-1, time, -1))
        probe = torch.randn(2, time, width, generator=torch.Generator().manual_seed(0)).double()
        values = self._run(start, region, probe)
        if transposed:
            columns, values = columns.mT, values.mT
        if columns.ndim != 4:
            notes.append(f"{name!r} has {columns.ndim} axes, not batch, heads, time and width")
            return None
        # (d + 1, heads, time, width) -> weight (heads, time, width, d) and bias (heads, time, width)
        bias, weight = columns[0], (columns[1:] - columns[:1]).permute(1, 2, 3, 0)
        if weight.shape[1] != time or not _agree(
            values, torch.einsum("htwd,btd->bhtw", weight, probe) + bias
        ):
            notes.append(f"{name!r} is no map of each position of {start.name!r} alone")
            return None
        norm = start.operation
        if isinstance(norm, op.LayerNorm | op.RMSNorm):
            held = self.network.weights(start)
            if "bias" in held:
                bias = bias + weight @ held["bias"]
            if "weight" in held:
                weight = weight * held["weight"]
        return _Projection(start.name, weight, bias)

    def _run(self, start: Node, region: Sequence[Node], inputs: Tensor) -> Tensor:
        """The value of the last node of a region for values of `start`, some at a time."""
        results = []
        for rows in inputs.split(_COLUMNS):
            values = {start.name: rows}
            for node in region:
                taken = tuple(
                    values[each] if each in values else self.constants[each] for each in node.inputs
                )
                values[node.name] = node.operation.evaluate(taken, self.network.weights(node))
            results.append(values[region[-1].name])
        return torch.cat(results)

    def _output(self, node: Node, notes: list[str]) -> tuple[str, Tensor | None]:
        """The chain of linear maps after the heads: its last node, and W_O of every head, (heads, d, width)."""
        chain: list[Node] = []
        last = node
        while len(users := self.network.consumers[last.name]) == 1:
            (last,) = users
            moving = [name for name in last.inputs if name in self.moving]
            if not isinstance(last.operation, _AFFINE) or len(moving) != 1:
                break
            chain.append(last)
        while chain and len(chain[-1].shape) != 3:
            chain.pop()
        if not any(isinstance(each.operation, _PROJECTING) for each in chain):
            notes.append(f"no linear map follows {node.name!r}")
            return node.name, None
        if not _free_batch(chain):
            notes.append(f"{chain[-1].name!r} has a fixed batch size or mixes the samples of a batch")
            return node.name, None
        _, heads, time, width = (size or 1 for size in node.shape)
        count = heads * width
        basis = torch.cat([torch.zeros(1, count), torch.eye(count)]).double().reshape(-1, heads, 1, width)
        columns = self._run(node, chain, basis.expand(-1, -1, time, -1))
        weight = columns[1:, 0] - columns[:1, 0]
        probe = torch.randn(2, heads, time, width, generator=torch.Generator().manual_seed(0)).double()
        expected = probe.transpose(1, 2).flatten(2)
        if not _agree(self._run(node, chain, probe), expected @ weight + columns[:1, :1]):
            notes.append(f"{chain[-1].name!r} mixes positions: no output matrix")
            return node.name, None
        return chain[-1].name, weight.unflatten(0, (heads, width)).mT


def _free_batch(nodes: Sequence[Node]) -> bool:
    return all(
        node.shape[:1] == (None,)
        and not (isinstance(node.operation, op.Reshape) and node.operation.shape[0] != -1)
        for node in nodes
    )


def _agree(got: Tensor, expected: Tensor) -> bool:
    return got.shape == expected.shape and bool((got - expected).abs().max() <= 1e-9 * expected.abs().max())


def _depends_on_position(projection: _Projection) -> bool:
    weight = projection.weight
    return bool((weight - weight[:, :1]).abs().max() > 1e-9 * weight.abs().max())
