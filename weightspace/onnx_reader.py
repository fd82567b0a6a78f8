"""From the nodes of an ONNX graph to typed operations: what the rules in `onnx_rules` work with.

Three kinds of values are told apart: `Known` arrays, which the file itself fixes (weights and everything
computed from them); `Sizes`, small integer arrays computed from the batch size; and `Value`s, computed from
the
network's input. Nodes on the first two are evaluated right here, by the reference evaluator of the onnx
package.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from weightspace.aten import NotStaticError, Value
from weightspace.builder import BATCHES, NetworkBuilder
from weightspace.errors import ArchitectureError
from weightspace.onnx_folding import LARGEST_SIZES, fold
from weightspace.onnx_values import DTYPES, Known, NotConstantError, OnnxCall, Sizes, to_tensor
from weightspace.operations import Expand, Linear, Opaque, Operation

_INLINE = 64  # constants up to this size are written into the description of an opaque operation


class OnnxReader:
    """Feeds the nodes of a graph to a `NetworkBuilder`, keeping track of what each name stands for."""

    def __init__(self, builder: NetworkBuilder, opset: int, domains: Mapping[str, int]):
        self.builder = builder
        self.opset = opset
        self.domains = dict(domains)
        self.environment: dict[str, Any] = {}
        self.stated: dict[str, Any] = {}  # types the file states for names, as TypeProto
        self.notes: dict[str, str] = {}
        self.label = ""
        self.unshaped: set[str] = set()  # nodes of unknown shape, and what is computed from them
        self.call = OnnxCall("", (), {}, (), (), None)
        self._registered: dict[tuple[str, tuple[int, ...]], str] = {}

    # ---- what the rules use ------------------------------------------------------------------------------

    def add(self, operation: Operation, *inputs: Any) -> Value:
        """Add the operation that makes the node's result; it takes the name of the result."""
        return Value(self.builder.add(operation, *[self.node(value) for value in inputs], name=self.label))

    def step(self, operation: Operation, *inputs: Any) -> Value:
        """Add an operation on the way to the result."""
        nodes = [self.node(value) for value in inputs]
        return Value(self.builder.add(operation, *nodes, name=f"{self.label}.{operation.kind.lower()}"))

    def node(self, value: Any) -> str:
        """Return the node that yields a value; a known array becomes a parameter."""
        if isinstance(value, Value):
            return value.node
        if isinstance(value, Known):
            return self.builder.value(self.weight(value, trained=value.trained))
        if isinstance(value, Sizes):
            raise NotStaticError(f"{self.label}: the batch size is used as data")
        raise NotConstantError

    def weight(self, value: Any, shape: Sequence[int] | None = None, *, trained: bool = True) -> str:
        """Return the parameter that holds a known array, brought to `shape`."""
        if not isinstance(value, Known):
            raise NotConstantError
        array = value.array if shape is None else np.broadcast_to(value.array, shape)
        key = (value.name, tuple(array.shape))
        if key not in self._registered:
            tensor = to_tensor(array, value.name)
            name, count = value.name, 0
            while name in self.builder.parameters:
                count += 1
                name = f"{value.name}_{count}"
            trained = trained and tensor.is_floating_point()
            self._registered[key] = self.builder.parameter(name, tensor, trained=trained)
        return self._registered[key]

    def optional(self, value: Any, shape: Sequence[int] | None = None) -> str | None:
        """Return the parameter that holds a known array, None for an input left out."""
        return None if value is None else self.weight(value, shape)

    def linear(self, x: Any, weight: Known, bias: Known | None = None, *, transposed: bool) -> Value:
        """Add x W + b for a weight stored (in, out) when `transposed`, otherwise (out, in)."""
        if weight.transposed_of is not None:
            weight, transposed = weight.transposed_of, not transposed
        name = self.weight(weight)
        if bias is None:
            return self.add(Linear(weight=name, transposed=transposed), x)
        return self.add(Linear(weight=name, bias=self.weight(bias), transposed=transposed), x)

    def derived(self, value: Known, array: np.ndarray, how: str) -> Known:
        """Return an array computed from a known one, under a name that says so."""
        return Known(array, f"{value.name}.{how}", value.trained)

    def shape(self, value: Any) -> tuple[int | None, ...]:
        """Return the shape of a value; None follows the batch."""
        first, second = self.sizes(value)
        return tuple(a if a == b else None for a, b in zip(first, second, strict=True))

    def sizes(self, value: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape of a value at both batch sizes."""
        if isinstance(value, Known):
            return tuple(value.array.shape), tuple(value.array.shape)
        if isinstance(value, Sizes):
            return tuple(value.arrays[0].shape), tuple(value.arrays[1].shape)
        first, second = self.builder.meta[self.node(value)]
        return tuple(first.shape), tuple(second.shape)

    def static(self, value: Any, axis: int) -> int:
        """Return the size of an axis that does not follow the batch."""
        size = self.shape(value)[axis]
        if size is None:
            raise NotStaticError(
                f"{self.label}: axis {axis} of its input follows the batch and must be fixed"
            )
        return size

    def axis(self, value: Any, axis: int, extra: int = 0) -> int:
        """Return an axis counted from the front."""
        rank = len(self.shape(value)) + extra
        if not -rank <= axis < rank:
            raise ArchitectureError(f"axis {axis} does not exist in an input of {rank} axes")
        return axis % rank

    def dtype(self, value: Any) -> torch.dtype:
        """Return the dtype of a value."""
        if isinstance(value, Known):
            return to_tensor(value.array.reshape(-1)[:1], value.name).dtype
        return self.builder.meta[self.node(value)][0].dtype

    def integers(self, value: Any) -> tuple[int, ...]:
        """Return the numbers of a constant list of integers."""
        if isinstance(value, Sizes):
            raise NotStaticError(f"{self.label}: {self.call.kind} takes a number that follows the batch")
        if isinstance(value, list | tuple):
            return tuple(int(n) for n in value)
        if not isinstance(value, Known):
            raise NotConstantError
        if value.array.dtype.kind not in "iub":
            raise ArchitectureError(f"integers are needed, not an array of {value.array.dtype}")
        return tuple(int(n) for n in value.array.reshape(-1))

    def pairs(self, value: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the numbers of a list of integers at both batch sizes."""
        if isinstance(value, Sizes):
            first, second = (tuple(int(n) for n in array.reshape(-1)) for array in value.arrays)
            return first, second
        return self.integers(value), self.integers(value)

    def scalar(self, value: Any) -> float | int | None:
        """Return the number in a known array of one element, None for anything else."""
        if isinstance(value, Known) and value.array.size == 1 and value.array.dtype.kind in "fiuV":
            number = to_tensor(value.array.reshape(()), value.name).item()
            return number if isinstance(number, int | float) else None
        return None

    def expand(self, value: Any, first: Sequence[int], second: Sequence[int]) -> Any:
        """Broadcast a value to a shape given at both batch sizes."""
        own = self.sizes(value)
        shapes = tuple(
            np.broadcast_shapes(have, wanted) for have, wanted in zip(own, (first, second), strict=True)
        )
        if shapes == own:
            return value
        missing = len(shapes[0]) - len(own[0])
        sizes: list[int] = []
        moving = []
        for axis, (a, b) in enumerate(zip(*shapes, strict=True)):
            kept = axis >= missing and (own[0][axis - missing], own[1][axis - missing]) == (a, b)
            sizes.append(-1 if kept or a != b else a)
            if not kept and a != b:
                moving.append(axis)
        if not moving:
            return self.add(Expand(shape=tuple(sizes)), value)
        if len(moving) > 1 or (shapes[0][moving[0]], shapes[1][moving[0]]) != BATCHES:
            raise NotStaticError(f"{self.label}: an expansion to {shapes[0]} cannot follow the batch")
        return self.add(Expand(shape=tuple(sizes), batch_axis=moving[0]), value, self._batch_source())

    def _batch_source(self) -> Value:
        for node in self.builder.nodes.values():
            if node.operation.kind == "Input" and node.shape and node.shape[0] is None:
                return Value(node.name)
        raise NotStaticError(f"{self.label}: no input carries the batch size")

    # ---- reading -----------------------------------------------------------------------------------------

    def read(self, call: OnnxCall) -> None:
        """Translate one node and bind its outputs."""
        self.call = call
        self.label = call.outputs[call.wanted[0]] if call.wanted else (call.outputs or (call.kind,))[0]
        vague = [v.node for v in call.inputs if isinstance(v, Value) and v.node in self.unshaped]
        try:
            results = self._results(call)
        except ArchitectureError as error:
            if vague:
                raise ArchitectureError(
                    f"{call.kind} {self.label!r}: the shape of {vague[0]!r} is unknown, as its operator is; "
                    "state it in the file (value_info)"
                ) from error
            if isinstance(error, NotStaticError):
                raise
            raise ArchitectureError(f"{call.kind} {self.label!r}: {error}") from error
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError, ArithmeticError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ArchitectureError(f"{call.kind} {self.label!r} is malformed: {reason}") from error
        for name, result in zip(call.outputs, results, strict=False):
            if name and result is not None:
                self.environment[name] = result
                if vague and isinstance(result, Value):
                    self.unshaped.add(result.node)

    def _results(self, call: OnnxCall) -> Sequence[Any]:
        from weightspace.onnx_rules import RULES

        if not call.proto.domain:
            folded = fold(call, self.domains)
            if folded is not None:
                return folded
            rule = RULES.get(call.kind)
            if rule is not None:
                try:
                    bound = inspect.signature(rule).bind(self, *call.inputs, **call.attributes)
                except TypeError:
                    return self._opaque(call)
                try:
                    result = rule(*bound.args, **bound.kwargs)
                except NotConstantError:
                    result = NotImplemented
                results = result if isinstance(result, list) else [result]
                if result is not NotImplemented and all(position < len(results) for position in call.wanted):
                    return results
        return self._opaque(call)

    # ---- operations without a rule -----------------------------------------------------------------------

    def _opaque(self, call: OnnxCall) -> Sequence[Value]:
        inputs: list[str] = []
        arguments: dict[str, Any] = {
            name: value
            for name, value in call.attributes.items()
            if isinstance(value, int | float | str | list)
        }
        for position, value in enumerate(call.inputs):
            if value is None:
                continue
            if isinstance(value, Known) and (value.array.size <= _INLINE or value.array.dtype.kind in "OSU"):
                arguments[f"input_{position}"] = (
                    value.array.tolist() if value.array.size <= _INLINE else "text"
                )
            else:
                arguments[f"input_{position}"] = {"input": len(inputs)}
                inputs.append(self.node(value))
        domain = f"{call.proto.domain}." if call.proto.domain else ""
        operation = Opaque(name=f"onnx.{domain}{call.kind}", arguments=json.dumps(arguments, default=str))
        stated = self._stated_types(call)
        results = []
        for name in call.outputs:
            shape, dtype = stated.get(name, (None, torch.float32))
            node = self.builder.opaque(operation, inputs, shape or (), dtype, name or self.label)
            results.append(Value(node))
            if name and shape is None:
                self.notes[f"shape of {name!r}"] = "unknown; written as ()"
                self.unshaped.add(node)
        return results

    def _stated_types(self, call: OnnxCall) -> dict[str, tuple[tuple[int | None, ...] | None, torch.dtype]]:
        """Return output name -> (shape, dtype): inferred at both batch sizes, else what the file states."""
        both = [self._inferred(call, which) for which in range(2)]
        result = {}
        for name in call.outputs:
            first, second = (types.get(name) or self.stated.get(name) for types in both)
            if first is None or second is None or not first.HasField("tensor_type"):
                continue
            shapes = [
                [d.dim_value if d.HasField("dim_value") else None for d in proto.tensor_type.shape.dim]
                if proto.tensor_type.HasField("shape")
                else None
                for proto in (first, second)
            ]
            shape = None
            if shapes[0] is not None and shapes[1] is not None:
                pairs = list(zip(shapes[0], shapes[1], strict=True))
                if all(n is not None or axis == 0 for axis, (n, _) in enumerate(pairs)):
                    shape = tuple(a if a == b else None for a, b in pairs)
            result[name] = (shape, DTYPES.get(first.tensor_type.elem_type, torch.float32))
        return result

    def _inferred(self, call: OnnxCall, which: int) -> dict[str, Any]:
        import onnx

        types, data = {}, {}
        numbers = {dtype: number for number, dtype in DTYPES.items()}
        for name, value in zip(call.proto.input, call.inputs, strict=False):
            if isinstance(value, Value):
                meta = self.builder.meta[value.node][which]
                types[name] = onnx.helper.make_tensor_type_proto(numbers[meta.dtype], list(meta.shape))
            elif isinstance(value, Known | Sizes):
                array = value.array if isinstance(value, Known) else value.arrays[which]
                number = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                types[name] = onnx.helper.make_tensor_type_proto(number, list(array.shape))
                if array.size <= LARGEST_SIZES:
                    data[name] = onnx.numpy_helper.from_array(array, name)
        domain = call.proto.domain
        try:
            schema = onnx.defs.get_schema(call.kind, self.domains.get(domain, 1), domain)
            opsets = [onnx.helper.make_opsetid(*entry) for entry in self.domains.items()]
            return onnx.shape_inference.infer_node_outputs(
                schema, call.proto, types, data, opset_imports=opsets
            )
        except Exception:  # no schema (custom domain), or inference gave up: the file's own statement counts
            return {}
