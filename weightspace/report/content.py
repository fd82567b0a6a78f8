"""What a section of the report is made of; how it looks is decided in `page.html.j2` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
class Listing:
    """A title and one line per finding."""

    title: str
    items_: Sequence[str]
    kind: str = "list"


@dataclass(frozen=True)
class Table:
    """Rows of plain strings; long tables scroll on the page."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, so that the page needs no other file."""

    source: str
    caption: str
    kind: str = "picture"


Block = Text | Listing | Table | Picture


@dataclass(frozen=True)
class Gap:
    """An analysis that was not made: of which file, and why."""

    subject: str
    analysis: str
    reason: str


@dataclass(frozen=True)
class Section:
    """One part of the report: what the page shows, and the same as numbers for `report.json`."""

    title: str
    anchor: str
    blocks: Sequence[Block] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()


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
