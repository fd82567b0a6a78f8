"""Properties from VNN-LIB files, as the verification competitions publish them.

A file asserts what a counterexample looks like: `(assert (<= X_0 0.5))` bounds an input, `(assert (>= Y_0 Y_1))`
a combination of outputs; `and` and `or` nest.

Source: Demarchi, Guidotti, Pulina, Tacchella, Supporting standardization of neural networks verification with
VNN-LIB (2023), version 1.0.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from certify.properties import Polyhedron, Property
from certify.regions import Box
from weightspace.errors import CheckpointError

_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_VARIABLE = re.compile(r"[XY]_(0|[1-9]\d{0,6})", re.ASCII)
_BYTES = 2**28  # of the unpacked text
_DEPTH = 1000  # of nested parentheses
_DIGITS = 400  # of a number as it is written
_BITS = 8192  # of a number as it is computed
_CASES, _ATOMS = 100_000, 10_000_000  # of the disjunctive normal form


class _Broken(Exception):
    """What is wrong with the text, and in which line."""


@dataclass(frozen=True)
class _Linear:
    """Sum of factor times variable, plus a constant."""

    factors: dict[str, Fraction]
    constant: Fraction

    def scaled(self, factor: Fraction) -> _Linear:
        return _Linear({name: factor * known for name, known in self.factors.items()}, factor * self.constant)


@dataclass(frozen=True)
class _Atom:
    """`linear` <= 0."""

    linear: _Linear
    line: int


_Case = tuple[_Atom, ...]  # all of these hold
_Formula = tuple[_Case, ...]  # one of these holds
_Item = str | _Linear | _Formula | None  # a bare word, what it stands for, or a statement that is done


def read_vnnlib(path: str | Path) -> tuple[Property, ...]:
    """Read `.vnnlib` or `.vnnlib.gz`: one property per box of inputs; the file holds if all of them do.

    Numbers count as the decimals that stand there: ends of boxes and right-hand sides are rounded outward to doubles,
    coefficients scaled until they are exact, so that a proof covers the file's own numbers.

    Raises:
        CheckpointError: the file cannot be read, or says more than linear constraints on inputs or on outputs, or
            leaves an input unbounded; the message has the line.

    Examples:
        >>> import certify, pathlib, tempfile
        >>> text = "(declare-const X_0 Real) (declare-const Y_0 Real)"
        >>> text += "(assert (>= X_0 0)) (assert (<= X_0 1)) (assert (>= Y_0 2))"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "property.vnnlib")
        ...     _ = path.write_text(text)
        ...     (found,) = certify.read_vnnlib(path)
        >>> found.region
        Box(1 inputs)
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, EOFError, zlib.error, ValueError) as error:  # also of a name or a text that is none
        reason = getattr(error, "strerror", None) or f"it is no whole {path.suffix} file"
        raise CheckpointError(f"cannot read property {str(path)!r}: {reason}") from error
    if len(content) > _BYTES:
        raise CheckpointError(f"property {str(path)!r} has more than {_BYTES >> 20} MB; split it")
    try:
        return parse_vnnlib(text, path.name.removesuffix(".gz").removesuffix(".vnnlib"))
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r}: {error}") from error


def parse_vnnlib(text: str, name: str = "") -> tuple[Property, ...]:
    """Read the text of a VNN-LIB file; see `read_vnnlib`.

    Raises:
        CheckpointError: as `read_vnnlib`.
    """
    file = _File()
    stack: list[list[_Item]] = []
    line, counted = 1, 0
    try:
        for token in _TOKEN.finditer(text):
            line += text.count("\n", counted, token.start())
            counted, word = token.start(), token.group()
            if word == "(":
                if len(stack) == _DEPTH:
                    raise _Broken(f"more than {_DEPTH} nested parentheses; write the formula flat")
                stack.append([])
            elif word[0] == ";":
                continue
            elif not stack:
                raise _Broken(f"{_short(word)} stands outside of parentheses")
            elif word == ")":
                value = file.reduce(stack.pop(), line, outermost=not stack)
                if stack:
                    stack[-1].append(value)
            else:
                stack[-1].append(word)
        if stack:
            raise _Broken(f"the file ends with {len(stack)} open parentheses")
    except _Broken as error:
        raise CheckpointError(f"property {name!r}, line {line}: {error}") from error
    try:
        return file.properties(name)
    except _Broken as error:
        raise CheckpointError(f"property {name!r}: {error}") from error


class _File:
    """What has been declared and asserted so far."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.formulas: list[_Formula] = []

    def reduce(self, items: list[_Item], line: int, outermost: bool) -> _Item:
        """Return what `(items)` stands for. The parser calls it at every closing parenthesis, so nothing recurses."""
        head, arguments = (items[0] if items else "()"), items[1:]
        if not isinstance(head, str):
            raise _Broken("an expression begins with a parenthesis where the name of an operation is needed")
        if head in ("vnnlib-version", "declare-network"):
            raise _Broken(f"{head!r} belongs to VNN-LIB 2.0; this version reads 1.0: X_i, Y_i and assert")
        if (head in ("declare-const", "assert")) != outermost:
            raise _Broken(f"{_short(head)} stands {'outside' if outermost else 'inside'} of an assertion")
        match head:
            case "declare-const":
                self.declare(arguments)
                return None
            case "assert":
                self.formulas.append(_formulas(arguments, head, 1)[0])
                return None
            case "and":
                return _conjunction(_formulas(arguments, head))
            case "or":
                return tuple(case for formula in _formulas(arguments, head) for case in formula)
            case "<=" | ">=":
                left, right = self.linears(arguments, head, 2)
                return _compare(left, right, line) if head == "<=" else _compare(right, left, line)
            case "+":
                return _sum(self.linears(arguments, head))
            case "-":
                first, *others = self.linears(arguments, head)
                minus = [value.scaled(Fraction(-1)) for value in (others or [first])]
                return _sum([first, *minus] if others else minus)
            case "*":
                return _product(self.linears(arguments, head))
        hint = "; write it with <= or >=" if head in ("<", ">", "=") else ""
        raise _Broken(f"{_short(head)} is none of declare-const, assert, and, or, <=, >=, +, - and *{hint}")

    def declare(self, arguments: list[_Item]) -> None:
        match arguments:
            case [str() as name, "Real"] if _VARIABLE.fullmatch(name):
                if name in self.names:
                    raise _Broken(f"{name} is declared twice")
                self.names.add(name)
            case _:
                shown = " ".join(_short(item) if isinstance(item, str) else "(..)" for item in arguments)
                raise _Broken(f"declare-const {shown} is not X_i Real or Y_i Real")

    def linears(self, arguments: list[_Item], head: str, count: int | None = None) -> list[_Linear]:
        """The arguments as linear expressions."""
        values = [self.linear(item, head) for item in arguments]
        if not values or (count and len(values) != count):
            raise _Broken(f"{head!r} has {len(values)} arguments, not {count or 'one or more'}")
        return values

    def linear(self, item: _Item, head: str) -> _Linear:
        if isinstance(item, _Linear):
            return item
        if not isinstance(item, str):
            raise _Broken(f"{head!r} combines numbers and variables, not assertions")
        if item in self.names:
            return _Linear({item: Fraction(1)}, Fraction(0))
        if _NUMBER.fullmatch(item) and len(item) <= _DIGITS:
            return _Linear({}, _bounded(Fraction(item)))
        raise _Broken(f"{_short(item)} is neither a declared variable nor a number")

    def properties(self, name: str) -> tuple[Property, ...]:
        inputs, outputs = self.count("X"), self.count("Y")
        shared = [atom for formula in self.formulas if len(formula) == 1 for atom in formula[0]]
        cases = _conjunction([formula for formula in self.formulas if len(formula) != 1])
        ends = _ends(shared, {f"{side}X_{i}": None for side in "<>" for i in range(inputs)})
        rows = [_row(atom, outputs) for atom in shared if _side(atom) == "Y"]
        found: dict[Box, list[Polyhedron]] = defaultdict(list)
        for case in cases:
            box = _box(_ends(case, ends), inputs)
            polyhedron = [*rows, *(_row(atom, outputs) for atom in case if _side(atom) == "Y")]
            if box is None:
                continue
            if not polyhedron:
                raise _Broken("it asserts nothing about Y, so that every output would be a counterexample")
            found[box].append(Polyhedron([row for row, _ in polyhedron], [end for _, end in polyhedron]))
        if not found:
            raise _Broken("no input satisfies what it asserts about X; exchange the ends that cross")
        several = f" (box {{}} of {len(found)})" if len(found) > 1 else ""
        return tuple(
            Property(box, tuple(unsafe), name + several.format(place))
            for place, (box, unsafe) in enumerate(found.items(), 1)
        )

    def count(self, side: str) -> int:
        """Number of variables X_0, X_1, .. or Y_0, Y_1, .."""
        names = {name for name in self.names if name[0] == side}
        if not names:
            raise _Broken(f"it declares no {side}_0")
        missing = next((i for i in range(len(names)) if f"{side}_{i}" not in names), None)
        if missing is not None:
            raise _Broken(f"it declares {len(names)} variables {side}_i, but no {side}_{missing}")
        return len(names)


def _short(word: str) -> str:
    return repr(word if len(word) <= 40 else word[:37] + "...")


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
        raise _Broken(f"a number has more than {_BITS} bits; use numbers that a double can hold")
    return value


def _formulas(arguments: list[_Item], head: str, count: int | None = None) -> list[_Formula]:
    """The arguments as assertions."""
    if not arguments or (count and len(arguments) != count):
        raise _Broken(f"{head!r} has {len(arguments)} arguments, not {count or 'one or more'}")
    for item in arguments:
        if not isinstance(item, tuple):
            shown = f", not {_short(item)}" if isinstance(item, str) else ""
            raise _Broken(f"{head!r} takes comparisons, and, or{shown}")
    return arguments  # type: ignore[return-value]


def _conjunction(formulas: Sequence[_Formula]) -> _Formula:
    cases: _Formula = (tuple(atom for formula in formulas if len(formula) == 1 for atom in formula[0]),)
    for formula in formulas:
        if len(formula) != 1:
            atoms = len(formula) * sum(map(len, cases)) + len(cases) * sum(map(len, formula))
            if len(cases) * len(formula) > _CASES or atoms > _ATOMS:
                raise _Broken(f"its and / or amount to more than {_CASES} cases; split the file")
            cases = tuple(first + second for first in cases for second in formula)
    return cases


def _sum(values: Sequence[_Linear]) -> _Linear:
    factors: dict[str, Fraction] = {}
    for value in values:
        for name, factor in value.factors.items():
            factors[name] = _bounded(factors.get(name, Fraction(0)) + factor)
    constant = Fraction(0)
    for value in values:
        constant = _bounded(constant + value.constant)
    return _Linear({name: factor for name, factor in factors.items() if factor}, constant)


def _product(values: Sequence[_Linear]) -> _Linear:
    factor, variable = Fraction(1), None
    for value in values:
        if not value.factors:
            factor = _bounded(factor * value.constant)
        elif variable is None:
            variable = value
        else:
            raise _Broken(
                f"a product of {', '.join([*variable.factors, *value.factors][:4])} is not linear; multiply by numbers"
            )
    return _sum([(variable or _Linear({}, Fraction(1))).scaled(factor)])


def _compare(left: _Linear, right: _Linear, line: int) -> _Formula:
    """Return left <= right."""
    linear = _sum([left, right.scaled(Fraction(-1))])
    if not linear.factors:
        return ((),) if linear.constant <= 0 else ()
    if len({name[0] for name in linear.factors}) > 1:
        raise _Broken(
            f"one comparison has both {min(linear.factors)} and {max(linear.factors)}; compare inputs with numbers, "
            "outputs with outputs and numbers"
        )
    atom = _Atom(linear, line)
    if len(linear.factors) > 1 and _side(atom) == "X":
        raise _Broken(
            f"one comparison has several inputs, {', '.join(sorted(linear.factors)[:4])}; inputs must lie in boxes: "
            "compare each with a number"
        )
    return ((atom,),)


def _side(atom: _Atom) -> str:
    return next(iter(atom.linear.factors))[0]


def _ends(atoms: Sequence[_Atom], known: dict[str, Fraction | None]) -> dict[str, Fraction | None]:
    """Tighten the ends `>X_i` (lower) and `<X_i` (upper) by what the atoms say."""
    bounds = [atom.linear for atom in atoms if _side(atom) == "X"]
    ends = dict(known) if bounds else known
    for linear in bounds:
        ((name, factor),) = linear.factors.items()
        end = -linear.constant / factor
        side = "<" if factor > 0 else ">"
        before = ends[side + name]
        if before is None or (end < before if side == "<" else end > before):
            ends[side + name] = end
    return ends


def _box(ends: dict[str, Fraction | None], inputs: int) -> Box | None:
    """Return the box rounded outward, None where it is empty."""
    lower, upper = [], []
    for i in range(inputs):
        low, high = ends[f">X_{i}"], ends[f"<X_{i}"]
        if low is None or high is None:
            side = "lower" if low is None else "upper"
            raise _Broken(f"input X_{i} has no {side} bound; inputs must lie in a box")
        if low > high:
            return None
        lower.append(0.0 - _above(-low, f"X_{i}"))
        upper.append(_above(high, f"X_{i}"))
    return Box(lower, upper)


def _above(value: Fraction, place: str) -> float:
    """Return the least double that is no less than `value`."""
    try:
        nearest = float(value)
    except OverflowError as error:
        raise _Broken(f"{place} is compared with a number beyond the range of doubles") from error
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def _row(atom: _Atom, outputs: int) -> tuple[list[float], float]:
    """Return a and b of a y <= b, the coefficients exact."""
    factors = atom.linear.factors
    scale = Fraction(1)
    if not all(_exact(factor) for factor in factors.values()):
        scale = Fraction(math.lcm(*(factor.denominator for factor in factors.values())))
    row = [0.0] * outputs
    for name, factor in factors.items():
        if not _exact(scale * factor):
            raise _Broken(
                f"line {atom.line}: the coefficient of {name} is no double, and no multiple of the comparison makes "
                "all coefficients doubles; write it with fewer digits"
            )
        row[int(name[2:])] = float(scale * factor)
    return row, _above(-scale * atom.linear.constant, f"line {atom.line}: an output")


def _exact(value: Fraction) -> bool:
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False
