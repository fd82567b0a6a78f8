"""Many networks at once: small ones of the same shape are solved together."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from torch import nn

from certify import checker
from certify.bounders.base import Proposal
from certify.bounders.certifying import lipschitz
from certify.bounders.lipsdp import LipSDP, proof_of
from certify.bounders.proving import Claim, prove, write_certificate
from certify.certificate import Certificate
from certify.checking import network_arrays
from certify.lmi import Inequality, inequality_of
from certify.signals import Output, System, system_of
from certify.structured.batch import LARGEST, batch_key, minimize_batch
from weightspace.network import Network
from weightspace.reading import as_network


def lipschitz_many(
    models_or_networks: Sequence[nn.Module | Network],
    *,
    norm: str = "l2",
    output: Output = None,
    tolerance: float = 1e-6,
    executor: Executor | None = None,
) -> list[Certificate]:
    """Bound the Lipschitz constants of many networks by LipSDP, as `lipschitz` does for one.

    Networks of the same shape whose inequality has at most 80 coordinates are solved together, every step vectorized
    over them; without a search for lower bounds (`sampled_lower_bound` is None). What is larger, implicit or does not
    converge that way is done by `lipschitz`, one network per task.

    Args:
        models_or_networks: all with the same kind of question: `norm`, `output` (an index or a pair with "linf").
        tolerance: relative gap of rho.
        executor: runs the single networks; a pool of threads when None.
    Returns:
        One certificate per network, in their order.
    Raises:
        as `lipschitz`.
    """
    networks = [as_network(model, None) for model in models_or_networks]
    results: list[Certificate | None] = [None] * len(networks)
    for places, systems, inequalities in _groups(networks, norm, output):
        started = time.perf_counter()
        found = minimize_batch(inequalities, tolerance=tolerance)
        share = (time.perf_counter() - started) / len(places)
        for place, system, solved in zip(places, systems, found, strict=True):
            if solved is None:
                continue
            start, solution = solved
            bounder = LipSDP(tolerance=tolerance)
            lower = solution.lower_bound * start[0]
            proposal = Proposal(
                f"{bounder.method}, {len(places)} networks together",
                (proof_of(solution.x[0] * start[0], solution.x[1:] * start[1:], system, norm, "neuron"),),
                None,
                lower if norm == "linf" else lower**0.5,
            )
            model = checker.rebuild(*network_arrays(system.network))
            proven = prove(model, proposal, norm, output)
            if proven is not None:
                claim = Claim(norm, output)
                beginning = time.perf_counter() - share
                results[place] = write_certificate(system.network, model, claim, proven, [], None, beginning)
    left = [place for place, result in enumerate(results) if result is None]
    single = partial(lipschitz, norm=norm, output=output, bounder=LipSDP(tolerance=tolerance))
    if executor is not None:
        others = list(executor.map(single, [networks[place] for place in left]))
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            others = list(pool.map(single, [networks[place] for place in left]))
    for place, certificate in zip(left, others, strict=True):
        results[place] = certificate
    return [result for result in results if result is not None]


def _groups(
    networks: Sequence[Network], norm: str, output: Output
) -> list[tuple[list[int], list[System], list[Inequality]]]:
    """Collect what can be solved together: (places, systems, inequalities)."""
    groups: dict[tuple, tuple[list[int], list[System], list[Inequality]]] = defaultdict(lambda: ([], [], []))
    for place, network in enumerate(networks):
        system = system_of(network, output)
        if norm == "linf" and system.outputs > 1:
            continue
        if system.implicit or not system.layers or sum(system.widths) > LARGEST:
            continue
        inequality = inequality_of(system, norm)
        if inequality.size > LARGEST or not inequality.constant.any():
            continue
        places, systems, inequalities = groups[batch_key(inequality)]
        places.append(place)
        systems.append(system)
        inequalities.append(inequality)
    return [group for group in groups.values() if len(group[0]) > 1]
