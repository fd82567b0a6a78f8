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
from weightspace.operations.affine import Bilinear, ComputedConv, Conv, Embedding, Linear, Scale
from weightspace.operations.arithmetic import (
    Add,
    Cast,
    CumulativeSum,
    Divide,
    Einsum,
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
from weightspace.operations.pooling import AdaptiveAveragePool, AveragePool, Interpolate, MaxPool
from weightspace.operations.recurrent import Recurrent
from weightspace.operations.shaping import (
    Concat,
    Expand,
    Flatten,
    Flip,
    Gather,
    Pad,
    Permute,
    PixelShuffle,
    PixelUnshuffle,
    Reshape,
    Roll,
    Select,
    Slice,
    Squeeze,
    Stack,
    TakeAlong,
    Unsqueeze,
)
from weightspace.operations.sorting import GroupSort, Householder

__all__ = [
    "ELU", "GELU", "Absolute", "Activation", "AdaptiveAveragePool", "Add", "Attention", "AveragePool",
    "BatchNorm", "Bilinear", "Cast", "Clip", "ComputedConv", "Concat", "Conv", "CumulativeSum", "Divide",
    "Einsum", "Elementwise", "Embedding", "Expand", "Flatten", "Flip", "Gather", "GroupNorm", "GroupSort",
    "Householder", "Implicit", "Input", "Interpolate", "Item", "LayerNorm", "LeakyReLU", "Linear",
    "MatMul", "MaxPool", "Multiply", "Opaque", "Operation", "PReLU", "Pad", "Parameter", "Permute",
    "PixelShuffle", "PixelUnshuffle", "Pointwise", "Power", "RMSNorm", "ReLU", "Recurrent", "Reduce",
    "Reshape", "Roll", "Scale", "Select", "SiLU", "Sigmoid", "Slice", "Softmax", "Softplus", "Squeeze",
    "Stack", "Subtract", "TakeAlong", "Tanh", "Unsqueeze", "operation_from_json",
]  # fmt: skip
