"""From a proposal to a certificate: enlarge until the rigorous check accepts, then write it down."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

import numpy as np

from certify import checker
from certify.bounders.base import Proposal
from certify.certificate import Certificate, Proof, Relaxation, Status, certificate_of
from certify.checking import network_arrays
from certify.regions import Region
from certify.signals import Output
from weightspace.network import Network

_INFLATIONS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Claim:
    """What a certificate is to speak about."""

    norm: str = "l2"
    output: Output = None
    arithmetic: str = "real"
    delta: float | None = None
    region: Region | None = None
    relaxations: tuple[Relaxation, ...] | None = None


@dataclass(frozen=True, eq=False)
class Proven:
    """A bound, the proofs that the check accepted, and the proposal they come from."""

    bound: float
    proofs: tuple[Proof, ...]
    proposal: Proposal


def prove(model: checker.Model, proposal: Proposal, norm: str, output: Output) -> Proven | None:
    """Return the least enlargement of a proposal that the check accepts, None where it accepts none."""
    for inflation in _INFLATIONS:
        # a larger lambda helps where the inequality is tight inside; see checker.chain_bounded
        factor = 1.0 if inflation == _INFLATIONS[0] else 1 + inflation
        proofs = tuple(_inflated(proof, factor, inflation) for proof in proposal.proofs)
        try:
            with np.errstate(all="ignore"):
                if proposal.layer_norms is not None:
                    bound, _ = checker.check_norms(model, norm, output, proposal.layer_norms)
                else:
                    fields = [asdict(proof) for proof in proofs]
                    bound, _ = checker.check_proofs(model, norm, output, proposal.cuts, fields)
        except checker.Refused:
            continue
        if math.isfinite(bound):
            return Proven(bound, proofs, proposal)
    return None


def _inflated(proof: Proof, factor: float, inflation: float) -> Proof:
    def enlarge(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(factor * value for value in values)

    return replace(
        proof,
        rho=proof.rho * (1 + inflation) * factor,
        multipliers=tuple(enlarge(values) for values in proof.multipliers),
        input_multipliers=None if proof.input_multipliers is None else enlarge(proof.input_multipliers),
    )


def write_certificate(
    network: Network,
    model: checker.Model,
    claim: Claim,
    proven: Proven | None,
    notes: Sequence[str],
    sampled: float | None,
    started: float,
) -> Certificate:
    """Return the certificate of what was proven, FAILED where nothing was; `started` is of time.perf_counter()."""
    proposal = proven.proposal if proven else Proposal("")
    lower = proposal.optimum_lower_bound
    certificate = Certificate(
        upper_bound=proven.bound if proven else None,
        optimum_lower_bound=min(lower, proven.bound) if proven and lower is not None else None,
        sampled_lower_bound=sampled,
        status=Status.CERTIFIED if proven else Status.FAILED,
        norm=claim.norm,
        output=claim.output,
        method="; ".join([proposal.method, *notes] if proven else notes),
        kind=checker.MULTIPLIERS if proposal.layer_norms is None else checker.NORM_PRODUCT,
        network_hash=network.hash,
        proofs=proven.proofs if proven else (),
        cuts=proposal.cuts,
        layer_norms=proposal.layer_norms,
        activations=tuple(checker.activation_names(model)),
        arithmetic=claim.arithmetic,
        delta=claim.delta,
        region=claim.region,
        relaxations=claim.relaxations,
        seconds=time.perf_counter() - started,
        versions=dict(library_versions()),
    )
    if proven:
        require_faithful(certificate, network)
    return certificate


def require_faithful(certificate: Certificate, network: Network) -> None:
    """Raise AssertionError unless the text of a certificate says what was proven, about this network.

    The numbers of the proof were accepted as they are; what could still go wrong is writing them down.
    """
    written = certificate_of(checker.parse_certificate(certificate.to_json()))
    if written != certificate:
        raise AssertionError("the text of a certificate differs from what was proven")
    if checker.network_hash(*network_arrays(network)) != certificate.network_hash:
        raise AssertionError("the check computes another hash of the network")
    lower = (certificate.optimum_lower_bound, certificate.sampled_lower_bound)
    if certificate.upper_bound is None or any(
        value is not None and value > certificate.upper_bound for value in lower
    ):
        raise AssertionError(f"the bound {certificate.upper_bound} is below a lower one: {lower}")


@cache
def library_versions() -> Mapping[str, str]:
    """Return the versions of Python and of the libraries that a bound depends on, as certificates name them."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "torch", "cvxpy", "scs", "clarabel"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return MappingProxyType(found)
