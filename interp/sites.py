"""The bilinear and gated layers inside a larger network, each as a network of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from interp.constants import constant_values
from weightspace import operations as op
from weightspace.network import Network, Node
from weightspace.reading import as_network

# What acts on every position by itself, along the last axis.
_SCALAR = (op.Activation, op.Power, op.Cast, op.Scale)
_LINEAR = (op.Linear, op.Scale, op.Cast, op.Slice, op.Reshape)
_ARITHMETIC = (op.Add, op.Subtract, op.Multiply, op.Divide)


@dataclass(frozen=True, eq=False)
class BilinearSite:
    r"""A layer $P[g(Wx+b) \odot (Vx+c)] + a$ that acts on the last axis of a value of a larger network.

    Attributes:
        name: of the node that multiplies.
        source, target: of the nodes that hold x and the result.
        gates: the nonlinearities g, such as ("SiLU",); empty for a bilinear layer, which is quadratic.
        network: the layer alone, (n, d) -> (n, o); `interp.decompose` takes it, gated ones with data.
    """

    name: str
    source: str
    target: str
    gates: tuple[str, ...]
    network: Network

    def activations(self, model: Network, *inputs: Tensor) -> Tensor:
        """Run the larger network and return x at all positions, (n, d), as data for `interp.decompose`."""
        with torch.no_grad():
            values = model.to_module().values(*inputs)  # type: ignore[operator]
        return values[self.source].flatten(0, -2)

    def __repr__(self) -> str:
        kind = "+".join(self.gates) or "bilinear"
        sizes = (
            f"{self.network.inputs[0].shape[-1]} -> {self.network.node(self.network.outputs[0]).shape[-1]}"
        )
        return f"BilinearSite({self.name}: {kind}, {sizes}, reads {self.source})"


def find_sites(
    model: nn.Module | Network, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> tuple[BilinearSite, ...]:
    r"""Find the layers of a network that multiply two maps of the same value and then apply a linear map.

    These are $(Wx) \odot (Vx)$, $(Wx)^2$, `nn.Bilinear` and gated units (GLU, SwiGLU, GEGLU, ReGLU) followed by a
    Linear, acting along the last axis, in any traced network. Maps in front of W and V that are linear as well,
    such as the gain of a norm that is a node of its own, belong to the layer.

    Raises:
        ArchitectureError: a module that cannot be traced.

    Examples:
        >>> import interp, torch
        >>> from weightspace.layers import BilinearMLP
        >>> sites = interp.find_sites(BilinearMLP(8, 6, 3, layers=2), torch.zeros(1, 8))
        >>> [site.gates for site in sites]
        [(), ()]
        >>> interp.decompose(sites[0].network).values.shape
        torch.Size([6, 6])
    """
    network = as_network(model, example_inputs)
    constants = constant_values(network)
    moving = {node.name for node in network.nodes} - constants.keys()
    found = (_site(network, node, moving, constants) for node in network.nodes if _multiplies(node, moving))
    return tuple(site for site in found if site)


def _multiplies(node: Node, moving: set[str]) -> bool:
    if node.operation in (op.Power(exponent=2), op.Pointwise(name="square")):
        return node.name in moving
    return isinstance(node.operation, op.Multiply | op.Bilinear) and all(n in moving for n in node.inputs)


def _site(
    network: Network, product: Node, moving: set[str], constants: Mapping[str, Tensor]
) -> BilinearSite | None:
    position = {node.name: index for index, node in enumerate(network.nodes)}
    region = [product]
    needed = {name for name in product.inputs if name in moving}
    source = None
    while True:
        if len(needed) == 1:
            (source,) = needed
        node = network.node(max(needed, key=position.__getitem__))
        users = sum(name in moving for name in node.inputs)
        # Above the first value that both factors come from, only a chain of linear maps is followed.
        chain = users == 1 and isinstance(node.operation, (*_LINEAR, *_ARITHMETIC))
        if not _acts_on_last_axis(network, node, moving) or (source and not chain):
            break
        needed = needed - {node.name} | {name for name in node.inputs if name in moving}
        region.append(node)
    target, linear = _followed(network, product, moving)
    gates = _gates(product, network, moving)
    if source is None or not linear or gates is None:
        return None
    end = position[source]
    inside = [node for node in region if position[node.name] > end] + target
    inside.sort(key=lambda node: position[node.name])
    layer = _cut_out(network, network.node(source), inside, constants)
    return layer and BilinearSite(
        product.name, source, inside[-1].name if target else product.name, gates, layer
    )


def _acts_on_last_axis(network: Network, node: Node, moving: set[str]) -> bool:
    rank = len(node.shape)
    match node.operation:
        case op.Slice(axis=axis):
            return axis % rank == rank - 1
        case op.Reshape():
            before = network.node(node.inputs[0]).shape
            return bool(rank and before) and before[-1] is not None and before[-1] == node.shape[-1]
        case op.Linear() | op.Scale() | op.Activation() | op.Power() | op.Cast() | op.Bilinear():
            return True
        case op.Add() | op.Subtract() | op.Multiply() | op.Divide():
            # A constant must have the shape of one position.
            return all(
                name in moving or all(size == 1 for size in network.node(name).shape[:-1])
                for name in node.inputs
            )
    return False


def _followed(network: Network, product: Node, moving: set[str]) -> tuple[list[Node], bool]:
    """The chain of linear maps after the product, up to the last Linear; and whether there is one."""
    chain, linear = [], 0
    node = product
    if isinstance(product.operation, op.Bilinear):
        return [], True
    while len(users := network.consumers[node.name]) == 1 and node.name not in network.outputs:
        (node,) = users
        one = sum(name in moving for name in node.inputs) == 1
        if not (one and isinstance(node.operation, (*_LINEAR, *_ARITHMETIC))):
            break
        if not _acts_on_last_axis(network, node, moving):
            break
        chain.append(node)
        if isinstance(node.operation, op.Linear):
            linear = len(chain)
    return chain[:linear], bool(linear)


def _gates(product: Node, network: Network, moving: set[str]) -> tuple[str, ...] | None:
    """Names of the nonlinearities in the factors; None where the product is itself part of one, as in x sigmoid(x)."""
    factors = [_scalar_functions(name, network, moving) for name in product.inputs]
    found = [
        node.operation.name if isinstance(node.operation, op.Pointwise) else node.operation.kind
        for factor in factors
        for node in factor
        if isinstance(node.operation, op.Activation)
    ]
    shared = set.intersection(*({node.name for node in factor} for factor in factors))
    return None if found and shared else tuple(found)


def _scalar_functions(name: str, network: Network, moving: set[str]) -> list[Node]:
    """The nodes from which `name` is made entry by entry, itself and where that begins included."""
    node, *open_nodes = [network.node(name)]
    found = []
    while True:
        found.append(node)
        if isinstance(node.operation, (*_SCALAR, *_ARITHMETIC)):
            open_nodes += [network.node(source) for source in node.inputs if source in moving]
        if not open_nodes:
            return found
        node = open_nodes.pop()


def _cut_out(
    network: Network, source: Node, inside: list[Node], constants: Mapping[str, Tensor]
) -> Network | None:
    """The nodes as a network whose batch is all positions; None if another value of the input enters."""
    width = source.shape[-1]
    dtype = source.dtype
    nodes = [Node(source.name, op.Input(), (), (None, width), dtype)]
    names = {source.name: source.name}
    parameters: dict[str, Tensor] = {}
    for node in inside:
        for name in node.inputs:
            if name in names:
                continue
            if name not in constants:
                return None
            _add_constant(network.node(name), constants[name], nodes, parameters)
            names[name] = name
        operation = node.operation
        if isinstance(operation, op.Reshape):
            names[node.name] = names[node.inputs[0]]
            continue
        if isinstance(operation, op.Slice):
            operation = replace(operation, axis=1)
        parameters.update({name: network.parameters[name] for name in operation.parameters.values()})
        inputs = tuple(names[name] for name in node.inputs)
        nodes.append(Node(node.name, operation, inputs, (None, node.shape[-1]), node.dtype))
        names[node.name] = node.name
    buffers = network.buffers & parameters.keys()
    return Network(tuple(nodes), (names[inside[-1].name],), parameters, frozenset(buffers))


def _add_constant(node: Node, value: Tensor, nodes: list[Node], parameters: dict[str, Tensor]) -> None:
    """Add a node that holds a value made from parameters alone, as one row."""
    parameters[node.name] = value.detach().reshape(value.shape[-1:])
    nodes.append(Node(node.name, op.Parameter(value=node.name), (), tuple(value.shape[-1:]), node.dtype))
