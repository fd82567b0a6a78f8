"""What a section of the report is made of; how it looks is decided in the templates alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.inspection import Inspection
from weightspace.network import Network


@dataclass(frozen=True)
class Text:
    """A paragraph; escaped when shown."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows of plain strings, the first cell of each names it; long tables are folded on the page.

    Attributes:
        methods: header -> key of the `Method` that says how the numbers below it are computed.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    methods: Mapping[str, str] = field(default_factory=dict)
    kind: str = "table"

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For every column, whether all its cells are numbers or "-"."""
        columns = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.headers)
        return tuple(all(re.fullmatch(r"-|[-+~]?[\d.,]+(e[-+]?\d+)?", cell) for cell in c) for c in columns)


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, so that the page needs no other file.

    Attributes:
        alt: what is to be seen in it, with its numbers, for those who do not see it; the caption says what it is.
        methods: keys of the `Method`s behind what it shows.
    """

    source: str
    caption: str
    alt: str
    methods: Sequence[str] = ()
    kind: str = "picture"


@dataclass(frozen=True)
class Details:
    """Blocks that a reader may unfold, under a line that says what they are."""

    title: str
    blocks: Sequence[Text | Table | Picture]
    anchor: str = ""
    open: bool = False
    kind: str = "details"


Block = Text | Table | Picture | Details


class Severity(StrEnum):
    """How much a finding matters to its reader, worst first; the text is what the reader sees."""

    PROBLEM = "problem"
    CAUTION = "caution"
    GAP = "not analyzed"
    PROVEN = "proven"
    RESULT = "result"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """Findings are listed by rank; what is proven and what was measured stand together."""
        return {"problem": 0, "caution": 1, "not analyzed": 2, "note": 4}.get(self.value, 3)


@dataclass(frozen=True)
class Finding:
    """One sentence of the summary, true as it stands alone.

    Attributes:
        anchor: of the section or the table that has the numbers.
        methods: keys of the `Method`s they were computed by.
    """

    sentence: str
    severity: Severity
    anchor: str
    methods: Sequence[str] = ()


@dataclass(frozen=True)
class Method:
    """How a kind of number is computed.

    Attributes:
        key: unique in the report; links lead to `#how-KEY`.
        meaning: what the number says, in words.
        equation: in plain text.
        function: of the library, to compute it again.
        source: paper, empty where the definition is our own.
        promise: what stands behind the number: "exact", "up to rounding", "proven", "measured", "found by search",
            "estimated".
    """

    key: str
    title: str
    meaning: str
    equation: str
    function: str
    source: str
    promise: str


@dataclass(frozen=True)
class Gap:
    """An analysis that was not made: of which file, and why; `minor` where nothing is missing that one would expect."""

    subject: str
    analysis: str
    reason: str
    minor: bool = False


@dataclass(frozen=True)
class Section:
    """One part of the report: what the page shows, and the same as numbers for `report.json`.

    Attributes:
        findings: its sentences for the summary.
        methods: how its numbers are computed; every key that its blocks and findings name is here.
    """

    title: str
    anchor: str
    blocks: Sequence[Block] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()
    findings: Sequence[Finding] = ()
    methods: Sequence[Method] = ()


@dataclass(frozen=True)
class Evaluation:
    """Labeled data to measure a loss on: inputs (n, ...), class labels (n,)."""

    name: str
    inputs: Tensor
    labels: Tensor

    def inputs_for(self, network: Network) -> Tensor | None:
        """Return the inputs in the shape and dtype the network takes, None when they do not fit it."""
        if len(network.inputs) != 1 or None in network.inputs[0].shape[1:]:
            return None
        shape = [n or 1 for n in network.inputs[0].shape[1:]]
        size = 1
        for n in shape:
            size *= n
        if network.inputs[0].shape[:1] != (None,) or self.inputs[0].numel() != size:
            return None
        return self.inputs.reshape(-1, *shape).to(getattr(torch, network.inputs[0].dtype))


@dataclass(frozen=True)
class Subject:
    """One file of the report: its tensors, and the network in it unless `reason` says why there is none."""

    name: str
    path: Path
    inspection: Inspection
    network: Network | None
    reason: str | None
