"""Networks over weights that commute with the permutations of hidden units: deep weight spaces."""

from weightspace.equivariant.deep_weight_space import DeepWeightSpaceNet, InvariantHead
from weightspace.equivariant.features import permute_features
from weightspace.equivariant.linear import (
    Embedded,
    EquivariantLinear,
    EquivariantSetLayer,
    Full,
    InvariantLinear,
    LowRank,
)
from weightspace.equivariant.perceptron import describe_perceptron
from weightspace.equivariant.plan import Dimension, count_maps
from weightspace.equivariant.pooling import Attention, Max, Mean, Sum

__all__ = [
    "Attention",
    "DeepWeightSpaceNet",
    "Dimension",
    "Embedded",
    "EquivariantLinear",
    "EquivariantSetLayer",
    "Full",
    "InvariantHead",
    "InvariantLinear",
    "LowRank",
    "Max",
    "Mean",
    "Sum",
    "count_maps",
    "describe_perceptron",
    "permute_features",
]
