"""VNN-LIB files: what they mean, and that whatever else they hold ends in one clear error."""

import contextlib
import gzip
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from certify.assurance.answers import is_unsafe
from certify.assurance.vnnlib import parse_vnnlib, read_vnnlib
from weightspace.errors import CheckpointError

DECLARED = """; two inputs, two outputs
(declare-const X_0 Real)
(declare-const X_1 Real) ; the second
(declare-const Y_0 Real)
(declare-const Y_1 Real)
"""
BOX = "(assert (>= X_0 -1))(assert (<= X_0 1.5))\n(assert (and (<= 0 X_1) (<= X_1 2e-1)))\n"


def parse(*asserts):
    return parse_vnnlib(DECLARED + BOX + "".join(f"(assert {text})\n" for text in asserts), "p")


def holds(text, x, y):
    """Whether a counterexample file accepts a point, by its logic alone: parse the text as Python and evaluate it."""
    tokens = text.replace("(", " ( ").replace(")", " ) ").split()

    def value():
        token = tokens.pop(0)
        if token != "(":
            return (
                x[int(token[2:])]
                if token[0] == "X"
                else y[int(token[2:])]
                if token[0] == "Y"
                else Fraction(token)
            )
        head, parts = tokens.pop(0), []
        while tokens[0] != ")":
            parts.append(value())
        tokens.pop(0)
        return {
            "and": all,
            "or": any,
            "<=": lambda p: p[0] <= p[1],
            ">=": lambda p: p[0] >= p[1],
            "+": sum,
            "-": lambda p: p[0] - sum(p[1:]) if p[1:] else -p[0],
            "*": np.prod,
        }[head](parts)

    return value()


numbers = st.sampled_from(["0", "1", "-1", "0.5", "-0.25", "2", "(- 0.75)"])
outputs = st.recursive(
    numbers | st.sampled_from(["Y_0", "Y_1"]),
    lambda inner: (
        st.builds("(+ {} {})".format, inner, inner)
        | st.builds("(- {} {})".format, inner, inner)
        | st.builds("(* {} {})".format, numbers, inner)
    ),
    max_leaves=4,
)
atoms = (
    st.builds("(<= {} {})".format, outputs, outputs)
    | st.builds("(>= {} {})".format, outputs, outputs)
    | st.builds("({} X_{} {})".format, st.sampled_from(["<=", ">="]), st.sampled_from([0, 1]), numbers)
)
formulas = st.recursive(
    atoms,
    lambda inner: st.builds("({} {} {})".format, st.sampled_from(["and", "or"]), inner, inner),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None)
@given(formulas)
def test_properties_have_the_counterexamples_of_the_file(formula):
    xs = list(itertools.product([Fraction(k, 4) for k in (-4, -1, 0, 2, 6)], [Fraction(0), Fraction(1, 8)]))
    ys = list(itertools.product([Fraction(k, 4) for k in (-4, 0, 1, 3)], repeat=2))
    properties, reason = (), ""
    try:
        properties = parse(formula)
    except CheckpointError as error:
        reason = str(error)
    if "every output" in reason:  # then it holds for some input, whatever the outputs are
        return
    assert not reason or "no input satisfies" in reason
    for x, y in itertools.product(xs, ys):
        inside = [
            property
            for property in properties
            if all(a <= v <= b for a, v, b in zip(property.region.lower, x, property.region.upper))
        ]
        assert any(is_unsafe(property, list(map(float, y))) for property in inside) == holds(formula, x, y)


def test_numbers_are_rounded_outward():
    (property,) = parse("(<= (* 0.1 Y_0) (+ 0.3 (* 0.2 Y_1)))", "(<= X_0 0.1)", "(>= Y_1 0.1)")
    (polyhedron,) = property.unsafe
    assert (
        Fraction(property.region.upper[0])
        >= Fraction("0.1")
        > Fraction(np.nextafter(property.region.upper[0], 0))
    )
    assert Fraction(property.region.upper[1]) >= Fraction("0.2")
    assert property.region.lower[1].hex() == "0x0.0p+0"
    assert polyhedron.matrix == ((1.0, -2.0), (0.0, -1.0))  # exact: the comparison times ten
    assert polyhedron.bounds[0] == 3.0
    assert Fraction(polyhedron.bounds[1]) >= -Fraction("0.1")


def test_one_property_per_box():
    near, far = "(and (<= X_0 0) (>= Y_0 Y_1))", "(and (>= X_0 0) (or (<= Y_0 1) (>= Y_1 1)))"
    first, second = parse(f"(or {near} {far} (and (<= X_0 -2) (<= Y_0 0)))")  # the last one has no inputs
    assert (first.region.upper[0], second.region.lower[0]) == (0.0, 0.0)
    assert (len(first.unsafe), len(second.unsafe)) == (1, 2)
    assert (first.name, second.name) == ("p (box 1 of 2)", "p (box 2 of 2)")


def test_files(tmp_path):
    text = DECLARED + BOX + "(assert (<= Y_0 0))"
    (tmp_path / "a.vnnlib").write_text(text)
    (tmp_path / "a.vnnlib.gz").write_bytes(gzip.compress(text.encode()))
    (plain,), (packed,) = read_vnnlib(tmp_path / "a.vnnlib"), read_vnnlib(tmp_path / "a.vnnlib.gz")
    assert plain == packed
    assert plain.name == "a"
    (tmp_path / "cut.vnnlib.gz").write_bytes(gzip.compress(text.encode())[:-9])
    (tmp_path / "plain.vnnlib.gz").write_bytes(text.encode())
    (tmp_path / "bytes.vnnlib").write_bytes(b"\xff\xfe")
    for name in ("none.vnnlib", "cut.vnnlib.gz", "plain.vnnlib.gz", "bytes.vnnlib"):
        with pytest.raises(CheckpointError, match=name):
            read_vnnlib(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(assert (<= (* Y_0 Y_1) 0))", "line 8: a product of Y_0, Y_1 is not linear"),
        ("(assert (<= X_0 Y_0))", "both X_0 and Y_0"),
        ("(assert (<= (+ X_0 X_1) 1))", "several inputs, X_0, X_1"),
        ("\n(assert (<= Y_7 0))", "line 9: 'Y_7' is neither"),
        ("(assert (< Y_0 0))", "write it with <= or >="),
        ("(assert (not (<= Y_0 0)))", "'not' is none of"),
        ("(assert (<= Y_0 0)", "1 open parenthes"),
        ("Y_0", "outside of parentheses"),
        (")", "outside of parentheses"),
        ("()", "outside of an assertion"),
        ("(assert)", "has 0 arguments"),
        ("(assert Y_0)", "takes comparisons"),
        ("(assert (or (<= Y_0 0) 3))", "takes comparisons"),
        ("(assert (<= Y_0 0 1))", "3 arguments, not 2"),
        ("(assert ((<= Y_0 0)))", "begins with a parenthesis"),
        ("(assert (<= (<= Y_0 0) 1))", "numbers and variables, not assertions"),
        ("(assert (<= Y_0 1e999))", "beyond the range of doubles"),
        ("(assert (<= Y_0 1e9999999999))", "neither a declared variable nor a number"),
        ("(assert (<= Y_0 " + "9" * 1000 + "))", "neither a declared variable nor a number"),
        ("(assert (<= Y_0 (* " + "1e900 " * 30 + ")))", "bits"),
        ("(assert (<= (* 0.333333333333333333333 Y_0) (* 0.1 Y_1)))", "fewer digits"),
        ("(" * 5000, "nested parentheses"),
        ("(assert " + "(and " * 5000, "nested parentheses"),
        ("(assert (and " + "(or (<= Y_0 1) (<= Y_1 2))" * 20 + "))", "more than 100000 cases"),
        ("(assert (<= X_0 -2))(assert (<= Y_0 0))", "no input satisfies"),
        ("", "every output would be a counterexample"),
        ("(declare-const X_0 Real)", "declared twice"),
        ("(declare-const X_3 Real)(assert (<= Y_0 0))", "no X_2"),
        ("(declare-const X_2 Real)(assert (<= Y_0 0))", "X_2 has no lower bound"),
        ("(declare-const Z_0 Real)", "is not X_i Real or Y_i Real"),
        ("(declare-const X_9 Int)", "is not X_i Real or Y_i Real"),
        ("(vnnlib-version <2.0>)", "VNN-LIB 2.0"),
        (
            "(declare-network N (declare-input X Real [5]))",
            "belongs to VNN-LIB 2.0|inside of an assertion|none of",
        ),
    ],
)
def test_whatever_else_is_refused(text, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        parse_vnnlib(DECLARED + BOX + text, "p")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="()XY_01 <=>+-*;\nassertor", max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(CheckpointError):
        assert parse_vnnlib(DECLARED + BOX + text, "p")
