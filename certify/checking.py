"""Check a certificate against a network: the checker that runs alone, and the same in exact arithmetic."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from certify import checker
from certify.certificate import Certificate
from weightspace.errors import CheckpointError
from weightspace.network import Network


@dataclass(frozen=True)
class CheckResult:
    """Whether a certificate was proven for a network.

    Attributes:
        valid: it was.
        reason: why not, or what was proven.
        margin: smallest pivot of the factorizations, scaled to a unit diagonal and after subtraction of all
            rounding errors (inf where no matrix had to be factored, None where invalid).

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> certificate = certify.lipschitz(load("digits_maxmin"), bounder=certify.NormProduct())
        >>> result = certify.check(certificate, load("digits_mlp_a"))
        >>> result.valid, result.margin
        (False, None)
    """

    valid: bool
    reason: str
    margin: float | None

    def __bool__(self) -> bool:
        return self.valid


def check(certificate: Certificate, network: Network, *, exact: bool = False) -> CheckResult:
    """Check a certificate by the code of `certify/checker.py`, as `python checker.py` does.

    Args:
        network: the network the certificate is about.
        exact: also decide the matrix inequalities in rational arithmetic; for up to some dozens of neurons.
    Raises:
        CheckpointError: the certificate or the network's description is broken.

    Examples:
        >>> import certify, dataclasses
        >>> from weightspace.bundled import load
        >>> network = load("digits_maxmin")
        >>> certificate = certify.lipschitz(network)
        >>> certify.check(certificate, network).valid
        True
        >>> better = dataclasses.replace(certificate, upper_bound=certificate.upper_bound / 2)
        >>> certify.check(better, network).valid
        False
    """
    return check_text(certificate.to_json(), network, exact=exact)


def check_text(text: str, network: Network, *, exact: bool = False) -> CheckResult:
    """Check the text of a certificate file; see `check`. An edited file is invalid, a broken one an error."""
    from certify.exact import check_exactly

    graph, parameters = network_arrays(network)
    try:
        fields = checker.parse_certificate(text)
        margin = checker.check_certificate(fields, graph, parameters)
        if exact and fields["format"] == checker.PROPERTY_FORMAT:
            raise ValueError(
                "the bounds of a property are not decided in exact arithmetic; leave exact (--exact) out"
            )
        if exact:
            check_exactly(fields, graph, parameters)
    except checker.Refused as error:
        return CheckResult(False, str(error), None)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if fields["format"] == checker.PROPERTY_FORMAT:
        return CheckResult(True, fields["claim"], margin)
    return CheckResult(True, f"{fields['claim']} L = {fields['upper_bound']!r}", margin)


def network_arrays(network: Network) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the network as `checker.load_network` returns it from a file that `Network.save_npz` wrote."""
    graph = json.loads(network.to_json())
    halves = [name for name, tensor in network.parameters.items() if tensor.dtype == torch.bfloat16]
    graph["bfloat16"] = halves
    arrays = {
        f"parameter:{name}": (tensor.view(torch.int16) if name in halves else tensor)
        .detach()
        .contiguous()
        .numpy()
        for name, tensor in network.parameters.items()
    }
    return graph, checker.arrays_to_parameters(graph, arrays)
