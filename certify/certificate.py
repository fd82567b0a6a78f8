"""The certificate: a bound, what it is about, and the proof that `certify/checker.py` checks."""

from __future__ import annotations

import enum
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from certify import checker
from certify.regions import Ball, Box, Region
from weightspace.errors import CheckpointError
from weightspace.rounded_numbers import rounded_down, rounded_up


class Status(enum.Enum):
    """What became of the attempt, in words for the user."""

    CERTIFIED = checker.CERTIFIED
    FAILED = checker.FAILED

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Proof:
    """The numbers that make one matrix inequality M(rho, multipliers) >= 0 hold; see `certify/checker.py`.

    Attributes:
        rho: the square of the bound in l2, the bound itself in linf.
        multipliers: per nonlinearity of the (sub-)network, one number per neuron or per group.
        input_multipliers: in linf, one number per input; None in l2.
        output: the output it is about: None (all), an index, or a pair (j, k).
    """

    rho: float
    multipliers: tuple[tuple[float, ...], ...]
    input_multipliers: tuple[float, ...] | None = None
    output: int | tuple[int, int] | None = None


@dataclass(frozen=True)
class Relaxation:
    """Slopes of the lines between which an activation lies over the region, one per neuron.

    Lines of any slope give sound bounds; the check finds their offsets, and from them the slopes that activations take.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]


@dataclass(frozen=True)
class Certificate:
    r"""A bound L with $\|f(x) - f(y)\| \le L \|x - y\|$ and its proof.

    Attributes:
        upper_bound: L, proven by the rigorous check; None when `status` is FAILED.
        optimum_lower_bound: no multipliers of this kind give less than it (dual of the program, computed in
            floating point); None where unknown.
        sampled_lower_bound: the largest stretching found by search; the Lipschitz constant is at least that.
        norm: "l2" or "linf", of input and output.
        output: None, one output, or a pair (j, k) for f_j - f_k.
        method: how the proof was found.
        kind: "multipliers" (each proof is a matrix inequality) or "norm product" (layer_norms).
        network_hash: `Network.hash` of the network it is about.
        proofs: one; in linf one per output; with cuts one per sub-chain, whose bounds multiply to L.
        cuts: after which nonlinearities, counted from 1, the chain is cut.
        layer_norms: an upper bound of the norm of every Linear node.
        activations: the nonlinearities that the output depends on, in the network's order.
        arithmetic: "real", or "float32" for inference: |f32(x) - f32(y)| <= L |x - y| + 2 delta.
        delta: a bound of |f32(x) - f(x)| over the region, float32 only.
        region: None, the whole space, or a box or a ball to which x and y belong.
        relaxations: one per scalar activation, of a bound that uses the slopes that occur over the region.
        seconds: wall time of the search.
        versions: of the libraries used.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> network = load("digits_maxmin")
        >>> certificate = certify.lipschitz(network, bounder=certify.NormProduct())
        >>> print(certificate.status)
        certified: the rigorous check accepted the bound
        >>> certify.Certificate.from_json(certificate.to_json()) == certificate
        True
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
    proofs: tuple[Proof, ...]
    cuts: tuple[int, ...]
    layer_norms: tuple[float, ...] | None
    activations: tuple[str, ...]
    arithmetic: str = "real"
    delta: float | None = None
    region: Region | None = None
    relaxations: tuple[Relaxation, ...] | None = None
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def multipliers(self) -> tuple[tuple[float, ...], ...] | None:
        """Those of the only proof; None when there are several or none."""
        return self.proofs[0].multipliers if len(self.proofs) == 1 else None

    @property
    def rho(self) -> float | None:
        """That of the only proof; None when there are several or none."""
        return self.proofs[0].rho if len(self.proofs) == 1 else None

    @property
    def claim(self) -> str:
        """The sentence that is certified; L is `upper_bound`."""
        return checker.claim(self.norm, self.output, _region_fields(self.region), self.arithmetic)

    def to_json(self) -> str:
        """Return the certificate as JSON, numbers in float.hex() form, with a digest (SHA-256) of all else.

        The digest detects edits; soundness never rests on it.
        """
        relaxations = self.relaxations
        data = {
            "format": checker.FORMAT,
            "version": checker.VERSION,
            "status": self.status.value,
            "claim": self.claim,
            "kind": self.kind,
            "norm": self.norm,
            "region": _region_fields(self.region),
            "relaxations": relaxations
            and [{"lower": _hexes(one.lower), "upper": _hexes(one.upper)} for one in relaxations],
            "output": self.output,
            "activations": list(self.activations),
            "arithmetic": self.arithmetic,
            "delta": _hex(self.delta),
            "method": self.method,
            "network_hash": self.network_hash,
            "upper_bound": _hex(self.upper_bound),
            "optimum_lower_bound": _hex(self.optimum_lower_bound),
            "sampled_lower_bound": _hex(self.sampled_lower_bound),
            "cuts": list(self.cuts),
            "proofs": [
                {
                    "output": proof.output,
                    "rho": _hex(proof.rho),
                    "multipliers": [_hexes(values) for values in proof.multipliers],
                    "input_multipliers": _hexes(proof.input_multipliers),
                }
                for proof in self.proofs
            ],
            "layer_norms": _hexes(self.layer_norms),
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
            if fields["format"] != checker.FORMAT:
                raise ValueError(
                    "this is the certificate of a property, not of a Lipschitz constant; `check` reads it"
                )
            return certificate_of(fields)
        except ValueError as error:  # also of a Box whose corners do not fit
            raise CheckpointError(str(error)) from error

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
        rows = [
            ("upper bound", shown_above(self.upper_bound)),
            ("optimum lower bound", shown_below(self.optimum_lower_bound)),
            ("sampled lower bound", shown_below(self.sampled_lower_bound)),
            ("norm", self.norm),
            ("output", "all" if self.output is None else str(self.output)),
            ("region", "all inputs" if self.region is None else repr(self.region)),
            ("arithmetic", self.arithmetic),
            ("activations", ", ".join(dict.fromkeys(self.activations)) or "none"),
            ("method", self.method),
            ("network", self.network_hash[:16]),
            ("seconds", f"{self.seconds:.3g}"),
            ("claim", self.claim),
        ]
        return rows if self.delta is None else [*rows[:3], ("delta", shown_above(self.delta)), *rows[3:]]


def certificate_of(fields: Mapping) -> Certificate:
    """Build the certificate from the fields that `checker.parse_certificate` returns.

    Raises:
        ValueError: the region is neither a box nor a ball.
    """
    proofs = (
        Proof(
            proof["rho"],
            tuple(map(tuple, proof["multipliers"])),
            _tuple(proof["input_multipliers"]),
            proof["output"],
        )
        for proof in fields["proofs"]
    )
    relaxations = fields["relaxations"]
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
        proofs=tuple(proofs),
        cuts=tuple(fields["cuts"]),
        layer_norms=_tuple(fields["layer_norms"]),
        activations=tuple(fields["activations"]),
        arithmetic=fields["arithmetic"],
        delta=fields["delta"],
        region=_region_of(fields["region"]),
        relaxations=None
        if relaxations is None
        else tuple(Relaxation(tuple(one["lower"]), tuple(one["upper"])) for one in relaxations),
        seconds=fields["seconds"],
        versions=fields["versions"],
    )


def _region_fields(region: Region | None) -> dict | None:
    if isinstance(region, Ball):
        return {"center": _hexes(region.center), "radius": _hex(region.radius)}
    return region and {"lower": _hexes(region.lower), "upper": _hexes(region.upper)}


def _region_of(fields: Mapping | None) -> Region | None:
    if fields is None:
        return None
    if "radius" in fields:
        return Ball(fields["center"], fields["radius"])
    return Box(fields["lower"], fields["upper"])


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _hex(value: float | None) -> str | None:
    return None if value is None else float(value).hex()


def _hexes(values: Sequence[float] | None) -> list[str] | None:
    return None if values is None else [float(value).hex() for value in values]


def shown_above(value: float | None, digits: int = 8) -> str:
    """Return an upper bound with so many digits, rounded up: what is read is proven too."""
    return "none" if value is None else rounded_up(value, digits)


def shown_below(value: float | None, digits: int = 8) -> str:
    """Return a lower bound with so many digits, rounded down."""
    return "none" if value is None else rounded_down(value, digits)
