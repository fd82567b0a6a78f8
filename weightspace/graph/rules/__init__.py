"""One rule per operation: which nodes and edges it adds, and which nodes its value is made of. See `state.State`."""

from weightspace.graph.rules import (
    activations,
    affine,
    arithmetic,
    contraction,
    normalization,
    recurrent,
    shaping,
)
from weightspace.graph.rules.state import RULES, Constant, Entries, Other, State, Units, Value

__all__ = [
    "RULES", "Constant", "Entries", "Other", "State", "Units", "Value", "activations", "affine", "arithmetic",
    "contraction", "normalization", "recurrent", "shaping",
]  # fmt: skip
