"""Run a `Network`: the interpreter behind `Network.to_module`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.operations import Input

if TYPE_CHECKING:
    from weightspace.network import Network


class NetworkModule(nn.Module):
    """An `nn.Module` that evaluates a network node by node.

    Its state dict has the parameter names of the network. Tracing it gives an equal network wherever the
    operations it runs are the ones they came from (not for integers that a float factor turned into floats).
    """

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        self._tensors: dict[str, tuple[nn.Module, str]] = {}
        for name, tensor in network.parameters.items():
            self._tensors[name] = self._register(name, tensor.clone(), name not in network.buffers)
        for alias, name in network.aliases.items():
            owner, leaf = self._tensors[name]
            self._place(alias, getattr(owner, leaf))
        self._finished = _finished(network)
        self.eval()

    def _register(self, name: str, tensor: Tensor, trained: bool) -> tuple[nn.Module, str]:
        trained = trained and (tensor.is_floating_point() or tensor.is_complex())
        return self._place(name, nn.Parameter(tensor) if trained else tensor)

    def _place(self, name: str, tensor: Tensor) -> tuple[nn.Module, str]:
        """Put a tensor under its dotted name, creating the modules in between."""
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            part = part if part in owner._modules else _free(owner, part)
            if part not in owner._modules:
                owner.register_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        leaf = _free(owner, leaf)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor)
        return owner, leaf

    def tensor(self, name: str) -> Tensor:
        """Return the module's own tensor for a parameter of the network."""
        owner, leaf = self._tensors[name]
        return getattr(owner, leaf)

    def forward(self, *inputs: Tensor) -> Any:
        """Evaluate; one tensor for one output, a tuple for several."""
        outputs = self.values(*inputs, only=self.network.outputs)
        results = tuple(outputs[name] for name in self.network.outputs)
        return results[0] if len(results) == 1 else results

    def values(self, *inputs: Tensor, only: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return every node's value by name (with `only`, values that are no longer needed are dropped).

        Raises:
            ShapeError: wrong number of inputs.
            UnsupportedOperationError: an opaque operation that cannot be run.
        """
        values = _fed(self.network, inputs)
        for node in self.network.nodes:
            if isinstance(node.operation, Input):
                continue
            weights = {role: self.tensor(name) for role, name in node.operation.parameters.items()}
            values[node.name] = node.operation.evaluate(tuple(values[name] for name in node.inputs), weights)
            if only is not None:
                for name in self._finished.get(node.name, ()):
                    values.pop(name, None)
        return values


def evaluate(
    network: Network,
    inputs: Sequence[Tensor],
    changes: Sequence[Callable[[str, Tensor], Tensor]] = (lambda name, tensor: tensor,),
) -> list[tuple[Tensor, ...]]:
    """Return the outputs of a network, and of others that differ in their parameters, in one pass over the nodes.

    A parameter is looked up when its node runs and let go afterwards, a value after its last use: besides the
    values, the parameters of one node are in memory, where those of the network are mapped from a file or deferred.

    Args:
        changes: from a parameter's name and tensor to the tensor to use, one per network; default the network itself.
    Raises:
        ShapeError: wrong number of inputs.
        UnsupportedOperationError: an opaque operation that cannot be run.
    """
    finished = _finished(network)
    runs = [_fed(network, inputs) for _ in changes]
    with torch.no_grad():
        for node in network.nodes:
            if isinstance(node.operation, Input):
                continue
            given = network.weights(node)
            names = node.operation.parameters
            for values, change in zip(runs, changes, strict=True):
                weights = {role: change(names[role], tensor) for role, tensor in given.items()}
                values[node.name] = node.operation.evaluate(
                    tuple(values[name] for name in node.inputs), weights
                )
                for name in finished.get(node.name, ()):
                    values.pop(name, None)
                del weights
            del given  # before those of the next node are made
    return [tuple(values[name] for name in network.outputs) for values in runs]


def _fed(network: Network, inputs: Sequence[Tensor]) -> dict[str, Any]:
    expected = network.inputs
    if len(inputs) != len(expected):
        raise ShapeError(
            f"the network takes {len(expected)} inputs ({[n.name for n in expected]}); got {len(inputs)}"
        )
    return {node.name: tensor for node, tensor in zip(expected, inputs, strict=True)}


def _finished(network: Network) -> dict[str, list[str]]:
    """Node name -> the values that nothing needs once that node has run."""
    last_use = {name: node.name for node in network.nodes for name in node.inputs}
    finished: dict[str, list[str]] = {}
    for name, user in last_use.items():
        if name not in network.outputs:
            finished.setdefault(user, []).append(name)
    return finished


def _free(owner: nn.Module, name: str) -> str:
    """Return the name, changed where nn.Module uses it itself ("forward", "network") or cannot take it ("")."""
    name = name or "_"
    while hasattr(owner, name):
        name += "_"
    return name
