"""Rules of arithmetic between values, and of reductions."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace import operations as op
from weightspace.network import Node
from weightspace.symmetry_rules.state import State, rule
from weightspace.unification import Ref

ELEMENTWISE = {"aten._weight_norm.default"}  # opaque operators under which axes that meet move alike


def broadcast(
    state: State, node: Node, inputs: Sequence[tuple[Ref, ...]], *, linear: bool = False
) -> tuple[Ref, ...]:
    """Elementwise: axes that meet move alike; an axis of size 1 meets nothing.

    `linear`: the operation is linear in all inputs together, as a sum is.
    """
    rank = max((len(refs) for refs in inputs), default=0)
    kind = node.operation.kind
    result: list[Ref] = []
    for axis in range(rank):
        present = [refs[axis - rank + len(refs)] for refs in inputs if axis - rank + len(refs) >= 0]
        wide = [ref for ref in present if state.spaces.size(ref) != 1] or present[:1]
        for other in wide[1:]:
            state.spaces.unite(wide[0], other, f"{kind} at {node.name}")
        # x * g and x / g with g constant along the axis are linear in x; so is a sum whose terms all have the axis.
        scales = kind == "Multiply" or (kind == "Divide" and wide[0] in inputs[0])
        if not (linear and len(wide) == len(inputs)) and not (scales and len(wide) == 1):
            state.tolerate(wide[:1])
        result.append(wide[0])
    return tuple(result)


@rule(op.Add, op.Subtract)
def addition(
    state: State, node: Node, operation: op.Operation, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    return broadcast(state, node, inputs, linear=True)


@rule(op.Multiply, op.Divide, op.Elementwise)
def multiplication(
    state: State, node: Node, operation: op.Operation, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    return broadcast(state, node, inputs)


@rule(op.Opaque)
def opaque(state: State, node: Node, operation: op.Opaque, inputs: list[tuple[Ref, ...]]) -> tuple[Ref, ...]:
    return broadcast(state, node, inputs) if operation.name in ELEMENTWISE else state.unknown(node)


@rule(op.MatMul)
def product(state: State, node: Node, operation: op.MatMul, inputs: list[tuple[Ref, ...]]) -> tuple[Ref, ...]:
    """Batched matrix product: (..., m, k) times (..., k, n)."""
    left, right = inputs
    if len(left) < 2 or len(right) < 2:
        return state.unknown(node)
    state.spaces.unite(left[-1], right[-2].transposed, f"MatMul at {node.name}")
    batch = broadcast(state, node, [left[:-2], right[:-2]])
    return (*batch, left[-2], right[-1])


@rule(op.Einsum)
def einsum(state: State, node: Node, operation: op.Einsum, inputs: list[tuple[Ref, ...]]) -> tuple[Ref, ...]:
    """Equal letters move alike; a letter that is summed over carries a map and its inverse transpose."""
    terms, result = operation.equation.split("->")
    labels: dict[str, Ref] = {}
    for letters, refs in zip(terms.split(","), inputs, strict=True):
        for letter, ref in zip(letters, refs, strict=True):
            if letter not in labels:
                labels[letter] = ref
            else:
                contracted = letter not in result
                state.spaces.unite(
                    labels[letter], ref.transposed if contracted else ref, f"Einsum at {node.name}"
                )
    for letter, ref in labels.items():
        count = terms.count(letter)
        if (count, letter in result) not in ((1, True), (2, False)):
            state.tolerate([ref])
    return tuple(labels[letter] for letter in result)


@rule(op.Reduce)
def reduction(
    state: State, node: Node, operation: op.Reduce, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    source = inputs[0]
    gone = {axis % len(source) for axis in operation.axes} or set(range(len(source)))
    state.tolerate([source[axis] for axis in gone])
    kept = [ref for axis, ref in enumerate(source) if axis not in gone]
    if operation.name in ("amax", "amin"):
        state.tolerate(kept, "positive")
    if not operation.keep:
        return tuple(kept)
    return tuple(state.spaces.fresh(1, node.name) if a in gone else ref for a, ref in enumerate(source))


@rule(op.CumulativeSum, op.Roll, op.Flip)
def ordered(
    state: State, node: Node, operation: op.CumulativeSum | op.Roll | op.Flip, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    axes = (operation.axis,) if isinstance(operation, op.CumulativeSum) else operation.axes
    state.spaces.freeze([inputs[0][axis] for axis in axes], f"{operation.kind} at {node.name}: order counts")
    return inputs[0]
