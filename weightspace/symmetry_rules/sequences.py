"""Rules of attention and recurrent layers."""

from __future__ import annotations

from weightspace import operations as op
from weightspace.network import Node
from weightspace.symmetry_rules.arithmetic import broadcast
from weightspace.symmetry_rules.state import Stacked, State, Value, rule
from weightspace.unification import Ref


@rule(op.Attention)
def attention(
    state: State, node: Node, operation: op.Attention, inputs: list[tuple[Ref, ...]]
) -> tuple[Ref, ...]:
    """softmax(q k') v: widths of q and k are contracted, heads and times meet; a shared head serves several."""
    query, key, value, *mask = inputs
    place = f"Attention at {node.name}"
    if len(query) < 3 or not len(query) == len(key) == len(value):
        return state.unknown(node)
    heads = query[-3]
    keys, queries = state.spaces.size(key[-3]), state.spaces.size(heads)
    if operation.grouped and keys != queries:
        parts = state.spaces.split(heads, (keys, queries // keys))
        if parts is None:
            return state.unknown(node)
        state.spaces.unite(parts[0], key[-3], place)
    elif keys != 1:
        state.spaces.unite(heads, key[-3], place)
    state.spaces.unite(key[-3], value[-3], place)
    for a, b in zip(query[:-3], key[:-3], strict=True):
        state.spaces.unite(a, b, place)
    for a, b in zip(query[:-3], value[:-3], strict=True):
        state.spaces.unite(a, b, place)
    state.spaces.unite(query[-1], key[-1].transposed, place)
    state.spaces.unite(key[-2], value[-2], place)
    state.tolerate([*query[:-1], *key[:-1]])
    scores = (*query[:-1], key[-2])
    state.tensors.append(scores)
    for refs in mask:
        broadcast(state, node, [scores, refs])
    return (*query[:-1], value[-1])


@rule(op.Recurrent)
def recurrence(state: State, node: Node, operation: op.Recurrent, inputs: list[tuple[Ref, ...]]) -> Value:
    """Gates are segments of one axis and share the units of the state."""
    x, *states = inputs
    batch, last = x[0 if operation.batch_first else 1], x[-1]
    ends: list[Ref] = []
    cells: list[Ref] = []
    for prefix in ("", "reverse_") if operation.bidirectional else ("",):
        names = {role: getattr(operation, prefix + role) for role in operation.ROLES}
        size = state.network.parameters[names["hidden_weight"]].shape
        hidden = state.spaces.fresh(
            size[0] // operation.gates, node.name + ("" if not prefix else ".reverse")
        )
        gates = state.spaces.sum([hidden] * operation.gates, node.name)
        carried = hidden
        if names["projection"] is not None:
            carried = state.spaces.fresh(size[1], f"{node.name}.projection")
            state.touch(names["projection"], carried, hidden.transposed)
        state.touch(names["input_weight"], gates, last.transposed)
        state.touch(names["hidden_weight"], gates, carried.transposed)
        state.touch(names["input_bias"], gates)
        state.touch(names["hidden_bias"], gates)
        state.tolerate([hidden, carried])
        ends.append(carried)
        cells.append(hidden)
    for given, own in zip(states, (ends, cells), strict=False):
        if len(own) == 1:
            state.spaces.unite(given[-1], own[0], f"first state of {node.name}")
        else:
            state.spaces.freeze([*given, *own], f"first states of {node.name} are given")
    if operation.result == "cell":
        if len(cells) > 1:
            return Stacked(0, tuple((batch, cell) for cell in cells))
        return (state.spaces.fresh(1, node.name), batch, cells[0])
    return (*x[:-1], state.spaces.sum(ends, node.name))
