"""`lipschitz`: choose a bounder, have its proof checked, and write the certificate."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import nn

from certify import checker
from certify.bounders.base import Bounder
from certify.bounders.closed_form import ClosedForm
from certify.bounders.lipsdp import LipSDP
from certify.bounders.norm_product import NormProduct
from certify.bounders.proving import Claim, prove, write_certificate
from certify.bounders.sampling import sample_lower_bound
from certify.certificate import Certificate
from certify.checking import network_arrays
from certify.regions import Box
from certify.signals import Output, System, system_of
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network
from weightspace.reading import as_network

_PATIENCE = 120.0  # estimated seconds up to which programs are solved unless a bounder is named
_MEMORY = 4e9  # bytes


def lipschitz(
    model_or_network: nn.Module | Network,
    *,
    norm: str = "l2",
    region: Box | None = None,
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
        region: the box of inputs on which `arithmetic="float32"` holds; otherwise None, the whole space.
        bounder: None chooses: LipSDP while it is estimated to take less than two minutes, else ClosedForm (chains)
            or NormProduct. `method` tells which and why.
        output: None for all outputs, an index, or a pair (j, k) for the difference of two.
        example_inputs: for a module, what it is traced with; a batch of two for its first linear layer when
            None.
        arithmetic: "real", or "float32": $\|f_{32}(x) - f_{32}(y)\| \le L \|x - y\| + 2 \delta$ for the network as it
            runs in single precision on inputs in `region`; `Certificate.delta` holds delta.
    Raises:
        UnsupportedOperationError: an operation, norm or region without a rule; the message names it.
        NonFiniteError: NaN or infinite weights.
        ShapeError: `output` does not exist, or `region` does not fit the input.
        ArchitectureError: the module cannot be traced, or its input shape not be derived.
    """
    started = time.perf_counter()
    if norm not in ("l2", "linf"):
        raise UnsupportedOperationError(f"norm={norm!r} is not 'l2' or 'linf'")
    if arithmetic not in ("real", "float32"):
        raise UnsupportedOperationError(f"arithmetic={arithmetic!r} is not 'real' or 'float32'")
    if arithmetic == "float32" and region is None:
        raise UnsupportedOperationError(
            "arithmetic='float32' holds on a box of inputs; pass region=Box(lower, upper)"
        )
    if arithmetic == "real" and region is not None:
        raise UnsupportedOperationError(
            f"region={region!r}: in real arithmetic this version bounds the whole space only; call with region=None"
        )
    network = as_network(model_or_network, example_inputs)
    if isinstance(output, list) and len(output) == 2:
        output = (output[0], output[1])
    system = system_of(network, output)
    try:
        model = checker.rebuild(*network_arrays(network))
        delta = (
            None if region is None else checker.float32_delta(model, region.lower, region.upper, norm, output)
        )
    except checker.Refused as error:
        raise UnsupportedOperationError(f"no certificate of this network can be checked: {error}") from error
    attempts, reason = _attempts(system, norm, bounder)
    failures: list[str] = []
    best = None
    for attempt in attempts:
        try:
            with np.errstate(all="ignore"):  # extreme scales end in infinities, which prove nothing
                proposal = attempt.propose(system, norm)
        except np.linalg.LinAlgError as error:
            failures.append(f"{type(attempt).__name__} failed ({error})")
            continue
        except UnsupportedOperationError:
            if attempt is bounder:
                raise
            continue
        if proposal is None:
            hint = " that the implicit layers are well-posed" if system.implicit else ""
            failures.append(f"{type(attempt).__name__} found no proof{hint}")
            continue
        found = prove(model, proposal, norm, output)
        if found is None:
            failures.append(f"the check refused the proof of {type(attempt).__name__}")
            continue
        if best is None or found.bound < best.bound:
            best = found
        if bounder is not None or norm == "l2":  # in l-infinity the product of norms may be the smaller one
            break
    # without a proof an implicit layer may have no value to sample
    sampled = None if best is None and system.implicit else sample_lower_bound(system, norm)
    claim = Claim(norm, output, arithmetic, delta, region)
    return write_certificate(network, model, claim, best, [reason, *failures], sampled, started)


def _attempts(system: System, norm: str, bounder: Bounder | None) -> tuple[list[Bounder], str]:
    """Return the bounders to try in order, and why."""
    if bounder is not None:
        return [bounder] if isinstance(bounder, NormProduct) else [
            bounder,
            ClosedForm(),
            NormProduct(),
        ], "as asked"
    seconds, memory = _cost(system, norm)
    cheap: list[Bounder] = [ClosedForm(), NormProduct()]
    if system.implicit or (seconds <= _PATIENCE and memory <= _MEMORY):
        return [LipSDP(), *cheap], "chosen because it covers the network in reasonable time"
    return (
        cheap,
        f"chosen because LipSDP() was estimated to take {seconds:.0f} s and {memory / 1e9:.1f} GB",
    )


def _cost(system: System, norm: str) -> tuple[float, float]:
    """Estimate seconds and bytes of the structured solver on one core of 2025."""
    hidden = system.widths[1:]
    first = system.widths[0]
    if norm == "l2" and system.is_chain and hidden:
        first = min(first, hidden[0])
        size, width = first + sum(hidden), max(first, *hidden)
    else:
        size = width = first + sum(hidden)
    rows = system.outputs if norm == "linf" else 1
    iterations = 10 + 0.4 * len(hidden)
    return rows * iterations * (24 * size**2 * width + 2 * size**3) / 3e10 + 1e-2, 14 * 8.0 * size**2
