"""The matrix inequalities of a certificate decided in rational arithmetic: slow, no rounding, no tolerance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from certify import checker

Matrix = list[list[Fraction]]
Row = dict[int, Fraction]  # a linear form: coordinate -> coefficient


def check_exactly(fields: Mapping[str, Any], graph: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Decide the inequalities of a certificate (those of its bound, its rho and its multipliers) exactly.

    Cubic in the number of neurons with growing fractions: seconds for 20, minutes for 50. The rounding errors of
    float32 inference are left to `checker.float32_delta`, the slopes over a region to `checker.localize`.
    Raises:
        checker.Refused: an inequality is false, the bound is below what they give, or BatchNorm is involved, whose
            square roots are irrational.
    """
    model = checker.rebuild(graph, parameters)
    if fields["relaxations"] is not None:
        relaxations = checker.relaxations_of(model, fields["relaxations"])
        model = checker.localize(model, checker.region_of(model, fields["region"]), relaxations)
    for step in model.steps:
        if step.relative and step.rule != "average":
            raise checker.Refused(
                f"{step.kind} at node {step.name!r} divides by a square root, which is not rational; check it with "
                "exact=False"
            )
    upper, norm, output = Fraction(fields["upper_bound"]), fields["norm"], fields["output"]
    if fields["kind"] == checker.NORM_PRODUCT:
        if _norm_product(model, norm, output, fields["layer_norms"]) > upper:
            raise checker.Refused("the stated bound is below the product of norms")
        return
    parts, constants = checker.split(model, fields["cuts"])
    parts *= len(fields["proofs"]) if norm == "linf" else 1
    for part, proof in zip(parts, fields["proofs"], strict=True):
        _decide(part, norm, proof)
    rhos = [Fraction(proof["rho"]) for proof in fields["proofs"]]
    square = math.prod(rhos) * math.prod(Fraction(c) ** 2 for c in constants)
    if upper < max(rhos, default=0) if norm == "linf" else upper * upper < square:
        raise checker.Refused("the stated bound is below that of the proofs")


def _decide(model: checker.Model, norm: str, proof: Mapping[str, Any]) -> None:
    implicit = any(step.rule == "implicit" for step in model.steps)
    numbers = [
        proof["rho"],
        *(proof["input_multipliers"] or []),
        *(v for vs in proof["multipliers"] for v in vs),
    ]
    if not all(number >= 0 for number in numbers):
        raise checker.Refused("rho or a multiplier is negative")
    masks = checker.structure(model, proof["output"])
    if not implicit and not masks[0].any():
        return
    matrix = inequality(
        model, norm, proof["output"], proof["rho"], proof["multipliers"], proof["input_multipliers"]
    )
    if not positive_semidefinite(matrix, strictly=implicit):
        raise checker.Refused("the matrix inequality is false in exact arithmetic")


def inequality(
    model: checker.Model,
    norm: str,
    output: int | tuple[int, int] | None,
    rho: float | Fraction,
    multipliers: Sequence[Sequence[float | Fraction]],
    input_multipliers: Sequence[float | Fraction] | None = None,
) -> Matrix:
    """Return M of `checker.inequality`, dense, term by term from its definition.

    Coordinates (t), x, v_1 .. v_K; of a group of n sorted neurons the first n - 1 entries of u, of a Householder group
    the factor s in u = s w.
    """
    terms: list[tuple[Fraction, Row, Row]] = []  # c (p q' + q p') / 2
    masks, lists, size = checker.structure(model, output), iter(multipliers), int(norm == "linf")
    if norm == "linf":
        terms.append((2 * Fraction(rho), {0: Fraction(1)}, {0: Fraction(1)}))
    signals: list[list[Row]] = []
    for step, mask in zip(model.steps, masks, strict=True):
        given = [signals[i] for i in step.inputs]
        if step.rule in checker.LINEAR:
            signals.append(_linear(step, given))
            continue
        values = [Fraction(v) for v in next(lists)] if step.label else []
        if step.rule in ("groups", "maxima"):
            add = _group_terms if step.rule == "groups" else _maximum_terms
            rows, size = add(step, mask, values, given[0], size, terms)
            signals.append(rows)
            continue
        fresh: list[Row] = []
        for kept in mask:
            fresh.append({size: Fraction(1)} if kept else {})
            size += int(kept)
        signals.append(fresh)
        if step.rule == "input":
            for i, row in enumerate(fresh):
                mu = Fraction(rho) if input_multipliers is None else Fraction(input_multipliers[i])
                terms.append((mu, row, row))
                if row and norm == "linf":
                    terms.append((-mu, {0: Fraction(1)}, {0: Fraction(1)}))
            continue
        before = given[0]
        if step.rule == "shifted":
            for i in np.flatnonzero(mask):
                terms.append(
                    (2 * values[i], fresh[i], _sum((Fraction(1), fresh[i]), (Fraction(-1), before[i])))
                )
            sides = zip(step.low.tolist(), before, step.matrix.tolist(), fresh, strict=True)
            signals[-1] = [_sum((Fraction(a), y), (Fraction(r), v)) for a, y, r, v in sides]
            continue
        if step.rule == "implicit":
            outside, inside = _product(step.basis, before), _product(step.matrix, fresh)
            before = [_sum((Fraction(1), a), (Fraction(1), b)) for a, b in zip(outside, inside, strict=True)]
        for i in np.flatnonzero(mask):
            p, q = (
                _sum((Fraction(1), fresh[i]), (-Fraction(float(s[i])), before[i]))
                for s in (step.low, step.high)
            )
            terms.append((2 * values[i], p, q))
    last = signals[-1]
    if isinstance(output, tuple):
        last = [_sum((Fraction(1), last[output[0]]), (Fraction(-1), last[output[1]]))]
    elif output is not None:
        last = [last[output]]
    for row in last:
        terms.append((Fraction(-2), {0: Fraction(1)}, row) if norm == "linf" else (Fraction(-1), row, row))
    return _assembled(terms, size)


def _group_terms(
    step: checker.Step,
    mask: np.ndarray,
    values: list[Fraction],
    before: list[Row],
    size: int,
    terms: list[tuple[Fraction, Row, Row]],
) -> tuple[list[Row], int]:
    """Add lambda (|u|^2 - |c Y|^2) of every group; return Pi Y + u and the number of coordinates so far."""
    rows: list[Row] = []
    n = step.width // step.count
    for g, kept in enumerate(mask):
        y = before[g * n : (g + 1) * n]
        if step.kind == "GroupSort":
            c = [[Fraction(int(i == j)) - Fraction(1, n) for j in range(n)] for i in range(n)]
        else:
            w = [Fraction(float(v)) for v in step.basis[g, :, 0]]
            square = sum(v * v for v in w)
            c = [[a * b / square for b in w] for a in w]
        cy = [_sum(*zip(line, y, strict=True)) for line in c]
        u: list[Row] = [{} for _ in range(n)]
        if kept:
            r = step.basis.shape[2]
            u = [{size + j: Fraction(float(b)) for j, b in enumerate(line) if b} for line in step.basis[g]]
            size += r
            terms += [(values[g], row, row) for row in u] + [(-values[g], row, row) for row in cy]
        rows += [
            _sum((Fraction(1), a), (Fraction(-1), b), (Fraction(1), v))
            for a, b, v in zip(y, cy, u, strict=True)
        ]
    return rows, size


def _maximum_terms(
    step: checker.Step,
    mask: np.ndarray,
    values: list[Fraction],
    before: list[Row],
    size: int,
    terms: list[tuple[Fraction, Row, Row]],
) -> tuple[list[Row], int]:
    """Add lambda (v^2 - (1 - 1/n) |c Y|^2) of every window; return the means plus v, and the number of coordinates."""
    rows: list[Row] = []
    for g, kept in enumerate(mask):
        y = [before[i] for i in step.matrix[g] if i >= 0]
        mean = _sum(*((Fraction(1, len(y)), row) for row in y))
        rows.append(mean)
        if kept:
            own = {size: Fraction(1)}
            size += 1
            rows[-1] = _sum((Fraction(1), mean), (Fraction(1), own))
            terms.append((values[g], own, own))
            centered = (_sum((Fraction(1), row), (Fraction(-1), mean)) for row in y)
            share = 1 - Fraction(1, len(y))
            terms += [(-values[g] * share, row, row) for row in centered]
    return rows, size


def _means(step: checker.Step, rows: list[Row]) -> list[Row]:
    """Apply S to every channel; its entries, the inverses of whole numbers, are made exact again."""
    positions = step.matrix.shape[1]
    matrix = np.array([[Fraction(w).limit_denominator(10**6) for w in line] for line in step.matrix.tolist()])
    channels = (rows[k : k + positions] for k in range(0, len(rows), positions))
    return [row for channel in channels for row in _product(matrix, channel)]


def _linear(step: checker.Step, given: list[list[Row]]) -> list[Row]:
    first = given[0]
    if step.rule == "linear":
        return _product(step.matrix, first)
    if step.rule == "average":
        return _means(step, first)
    if step.rule == "scale":
        return [_sum((Fraction(d), row)) for d, row in zip(step.matrix.tolist(), first, strict=True)]
    if step.rule == "sum":
        signs = [Fraction(s) for s in step.matrix.tolist()]
        return [_sum(*zip(signs, rows, strict=True)) for rows in zip(*given, strict=True)]
    if step.rule == "concat":
        return [row for rows in given for row in rows]
    return [first[i] for i in step.matrix] if step.rule == "rows" else first


def _product(matrix: np.ndarray, rows: list[Row]) -> list[Row]:
    return [
        _sum(*((Fraction(w), row) for w, row in zip(line, rows, strict=True) if w and row))
        for line in matrix.tolist()
    ]


def _sum(*terms: tuple[Fraction, Row]) -> Row:
    total: Row = {}
    for factor, row in terms:
        for k, value in row.items():
            total[k] = total.get(k, Fraction(0)) + factor * value
    return total


def _assembled(terms: list[tuple[Fraction, Row, Row]], size: int) -> Matrix:
    matrix = [[Fraction(0)] * size for _ in range(size)]
    for factor, p, q in terms:
        for a, left in p.items():
            for b, right in q.items():
                matrix[a][b] += factor * left * right / 2
                matrix[b][a] += factor * left * right / 2
    return matrix


def positive_semidefinite(matrix: Matrix, *, strictly: bool = False) -> bool:
    """Decide definiteness by LDL' without pivoting: a zero pivot needs a zero row, and does not occur `strictly`."""
    matrix = [row[:] for row in matrix]
    size = len(matrix)
    for k in range(size):
        pivot = matrix[k][k]
        if pivot < 0 or (pivot == 0 and (strictly or any(matrix[i][k] != 0 for i in range(k + 1, size)))):
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


def _norm_product(
    model: checker.Model, norm: str, output: int | tuple[int, int] | None, layer_norms: Sequence[float]
) -> Fraction:
    """Decide that `layer_norms` are bounds; return the network's, roots rounded upward by less than 1e-60."""
    constants: list[Fraction] = []
    norms = iter(layer_norms)
    for step in model.steps:
        given = [constants[i] for i in step.inputs]
        if step.rule == "linear":
            last = step is model.steps[-1]
            value = Fraction(next(norms))
            _require_norm(
                [[Fraction(w) for w in line] for line in step.matrix.tolist()],
                norm,
                output if last else None,
                value,
            )
            constants.append(value * given[0])
        elif step.rule == "maxima" and norm == "l2":
            windows = int(np.bincount(step.matrix[step.matrix >= 0]).max())
            constants.append(Fraction(math.isqrt(windows * 4**200) + (windows > 1), 2**200) * given[0])
        elif step.rule == "average" and norm == "l2":  # the checker's bound, which is proven for every size
            constants.append(Fraction(math.sqrt(step.sums[0] * step.sums[1]) * (1 + 2.0**-50)) * given[0])
        elif step.rule in ("slopes", "shifted", "scale"):
            sides = [step.matrix] if step.rule == "scale" else [step.low, step.high]
            constants.append(Fraction(float(np.abs(np.concatenate(sides)).max(initial=0.0))) * given[0])
        elif step.rule == "sum":
            constants.append(given[0] + given[1])
        elif step.rule == "concat":
            square = sum(c * c for c in given)
            root = Fraction(math.isqrt(int(square * 4**200) + 1) + 1, 2**200)
            constants.append(max(given) if norm == "linf" else root)
        elif step.rule == "implicit" or (step.kind == "Householder" and norm == "linf"):
            raise checker.Refused(
                f"{step.kind} at node {step.name!r} has no constant of its own in the {norm} norm"
            )
        else:
            constants.append(given[0] if given else Fraction(1))
    return constants[-1]


def _require_norm(matrix: Matrix, norm: str, output: int | tuple[int, int] | None, value: Fraction) -> None:
    if isinstance(output, tuple):
        matrix = [[a - b for a, b in zip(matrix[output[0]], matrix[output[1]], strict=True)]]
    elif output is not None:
        matrix = [matrix[output]]
    if value < 0:
        raise checker.Refused("a layer's norm is negative")
    if not any(map(any, matrix)):
        return
    if not any(map(any, matrix)):
        return
    if norm == "linf":
        if max(sum(map(abs, row)) for row in matrix) > value:
            raise checker.Refused("a layer's l-infinity norm is above its stated bound")
        return
    wide = [list(row) for row in zip(*matrix, strict=True)] if len(matrix) > len(matrix[0]) else matrix
    gram = [[-sum(map(Fraction.__mul__, a, b), Fraction(0)) for b in wide] for a in wide]
    for i, row in enumerate(gram):
        row[i] += value * value
    if not positive_semidefinite(gram):
        raise checker.Refused("a layer's spectral norm is above its stated bound")
