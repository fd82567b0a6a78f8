"""One rule per ONNX operator: `rule(reader, *inputs, **attributes)` gives a value, or a list of outputs.

A rule returns NotImplemented, or raises NotConstantError, for a form it does not cover; the node then becomes
opaque. Rules are grouped by theme as `weightspace.operations` is.
"""

from weightspace.onnx_rules import activations, affine, arithmetic, grouping, normalization, pooling, shaping

RULES = {
    **affine.RULES,
    **activations.RULES,
    **arithmetic.RULES,
    **grouping.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **shaping.RULES,
}

__all__ = ["RULES"]
