"""One rule per operation: what it requires of the spaces of its inputs, and which spaces its value has.

A rule is `rule(state, node, operation, inputs)`; rules are grouped by theme as `weightspace.operations` is. In the
pass for linear maps (`state.linear`) each rule also says which maps the operation tolerates.
"""

from weightspace.symmetry_rules import (
    activations,
    affine,
    arithmetic,
    normalization,
    pooling,
    reshaping,
    sequences,
    shaping,
)
from weightspace.symmetry_rules.state import RULES, Stacked, State, Value

__all__ = [
    "RULES", "Stacked", "State", "Value", "activations", "affine", "arithmetic", "normalization", "pooling",
    "reshaping", "sequences", "shaping",
]  # fmt: skip
