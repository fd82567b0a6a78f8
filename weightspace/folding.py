"""Fold the gains of normalizations into the matrices that read them, so that residual streams may rotate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from weightspace import operations as op
from weightspace.network import Network, Node
from weightspace.symmetry_patterns import root_mean_squares


def fold_gains(network: Network) -> Network:
    r"""Move the gain g of every LayerNorm and RMSNorm over the last axis into the Linear layers behind it.

    $W (g \odot n(x) + c) + b = (W\,\mathrm{diag}(g))\, n(x) + (b + W c)$: the function stays, the normalization
    loses its gain, and the shift c too where every reader has a bias (otherwise c / g stays, if no g is zero). A
    gain between x and the stream breaks every rotation; without it `symmetry(..., continuous=True)` finds the
    orthogonal group. A matrix that other operations use as well (a tied embedding) is copied first. What is read by
    anything but Linear layers keeps its gain.

    Source: Ashkboos et al., SliceGPT (2024), section 3.2, for the absorption; Theus et al., Generalized linear mode
    connectivity for transformers (2025), for its use in matching.

    Examples:
        >>> import torch, weightspace
        >>> module = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        >>> network = weightspace.trace(module, torch.zeros(1, 4))
        >>> list(network.parameters), list(weightspace.fold_gains(network).parameters)
        (['0.weight', '0.bias', '1.weight', '1.bias'], ['0.bias', '1.weight', '1.bias'])
    """
    state = _Folding(network)
    chains = root_mean_squares(network)
    for node in network.nodes:
        match node.operation:
            case op.LayerNorm() | op.RMSNorm() if len(node.operation.normalized_shape) == 1:
                weight = node.operation.weight
                shift = getattr(node.operation, "bias", None)
                readers = state.readers(node.name)
                if weight is not None and readers:
                    gain = network.parameters[weight]
                    kept = state.fold(readers, gain, None if shift is None else network.parameters[shift])
                    if kept is not None:
                        state.nodes[node.name] = replace(node, operation=replace(node.operation, weight=None))
                        if shift is not None:
                            state.set_shift(node, kept)
            case op.Multiply():
                source, gain = _written_gain(network, node, chains)
                readers = state.readers(node.name)
                if (
                    gain is not None
                    and readers
                    and state.fold(readers, network.parameters[gain], None) is not None
                ):
                    state.bypassed[node.name] = source
    return state.network()


class _Folding:
    """The network under change."""

    def __init__(self, network: Network):
        self.before = network
        self.nodes = {node.name: node for node in network.nodes}
        self.parameters = dict(network.parameters)
        self.bypassed: dict[str, str] = {}
        self.uses: dict[str, int] = {}
        for node in network.nodes:
            for name in node.operation.parameters.values():
                self.uses[name] = self.uses.get(name, 0) + 1

    def readers(self, name: str) -> list[Node] | None:
        """The Linear nodes that read a value, through means over other axes; None when anything else does."""
        found: list[Node] = []
        for user in self.before.consumers[name]:
            if _keeps_gain(user, self.before.node(name).shape):
                behind = self.readers(user.name)
                if behind is None:
                    return None
                found += behind
            elif isinstance(user.operation, op.Linear):
                found.append(self.nodes[user.name])
            else:
                return None
        return found if name not in self.before.outputs else None

    def fold(self, readers: list[Node], gain: Tensor, shift: Tensor | None) -> Tensor | None:
        """Scale the columns of the readers; return the shift that stays, or None when nothing was done."""
        operations = [reader.operation for reader in readers]
        takes = all(isinstance(o, op.Linear) and o.bias is not None for o in operations)
        left = gain.new_zeros(gain.shape)
        if shift is not None and not takes:
            if bool((gain == 0).any()):
                return None
            left = shift / gain
        for reader in readers:
            operation = reader.operation
            assert isinstance(operation, op.Linear)
            weight = self.own(reader, "weight")
            matrix = self.parameters[weight]
            if shift is not None and takes:
                bias = self.own(reader, "bias")
                self.parameters[bias] = self.parameters[bias] + operation.matrix(matrix) @ shift
            self.parameters[weight] = matrix * (gain[:, None] if operation.transposed else gain)
        return left

    def own(self, node: Node, role: str) -> str:
        """The name of a parameter that this node alone uses, a copy where it is shared."""
        current = self.nodes[node.name]
        name = current.operation.parameters[role]
        if self.uses[name] > 1:
            copied = f"{name}.{node.name}"
            self.uses[name] -= 1
            self.uses[copied] = 1
            self.parameters[copied] = self.parameters[name]
            self.nodes[node.name] = replace(current, operation=replace(current.operation, **{role: copied}))
            return copied
        return name

    def set_shift(self, node: Node, shift: Tensor) -> None:
        current = self.nodes[node.name]
        self.parameters[self.own(current, "bias")] = shift

    def network(self) -> Network:
        """Build the changed network; parameters that nothing uses any more are dropped."""

        def through(name: str) -> str:
            while name in self.bypassed:
                name = self.bypassed[name]
            return name

        nodes = [
            replace(node, inputs=tuple(through(name) for name in node.inputs))
            for name, node in self.nodes.items()
            if name not in self.bypassed
        ]
        outputs = tuple(through(name) for name in self.before.outputs)
        read = {name for node in nodes for name in node.inputs} | set(outputs)
        nodes = [node for node in nodes if node.name in read or not isinstance(node.operation, op.Parameter)]
        used = {name for node in nodes for name in node.operation.parameters.values()}
        aliases: Mapping[str, str] = {a: n for a, n in self.before.aliases.items() if n in used}
        return replace(
            self.before,
            nodes=tuple(nodes),
            outputs=outputs,
            parameters={name: tensor for name, tensor in self.parameters.items() if name in used},
            buffers=self.before.buffers & used,
            aliases=aliases,
        )


def _keeps_gain(node: Node, shape: tuple[int | None, ...]) -> bool:
    """Whether f(g * x + c) = g * f(x) + c for g and c along the last axis of x."""
    rank = len(shape)
    match node.operation:
        case op.Reshape() | op.Flatten():
            return node.shape[-1] == shape[-1] is not None
        case op.Cast():
            return True
        case op.Reduce(name="mean", axes=axes):
            return bool(axes) and all(axis % rank != rank - 1 for axis in axes)
        case op.Select(axis=axis) | op.Slice(axis=axis):
            return axis % rank != rank - 1
    return False


def _written_gain(network: Network, node: Node, chains: Mapping[str, object]) -> tuple[str, str | None]:
    """Of g * n(x), with n(x) a root mean square written out: the name of n(x) and of the parameter g."""
    for source, factor in (node.inputs, node.inputs[::-1]):
        made = network.node(factor).operation
        inner = source
        while isinstance(network.node(inner).operation, op.Cast):
            inner = network.node(inner).inputs[0]
        gain = made.value if isinstance(made, op.Parameter) else None
        if gain is None or gain in network.buffers or inner not in chains:
            continue
        if network.parameters[gain].shape == (node.shape[-1],):
            return source, gain
    return "", None
