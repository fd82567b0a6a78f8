"""Properties of a network file decided one after another, counterexamples replayed in another program."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from certify.properties import Property
from certify.verdicts import Counterexample, Verdict, VerdictStatus
from weightspace.network import Network


@dataclass(frozen=True)
class Replay:
    """What another program computes for a counterexample.

    Attributes:
        runtime: its name and version.
        output: one sample, flat.
        difference: largest distance, entry by entry, from the output that the counterexample states.
        unsafe: its output is unsafe too.
    """

    runtime: str
    output: tuple[float, ...]
    difference: float
    unsafe: bool


@dataclass(frozen=True)
class Answer:
    """The verdict about one property.

    Attributes:
        verdict: what `certify.verify` returned.
        replay: of a counterexample of an ONNX file, else None.
        note: why a counterexample was not replayed.
    """

    verdict: Verdict
    replay: Replay | None = None
    note: str = ""

    @property
    def status(self) -> VerdictStatus:
        """The verdict's, but unknown where the replay contradicts the counterexample."""
        contradicted = self.replay is not None and not self.replay.unsafe
        return VerdictStatus.UNKNOWN if contradicted else self.verdict.status

    @property
    def reason(self) -> str:
        """One line for the user."""
        if self.replay is None:
            return "; ".join(filter(None, [self.verdict.reason, self.note]))
        found = "unsafe too" if self.replay.unsafe else "safe: the counterexample does not count"
        return (
            f"{self.verdict.reason}; the output in {self.replay.runtime} is {found} (largest difference "
            f"{self.replay.difference:.3g})"
        )


def answer(
    network: Network,
    properties: Sequence[Property],
    *,
    file: Path | None = None,
    seconds: float = 60.0,
    seed: int = 0,
) -> tuple[Answer, ...]:
    """Decide properties in their order, until one is refuted.

    Args:
        file: of the network; where it is ONNX, counterexamples are replayed in onnxruntime.
        seconds: for all of them together.
        seed: of the search for counterexamples.
    Raises:
        WeightspaceError: as `certify.verify`.
    """
    from certify.input_splitting import verify

    answers: list[Answer] = []
    end = time.monotonic() + seconds
    for property in properties:
        generator = torch.Generator().manual_seed(seed)
        left = max(end - time.monotonic(), 0.0)
        verdict = verify(network, property, seconds=left, generator=generator)
        answers.append(Answer(verdict))
        if verdict.counterexample is not None and file is not None and file.suffix == ".onnx":
            answers[-1] = _replayed(verdict, verdict.counterexample, file)
        if answers[-1].status is VerdictStatus.REFUTED:
            break
    return tuple(answers)


def overall(statuses: Sequence[VerdictStatus]) -> VerdictStatus:
    """Return the status of a conjunction: refuted if one is, proved if all are."""
    if VerdictStatus.REFUTED in statuses:
        return VerdictStatus.REFUTED
    proved = all(status is VerdictStatus.PROVED for status in statuses)
    return VerdictStatus.PROVED if proved else VerdictStatus.UNKNOWN


def is_unsafe(property: Property, output: Sequence[float]) -> bool:
    """Return whether an output lies in the unsafe set; decided in rational arithmetic, NaN and infinity do not."""
    if not all(map(math.isfinite, output)):
        return False
    exact = [Fraction(value) for value in output]
    return any(
        all(
            sum(Fraction(a) * y for a, y in zip(row, exact, strict=True) if a) <= Fraction(end)
            for row, end in zip(polyhedron.matrix, polyhedron.bounds, strict=True)
        )
        for polyhedron in property.unsafe
    )


def _replayed(verdict: Verdict, found: Counterexample, file: Path) -> Answer:
    try:
        import onnxruntime
    except ImportError:
        return Answer(
            verdict,
            note='not replayed: onnxruntime is missing; install it with: pip install "weightspace[onnx]"',
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings about the file say nothing about the counterexample
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        (node,) = session.get_inputs()
        dtype = {"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(node.type, np.float32)
        shape = [size if isinstance(size, int) else 1 for size in node.shape]
        value = session.run(None, {node.name: np.array(found.input, dtype=dtype).reshape(shape)})[0]
    except Exception as error:  # its own classes, which share no base with a meaning
        reason = " ".join(str(error).split())[:200]
        return Answer(verdict, note=f"not replayed: onnxruntime cannot run {str(file)!r}: {reason}")
    output = tuple(np.asarray(value, dtype=np.float64).ravel().tolist())
    difference = max(abs(a - b) for a, b in zip(output, found.output, strict=True))
    runtime = f"onnxruntime {onnxruntime.__version__}"
    return Answer(verdict, Replay(runtime, output, difference, is_unsafe(verdict.property, output)))
