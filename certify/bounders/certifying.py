"""`lipschitz`: choose a bounder, have its proof checked, and write the certificate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from certify import checker
from certify.bounders.base import Bounder
from certify.bounders.closed_form import ClosedForm
from certify.bounders.lipsdp import LipSDP, estimate_cost
from certify.bounders.norm_product import NormProduct
from certify.bounders.proving import Claim, Proven, prove, write_certificate
from certify.bounders.sampling import sample_lower_bound
from certify.bounders.splitting import Split
from certify.certificate import Certificate, Relaxation
from certify.checking import network_arrays
from certify.local_regions import local_system, localize, region_fields
from certify.regions import Ball, Box, Region
from certify.signals import Output, System, system_of, too_large_to_unroll
from certify.unbounded import has_unbounded_slopes, refuse_unbounded_slopes
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network
from weightspace.reading import as_network

_PATIENCE = 120.0  # estimated seconds up to which programs are solved unless a bounder is named
_MEMORY = 4e9  # bytes


def lipschitz(
    model_or_network: nn.Module | Network,
    *,
    norm: str = "l2",
    region: Region | None = None,
    bounder: Bounder | None = None,
    output: Output = None,
    example_inputs: Any = None,
    arithmetic: str = "real",
) -> Certificate:
    r"""Bound the Lipschitz constant, $\|f(x) - f(y)\| \le L \|x - y\|$ for all x and y, and prove it.

    The bound is given only after `certify/checker.py` has accepted the proof. Where it refuses a bounder's,
    rho is enlarged, then the next method is taken; without any, `status` says so and `upper_bound` is None.

    Args:
        model_or_network: Linear layers, scalar and group activations, normalization folded, sums, concatenations and
            slices of features, implicit layers.
        norm: "l2" or "linf", of input and output alike.
        region: a `Box` or a `Ball` to which x and y belong; None for the whole space. Over a region activations take
            only the slopes that linear bounds of their inputs allow. Where an operation has no such bounds, or the
            program is too large, the bound for all inputs is given, and `method` says so.
        bounder: None chooses: LipSDP while it is estimated to take less than two minutes, else Split, which
            cuts sequences and descends from the closed form, or NormProduct. `method` tells which and why.
        output: None for all outputs, an index, or a pair (j, k) for the difference of two.
        example_inputs: for a module, what it is traced with; a batch of two for its first linear layer when
            None.
        arithmetic: "real", or "float32": $\|f_{32}(x) - f_{32}(y)\| \le L \|x - y\| + 2 \delta$ for the network as it
            runs in single precision on inputs in `region`, a box; `Certificate.delta` holds delta.
    Raises:
        UnsupportedOperationError: an operation, norm or region without a rule; the message names it.
        NonFiniteError: NaN or infinite weights.
        ShapeError: `output` does not exist, or `region` does not fit the input.
        ArchitectureError: the module cannot be traced, or its input shape not be derived.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> network = load("digits_mlp_a")
        >>> certificate = certify.lipschitz(network)
        >>> round(certificate.upper_bound, 1)
        24.8
        >>> certificate.sampled_lower_bound <= certificate.upper_bound
        True
        >>> certify.check(certificate, network).valid
        True
    """
    started = time.perf_counter()
    if norm not in ("l2", "linf"):
        raise UnsupportedOperationError(f"norm={norm!r} is not 'l2' or 'linf'")
    if arithmetic not in ("real", "float32"):
        raise UnsupportedOperationError(f"arithmetic={arithmetic!r} is not 'real' or 'float32'")
    if arithmetic == "float32" and (region is None or isinstance(region, Ball)):
        raise UnsupportedOperationError(
            "arithmetic='float32' holds on a box of inputs; pass region=Box(lower, upper)"
        )
    network = as_network(model_or_network, example_inputs)
    if isinstance(output, list) and len(output) == 2:
        output = (output[0], output[1])
    system = system_of(network, output)
    delta, notes = None, []
    try:
        model = checker.rebuild(*network_arrays(network))
        if isinstance(region, Box) and arithmetic == "float32":
            delta = checker.float32_delta(model, region.lower, region.upper, norm, output)
    except checker.Refused as error:
        raise UnsupportedOperationError(f"no certificate of this network can be checked: {error}") from error
    if region is not None:
        try:
            checker.region_of(model, region_fields(region))
        except checker.Refused as error:
            raise UnsupportedOperationError(f"region={region!r} does not fit: {error}") from error
    subjects = [_Subject(model, system, None)]
    if region is not None:
        try:
            subjects.insert(0, _local_subject(model, system, region, norm, bounder))
        except checker.Refused as error:  # what holds for all inputs holds in the region
            notes.append(f"bounded for all inputs, since {error}")
    best, relaxations = None, None
    for subject in subjects:
        if subject is subjects[-1] and len(subjects) > 1 and has_unbounded_slopes(system.layers):
            break
        refuse_unbounded_slopes(subject.system.layers)
        found = _bound(subject, norm, output, bounder, notes)
        if found is not None and (best is None or found.bound < best.bound):
            best, relaxations = found, subject.relaxations
        if best is not None and (best.proposal.layer_norms is None or isinstance(bounder, NormProduct)):
            break  # a product over the region may be larger than a better bound for all inputs
    # without a proof an implicit layer may have no value to sample
    sampled = None if best is None and system.implicit else sample_lower_bound(system, norm, region=region)
    if relaxations is not None:
        model = subjects[0].model
    claim = Claim(norm, output, arithmetic, delta, region, relaxations)
    return write_certificate(network, model, claim, best, notes, sampled, started)


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is bounded: for all inputs, or over a region, where there are relaxations."""

    model: checker.Model
    system: System
    relaxations: tuple[Relaxation, ...] | None


def _local_subject(
    model: checker.Model, system: System, region: Region, norm: str, bounder: Bounder | None
) -> _Subject:
    """Return what is bounded over a region.

    Raises:
        checker.Refused: an operation has no bounds over regions, or the program is too large.
    """
    local, relaxations = localize(model, region)
    found = local_system(system, local)
    if bounder is None and not _affordable(found, norm):
        raise checker.Refused("LipSDP over the region would take too long")
    return _Subject(local, found, relaxations)


def _bound(
    subject: _Subject, norm: str, output: Output, bounder: Bounder | None, notes: list[str]
) -> Proven | None:
    """Return the first bound that the check accepts; adds to `notes` what was tried and why."""
    attempts, reason = _attempts(subject.system, norm, bounder)
    notes.append(reason)
    best = None
    for attempt in attempts:
        name = type(attempt).__name__
        try:
            with np.errstate(all="ignore"):  # extreme scales end in infinities, which prove nothing
                proposal = attempt.propose(subject.system, norm)
        except np.linalg.LinAlgError as error:
            notes.append(f"{name} failed ({error})")
            continue
        except UnsupportedOperationError:
            if attempt is bounder:
                raise
            continue
        if proposal is None:
            hint = " that the implicit layers are well-posed" if subject.system.implicit else ""
            notes.append(f"{name} found no proof{hint}")
            continue
        found = prove(subject.model, proposal, norm, output)
        if found is None:
            notes.append(f"the check refused the proof of {name}")
            continue
        if best is None or found.bound < best.bound:
            best = found
        if bounder is not None or norm == "l2":  # in l-infinity the product of norms may be the smaller one
            break
    return best


def _affordable(system: System, norm: str) -> bool:
    seconds, memory = estimate_cost(system, norm)
    return seconds <= _PATIENCE and memory <= _MEMORY


def _attempts(system: System, norm: str, bounder: Bounder | None) -> tuple[list[Bounder], str]:
    """Return the bounders to try in order, and why."""
    if bounder is not None:
        return [bounder] if isinstance(bounder, NormProduct) else [
            bounder,
            ClosedForm(),
            NormProduct(),
        ], "as asked"
    if system.too_large:
        return [NormProduct()], "chosen because " + too_large_to_unroll(system)
    seconds, memory = estimate_cost(system, norm)
    cheap: list[Bounder] = [Split(), ClosedForm(), NormProduct()]
    if system.implicit or _affordable(system, norm):
        return [LipSDP(), *cheap], "chosen because it covers the network in reasonable time"
    return (
        cheap,
        f"chosen because LipSDP() was estimated to take {seconds:.0f} s and {memory / 1e9:.1f} GB",
    )
