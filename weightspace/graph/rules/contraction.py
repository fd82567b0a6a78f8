"""Rules of matrix products, einsum and attention: sums of products over shared indices."""

from __future__ import annotations

import string
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace import operations as op
from weightspace.graph.layout import collapsed
from weightspace.graph.rules.affine import apply_weights
from weightspace.graph.rules.arithmetic import shifted
from weightspace.graph.rules.state import Constant, Entries, State, Units, Value, rule
from weightspace.graph.structure import NodeLayer
from weightspace.network import Node


@dataclass(frozen=True, eq=False)
class Term:
    """A value with one letter for each of its axes."""

    value: Value
    letters: str


def contracted(state: State, node: Node, left: Term, right: Term, result: str) -> Value:
    """Sum the product of two values over the letters that `result` lacks."""
    if isinstance(left.value, Entries | Constant) and isinstance(right.value, Entries):
        left = Term(Units(state.units(node, left.value, node.inputs[0])), left.letters)
    match left.value, right.value:
        case Units(), Units():
            return Units(_products(state, node, left, right, result))
        case Units(), Entries():
            return Units(_weighted(state, node, left, right, result))
        case Entries(), Units():
            return Units(_weighted(state, node, right, left, result))
        case (Units(), Constant()) | (Constant(), Units()):
            units, constant = (left, right) if isinstance(left.value, Units) else (right, left)
            return Units(_mixed(state, node, units, constant, result))
    raise state.refused(node, "it multiplies values without units")


def _aligned(numbers: Tensor, letters: str, order: str) -> Tensor:
    """Permute axes into an order of letters, size 1 where a letter is missing."""
    present = [letter for letter in order if letter in letters]
    numbers = numbers.permute([letters.index(letter) for letter in present])
    sizes = iter(numbers.shape)
    return numbers.reshape([next(sizes) if letter in letters else 1 for letter in order])


def _products(state: State, node: Node, left: Term, right: Term, result: str) -> Tensor:
    """Units times units: over units a "product" node for each pair that meets, over time one node with both edges.

    Queries and keys meet so, and every head is the node that their products lead to; then heads and values meet.
    """
    assert isinstance(left.value, Units)
    assert isinstance(right.value, Units)
    summed = "".join(letter for letter in dict.fromkeys(left.letters + right.letters) if letter not in result)
    order = result + summed
    factors = [
        _aligned(t.value.numbers, t.letters, order) for t in (left, right) if isinstance(t.value, Units)
    ]
    size = torch.broadcast_shapes(*(factor.shape for factor in factors))
    over_units = any(n > 1 for factor in factors for n in collapsed(factor).shape[len(result) :])
    if not over_units:
        layer = NodeLayer(node.name, "hidden", 0)
        numbers = state.joined(layer, factors, ("identity", "value"))
    else:
        layer = NodeLayer(f"{node.name}.products", "product", 0)
        numbers = state.joined(layer, factors, ("query", "key"))
        axes = list(range(len(result), len(order)))
        numbers = state.pooled(NodeLayer(f"{node.name}.heads", "head", 0), numbers, axes, "identity")
    return numbers[(..., *[0] * len(summed))].expand(size[: len(result)])


def _weighted(state: State, node: Node, units: Term, weights: Term, result: str) -> Tensor:
    """Units times a parameter: a linear layer, with one block for each index that all three share."""
    assert isinstance(units.value, Units)
    assert isinstance(weights.value, Entries)
    numbers = units.value.numbers
    lost = [axis for axis, c in enumerate(units.letters) if c not in result and c not in weights.letters]
    if lost:
        numbers = state.pooled(NodeLayer(f"{node.name}.sums", "hidden", 0), numbers, lost)
    ours = "".join(letter for letter in units.letters if letter in result and letter not in weights.letters)
    shared = "".join(letter for letter in units.letters if letter in result and letter in weights.letters)
    summed = "".join(letter for letter in units.letters if letter not in result and letter in weights.letters)
    theirs = "".join(letter for letter in weights.letters if letter not in units.letters)
    if any(letter not in result for letter in theirs) or not summed:
        raise state.refused(
            node, f"its parameter has indices that meet no unit ({weights.letters} with {units.letters})"
        )
    numbers = _aligned(
        numbers, units.letters, ours + shared + summed + "".join(units.letters[a] for a in lost)
    )
    numbers = numbers[(..., *[0] * len(lost))]
    places = _aligned(weights.value.places, weights.letters, shared + theirs + summed)
    sizes = dict(zip(ours + shared + summed, numbers.shape, strict=True))
    sizes |= dict(zip(shared + theirs + summed, places.shape, strict=True))
    units_last = numbers.reshape(*numbers.shape[: len(ours)], _product(shared, sizes), -1)
    blocks = places.reshape(_product(shared, sizes), _product(theirs, sizes), -1)
    new = apply_weights(state, node.name, units_last, blocks)
    return _aligned(new.reshape([sizes[c] for c in ours + shared + theirs]), ours + shared + theirs, result)


def _mixed(state: State, node: Node, units: Term, constant: Term, result: str) -> Tensor:
    """Units times a constant: time and space are mixed freely, units not."""
    assert isinstance(units.value, Units)
    assert isinstance(constant.value, Constant)
    order = result + "".join(letter for letter in units.letters if letter not in result)
    numbers = collapsed(_aligned(units.value.numbers, units.letters, order))
    if any(n > 1 for n in numbers.shape[len(result) :]):
        raise state.refused(
            node, "a constant matrix mixes units; encode the parts of the network before and behind it"
        )
    sizes = dict(zip(units.letters, units.value.numbers.shape, strict=True))
    sizes |= dict(zip(constant.letters, constant.value.tensor.shape, strict=True))
    return numbers[(..., *[0] * (len(order) - len(result)))].expand([sizes[c] for c in result])


def _product(letters: str, sizes: dict[str, int]) -> int:
    result = 1
    for letter in letters:
        result *= sizes[letter]
    return result


@rule(op.MatMul)
def matrix_product(state: State, node: Node, operation: op.MatMul, inputs: list[Value]) -> Value:
    ranks = [len(state.network.node(name).shape) for name in node.inputs]
    if min(ranks) < 2:
        raise state.refused(node, "a vector is multiplied; reshape it to a matrix")
    batch = string.ascii_lowercase[: max(ranks) - 2]
    terms = []
    for value, rank, matrix in zip(inputs, ranks, ("xy", "yz"), strict=True):
        terms.append(_squeezed(Term(value, batch[len(batch) - (rank - 2) :] + matrix), batch))
    return contracted(state, node, terms[0], terms[1], batch + "xz")


def _squeezed(term: Term, batch: str) -> Term:
    """Drop the batch axes of size 1 of a parameter: they meet every batch."""
    match term.value:
        case Entries():
            kept = [a for a, c in enumerate(term.letters) if c not in batch or term.value.places.shape[a] > 1]
            shape = [term.value.places.shape[axis] for axis in kept]
            return Term(Entries(term.value.places.reshape(shape)), "".join(term.letters[a] for a in kept))
    return term


@rule(op.Einsum)
def einsum(state: State, node: Node, operation: op.Einsum, inputs: list[Value]) -> Value:
    """Two at a time, from the left."""
    given, result = operation.equation.split("->")
    terms = [Term(value, letters) for value, letters in zip(inputs, given.split(","), strict=True)]
    if any(len(set(term.letters)) < len(term.letters) for term in terms) or len(terms) < 2:
        raise state.refused(node, f"the equation {operation.equation!r} takes a diagonal or has one term")
    left = terms[0]
    for number, right in enumerate(terms[1:], 2):
        later = set(result).union(*(term.letters for term in terms[number:]))
        kept = "".join(c for c in dict.fromkeys(left.letters + right.letters) if c in later)
        if number == len(terms):
            kept = result
        left = Term(contracted(state, node, left, right, kept), kept)
    return left.value


@rule(op.Attention)
def attention(state: State, node: Node, operation: op.Attention, inputs: list[Value]) -> Value:
    """Queries meet keys in products, the products of a head in its node, and that node meets the values.

    Hence the units of queries and keys permute together within a head, those of the values too, and the heads.
    """
    names = node.inputs
    query, key, value = (state.units(node, v, n) for v, n in zip(inputs[:3], names[:3], strict=True))
    if operation.grouped and key.shape[-3] != query.shape[-3]:
        share = query.shape[-3] // key.shape[-3]
        key, value = (numbers.repeat_interleave(share, -3) for numbers in (key, value))
    batch = string.ascii_lowercase[: query.ndim - 2]
    scores = contracted(
        state, node, Term(Units(query), batch + "ti"), Term(Units(key), batch + "si"), batch + "ts"
    )
    for mask in inputs[3:]:
        if isinstance(scores, Units):
            scores = (
                Units(
                    state.joined(
                        NodeLayer(f"{node.name}.scores", "residual", 0),
                        [scores.numbers, mask.numbers],
                        ("identity",) * 2,
                    )
                )
                if isinstance(mask, Units)
                else shifted(state, node, scores, mask)
            )
    return contracted(state, node, Term(scores, batch + "ts"), Term(Units(value), batch + "sj"), batch + "tj")
