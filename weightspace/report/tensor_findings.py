"""What the tensors of a file say, as sentences: what is broken first, then what is unusual."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from weightspace.inspection import (
    DOMINATED_STABLE_RANK,
    RELIABLE_EIGENVALUES,
    Inspection,
    TensorRow,
    printable,
)
from weightspace.report.content import Finding, Severity
from weightspace.report.wording import counted, listed

OVER_TRAINED, UNDER_TRAINED = 2.0, 6.0  # as WeightWatcher reads alpha
TIED = "same storage as"


def tensor_findings(name: str, inspection: Inspection, anchor: str) -> list[Finding]:
    """Return the sentences on one file; `anchor` is where its table stands."""
    rows = _distinct(inspection)
    return [
        Finding(f"{name}: {sentence}", severity, anchor, (method,))
        for severity, method, sentence in (*_broken(rows), *_idle(rows), *_odd(rows))
    ]


def is_sound(inspection: Inspection) -> bool:
    """Whether every tensor was looked at and none has NaN or infinite entries, dead or repeated units.

    Integer and boolean matrices are not looked at: of their rows nothing is known.
    """
    rows = _distinct(inspection)
    if any(row.elements and len(row.shape) > 1 and row.dead_units is None for row in rows):
        return False
    return bool(rows) and not any(True for _ in (*_broken(rows), *_idle(rows)))


def _distinct(inspection: Inspection) -> list[TensorRow]:
    return [row for row in inspection.rows if not row.note.startswith(TIED)]


def _broken(rows: Sequence[TensorRow]) -> Iterator[tuple[Severity, str, str]]:
    bad = [row for row in rows if row.nan or row.inf]
    if bad:
        nan, inf = sum(row.nan for row in bad), sum(row.inf for row in bad)
        kinds = [f"{count:,} {kind}" for count, kind in ((nan, "NaN"), (inf, "infinite")) if count]
        yield (
            Severity.PROBLEM,
            "counts",
            f"{_contain(bad)} {' and '.join(kinds)} {'entry' if nan + inf == 1 else 'entries'}",
        )
    unread = _unread(rows)
    if unread:
        yield Severity.GAP, "counts", f"the entries of {_tensors(unread)} were not looked at"


def _idle(rows: Sequence[TensorRow]) -> Iterator[tuple[Severity, str, str]]:
    zero = [
        row for row in rows if len(row.shape) > 1 and row.min == row.max == 0 and not (row.nan or row.inf)
    ]
    if zero:
        yield Severity.CAUTION, "counts", f"{_tensors(zero)} {_is(zero)} zero throughout"
    for count, what in (
        (_dead, "dead: all their weights in it are zero"),
        (_repeated, "copies of an earlier one"),
    ):
        hit = [row for row in rows if row not in zero and count(row)]
        if len(hit) == 1:
            number, (row,) = count(hit[0]), hit
            sentence = f"{number:,} of {counted(row.shape[0], 'unit')} of {printable(row.name)}"
            yield Severity.CAUTION, "counts", _singular(f"{sentence} are {what}", number)
        elif hit:
            number, units = sum(map(count, hit)), sum(row.shape[0] for row in hit)
            sentence = f"{number:,} of {units:,} units of {_tensors(hit)} are {what}"
            yield Severity.CAUTION, "counts", sentence.replace("in it are", "there are")


def _odd(rows: Sequence[TensorRow]) -> Iterator[tuple[Severity, str, str]]:
    matrices = [row for row in rows if row.rank is not None and row.rank > 0]
    deficient = [row for row in matrices if (row.rank or 0) < _side(row)]
    if deficient:
        yield Severity.NOTE, "spectrum", f"{_tensors(deficient)} {_is(deficient)} not of full rank"
    dominated = [
        row for row in matrices if (row.stable_rank or 2) < DOMINATED_STABLE_RANK and _side(row) >= 10
    ]
    if dominated:
        verb = "acts" if len(dominated) == 1 else "act"
        sentence = f"{_tensors(dominated)} nearly {verb} in one direction (stable rank below {DOMINATED_STABLE_RANK})"
        yield Severity.CAUTION, "spectrum", sentence
    reliable = [row for row in matrices if row.alpha is not None and (row.rank or 0) >= RELIABLE_EIGENVALUES]
    reads: tuple[tuple[Callable[[float], bool], str], ...] = (
        (lambda alpha: alpha < OVER_TRAINED, "below 2, which WeightWatcher reads as over-trained"),
        (lambda alpha: alpha > UNDER_TRAINED, "above 6, which WeightWatcher reads as under-trained"),
    )
    for outside, words in reads:
        hit = [row for row in reliable if row.alpha is not None and outside(row.alpha)]
        if hit:
            yield Severity.NOTE, "alpha", f"alpha of {_tensors(hit)} is {words}, a rule of thumb"


def _side(row: TensorRow) -> int:
    return min(row.shape[0], row.elements // row.shape[0])


def _dead(row: TensorRow) -> int:
    return row.dead_units or 0 if len(row.shape) > 1 else 0


def _repeated(row: TensorRow) -> int:
    return row.duplicate_units or 0 if len(row.shape) > 1 else 0


def _unread(rows: Iterable[TensorRow]) -> list[TensorRow]:
    """Tensors that may hold NaN without our knowing: complex, sparse, packed."""
    return [
        row for row in rows if row.elements and row.norm is None and not row.note.startswith("not floating")
    ]


def _contain(rows: Sequence[TensorRow]) -> str:
    return f"{_tensors(rows)} {'contains' if len(rows) == 1 else 'contain'}"


def _is(rows: Sequence[TensorRow]) -> str:
    return "is" if len(rows) == 1 else "are"


def _tensors(rows: Sequence[TensorRow]) -> str:
    names = listed([printable(row.name) for row in rows], most=3)
    return names if len(rows) == 1 else f"{len(rows):,} tensors ({names})"


def _singular(sentence: str, count: int) -> str:
    if count != 1:
        return sentence
    return sentence.replace(" are dead: all their", " is dead: all its").replace(
        " are copies of an earlier one", " is a copy of an earlier one"
    )
