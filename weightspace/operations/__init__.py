"""The typed operations a `Network` is made of."""

from weightspace.operations.activations import (
    ELU,
    GELU,
    Absolute,
    Activation,
    Clip,
    LeakyReLU,
    Pointwise,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from weightspace.operations.affine import Bilinear, Conv, Embedding, Linear, Scale
from weightspace.operations.arithmetic import (
    Add,
    Cast,
    Divide,
    Elementwise,
    MatMul,
    Multiply,
    Power,
    Reduce,
    Subtract,
)
from weightspace.operations.attention import Attention, Softmax
from weightspace.operations.base import Input, Item, Opaque, Operation, Parameter, operation_from_json
from weightspace.operations.implicit import Implicit
from weightspace.operations.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from weightspace.operations.pooling import AdaptiveAveragePool, AveragePool, MaxPool
from weightspace.operations.shaping import (
    Concat,
    Expand,
    Flatten,
    Gather,
    Pad,
    Permute,
    Reshape,
    Select,
    Slice,
    Squeeze,
    Stack,
    Unsqueeze,
)
from weightspace.operations.sorting import GroupSort, Householder

__all__ = [
    "ELU", "GELU", "Absolute", "Activation", "AdaptiveAveragePool", "Add", "Attention", "AveragePool",
    "BatchNorm", "Bilinear", "Cast", "Clip", "Concat", "Conv", "Divide", "Elementwise", "Embedding",
    "Expand", "Flatten", "Gather", "GroupNorm", "GroupSort", "Householder", "Implicit", "Input", "Item",
    "LayerNorm", "LeakyReLU", "Linear", "MatMul", "MaxPool", "Multiply", "Opaque", "Operation", "PReLU",
    "Pad", "Parameter", "Permute", "Pointwise", "Power", "RMSNorm", "ReLU", "Reduce", "Reshape", "Scale",
    "Select", "SiLU", "Sigmoid", "Slice", "Softmax", "Softplus", "Squeeze", "Stack", "Subtract", "Tanh",
    "Unsqueeze", "operation_from_json",
]  # fmt: skip
