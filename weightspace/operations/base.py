"""What every operation is: an immutable value with attributes, names of parameters and a way to run."""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightspace.errors import ArchitectureError, UnsupportedOperationError

_REGISTRY: dict[str, type[Operation]] = {}


def parameter(*, optional: bool = False) -> Any:
    """Declare a dataclass field that names a parameter of the network rather than holding an attribute."""
    if optional:
        return dataclasses.field(default=None, metadata={"parameter": True})
    return dataclasses.field(metadata={"parameter": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """One step of a network. Subclasses are final frozen dataclasses: `match operation: case Linear(): ...`.

    Fields declared by `parameter()` name tensors of the network (a *role*, as in `Linear.weight`);
    all other fields are attributes: numbers, strings, booleans, None, or tuples of them.
    """

    abstract: ClassVar[bool] = True

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.abstract = abstract
        if not abstract:
            _REGISTRY[cls.__name__] = cls

    @property
    def kind(self) -> str:
        """Name of the operation, the one written into files."""
        return type(self).__name__

    @property
    def parameters(self) -> dict[str, str]:
        """Role -> parameter name, for the roles that are filled."""
        return {
            field.name: name
            for field in dataclasses.fields(self)
            if field.metadata.get("parameter") and (name := getattr(self, field.name)) is not None
        }

    @property
    def attributes(self) -> dict[str, Any]:
        """Attribute -> value, parameters left out."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata.get("parameter")
        }

    @abstractmethod
    def evaluate(self, inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor]) -> Any:
        """Run on tensors; `weights` maps each filled role to its tensor."""

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain JSON values; `operation_from_json` is its inverse."""
        attributes = {name: _spelled(value) for name, value in self.attributes.items()}
        return {"kind": self.kind, "attributes": attributes, "parameters": self.parameters}

    def renamed(self, names: Mapping[str, str]) -> Operation:
        """Return the same operation with its parameters' names replaced (names not listed stay)."""
        return dataclasses.replace(
            self, **{role: names.get(name, name) for role, name in self.parameters.items()}
        )


def operation_from_json(description: Mapping[str, Any]) -> Operation:
    """Build an operation from `Operation.to_json()`.

    Raises:
        ArchitectureError: unknown operation, unknown or missing field.
    """
    kind = description["kind"]
    fields = {**description["attributes"], **description["parameters"]}
    cls = _REGISTRY.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ArchitectureError(
            f"unknown operation {kind!r}; this version knows {', '.join(sorted(_REGISTRY))}"
        )
    try:
        return cls(**{name: _frozen(value) for name, value in fields.items()})
    except TypeError as error:
        raise ArchitectureError(f"operation {kind} is described with wrong fields: {error}") from error


_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _spelled(value: Any) -> Any:
    """JSON has no infinite numbers: they are written as strings."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _frozen(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input(Operation):
    """A network input; its shape and dtype stand on the node."""

    def evaluate(self, inputs, weights):
        raise UnsupportedOperationError("an Input node is fed by the caller, not evaluated")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter(Operation):
    """A parameter used as a value: a learned position, a constant mask, a factor of a product."""

    value: str = parameter()

    def evaluate(self, inputs, weights):
        return weights["value"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item(Operation):
    """One output of an operation that has several."""

    index: int

    def evaluate(self, inputs, weights):
        return inputs[0][self.index]


# Names of operators may come from a file: only functions of their arguments are ever run.
_REFUSED_ATEN = {"from_file", "set_", "set_data", "resize_", "_print", "save", "load"}


def aten_function(target: str) -> Any:
    """Return the ATen operator called `aten.NAME.OVERLOAD`.

    Raises:
        UnsupportedOperationError: no such operator, or one that writes into its arguments or touches files.
    """
    vocabulary, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    if vocabulary != "aten":
        raise UnsupportedOperationError(f"operation {target} is not known and cannot be run")
    function = getattr(getattr(torch.ops.aten, name, None), overload or "default", None)
    if function is None or name in _REFUSED_ATEN or function._schema.is_mutable:
        raise UnsupportedOperationError(f"operation {target} is not a function of its inputs and is not run")
    return function


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opaque(Operation):
    """An operation the library has no rule for, kept by name so that whoever needs to understand it can say so.

    `name` is qualified by its vocabulary: `aten.cumsum.default`, `onnx.NonMaxSuppression`. For `aten` calls,
    `arguments` is the JSON of the keyword arguments, an input tensor being `{"input": i}`, so that a traced
    network still runs; other vocabularies cannot be run.
    """

    name: str
    arguments: str = "{}"

    def evaluate(self, inputs, weights):
        function = aten_function(self.name)
        used: list[Tensor] = []

        def decode(value: Any) -> Any:
            if isinstance(value, dict) and "input" in value:
                used.append(inputs[value["input"]])
                return used[-1]
            if isinstance(value, dict) and "dtype" in value:
                return getattr(torch, value["dtype"])
            return [decode(item) for item in value] if isinstance(value, list) else value

        arguments = {name: decode(value) for name, value in json.loads(self.arguments).items()}
        positional = [
            arguments.pop(argument.name)
            for argument in function._schema.arguments
            if not argument.kwarg_only and argument.name in arguments
        ]
        if not used or arguments.get("device") is not None:
            # Made of nothing but numbers of a file, it could be of any size; readers evaluate such constants.
            raise UnsupportedOperationError(f"operation {self.name} makes its result from no input, and is not run")
        return function(*positional, **arguments)
