"""Rules of pooling and interpolation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace import operations as op
from weightspace.aten_rules.registry import RULES, Rule, rule, tuple_of

if TYPE_CHECKING:
    from weightspace.aten import AtenReader


def _max_pool(axes: int) -> Rule:
    def rule(reader: AtenReader, self, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False):
        kernel = tuple_of(kernel_size, axes)
        operation = op.MaxPool(
            kernel=kernel,
            stride=tuple_of(stride, axes) if stride else kernel,
            padding=tuple_of(padding, axes),
            dilation=tuple_of(dilation, axes),
            ceil=ceil_mode,
        )
        return reader.add(operation, self)

    return rule


def _average_pool(axes: int) -> Rule:
    def rule(
        reader: AtenReader, self, kernel_size, stride=(), padding=0, ceil_mode=False, count_include_pad=True,
        divisor_override=None,
    ):  # fmt: skip
        if divisor_override is not None:
            return NotImplemented
        kernel = tuple_of(kernel_size, axes)
        operation = op.AveragePool(
            kernel=kernel,
            stride=tuple_of(stride, axes) if stride else kernel,
            padding=tuple_of(padding, axes),
            ceil=ceil_mode,
            count_padding=count_include_pad,
        )
        return reader.add(operation, self)

    return rule


for _axes in (1, 2, 3):
    RULES[f"max_pool{_axes}d"] = _max_pool(_axes)
    RULES[f"avg_pool{_axes}d"] = _average_pool(_axes)


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive_average_pool(reader: AtenReader, self, output_size):
    return reader.add(op.AdaptiveAveragePool(size=tuple(output_size)), self)


_INTERPOLATIONS = {
    "nearest": ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    "nearest-exact": ("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    "linear": ("upsample_linear1d",),
    "bilinear": ("upsample_bilinear2d", "_upsample_bilinear2d_aa"),
    "bicubic": ("upsample_bicubic2d", "_upsample_bicubic2d_aa"),
    "trilinear": ("upsample_trilinear3d",),
}


def _interpolation(mode: str, antialias: bool) -> Rule:
    def rule(
        reader: AtenReader, input=None, self=None, output_size=None, align_corners=False, scale_factors=None,
        **scales,
    ):  # fmt: skip
        value = self if input is None else input
        numbers = [*(output_size or ()), *(scale_factors or ())]
        if any(number is not None for number in scales.values()) or not all(
            isinstance(number, int | float) for number in numbers
        ):
            return NotImplemented
        operation = op.Interpolate(
            mode=mode,
            size=None if output_size is None else tuple(output_size),
            scale=tuple(float(factor) for factor in scale_factors or ()) if output_size is None else None,
            align_corners=bool(align_corners),
            antialias=antialias,
        )
        return reader.add(operation, value)

    return rule


for _mode, _names in _INTERPOLATIONS.items():
    RULES |= {name: _interpolation(_mode, name.endswith("_aa")) for name in _names}
