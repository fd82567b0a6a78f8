"""Norms with their scale frozen at its value on data, which makes them affine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from weightspace import operations as op
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network, Node
from weightspace.reading import as_network


@dataclass(frozen=True, eq=False, repr=False)
class FrozenNorms:
    r"""A network that is not the one given, but near it on the data.

    Attributes:
        network: with every LayerNorm and RMSNorm an affine map.
        scales: $\bar\sigma$ of each, by node.
        spread: standard deviation of $\sigma / \bar\sigma$ over the data, by node: what was frozen was not constant.
        residual: $E|y - \hat y|^2 / E|y - \bar y|^2$ on the data, y the outputs of the network given.
    """

    network: Network
    scales: Mapping[str, float]
    spread: Mapping[str, float]
    residual: float

    def __repr__(self) -> str:
        return f"FrozenNorms({len(self.scales)} norms, leaves out {self.residual:.2g} of the variance)"


def freeze_norms(
    model: nn.Module | Network, data: Tensor, *, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> FrozenNorms:
    r"""Replace $g \odot (x - \bar x) / \sigma(x) + \beta$ by the same with $\bar\sigma$, the root mean square of
    $\sigma$ on the data; centering is linear.

    Args:
        data: the network's input, (n, ...).
    Raises:
        UnsupportedOperationError: no norm, or one over several axes or groups, named.

    Examples:
        >>> import interp, torch
        >>> model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        >>> frozen = interp.freeze_norms(model, torch.randn(100, 4))
        >>> frozen.residual < 1
        True
    """
    network = as_network(model, data[:2] if example_inputs is None else example_inputs)
    with torch.no_grad():
        values = network.to_module().values(data)  # type: ignore[operator]
        nodes, parameters = [], dict(network.parameters)
        scales: dict[str, float] = {}
        spread: dict[str, float] = {}
        for node in network.nodes:
            if isinstance(node.operation, op.GroupNorm):
                raise UnsupportedOperationError(
                    f"GroupNorm at {node.name!r} cannot be frozen; LayerNorm and RMSNorm can"
                )
            if not isinstance(node.operation, op.LayerNorm | op.RMSNorm):
                nodes.append(node)
                continue
            sigma = _sigma(node, values[node.inputs[0]].double())
            scale = float(sigma.square().mean().sqrt())
            scales[node.name], spread[node.name] = scale, float((sigma / scale).std())
            frozen, tensors = _affine(node, network.weights(node), scale)
            nodes.append(frozen)
            parameters.update(tensors)
        if not scales:
            raise UnsupportedOperationError("the network has no LayerNorm or RMSNorm to freeze")
        result = replace(network, nodes=tuple(nodes), parameters=parameters)
        expected = values[network.outputs[0]].double()
        error = result.to_module()(data).double() - expected
    variance = float((expected - expected.mean(0)).square().sum())
    return FrozenNorms(result, scales, spread, float(error.square().sum()) / variance if variance else 0.0)


def _sigma(node: Node, x: Tensor) -> Tensor:
    operation = node.operation
    assert isinstance(operation, op.LayerNorm | op.RMSNorm)
    if len(operation.normalized_shape) != 1:
        raise UnsupportedOperationError(
            f"{operation.kind} at {node.name!r} normalizes over {len(operation.normalized_shape)} axes; "
            "freeze_norms takes the last axis alone"
        )
    centered = x - x.mean(-1, keepdim=True) if isinstance(operation, op.LayerNorm) else x
    epsilon = torch.finfo(x.dtype).eps if operation.epsilon is None else operation.epsilon
    return (centered.square().mean(-1) + epsilon).sqrt()


def _affine(node: Node, weights: Mapping[str, Tensor], scale: float) -> tuple[Node, dict[str, Tensor]]:
    """The norm as a Linear operation, and its parameters."""
    size = node.shape[-1]
    assert size is not None
    dtype = getattr(torch, node.dtype)
    matrix = torch.eye(size, dtype=torch.float64)
    if isinstance(node.operation, op.LayerNorm):
        matrix -= 1.0 / size
    if "weight" in weights:
        matrix = weights["weight"].double()[:, None] * matrix
    weight, bias = f"{node.name}.frozen", f"{node.name}.frozen_bias" if "bias" in weights else None
    tensors = {weight: (matrix / scale).to(dtype)}
    if bias:
        tensors[bias] = weights["bias"].to(dtype)
    return replace(node, operation=op.Linear(weight=weight, bias=bias)), tensors
