"""The certificate: a bound, what it is about, and the proof that `certify/checker.py` checks."""

from __future__ import annotations

import enum
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from certify import checker
from weightspace.errors import CheckpointError


class Status(enum.Enum):
    """What became of the attempt, in words for the user."""

    CERTIFIED = checker.CERTIFIED
    FAILED = checker.FAILED

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Certificate:
    r"""A bound L with $\|f(x) - f(y)\| \le L \|x - y\|$ and its proof.

    Attributes:
        upper_bound: L, proven by the rigorous check; None when `status` is FAILED.
        optimum_lower_bound: no multipliers of this kind give less than it (dual of the program, computed in
            floating point); None where unknown.
        sampled_lower_bound: the largest stretching found by search; the Lipschitz constant is at least that.
        norm: "l2" or "linf", of input and output.
        region: None, the whole space.
        output: None, one output, or a pair (j, k) for f_j - f_k.
        method: how the proof was found.
        kind: "multipliers" (rho and multipliers prove a matrix inequality) or "norm product" (layer_norms).
        network_hash: `Network.hash` of the network it is about.
        multipliers: per hidden layer, one number per neuron.
        rho: upper_bound^2, up to rounding.
        layer_norms: an upper bound of every matrix's norm.
        seconds: wall time of the search.
        versions: of the libraries used.
    """

    upper_bound: float | None
    optimum_lower_bound: float | None
    sampled_lower_bound: float | None
    status: Status
    norm: str
    output: int | tuple[int, int] | None
    method: str
    kind: str
    network_hash: str
    multipliers: tuple[tuple[float, ...], ...] | None
    rho: float | None
    layer_norms: tuple[float, ...] | None
    seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)
    region: None = None

    @property
    def claim(self) -> str:
        """The sentence that is certified; L is `upper_bound`."""
        return checker.claim(self.norm, self.output)

    def to_json(self) -> str:
        """Return the certificate as JSON, numbers in float.hex() form, with a digest (SHA-256) of all else.

        The digest detects edits; soundness never rests on it.
        """
        data = {
            "format": checker.FORMAT,
            "version": checker.VERSION,
            "status": self.status.value,
            "claim": self.claim,
            "kind": self.kind,
            "norm": self.norm,
            "region": self.region,
            "output": self.output,
            "method": self.method,
            "network_hash": self.network_hash,
            "upper_bound": _hex(self.upper_bound),
            "optimum_lower_bound": _hex(self.optimum_lower_bound),
            "sampled_lower_bound": _hex(self.sampled_lower_bound),
            "rho": _hex(self.rho),
            "multipliers": None
            if self.multipliers is None
            else [_hexes(layer) for layer in self.multipliers],
            "layer_norms": None if self.layer_norms is None else _hexes(self.layer_norms),
            "seconds": _hex(self.seconds),
            "versions": dict(self.versions),
        }
        data["digest"] = checker.digest(data)
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read `to_json()`.

        Raises:
            CheckpointError: not a certificate, another version, fields missing, unknown or mistyped, edited.
        """
        try:
            fields = checker.parse_certificate(text)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        return certificate_of(fields)

    def __str__(self) -> str:
        rows = "\n".join(f"  {name:<22}{value}" for name, value in self._rows())
        return f"Lipschitz certificate, {self.status}\n{rows}"

    def _repr_html_(self) -> str:
        cells = (
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in [("status", str(self.status)), *self._rows()]
        )
        return f"<table>{''.join(cells)}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        output = "all" if self.output is None else str(self.output)
        return [
            ("upper bound", _shown(self.upper_bound)),
            ("optimum lower bound", _shown(self.optimum_lower_bound)),
            ("sampled lower bound", _shown(self.sampled_lower_bound)),
            ("norm", self.norm),
            ("output", output),
            ("region", "all inputs"),
            ("method", self.method),
            ("network", self.network_hash[:16]),
            ("seconds", f"{self.seconds:.3g}"),
            ("claim", self.claim),
        ]


def certificate_of(fields: Mapping) -> Certificate:
    """Build the certificate from the fields that `checker.parse_certificate` returns."""
    multipliers, norms = fields["multipliers"], fields["layer_norms"]
    return Certificate(
        upper_bound=fields["upper_bound"],
        optimum_lower_bound=fields["optimum_lower_bound"],
        sampled_lower_bound=fields["sampled_lower_bound"],
        status=Status(fields["status"]),
        norm=fields["norm"],
        output=fields["output"],
        method=fields["method"],
        kind=fields["kind"],
        network_hash=fields["network_hash"],
        multipliers=None if multipliers is None else tuple(map(tuple, multipliers)),
        rho=fields["rho"],
        layer_norms=None if norms is None else tuple(norms),
        seconds=fields["seconds"],
        versions=fields["versions"],
        region=fields["region"],
    )


def _hex(value: float | None) -> str | None:
    return None if value is None else float(value).hex()


def _hexes(values: Sequence[float]) -> list[str]:
    return [float(value).hex() for value in values]


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.8g}"
