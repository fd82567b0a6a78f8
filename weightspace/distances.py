"""How far two checkpoints are from each other, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of A against its counterpart in B.

    Attributes:
        gap: sum |a - b| / (sum |a| + sum |b|) over finite entries, in [0, 1]; 0 equal, 1 nothing in common.
        cosine: of the two as vectors; None when one of them is zero.
        largest: max |a - b|; infinite where one is not finite and the other is something else.
    """

    name: str
    other: str
    shape: tuple[int, ...]
    gap: float
    cosine: float | None
    largest: float


@dataclass(frozen=True)
class Difference:
    """Result of `difference`: tensors in both, in A only, in B only, and those whose shapes differ."""

    tensors: tuple[TensorDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def gap(self) -> float:
        """Largest gap of all tensors."""
        return max((row.gap for row in self.tensors), default=0.0)

    @property
    def equal(self) -> bool:
        """Whether both hold the same tensors with the same values."""
        return not (self.only_a or self.only_b or self.reshaped) and all(r.largest == 0 for r in self.tensors)


def difference(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, names: Mapping[str, str] | None = None
) -> Difference:
    """Compare two sets of named tensors, in float64.

    Args:
        names: a's name -> b's; default equal names.
    """
    names = names if names is not None else {name: name for name in a if name in b}
    rows, reshaped = [], []
    for name, other in names.items():
        if a[name].shape != b[other].shape:
            reshaped.append((name, tuple(a[name].shape), tuple(b[other].shape)))
            continue
        rows.append(_compare(name, other, a[name], b[other]))
    matched = set(names.values())
    return Difference(
        tuple(rows),
        tuple(name for name in a if name not in names),
        tuple(name for name in b if name not in matched),
        tuple(reshaped),
    )


def _compare(name: str, other: str, first: Tensor, second: Tensor) -> TensorDifference:
    x, y = first.double().reshape(-1), second.double().reshape(-1)
    if x.numel() == 0:
        return TensorDifference(name, other, tuple(first.shape), 0.0, None, 0.0)
    same = (x == y) | (x.isnan() & y.isnan())  # inf - inf is NaN, but equal infinities do not differ
    apart = torch.where(same, 0.0, (x - y).abs().nan_to_num(nan=torch.inf))
    finite = x.isfinite() & y.isfinite()
    total = float(x[finite].abs().sum() + y[finite].abs().sum())
    gap = float(apart[finite].sum()) / total if total else 0.0
    norms = float(x[finite].norm() * y[finite].norm())
    cosine = float(x[finite] @ y[finite]) / norms if norms else None
    return TensorDifference(name, other, tuple(first.shape), gap, cosine, float(apart.max()))
