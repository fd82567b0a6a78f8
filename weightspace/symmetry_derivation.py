"""Derive a `SymmetrySpec` from the graph of a network, operation by operation.

Every axis of every value is a space (`weightspace.unification`); `weightspace.symmetry_rules` says what each operation
requires of the spaces that go in, and which come out. Two passes share the rules: one for permutations, one
(`linear=True`) for scalings, orthogonal and invertible maps, where an operation such as BatchNorm separates what goes
in from what comes out, and every operation says which maps of the units it tolerates.
"""

from __future__ import annotations

from weightspace import operations as op
from weightspace.network import Network, Node
from weightspace.symmetry_description import described, joined, linear_kinds
from weightspace.symmetry_patterns import root_mean_squares
from weightspace.symmetry_rules import RULES, Stacked, State, Value
from weightspace.symmetry_rules.state import HIDDEN
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.unification import Ref


def derive(network: Network) -> SymmetrySpec:
    """Return the permutation groups that the rules allow; not yet verified by running."""
    return described(walked(network))


def with_continuous(spec: SymmetrySpec, network: Network) -> SymmetrySpec:
    """Add scalings, orthogonal and invertible maps to a spec of permutations; not yet verified by running."""
    state = walked(network, linear=True)
    return joined(spec, described(state, linear_kinds(state)))


def walked(network: Network, *, linear: bool = False) -> State:
    """Visit all nodes in order, then freeze what leaves the network."""
    state = State(network, linear=linear)
    norms = root_mean_squares(network) if linear else {}
    skipped = {name for norm in norms.values() for name in norm.inner}
    for node in network.nodes:
        if node.name in norms:
            source = state.plain(norms[node.name].source)
            state.tolerate(source[-1:], "orthogonal", "centered", "sign")
            value: Value = source
        elif node.name in skipped:
            value = state.fixed(node, HIDDEN)
        else:
            value = _visited(state, node)
        state.values[node.name] = value
        state.tensors += value.slices if isinstance(value, Stacked) else (value,)
    for name in network.outputs:
        state.spaces.freeze(state.plain(name), "network output")
    return state


def _visited(state: State, node: Node) -> Value:
    operation = node.operation
    packed = _through_packed(state, node)
    if packed is not None:
        return packed
    match operation:
        case op.Input():
            return state.fixed(node, "network input")
        case op.Parameter():
            return _parameter(state, node, operation)
    rule = RULES.get(type(operation))
    return (
        state.unknown(node)
        if rule is None
        else rule(state, node, operation, [state.plain(n) for n in node.inputs])
    )


def _parameter(state: State, node: Node, operation: op.Parameter) -> tuple[Ref, ...]:
    """A parameter used as a value. Constants of the program stay, except where they are uniform along an axis."""
    tensor = state.network.parameters[operation.value]
    constant = operation.value in state.network.buffers
    refs = []
    for axis, size in enumerate(node.shape):
        uniform = constant and size and bool((tensor == tensor.narrow(axis, 0, 1)).all())
        reason = "a constant of the program" if constant and not uniform else None
        name = node.name if len(node.shape) == 1 else f"{node.name}[{axis}]"
        refs.append(state.spaces.fresh(size, name, reason))
        if uniform:
            state.tolerate(refs[-1:])
    if not constant:
        state.touch(operation.value, *refs)
    return tuple(refs)


def _through_packed(state: State, node: Node) -> Value | None:
    """Carry packed axes through the operations that only look at them."""
    if len(node.inputs) != 1:
        return None
    value = state.values[node.inputs[0]]
    if not isinstance(value, Stacked):
        return None
    operation, rank = node.operation, len(state.shape(node.inputs[0]))
    match operation:
        case op.Cast():
            return value
        case op.Select() if operation.axis % rank == value.axis:
            return value.slices[operation.index]
        case op.Permute():
            axis = operation.axes.index(value.axis)
            order = [a - (a > value.axis) for a in operation.axes if a != value.axis]
            return Stacked(axis, tuple(tuple(part[a] for a in order) for part in value.slices))
        case op.Unsqueeze():
            at = operation.axis % len(node.shape)
            inner = at - (at > value.axis)
            single = state.spaces.fresh(1, node.name)
            return Stacked(
                value.axis + (at <= value.axis),
                tuple((*part[:inner], single, *part[inner:]) for part in value.slices),
            )
        case op.Squeeze() if operation.axis % rank != value.axis:
            at = operation.axis % rank
            inner = at - (at > value.axis)
            return Stacked(
                value.axis - (at < value.axis),
                tuple((*part[:inner], *part[inner + 1 :]) for part in value.slices),
            )
        case op.Slice() if operation.axis % rank == value.axis and operation.step == 1:
            kept = value.slices[operation.start : operation.stop]
            return Stacked(value.axis, kept)
    return None
