"""From a bare state dict to a `Network`: the plainest multilayer perceptron that names and shapes allow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from weightspace import operations as op
from weightspace.builder import NetworkBuilder
from weightspace.errors import ArchitectureError
from weightspace.network import Network

ACTIVATIONS: dict[str, op.Operation] = {
    "relu": op.ReLU(),
    "leaky_relu": op.LeakyReLU(),
    "tanh": op.Tanh(),
    "sigmoid": op.Sigmoid(),
    "gelu": op.GELU(),
    "silu": op.SiLU(),
    "elu": op.ELU(),
    "softplus": op.Softplus(),
    "abs": op.Absolute(),
    "sin": op.Pointwise(name="sin"),
    "maxmin": op.GroupSort(group_size=2, axis=1),
}
LAYOUTS = ("out-in", "in-out")
REMEDY = "give the model as --architecture file.py:function (architecture= in Python)"


@dataclass(frozen=True)
class Layer:
    """A matrix of the state dict and the bias that stands beside it, by name."""

    weight: str
    bias: str | None


def perceptron(
    tensors: Mapping[str, Tensor], *, activation: str | None = None, layout: str | None = None
) -> Network:
    """Read matrices and biases as Linear layers in the order of their names, one activation between them.

    Names only say what belongs together and in which order (numbers inside them count as numbers); shapes
    decide whether the matrices are stored (out, in) or (in, out). Matrices called `weight` that fit both ways
    are taken as torch stores them, (out, in). What was assumed is written into `metadata["assumed"]`.

    Args:
        tensors: the state dict.
        activation: one of `ACTIVATIONS`, default "relu".
        layout: "out-in" or "in-out", needed only when shapes leave it open.
    Raises:
        ArchitectureError: tensors that a perceptron does not have, a chain that does not close, or one that
            closes in two ways; the message names the flag that settles it.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ArchitectureError(
            f"activation {activation!r} is not known; choose from {', '.join(ACTIVATIONS)}"
        )
    if layout is not None and layout not in LAYOUTS:
        raise ArchitectureError(f"layout {layout!r} is not known; choose from {', '.join(LAYOUTS)}")
    layers = _layers(tensors)
    fitting = [candidate for candidate in LAYOUTS if _mismatch(layers, tensors, candidate) is None]
    if layout is not None:
        mismatch = _mismatch(layers, tensors, layout)
        if mismatch:
            raise ArchitectureError(f"with layout {layout}, {mismatch}; {REMEDY}")
    elif not fitting:
        raise ArchitectureError(
            f"not a multilayer perceptron: {_mismatch(layers, tensors, 'out-in')}; {REMEDY}"
        )
    elif len(fitting) == 2 and not all(layer.weight.rpartition(".")[2] == "weight" for layer in layers):
        raise ArchitectureError(
            f"the square matrix {layers[0].weight!r} may be stored (out, in) or (in, out); "
            f"say which with --layout {' or --layout '.join(LAYOUTS)}"
        )
    chosen = layout or fitting[0]
    name = activation or "relu"
    assumed = []
    if activation is None and len(layers) > 1:
        assumed.append("relu between the layers (--activation names another)")
    if layout is None and len(fitting) == 2:
        assumed.append("matrices stored (out, in)")
    return _build(layers, tensors, chosen == "in-out", ACTIVATIONS[name], "; ".join(assumed))


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """Sort key in which numbers inside a name compare as numbers: fc2 before fc10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _layers(tensors: Mapping[str, Tensor]) -> list[Layer]:
    weights = sorted((name for name, tensor in tensors.items() if tensor.ndim == 2), key=natural_order)
    biases: dict[str, str] = {}
    for name, tensor in tensors.items():
        if (
            tensor.ndim == 1
            and tensor.is_floating_point()
            and not name.endswith(("running_mean", "running_var"))
        ):
            biases[_stem(name)] = name
    stems = [_stem(name) for name in weights]
    paired = {name: biases.pop(stem, None) for name, stem in zip(weights, stems, strict=True)}
    known = set(weights) | {bias for bias in paired.values() if bias}
    strange = [name for name in tensors if name not in known]
    if strange or not weights:
        named = f"{strange[0]!r} {tuple(tensors[strange[0]].shape)}" if strange else "no matrix at all"
        reason = "a state dict does not say how such a tensor is used"
        if strange and tensors[strange[0]].ndim > 2 and strange[0].endswith(("weight", "kernel")):
            reason = "convolution strides and padding are not in a state dict"
        raise ArchitectureError(
            f"not a plain multilayer perceptron: it holds {named}, and {reason}; {REMEDY}"
        )
    if len(set(stems)) != len(stems):
        raise ArchitectureError(f"two matrices share the place {stems[0]!r}; {REMEDY}")
    return [Layer(name, bias) for name, bias in paired.items()]


def _stem(name: str) -> str:
    """What a weight and its bias have in common: `fc1.weight` and `fc1.bias`, `W3` and `b3`, `w_in` and `b_in`."""
    head, _, last = name.rpartition(".")
    rest = re.sub(r"(?i)weights?|bias(es)?|kernel|matrix|^w|^b", "", last, count=1)
    return f"{head}.{rest}"


def _sizes(matrix: Tensor, layout: str) -> tuple[int, int]:
    rows, columns = matrix.shape
    return (columns, rows) if layout == "out-in" else (rows, columns)


def _mismatch(layers: Sequence[Layer], tensors: Mapping[str, Tensor], layout: str) -> str | None:
    """Return what keeps the layers from forming a chain, None when nothing does."""
    previous: tuple[str, int] | None = None
    for layer in layers:
        inputs, outputs = _sizes(tensors[layer.weight], layout)
        if previous and previous[1] != inputs:
            shape = tuple(tensors[layer.weight].shape)
            return f"{layer.weight!r} {shape} cannot follow {previous[0]!r}, which gives {previous[1]} values"
        if layer.bias and tensors[layer.bias].shape[0] != outputs:
            return f"bias {layer.bias!r} has {tensors[layer.bias].shape[0]} entries, {layer.weight!r} gives {outputs}"
        previous = (layer.weight, outputs)
    return None


def _build(
    layers: Sequence[Layer],
    tensors: Mapping[str, Tensor],
    transposed: bool,
    activation: op.Operation,
    assumed: str,
) -> Network:
    dtypes = {tensors[layer.weight].dtype for layer in layers}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        raise ArchitectureError(
            f"the matrices have dtypes {sorted(map(str, dtypes))}; one floating dtype is needed"
        )
    builder = NetworkBuilder()
    first = tensors[layers[0].weight]
    width = first.shape[0 if transposed else 1]
    value = builder.input("input", (None, width), first.dtype)
    for index, layer in enumerate(layers):
        for name in (layer.weight, layer.bias):
            if name:
                builder.parameter(name, tensors[name])
        linear = op.Linear(weight=layer.weight, bias=layer.bias, transposed=transposed)
        value = builder.add(linear, value, name=_stem(layer.weight).strip(".") or f"layer{index}")
        if index < len(layers) - 1:
            value = builder.add(activation, value)
    return builder.build([value], metadata={"assumed": assumed} if assumed else {})
