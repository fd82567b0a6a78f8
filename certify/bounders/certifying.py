"""`lipschitz`: choose a bounder, have its proof checked, and write the certificate."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from certify import checker
from certify.bounders.base import Bounder, Proposal
from certify.bounders.closed_form import ClosedForm
from certify.bounders.lipsdp import LipSDP
from certify.bounders.norm_product import NormProduct
from certify.bounders.sampling import sample_lower_bound
from certify.certificate import Certificate, Status
from certify.checking import check, network_arrays
from certify.lmi import Chain, Output, chain_of
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network
from weightspace.symmetry_spec import as_network

_LARGEST = (
    150  # hidden neurons, and 200 with inputs, up to which the program is solved unless a bounder is named
)
_INFLATIONS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def lipschitz(
    model_or_network: nn.Module | Network,
    *,
    norm: str = "l2",
    region: None = None,
    bounder: Bounder | None = None,
    output: Output = None,
    example_inputs: Any = None,
) -> Certificate:
    r"""Bound the Lipschitz constant, $\|f(x) - f(y)\| \le L \|x - y\|$ for all x and y, and prove it.

    The bound is given only after `certify/checker.py` has accepted the proof. Where it refuses a bounder's,
    rho is enlarged, then the closed form is taken; without any, `status` says so and `upper_bound` is None.

    Args:
        model_or_network: a feedforward chain of linear layers and activations.
        norm: "l2" or "linf", of input and output alike.
        region: None, the whole space (this version has no other).
        bounder: None chooses: LipSDP up to 150 hidden neurons, above that ClosedForm; NormProduct for group
            activations, matrices in a row and linf. `method` tells which and why.
        output: None for all outputs, an index, or a pair (j, k) for the difference of two.
        example_inputs: for a module, what it is traced with; a batch of two for its first linear layer when
            None.
    Raises:
        UnsupportedOperationError: an operation, norm or region without a rule; the message names it.
        NonFiniteError: NaN or infinite weights.
        ShapeError: `output` does not exist.
        ArchitectureError: the module cannot be traced, or its input shape not be derived.
    """
    started = time.perf_counter()
    if norm not in ("l2", "linf"):
        raise UnsupportedOperationError(f"norm={norm!r} is not 'l2' or 'linf'")
    if region is not None:
        raise UnsupportedOperationError(
            f"region={region!r}: this version bounds the whole space only; call with region=None"
        )
    network = as_network(model_or_network, example_inputs)
    if isinstance(output, list) and len(output) == 2:
        output = (output[0], output[1])
    chain = chain_of(network, output)
    attempts, reason = _attempts(chain, norm, bounder)
    sampled = sample_lower_bound(chain, norm)
    failures = []
    for attempt in attempts:
        try:
            with np.errstate(all="ignore"):  # extreme scales end in infinities, which prove nothing
                proposal = attempt.propose(chain, norm)
        except np.linalg.LinAlgError as error:
            failures.append(f"{type(attempt).__name__} failed ({error})")
            continue
        if proposal is None:
            failures.append(f"{type(attempt).__name__} found no proof")
            continue
        certificate = _certify(proposal, network, norm, output, sampled, [reason, *failures], started)
        if certificate is not None:
            return certificate
        failures.append(f"the check refused the proof of {type(attempt).__name__}")
    return Certificate(
        None, None, sampled, Status.FAILED, norm, output, "; ".join([reason, *failures]), checker.MULTIPLIERS,
        network.hash, None, None, None, time.perf_counter() - started, _versions(),
    )  # fmt: skip


def _attempts(chain: Chain, norm: str, bounder: Bounder | None) -> tuple[list[Bounder], str]:
    """Return the bounders to try in order, and why."""
    if bounder is not None:
        further = [] if isinstance(bounder, NormProduct | ClosedForm) else [ClosedForm()]
        return [bounder, *further], "as asked"
    if norm == "linf":
        return [NormProduct()], "chosen because the other methods of this version bound l2 only"
    if not chain.slope_restricted:
        return [NormProduct()], "chosen because not every layer has a scalar activation with bounded slopes"
    hidden = sum(len(weight) for weight in chain.weights[:-1])
    size = hidden + min(len(chain.weights[0]), chain.weights[0].shape[1])
    if hidden > _LARGEST or size > _LARGEST + 50:
        reason = f"chosen because of {hidden} hidden neurons; bounder=LipSDP('SCS') is tighter and slower"
        return [ClosedForm(), NormProduct()], reason
    solver = "CLARABEL" if size <= 50 else "SCS"
    reason = f"chosen because {hidden} hidden neurons are at most {_LARGEST}"
    return [LipSDP(solver=solver), ClosedForm(), NormProduct()], reason


def _certify(
    proposal: Proposal,
    network: Network,
    norm: str,
    output: Output,
    sampled: float,
    notes: list[str],
    started: float,
) -> Certificate | None:
    """Return the certificate of the least enlargement of a proposal that the check accepts, or None."""
    try:
        weights, hidden = checker.rebuild_chain(*network_arrays(network))
    except checker.Refused as error:
        raise UnsupportedOperationError(f"no certificate of this network can be checked: {error}") from error
    weights = checker.select_output(weights, output)
    rho, multipliers, bound = None, None, math.inf
    for inflation in _INFLATIONS:
        try:
            with np.errstate(all="ignore"):
                if proposal.layer_norms is not None:
                    bound, _ = checker.check_norms(weights, hidden, proposal.layer_norms, norm)
                elif proposal.multipliers is not None and proposal.rho is not None:
                    rho = proposal.rho * (1 + inflation)
                    # a larger lambda helps where the inequality is tight inside; see checker.chain_bounded
                    factor = 1.0 if inflation == _INFLATIONS[0] else 1 + inflation
                    multipliers = tuple(tuple((factor * v).tolist()) for v in proposal.multipliers)
                    bound, _ = checker.check_multipliers(weights, hidden, rho * factor, multipliers)
                    rho *= factor
        except checker.Refused:
            continue
        break
    if not math.isfinite(bound):
        return None
    lower = proposal.optimum_lower_bound
    certificate = Certificate(
        upper_bound=bound,
        optimum_lower_bound=None if lower is None else min(lower, bound),
        sampled_lower_bound=sampled,
        status=Status.CERTIFIED,
        norm=norm,
        output=output,
        method="; ".join([proposal.method, *notes]),
        kind=checker.MULTIPLIERS if proposal.layer_norms is None else checker.NORM_PRODUCT,
        network_hash=network.hash,
        multipliers=multipliers,
        rho=rho,
        layer_norms=proposal.layer_norms,
        seconds=time.perf_counter() - started,
        versions=_versions(),
    )
    return certificate if check(certificate, network) else None


@cache
def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "torch", "cvxpy", "scs", "clarabel"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return MappingProxyType(found)
