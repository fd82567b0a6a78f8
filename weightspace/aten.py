"""From calls of ATen operators to typed operations: shared by the tracer and the `.pt2` reader.

Both hand over a flat list of `Call`s with keyword arguments by the operators' schema names; rules for single
operators stand in `aten_rules.py`. What has no rule becomes an `Opaque` node that can still be run.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weightspace.builder import BATCHES, NetworkBuilder, item
from weightspace.errors import ArchitectureError
from weightspace.operations import Expand, Opaque, Permute
from weightspace.operations.base import aten_function


@dataclass(frozen=True)
class Reference:
    """The name of an earlier value, inside a call's arguments."""

    name: str


@dataclass(frozen=True)
class Call:
    """One operator call: `target` such as `aten.linear.default`, arguments by schema name, name of its output."""

    target: str
    arguments: Mapping[str, Any]
    output: str
    label: str
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Value:
    """A tensor made by a node of the network."""

    node: str


@dataclass(frozen=True)
class Weight:
    """A parameter of the network, not yet used; `transposed` when the program used its transpose."""

    name: str
    transposed: bool = False


@dataclass(frozen=True)
class Symbol:
    """An integer that follows the batch, by its values at the two sizes of `builder.BATCHES`."""

    sizes: tuple[int, int]


class NotStaticError(ArchitectureError):
    """A symbolic size or a mutation that the calls cannot express; tracing again in another way may help."""


_INTEGER_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "neg": operator.neg,
}
_CREATORS = {
    prefix + name + suffix: fill
    for name, fill in (("zeros", 0), ("ones", 1), ("full", None))
    for prefix, suffix in (("", ""), ("new_", ""), ("", "_like"))
}
_LARGEST_CONSTANT = 2**28  # elements; as in onnx_folding
_NO_VALUE = ("_assert", "sym_constrain_range", "_assert_async", "assert_")


class AtenReader:
    """Feeds calls to a `NetworkBuilder`, keeping track of what each name stands for."""

    def __init__(self, builder: NetworkBuilder):
        self.builder = builder
        self.environment: dict[str, Any] = {}
        self.label = ""
        self._aliased: set[str] = set()

    # ---- what the rules use ------------------------------------------------------------------------------

    def add(self, operation: Any, *inputs: Any) -> Value:
        """Add an operation on values, weights or constants."""
        nodes = [self.node(value) for value in inputs]
        name = (
            self.label if self.label not in self.builder.nodes else f"{self.label}.{operation.kind.lower()}"
        )
        return Value(self.builder.add(operation, *nodes, name=name))

    def node(self, value: Any) -> str:
        """Return the node that yields a value, a weight or a constant."""
        if isinstance(value, Value):
            return value.node
        if isinstance(value, Weight):
            node = self.builder.value(value.name)
            return self.builder.add(Permute(axes=(1, 0)), node) if value.transposed else node
        if isinstance(value, Tensor):
            return self.builder.constant(value)
        if isinstance(value, bool | int | float):
            return self.builder.constant(torch.tensor(value))
        raise ArchitectureError(f"{self.label}: a tensor is needed, not {value!r}")

    def weight(self, value: Any) -> str | None:
        """Return the parameter a value is, or None when it is computed; constants become buffers."""
        if value is None:
            return None
        if isinstance(value, Tensor):
            return self.builder.nodes[self.builder.constant(value)].operation.parameters["value"]
        return value.name if isinstance(value, Weight) and not value.transposed else None

    def shape(self, value: Any) -> tuple[Any, ...]:
        """Return the shape of a value; sizes that follow the batch are `Symbol`s."""
        if isinstance(value, Tensor):
            return tuple(value.shape)
        if isinstance(value, Weight):
            shape = tuple(self.builder.parameters[value.name].shape)
            return shape[::-1] if value.transposed else shape
        first, second = (meta.shape for meta in self.builder.meta[self.node(value)])
        return tuple(a if a == b else Symbol((a, b)) for a, b in zip(first, second, strict=True))

    def axis(self, value: Any, axis: int, extra: int = 0) -> int:
        """Return an axis counted from the front."""
        return axis % (len(self.shape(value)) + extra)

    def dtype(self, value: Any) -> torch.dtype:
        """Return the dtype of a value."""
        if isinstance(value, Tensor):
            return value.dtype
        if isinstance(value, Weight):
            return self.builder.parameters[value.name].dtype
        return self.builder.meta[self.node(value)][0].dtype

    def made_by(self, value: Any) -> Any:
        """Return the node of a computed value, None for weights and constants."""
        return self.builder.nodes[value.node] if isinstance(value, Value) else None

    # ---- reading -----------------------------------------------------------------------------------------

    def resolve(self, argument: Any) -> Any:
        """Replace references inside an argument by what they stand for."""
        if isinstance(argument, Reference):
            return self.environment[argument.name]
        if isinstance(argument, list | tuple):
            return [self.resolve(entry) for entry in argument]
        return argument

    def read(self, call: Call) -> None:
        """Translate one call and bind its output."""
        arguments = {name: self.resolve(value) for name, value in call.arguments.items()}
        self.label = call.label or call.output
        namespace, _, rest = call.target.partition(".")
        name = rest.partition(".")[0]
        if name.startswith(_NO_VALUE):
            return
        if namespace in ("_operator", "math", "builtins") or name.startswith("sym_"):
            self.environment[call.output] = self._integer(name, list(arguments.values()))
            return
        if name.endswith("_") and not name.endswith("__"):
            mutated = next(iter(call.arguments.values()))
            self._require_private(call, mutated)
            overload = rest.partition(".")[2]
            call = replace(call, target=f"{namespace}.{name[:-1]}.{overload}")
            self.environment[call.output] = self._tensor(call, namespace, name[:-1], arguments)
            self.environment[mutated.name] = self.environment[call.output]
            return
        if namespace == "aten" and _may_alias(call.target):
            references = [leaf.name for leaf in _leaves(dict(call.arguments)) if isinstance(leaf, Reference)]
            self._aliased.update([call.output, *references])
        self.environment[call.output] = self._tensor(call, namespace, name, arguments)

    def item(self, name: str, index: int) -> Any:
        """Return one output of the value bound to `name`."""
        return self._integer("getitem", [self.environment[name], index])

    def _require_private(self, call: Call, mutated: Any) -> None:
        """Refuse a write into a tensor that another name may also see: here names stand for values."""
        if not isinstance(mutated, Reference):
            raise NotStaticError(f"{call.label}: {call.target} writes into a tensor that has no name")
        value = self.environment[mutated.name]
        if isinstance(value, Weight):
            raise ArchitectureError(
                f"{call.label}: {call.target} writes into {value.name!r}; a network that changes itself while it "
                "runs cannot be described"
            )
        shared = sum(other is value for other in self.environment.values()) > 1
        if shared or mutated.name in self._aliased:
            raise NotStaticError(f"{call.label}: {call.target} writes into a tensor that other names share")

    def _integer(self, name: str, values: list[Any]) -> Any:
        if name == "getitem":
            container, index = values
            if isinstance(container, Value):
                return Value(item(self.builder, container.node, index))
            return container[index]
        if name == "sym_size":
            return self.shape(values[0])[values[1]]
        function = _INTEGER_FUNCTIONS.get(name)
        if function is None:
            raise NotStaticError(f"{self.label}: arithmetic {name!r} on sizes that follow the batch")
        sizes = tuple(
            function(*(v.sizes[which] if isinstance(v, Symbol) else v for v in values))
            for which in range(len(BATCHES))
        )
        return sizes[0] if sizes[0] == sizes[1] else Symbol((sizes[0], sizes[1]))

    def _tensor(self, call: Call, namespace: str, name: str, arguments: dict[str, Any]) -> Any:
        from weightspace.aten_rules import RULES

        if name in _CREATORS:
            return self._filled(name, arguments)
        leaves = list(_leaves(arguments))
        if namespace == "aten" and not any(isinstance(leaf, Value | Weight | Symbol) for leaf in leaves):
            return _fold(call.target, arguments)
        rule = RULES.get(name) if namespace in ("aten", "weightspace") else None
        result = rule(self, **arguments) if rule is not None else NotImplemented
        return self._opaque(call, namespace, arguments) if result is NotImplemented else result

    def _filled(self, name: str, arguments: dict[str, Any]) -> Value | Tensor:
        """A constant tensor of one number."""
        like = arguments.get("self")
        size = arguments["size"] if "size" in arguments else list(self.shape(like))
        fill = arguments["fill_value"] if _CREATORS[name] is None else _CREATORS[name]
        dtype = arguments.get("dtype") or (None if like is None else self.dtype(like))
        if dtype is None and _CREATORS[name] is not None:
            dtype = torch.get_default_dtype()
        return self.filled(size, fill, dtype)

    def filled(self, size: Sequence[Any], fill: Any, dtype: torch.dtype | None) -> Value | Tensor:
        """Return a tensor of one number; as large as the batch it is expanded, the size taken from an input."""
        moving = [axis for axis, n in enumerate(size) if isinstance(n, Symbol)]
        if not moving:
            _require_moderate(self.label, size)
            return torch.full(list(size), fill, dtype=dtype)
        if len(moving) != 1 or size[moving[0]].sizes != BATCHES:
            raise NotStaticError(f"{self.label}: a tensor of shape {size} cannot follow the batch")
        scalar = torch.full([1] * len(size), fill, dtype=dtype)
        shape = tuple(-1 if isinstance(n, Symbol) or n == 1 else n for n in size)
        return self.add(Expand(shape=shape, batch_axis=moving[0]), scalar, self.batch_source())

    def batch_source(self) -> Value:
        """Return an input whose axis 0 is the batch."""
        for name, node in self.builder.nodes.items():
            if node.operation.kind == "Input" and node.shape and node.shape[0] is None:
                return Value(name)
        raise NotStaticError(f"{self.label}: no input carries the batch size")

    def _opaque(self, call: Call, namespace: str, arguments: dict[str, Any]) -> Any:
        inputs: list[Any] = []

        def encode(value: Any) -> Any:
            if isinstance(value, Value | Weight | Tensor):
                inputs.append(value)
                return {"input": len(inputs) - 1}
            if isinstance(value, list):
                return [encode(entry) for entry in value]
            if isinstance(value, torch.dtype):
                return {"dtype": str(value).removeprefix("torch.")}
            if isinstance(value, Symbol):
                raise NotStaticError(f"{self.label}: {call.target} takes a size that follows the batch")
            return value if value is None or isinstance(value, bool | int | float | str) else None

        text = json.dumps({name: encode(value) for name, value in arguments.items()})
        operation = Opaque(name=call.target, arguments=text)
        if namespace == "aten":
            return self.add(operation, *inputs)
        if call.shape is None or call.dtype is None:
            raise ArchitectureError(f"{self.label}: nothing is known about the result of {call.target}")
        nodes = [self.node(value) for value in inputs]
        return Value(self.builder.opaque(operation, nodes, call.shape, call.dtype, self.label))


def _leaves(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for entry in value for leaf in _leaves(entry)]
    return [value]


def _may_alias(target: str) -> bool:
    """Whether the operator's result may share storage with an argument, by its schema (views, reshape, ...)."""
    return any(argument.alias_info is not None for argument in aten_function(target)._schema.arguments) or (
        target.split(".")[1] in ("reshape", "flatten", "contiguous", "dropout", "to", "type_as", "expand_as")
    )


def _fold(target: str, arguments: dict[str, Any]) -> Any:
    """Evaluate a call that depends on no input and no parameter."""
    function = aten_function(target)
    if torch.Tag.nondeterministic_seeded in function.tags:
        raise ArchitectureError(
            f"{target} draws random numbers; a network that is not a function cannot be described"
        )
    known = {argument.name: argument for argument in function._schema.arguments}
    if "device" in known:
        arguments = {**arguments, "device": torch.device("cpu")}

    def run(convert: Callable[[Any], Any]) -> list[Any]:
        given = {n: convert(arguments[n]) for n in known if n in arguments}
        positional = [given[n] for n, a in known.items() if not a.kwarg_only and n in given]
        result = function(*positional, **{n: given[n] for n, a in known.items() if a.kwarg_only and n in given})
        return list(result) if isinstance(result, tuple | list) else [result]

    try:  # first without memory: a few numbers of a file can ask for all there is
        shapes = [one.shape for one in run(_without_data) if isinstance(one, Tensor)]
    except (RuntimeError, NotImplementedError) as error:  # no rule for shapes: they depend on the numbers
        if target.split(".")[1] in ("repeat_interleave", "bincount"):
            raise ArchitectureError(f"{target} makes a constant of a size that only running it tells") from error
        shapes = []
    for shape in shapes:
        _require_moderate(target, shape)
    results = run(lambda argument: argument)
    return results if len(function._schema.returns) != 1 or _is_list(function) else results[0]


def _is_list(function: Any) -> bool:
    return str(function._schema.returns[0].type).startswith("List")


def _without_data(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.to("meta")
    if isinstance(argument, torch.device):
        return torch.device("meta")
    return [_without_data(entry) for entry in argument] if isinstance(argument, list) else argument


def _require_moderate(place: str, shape: Sequence[Any]) -> None:
    """Refuse constants beyond reason.

    Raises:
        ArchitectureError: more than `_LARGEST_CONSTANT` elements.
    """
    if all(isinstance(n, int) for n in shape) and math.prod(shape) > _LARGEST_CONSTANT:
        raise ArchitectureError(
            f"{place} would create a constant of shape {tuple(shape)}, more than {_LARGEST_CONSTANT} elements"
        )
