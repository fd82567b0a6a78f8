"""What the rules of the derivation work on: the spaces of all values and parameters so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weightspace import operations as op
from weightspace.network import Network, Node
from weightspace.symmetry_patterns import reshaped_then_selected
from weightspace.unification import Ref, Unification

HIDDEN = "fixed axis"  # the reason of axes that nobody expects to move; not reported


@dataclass(frozen=True)
class Stacked:
    """A value whose entries along one axis have spaces of their own: queries, keys and values packed in one axis."""

    axis: int
    slices: tuple[tuple[Ref, ...], ...]


Value = tuple[Ref, ...] | Stacked


class State:
    """The state of one pass: the spaces of all values and parameters, and which of them stand together."""

    def __init__(self, network: Network, *, linear: bool = False):
        self.network = network
        self.linear = linear
        self.spaces = Unification()
        self.values: dict[str, Value] = {}
        self.parameters: dict[str, tuple[Ref, ...]] = {}
        self.tensors: list[tuple[Ref, ...]] = []  # all that ever stood together as the axes of one tensor
        self.selected = reshaped_then_selected(network)

    # ---- what rules use ------------------------------------------------------------------------------------

    def plain(self, name: str) -> tuple[Ref, ...]:
        """The spaces of a value's axes; packed ones are united, since nobody selects them."""
        value = self.values[name]
        if isinstance(value, Stacked):
            first, *others = value.slices
            for other in others:
                for a, b in zip(first, other, strict=True):
                    self.spaces.unite(a, b, f"{name} is packed")
            axis = self.spaces.fresh(len(value.slices), name, "packed axis")
            value = (*first[: value.axis], axis, *first[value.axis :])
            self.values[name] = value
            self.tensors.append(value)
        return value

    def shape(self, name: str) -> tuple[int | None, ...]:
        return self.network.node(name).shape

    def touch(self, parameter: str | None, *refs: Ref | None) -> None:
        """Say which spaces a parameter's axes carry (None: an axis that stays fixed)."""
        if parameter is None:
            return
        shape = self.network.parameters[parameter].shape
        spaces = tuple(
            self.spaces.fresh(n, parameter, HIDDEN) if ref is None else ref
            for n, ref in zip(shape, refs, strict=True)
        )
        if parameter in self.parameters:
            for old, new in zip(self.parameters[parameter], spaces, strict=True):
                self.spaces.unite(old, new, f"parameter {parameter} is used twice")
            return
        self.parameters[parameter] = spaces
        self.tensors.append(spaces)

    def fixed(self, node: Node, reason: str) -> tuple[Ref, ...]:
        return tuple(self.spaces.fresh(size, node.name, reason) for size in node.shape)

    def unknown(self, node: Node) -> tuple[Ref, ...]:
        """Freeze everything that goes in and comes out."""
        operation = node.operation
        kind = operation.name if isinstance(operation, op.Opaque) else operation.kind
        reason = f"{kind} at {node.name}: no rule for how it moves units"
        for name in node.inputs:
            self.spaces.freeze(self.plain(name), reason)
        for name in operation.parameters.values():
            shape = self.network.parameters[name].shape
            self.touch(name, *(self.spaces.fresh(n, name, reason) for n in shape))
        return self.fixed(node, reason)

    def tolerate(self, refs: Sequence[Ref], *kinds: str) -> None:
        """Say which linear maps an operation commutes with."""
        self.spaces.limit(refs, kinds)

    def renewed(self, ref: Ref, name: str) -> Ref:
        """The space behind an operation that permutations pass and linear maps do not (an affine normalization)."""
        if not self.linear:
            return ref
        self.tolerate([ref])
        return self.spaces.fresh(self.spaces.size(ref), name)


Rule = Callable[[State, Node, Any, list[tuple[Ref, ...]]], Value]
RULES: dict[type[op.Operation], Rule] = {}


def rule(*kinds: type[op.Operation]) -> Callable[[Rule], Rule]:
    """Enter a function as the rule of some operations: (state, node, operation, spaces of the inputs) -> spaces."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return enter
