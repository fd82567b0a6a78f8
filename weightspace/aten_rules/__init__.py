"""One rule per ATen operator: its keyword arguments in, a value out. See `aten.AtenReader`.

A rule returns NotImplemented for a form it does not cover, which then becomes an opaque node. Rules are grouped by
theme as `weightspace.operations` is.
"""

from weightspace.aten_rules import activations, affine, arithmetic, normalization, pooling, recurrent, shaping
from weightspace.aten_rules.registry import RULES

__all__ = [
    "RULES", "activations", "affine", "arithmetic", "normalization", "pooling", "recurrent", "shaping",
]  # fmt: skip
