"""From an `nn.Module` to a `Network`: the only place that knows `torch.export`."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from weightspace.aten import AtenReader, Call, NotStaticError, Reference, Value, Weight
from weightspace.builder import NetworkBuilder
from weightspace.errors import ArchitectureError, UnsupportedOperationError
from weightspace.network import Network


def trace(module: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> Network:
    """Describe a module as a `Network`, in inference mode, by exporting it.

    The first axis of every input is taken as the batch and left open when the module allows it. Parameters
    are copied. An operation without a rule becomes an `Opaque` node that still runs.

    Args:
        module: any module `torch.export` can export; it is left as it was found.
        example_inputs: one tensor or a sequence of tensors, as the module takes them.
    Returns:
        Network whose `to_module()` computes what the module computes; both are run on the example inputs.
    Raises:
        ArchitectureError: the module branches on its data, changes itself, is random or cannot be exported; the
            message has the reason.

    Examples:
        >>> import torch, weightspace
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> network = weightspace.trace(module, torch.zeros(1, 4))
        >>> [type(node.operation).__name__ for node in network.nodes]
        ['Input', 'Linear', 'ReLU', 'Linear']
        >>> torch.equal(network.to_module()(torch.ones(3, 4)), module(torch.ones(3, 4)))
        True
    """
    if isinstance(module, Network):
        return module
    if not isinstance(module, nn.Module):
        raise ArchitectureError(f"trace needs an nn.Module; got {type(module).__name__}")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs or ())
    if not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise ArchitectureError("trace needs a tensor or a sequence of tensors as example_inputs")
    modes = {child: child.training for child in module.modules()}
    module.eval()
    reasons = []
    try:
        for attempt in (_open_batch, _fixed):
            try:
                network = _network(attempt(module, inputs), module)
                _compare(network, module, inputs)
                return network
            except Exception as error:  # torch.export raises many kinds, some of them bare Exception
                text = str(error).strip()
                reasons.append(text.splitlines()[0] if text else type(error).__name__)
    finally:
        for child, training in modes.items():
            child.training = training
    raise ArchitectureError(
        f"{type(module).__name__} cannot be traced: {reasons[-1]}; its forward must take the example inputs by "
        "position, not branch on data and not change itself; if it does, describe its submodules one by one"
    )


def _compare(network: Network, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Run both on the example inputs: whatever the description lost must show here, not in a later result."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # made an error, a remark on speed would read as a failed comparison
        expected = [
            v for v in tree_leaves(module(*(value.clone() for value in inputs))) if isinstance(v, Tensor)
        ]
        try:
            found = network.to_module()(*(value.detach().cpu().clone() for value in inputs))
        except UnsupportedOperationError:
            return  # operators of other libraries are described, not run
    found = found if isinstance(found, tuple) else (found,)
    inside = [getattr(torch, node.dtype, None) for node in network.nodes]
    floating = [dtype for dtype in inside if isinstance(dtype, torch.dtype) and dtype.is_floating_point]
    coarsest = max((torch.finfo(dtype).eps for dtype in floating), default=0.0)
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        a = a.cpu()
        same = a.shape == b.shape and a.dtype == b.dtype
        if same and a.is_floating_point():
            size = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0
            slack = 1e3 * max(torch.finfo(a.dtype).eps, coarsest)
            same = torch.allclose(a.double(), b.double(), rtol=slack, atol=slack * size, equal_nan=True)
        elif same:
            same = torch.equal(a, b)
        if not same:
            raise ArchitectureError(
                f"output {index} of the description differs from the module's (a write into a shared tensor, or "
                "random numbers)"
            )


def _open_batch(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Export with the first axis of every input free; a single example is doubled, as size 1 cannot stay free."""
    if not any(value.ndim for value in inputs):
        raise NotStaticError("no input has a batch axis")
    wide = tuple(torch.cat([v, v]) if v.ndim > 1 and v.shape[0] == 1 else v for v in inputs)
    dynamic: Any = tuple({0: torch.export.Dim.AUTO} if value.ndim > 1 else None for value in inputs)
    arguments = inspect.signature(module.forward).parameters.values()
    if any(argument.kind == argument.VAR_POSITIONAL for argument in arguments):
        dynamic = (dynamic,)
    return _export(module, wide, dynamic)


def _fixed(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    return _export(module, inputs, None)


def _export(module: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any) -> Any:
    silenced = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # a failed export prints whole graphs
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
        ):
            warnings.simplefilter("ignore")
            return torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)
    finally:
        logging.disable(silenced)


def _network(program: Any, module: nn.Module) -> Network:
    try:
        return _read(program, module)
    except NotStaticError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            functional = program.run_decompositions({})  # removes writes into tensors, keeps whole operators
        return _read(functional, module)


def _read(program: Any, module: nn.Module) -> Network:
    builder = NetworkBuilder()
    reader = AtenReader(builder)
    signature = program.graph_signature
    if signature.buffers_to_mutate:
        name = next(iter(signature.buffers_to_mutate.values()))
        raise ArchitectureError(f"forward writes into buffer {name!r}")
    names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors = {**program.constants, **program.state_dict}
    owners, aliases = _unite_tied(tensors, [*module.state_dict(), *names.values()])
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name in owners:
        builder.parameter(name, tensors[name].detach().cpu().clone(), trained=name in trained)
    outputs: list[str] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in names:
                owned = names[node.name]
                reader.environment[node.name] = Weight(aliases.get(owned, owned))
            elif node.name in signature.inputs_to_lifted_tensor_constants:
                constant = program.constants[signature.inputs_to_lifted_tensor_constants[node.name]]
                reader.environment[node.name] = constant.detach().cpu().clone()
            elif isinstance(node.meta["val"], Tensor):
                value = node.meta["val"]
                shape = [n if isinstance(n, int) else None for n in value.shape]
                reader.environment[node.name] = Value(builder.input(node.name, shape, value.dtype))
        elif node.op == "call_function":
            reader.read(_call(node))
        elif node.op == "output":
            for value in _flat(node.args[0]):
                if value is None:
                    continue
                result = reader.environment[value.name] if isinstance(value, torch.fx.Node) else value
                if not isinstance(result, Value | Weight | Tensor):
                    raise ArchitectureError("the module returns a number or a size; return tensors only")
                outputs.append(reader.node(result))
        else:
            raise ArchitectureError(f"{node.name}: a {node.op} node cannot be described")
    return builder.build(outputs, aliases=aliases)


def _unite_tied(tensors: Mapping[str, Tensor], names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names that own their storage, and alias -> owner for the names that share another's."""
    owners: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name in dict.fromkeys(names):
        tensor = tensors[name]
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else (name,)
        if owners.setdefault(key, name) != name:
            aliases[name] = owners[key]
    return list(owners.values()), aliases


def _call(node: Any) -> Call:
    target = node.target
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    path = path.removeprefix("L['self'].").removeprefix("L['self']")
    value = node.meta.get("val")
    shape = (
        tuple(value.shape)
        if isinstance(value, Tensor) and all(isinstance(n, int) for n in value.shape)
        else None
    )
    dtype = value.dtype if isinstance(value, Tensor) else None
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema.arguments
        arguments = {argument.name: node.args[i] for i, argument in enumerate(schema) if i < len(node.args)}
        arguments |= node.kwargs
        name = f"{target.namespace}.{target._opname}.{target._overloadname}"
    else:
        arguments = {str(i): argument for i, argument in enumerate(node.args)}
        name = f"_operator.{target.__name__}"
    return Call(
        name, {k: _reference(v) for k, v in arguments.items()}, node.name, path or node.name, shape, dtype
    )


def _reference(argument: Any) -> Any:
    if isinstance(argument, torch.fx.Node):
        return Reference(argument.name)
    if isinstance(argument, list | tuple):
        return [_reference(entry) for entry in argument]
    return argument


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for entry in value for leaf in _flat(entry)]
    return [value]
