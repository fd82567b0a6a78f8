"""Evaluate the parts of an ONNX graph that depend on no input, or on nothing but the batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightspace.errors import ArchitectureError
from weightspace.onnx_values import Known, OnnxCall, Sizes

_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
LARGEST_FOLDED = 2**28  # elements; a few bytes of a hostile file must not ask for the whole memory
LARGEST_SIZES = 1024
# Of constants nobody computes them; what they allocate on the way is told by attributes, not by their inputs.
_NOT_FOLDED = frozenset({
    "AffineGrid", "AveragePool", "BlackmanWindow", "Col2Im", "Conv", "ConvInteger", "ConvTranspose", "DFT",
    "DeformConv", "GRU", "GridSample", "HammingWindow", "HannWindow", "ImageDecoder", "LSTM", "LpPool",
    "MaxPool", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "QLinearConv", "RNN", "RegexFullMatch",
    "RoiAlign", "STFT", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
})  # fmt: skip


def fold(call: OnnxCall, opsets: Mapping[str, int]) -> Sequence[Any] | None:
    """Evaluate a node that depends on no input, or on nothing but the batch size."""
    given = [value for value in call.inputs if value is not None]
    if call.kind in _RANDOM or call.kind in _NOT_FOLDED or not all(isinstance(value, Known | Sizes) for value in given):
        return None
    if call.kind in ("Identity", "Dropout") and given:
        return [given[0]]
    if any(
        attribute.type in (5, 10) for attribute in call.proto.attribute
    ):  # subgraphs have a rule, or are opaque
        return None
    if not any(isinstance(value, Sizes) for value in given):
        arrays = _evaluate(call, [None if v is None else v.array for v in call.inputs], opsets)
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
    if any(array.size > LARGEST_SIZES for v in given for array in (v.arrays if isinstance(v, Sizes) else ())):
        return None
    both = [
        _evaluate(
            call, [v.arrays[which] if isinstance(v, Sizes) else v and v.array for v in call.inputs], opsets
        )
        for which in range(2)
    ]
    if both[0] is None or both[1] is None:
        return None
    results: list[Any] = []
    for name, first, second in zip(call.outputs, both[0], both[1], strict=False):
        if first.shape != second.shape or first.size > LARGEST_SIZES:
            return None
        same = np.array_equal(first, second)
        results.append(Known(first, name) if same else Sizes((first, second)))
    return results


def _evaluate(
    call: OnnxCall, arrays: Sequence[np.ndarray | None], opsets: Mapping[str, int]
) -> Sequence[Any] | None:
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
    graph = onnx.helper.make_graph([node], "node", infos, [onnx.ValueInfoProto(name=name) for name in wanted])
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    try:
        with np.errstate(all="ignore"):
            found = dict(
                zip(wanted, ReferenceEvaluator(graph, opsets=dict(opsets)).run(None, feeds), strict=True)
            )
    except Exception:  # the evaluator raises many kinds; the node then goes through the ordinary rules
        return None
    return [np.asarray(found[name]) if name else None for name in outputs]


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
        size = float(LARGEST_FOLDED + 1) if max(array.size for array in given) > LARGEST_SIZES else 1.0
        if call.kind == "Pad" and len(given) > 1:
            size = float(np.prod(np.array(given[0].shape) + np.abs(given[1].astype(float)).sum()))
        elif call.kind in ("Resize", "Upsample", "OneHot"):
            size = given[0].size * max(
                float(np.abs(array.astype(float)).max(initial=1)) ** 4 for array in given[1:]
            )
    if math.prod(array.size for array in given) > LARGEST_FOLDED:  # products and broadcasting can reach this
        size = max(size, _inferred_size(call, given))
    if not size <= LARGEST_FOLDED:
        raise ArchitectureError(
            f"it would create a constant of {size:.3g} elements, more than {LARGEST_FOLDED}"
        )


def _inferred_size(call: OnnxCall, arrays: Sequence[np.ndarray]) -> float:
    """Return the elements of the result by the operator's own rule, where it can have more than its inputs."""
    first, second = arrays[0].shape, arrays[-1].shape
    try:
        if call.kind == "MatMul":
            batch = np.broadcast_shapes(first[:-2], second[:-2])
            return float(math.prod((*batch, *first[-2:-1], *(second[-1:] if len(second) > 1 else ()))))
        if call.kind == "Gemm":
            return float(max(first) * max(arrays[1].shape))
        if call.kind in ("Gather", "GatherND"):
            axis = call.attributes.get("axis", 0) if call.kind == "Gather" else 0
            return float(math.prod(second) * arrays[0].size / max(first[axis], 1))
        if call.kind == "Einsum":
            return float(math.prod(array.size for array in arrays))
        return float(math.prod(np.broadcast_shapes(*(array.shape for array in arrays))))
    except (ValueError, TypeError, IndexError):
        return 0.0  # they do not fit; the evaluator will say so
