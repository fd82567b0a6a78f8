"""The matrix inequalities of a certificate decided in rational arithmetic: slow, no rounding, no tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from certify import checker

Matrix = list[list[Fraction]]


def check_exactly(fields: Mapping[str, Any], graph: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Decide the claim of a certificate (the one of its bound, its rho and its multipliers) exactly.

    Cubic in the number of neurons with growing fractions: seconds for 20, minutes for 50.
    Raises:
        checker.Refused: the inequality is false, or the bound is below sqrt(rho) or the product of norms.
    """
    weights, hidden = checker.rebuild_chain(graph, parameters)
    upper, matrices = Fraction(fields["upper_bound"]), [_rational(weight) for weight in weights]
    if isinstance(fields["output"], tuple):
        first, second = (matrices[-1][j] for j in fields["output"])
        matrices[-1] = [[a - b for a, b in zip(first, second, strict=True)]]
    elif fields["output"] is not None:
        matrices[-1] = [matrices[-1][fields["output"]]]
    if fields["kind"] == checker.NORM_PRODUCT:
        _check_norms(matrices, hidden, fields, upper)
        return
    weights = checker.select_output(weights, fields["output"])
    lam = [np.array(values) for values in fields["multipliers"]]
    if any(entry[0] != "slopes" for entry in hidden) or any((values < 0).any() for values in lam):
        raise checker.Refused("the multipliers are negative or do not fit the activations")
    masks = [np.arange(len(values)) for values in lam]
    pruned, slopes, kept = checker.prune(weights, [entry[1:] for entry in hidden], masks)
    if any(weight.size == 0 or not weight.any() for weight in pruned):
        return
    inner = [
        list(range(len(matrices[0][0]))),
        *(list(map(int, k)) for k in kept),
        list(range(len(matrices[-1]))),
    ]
    cut = [[[matrix[i][j] for j in inner[k]] for i in inner[k + 1]] for k, matrix in enumerate(matrices)]
    rho = Fraction(fields["rho"])
    values = [[Fraction(v) for v in all_[k]] for all_, k in zip(lam, kept, strict=True)]
    if upper * upper < rho:
        raise checker.Refused("the stated bound is below sqrt(rho)")
    if not positive_semidefinite(chain_matrix(cut, slopes, rho, values)):
        raise checker.Refused("the matrix inequality is false in exact arithmetic")


def chain_matrix(
    weights: list[Matrix], slopes: list[Any], rho: Fraction, multipliers: list[list[Fraction]]
) -> Matrix:
    """Return M(rho, lambda) of a chain, dense, entry by entry from its definition."""
    offsets = [0]
    for weight in weights:
        offsets.append(offsets[-1] + len(weight[0]))
    size = offsets[-1]
    matrix = [[Fraction(0)] * size for _ in range(size)]
    for i in range(offsets[1]):
        matrix[i][i] = rho
    for k, values in enumerate(multipliers):
        for i, value in enumerate(values):
            low, high = (Fraction(float(side[i])) for side in slopes[k])
            p = {offsets[k] + j: -low * w for j, w in enumerate(weights[k][i]) if w}
            q = {offsets[k] + j: -high * w for j, w in enumerate(weights[k][i]) if w}
            p[offsets[k + 1] + i] = q[offsets[k + 1] + i] = Fraction(1)
            for a, left in p.items():
                for b, right in q.items():
                    matrix[a][b] += value * left * right
                    matrix[b][a] += value * left * right
    start = offsets[-2]
    for row in weights[-1]:
        for a, left in enumerate(row):
            for b, right in enumerate(row):
                matrix[start + a][start + b] -= left * right
    return matrix


def positive_semidefinite(matrix: Matrix) -> bool:
    """Decide positive semidefiniteness by LDL' without pivoting: a zero pivot needs a zero row."""
    matrix = [row[:] for row in matrix]
    size = len(matrix)
    for k in range(size):
        pivot = matrix[k][k]
        if pivot < 0 or (pivot == 0 and any(matrix[i][k] != 0 for i in range(k + 1, size))):
            return False
        if pivot == 0:
            continue
        for i in range(k + 1, size):
            if matrix[i][k] == 0:
                continue
            factor = matrix[i][k] / pivot
            for j in range(k + 1, i + 1):
                matrix[i][j] -= factor * matrix[j][k]
    return True


def _check_norms(
    matrices: list[Matrix], hidden: list[Any], fields: Mapping[str, Any], upper: Fraction
) -> None:
    product = Fraction(1)
    for matrix, stated in zip(matrices, fields["layer_norms"], strict=True):
        norm = Fraction(stated)
        product *= norm
        if norm < 0:
            raise checker.Refused("a layer's norm is negative")
        if not any(map(any, matrix)):
            continue
        if fields["norm"] == "linf":
            if max(sum(map(abs, row)) for row in matrix) > norm:
                raise checker.Refused("a layer's l-infinity norm is above its stated bound")
            continue
        wide = [list(row) for row in zip(*matrix, strict=True)] if len(matrix) > len(matrix[0]) else matrix
        gram = [[-sum(map(Fraction.__mul__, a, b), Fraction(0)) for b in wide] for a in wide]
        for i, row in enumerate(gram):
            row[i] += norm * norm
        if not positive_semidefinite(gram):
            raise checker.Refused("a layer's spectral norm is above its stated bound")
    for entry in hidden:
        if entry[0] == "slopes":
            product *= Fraction(float(np.abs(np.concatenate(entry[1:])).max(initial=0.0)))
    if product > upper:
        raise checker.Refused("the stated bound is below the product of norms")


def _rational(weight: np.ndarray) -> Matrix:
    return [[Fraction(float(value)) for value in row] for row in weight]
