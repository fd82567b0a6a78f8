"""Rules of operations that look at neighbors in space."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace import operations as op
from weightspace.network import Node
from weightspace.symmetry_rules.state import State, rule
from weightspace.unification import Ref


def in_space(state: State, node: Node, source: Sequence[Ref]) -> tuple[Ref, ...]:
    """Trailing axes along which an operation looks at neighbors: order counts there."""
    state.spaces.freeze(source, "position in space")
    shape = node.shape[len(node.shape) - len(source) :]
    return tuple(state.spaces.fresh(n, node.name, "position in space") for n in shape)


@rule(op.MaxPool, op.AveragePool, op.AdaptiveAveragePool)
def pooling(
    state: State,
    node: Node,
    operation: op.MaxPool | op.AveragePool | op.AdaptiveAveragePool,
    inputs: list[tuple[Ref, ...]],
) -> tuple[Ref, ...]:
    space = len(operation.size if isinstance(operation, op.AdaptiveAveragePool) else operation.kernel)
    if isinstance(operation, op.MaxPool):
        state.tolerate(inputs[0], "positive")
    return (*inputs[0][:-space], *in_space(state, node, inputs[0][-space:]))


@rule(op.Interpolate)
def interpolation(
    state: State, node: Node, operation: op.Interpolate, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    return (*inputs[0][:2], *in_space(state, node, inputs[0][2:]))


@rule(op.PixelShuffle, op.PixelUnshuffle)
def pixel_shuffle(
    state: State, node: Node, operation: op.PixelShuffle | op.PixelUnshuffle, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    """A run of r * r channels becomes pixels, or the other way round: channels move in such runs."""
    source = inputs[0]
    square = operation.factor**2
    space = in_space(state, node, source[-2:])
    if isinstance(operation, op.PixelUnshuffle):
        pixels = state.spaces.fresh(square, node.name, "position in space")
        return (*source[:-3], state.spaces.product([source[-3], pixels], node.name), *space)
    parts = state.spaces.split(source[-3], (state.spaces.size(source[-3]) // square, square))
    if parts is None:
        return state.unknown(node)
    state.spaces.freeze(parts[1:], f"PixelShuffle at {node.name}: channels become pixels")
    return (*source[:-3], parts[0], *space)
