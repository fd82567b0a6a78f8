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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.aten import NotStaticError, Value
from weightspace.builder import BATCHES, NetworkBuilder
from weightspace.errors import ArchitectureError, UnsupportedOperationError
from weightspace.operations import Expand, Linear, Opaque, Operation

_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
_LARGEST_FOLDED = 2**28  # elements; a few bytes of a hostile file must not ask for the whole memory
_LARGEST_SIZES = 1024
_INLINE = 64  # constants up to this size are written into the description of an opaque operation


class NotConstantError(Exception):
    """A rule needs a constant where the graph computes a value; the operation becomes opaque."""


@dataclass(frozen=True, eq=False)
class Known:
    """An array that depends on no input. `transposed_of` is the weight it is the transpose of, if any."""

    array: np.ndarray
    name: str
    trained: bool = False
    transposed_of: Known | None = None


@dataclass(frozen=True, eq=False)
class Sizes:
    """An array computed from the batch size: its values at the two sizes of `builder.BATCHES`."""

    arrays: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class OnnxCall:
    """One node of the graph; `wanted` are the positions of the outputs that something uses."""

    kind: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]
    wanted: tuple[int, ...]
    proto: Any


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
            folded = self._fold(call)
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

    # ---- constants ---------------------------------------------------------------------------------------

    def _fold(self, call: OnnxCall) -> Sequence[Any] | None:
        """Evaluate a node that depends on no input, or on nothing but the batch size."""
        given = [value for value in call.inputs if value is not None]
        if call.kind in _RANDOM or not all(isinstance(value, Known | Sizes) for value in given):
            return None
        if call.kind in ("Identity", "Dropout") and given:
            return [given[0]]
        if any(
            attribute.type in (5, 10) for attribute in call.proto.attribute
        ):  # subgraphs have a rule, or are opaque
            return None
        if not any(isinstance(value, Sizes) for value in given):
            arrays = self._evaluate(call, [None if v is None else v.array for v in call.inputs])
            if arrays is None:
                return None
            source = given[0] if call.kind == "Transpose" and given[0].array.ndim == 2 else None
            trained = any(value.trained for value in given)
            return [
                Known(array, name or "constant", trained and array.dtype.kind in "fV", source)
                if isinstance(array, np.ndarray)
                else None
                for name, array in zip(call.outputs, arrays, strict=False)
            ]
        if any(
            array.size > _LARGEST_SIZES for v in given for array in (v.arrays if isinstance(v, Sizes) else ())
        ):
            return None
        both = [
            self._evaluate(
                call, [v.arrays[which] if isinstance(v, Sizes) else v and v.array for v in call.inputs]
            )
            for which in range(2)
        ]
        if both[0] is None or both[1] is None:
            return None
        results: list[Any] = []
        for name, first, second in zip(call.outputs, both[0], both[1], strict=False):
            if first.shape != second.shape or first.size > _LARGEST_SIZES:
                return None
            same = np.array_equal(first, second)
            results.append(Known(first, name) if same else Sizes((first, second)))
        return results

    def _evaluate(self, call: OnnxCall, arrays: Sequence[np.ndarray | None]) -> Sequence[Any] | None:
        """Run one node on arrays; None when the evaluator does not know it."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        _require_moderate(call, arrays)
        names = [f"i{index}" if array is not None else "" for index, array in enumerate(arrays)]
        node = onnx.NodeProto()
        node.CopyFrom(call.proto)
        del node.input[:], node.output[:]
        node.input.extend(names)
        outputs = [f"o{index}" if name else "" for index, name in enumerate(call.outputs)]
        node.output.extend(outputs)
        infos = [onnx.ValueInfoProto(name=name) for name in names if name]
        wanted = [name for name in outputs if name]
        graph = onnx.helper.make_graph(
            [node], "node", infos, [onnx.ValueInfoProto(name=name) for name in wanted]
        )
        feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
        try:
            with np.errstate(all="ignore"):
                found = dict(
                    zip(wanted, ReferenceEvaluator(graph, opsets=self.domains).run(None, feeds), strict=True)
                )
        except Exception:  # the evaluator raises many kinds; the node then goes through the ordinary rules
            return None
        return [np.asarray(found[name]) if name else None for name in outputs]

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
                if array.size <= _LARGEST_SIZES:
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


# onnx.TensorProto.DataType
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32,
    7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128, 16: torch.bfloat16, 17: torch.float8_e4m3fn, 19: torch.float8_e5m2,
}  # fmt: skip


def to_tensor(array: np.ndarray, name: str) -> Tensor:
    """Return a copy of an array as a tensor.

    Raises:
        UnsupportedOperationError: text, or a number format torch lacks.
    """
    try:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(np.array(array.view(np.int16), order="C")).view(torch.bfloat16)
        if array.dtype.name in ("float8_e4m3fn", "float8_e5m2"):
            return torch.from_numpy(np.array(array.view(np.uint8), order="C")).view(
                getattr(torch, array.dtype.name)
            )
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise UnsupportedOperationError(
            f"the array {name!r} has dtype {array.dtype.name}, which torch has not; store it as float32"
        ) from error


def _require_moderate(call: OnnxCall, arrays: Sequence[np.ndarray | None]) -> None:
    """Refuse to evaluate constants whose size, stated by a few numbers, is beyond reason."""
    given = [array for array in arrays if array is not None]
    size = 1.0
    if call.kind in ("ConstantOfShape", "Expand"):
        size = float(np.prod(given[-1].astype(float)))
    elif call.kind == "Tile":
        size = float(np.prod(given[-1].astype(float))) * given[0].size
    elif call.kind == "Range":
        start, limit, delta = (float(array) for array in given)
        size = abs((limit - start) / delta) if delta else 0.0
    elif call.kind in ("Resize", "Upsample", "Pad", "OneHot", "EyeLike"):
        size = float(_LARGEST_FOLDED + 1) if max(array.size for array in given) > _LARGEST_SIZES else 1.0
        if call.kind == "Pad" and len(given) > 1:
            size = float(np.prod(np.array(given[0].shape) + np.abs(given[1].astype(float)).sum()))
        elif call.kind in ("Resize", "Upsample", "OneHot"):
            size = given[0].size * max(
                float(np.abs(array.astype(float)).max(initial=1)) ** 4 for array in given[1:]
            )
    if not size <= _LARGEST_FOLDED:
        raise ArchitectureError(
            f"it would create a constant of {size:.3g} elements, more than {_LARGEST_FOLDED}"
        )
