"""Many networks at once: small ones of the same shape are solved together."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from certify import checker
from certify.bounders.base import Proposal
from certify.bounders.certifying import lipschitz
from certify.bounders.lipsdp import LipSDP, proof_of
from certify.bounders.proving import Claim, prove, write_certificate
from certify.certificate import Certificate, Relaxation
from certify.checking import network_arrays
from certify.lmi import Inequality, inequality_of
from certify.local_regions import bending_neurons, local_system, localize
from certify.regions import Region
from certify.signals import Output, System, system_of
from certify.structured.batch import LARGEST, batch_key, minimize_batch
from certify.unbounded import refuse_unbounded_slopes
from weightspace.errors import CheckpointError, ShapeError
from weightspace.journal import Journal
from weightspace.mapping import map_over
from weightspace.network import Network
from weightspace.reading import as_network

TOGETHER = 64  # programs that are solved together, whatever the number of workers


def lipschitz_many(
    models_or_networks: Sequence[nn.Module | Network],
    *,
    norm: str = "l2",
    output: Output = None,
    regions: Sequence[Region | None] | None = None,
    tolerance: float = 1e-6,
    executor: Executor | None = None,
    journal: str | Path | None = None,
) -> list[Certificate]:
    """Bound the Lipschitz constants of many networks, or of one over many regions, by LipSDP, as `lipschitz` does.

    Programs of the same shape with at most 80 coordinates are solved 64 at a time, every step vectorized over them;
    without a search for lower bounds (`sampled_lower_bound` is None). Over regions of one network, neurons that bend in
    some of them keep a coordinate in all, which leaves every bound as it is but for a slope widened by 1 %. What is
    larger, implicit or does not converge that way is done by `lipschitz`, one per task.

    Args:
        models_or_networks: all with the same kind of question: `norm`, `output` (an index or a pair with "linf").
        regions: one per network, None for the whole space; one network alone is taken for all of them.
        tolerance: relative gap of rho.
        executor: solves the programs and has the proofs checked, for example one of `concurrent.futures` or a Dask
            client's `get_executor()`; a pool of threads when None. The numbers do not depend on it.
        journal: a file that takes every certificate, by network, region and question. The same call finds them there
            and does the rest.
    Returns:
        One certificate per network and region, in their order.
    Raises:
        as `lipschitz`; ShapeError where regions and networks do not match; CheckpointError where the journal belongs to
        another call; ExecutorError where the workers were lost.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> networks = [load("digits_mlp_a"), load("digits_mlp_b")]
        >>> certificates = certify.lipschitz_many(networks)
        >>> [round(certificate.upper_bound, 1) for certificate in certificates]
        [24.8, 23.8]
    """
    models = list(models_or_networks)
    if regions is not None and len(models) == 1:
        models *= len(regions)
    regions = [None] * len(models) if regions is None else list(regions)
    if len(regions) != len(models):
        raise ShapeError(f"{len(models)} networks and {len(regions)} regions do not match; give one for each")
    known: dict[int, Network] = {}
    networks = [known.setdefault(id(model), as_network(model, None)) for model in models]
    questions = list(zip(networks, regions, strict=True))
    question = {"norm": norm, "output": output, "tolerance": tolerance}
    results: list[Certificate | None] = [None] * len(questions)
    with (
        nullcontext() if journal is None else Journal(journal, "lipschitz_many", question) as record,
        ThreadPoolExecutor(os.cpu_count()) if executor is None else nullcontext(executor) as pool,
    ):
        run = partial(
            map_over,
            executor=pool,
            journal=record,
            describe=_names,
            encode=_encode,
            decode=partial(_decode, journal=journal),
        )
        blocks = _blocks(questions)
        asked = [[questions[place] for place in block] for block in blocks]
        together = run(partial(_solve_together, **question), asked, key=partial(_key, "together"))
        _require_answers(asked, together, norm, output, journal)
        for block, found in zip(blocks, together, strict=True):
            for place, certificate in zip(block, found, strict=True):
                results[place] = certificate
        left = [place for place, result in enumerate(results) if result is None]
        asked = [[questions[place]] for place in left]
        alone = run(partial(_solve_alone, **question), asked, key=partial(_key, "alone"))
        _require_answers(asked, alone, norm, output, journal)
    for place, (certificate,) in zip(left, alone, strict=True):
        results[place] = certificate
    return [result for result in results if result is not None]


_Question = tuple[Network, Region | None]


def _blocks(questions: Sequence[_Question]) -> list[list[int]]:
    """Places of questions about networks of the same shapes, `TOGETHER` in a block."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for place, (network, _) in enumerate(questions):
        alike[tuple((node.operation.kind, node.shape) for node in network.nodes)].append(place)
    return [
        places[start : start + TOGETHER]
        for places in alike.values()
        for start in range(0, len(places), TOGETHER)
    ]


def _solve_alone(
    questions: Sequence[_Question], *, tolerance: float, **question: Any
) -> list[Certificate | None]:
    return [
        lipschitz(network, region=region, bounder=LipSDP(tolerance=tolerance), **question)
        for network, region in questions
    ]


def _solve_together(
    questions: Sequence[_Question], *, norm: str, output: Output, tolerance: float
) -> list[Certificate | None]:
    """Certificates of those questions whose programs can be solved together."""
    results: list[Certificate | None] = [None] * len(questions)
    networks, regions = [network for network, _ in questions], [region for _, region in questions]
    for group in _groups(networks, regions, norm, output):
        started = time.perf_counter()
        found = minimize_batch([task.inequality for task in group], tolerance=tolerance)
        share = (time.perf_counter() - started) / len(group)
        for task, solved in zip(group, found, strict=True):
            if solved is None:
                continue
            start, solution = solved
            bounder = LipSDP(tolerance=tolerance)
            lower = solution.lower_bound * start[0]
            proposal = Proposal(
                f"{bounder.method}, {len(group)} {'networks' if task.region is None else 'regions'} together",
                (
                    proof_of(
                        solution.x[0] * start[0], solution.x[1:] * start[1:], task.system, norm, "neuron"
                    ),
                ),
                None,
                None if task.widened else lower if norm == "linf" else lower**0.5,
            )
            proven = prove(task.model, proposal, norm, output)
            if proven is not None:
                claim = Claim(norm, output, region=task.region, relaxations=task.relaxations)
                beginning = time.perf_counter() - share
                results[task.place] = write_certificate(
                    task.system.network, task.model, claim, proven, [], None, beginning
                )
    return results


def _names(questions: Sequence[_Question]) -> str:
    sources = [network.metadata.get("source") or f"network {network.hash[:12]}" for network, _ in questions]
    where = "" if questions[0][1] is None else f" over {questions[0][1]}"
    return f"{sources[0]}{where}" + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")


def _key(task: str, questions: Sequence[_Question]) -> str:
    about = [
        [network.hash, region and [type(region).__name__, vars(region)]] for network, region in questions
    ]
    return f"{task} {hashlib.sha256(json.dumps(about).encode()).hexdigest()}"


def _encode(certificates: Sequence[Certificate | None]) -> list[str | None]:
    return [certificate and certificate.to_json() for certificate in certificates]


def _decode(texts: Sequence[str | None], *, journal: str | Path | None) -> list[Certificate | None]:
    try:
        return [None if text is None else Certificate.from_json(text) for text in texts]
    except (CheckpointError, TypeError) as error:
        raise CheckpointError(
            f"{journal}: {error}; the journal was edited; remove it, or name another"
        ) from error


def _require_answers(
    asked: Sequence[Sequence[_Question]],
    found: Sequence[Sequence[Certificate | None]],
    norm: str,
    output: Output,
    journal: str | Path | None,
) -> None:
    """Refuse a journal whose certificates are about something else than its keys say."""
    if journal is None:
        return
    wanted = tuple(output) if isinstance(output, (tuple, list)) else output
    for questions, certificates in zip(asked, found, strict=True):
        pairs = zip(questions, certificates, strict=False)
        if len(questions) != len(certificates) or any(
            (own.network_hash, own.norm, own.output, own.region) != (network.hash, norm, wanted, region)
            for (network, region), own in pairs
            if own is not None
        ):
            raise CheckpointError(
                f"{journal}: its certificates for {_names(questions)} are about another network, norm, output or "
                "region: the journal was edited; remove it, or name another"
            )


@dataclass(frozen=True, eq=False)
class _Task:
    """One program of a batch; `widened` where the system has neurons that are linear over the region."""

    place: int
    region: Region | None
    model: checker.Model
    relaxations: tuple[Relaxation, ...] | None
    system: System
    inequality: Inequality
    widened: bool


def _groups(
    networks: Sequence[Network], regions: Sequence[Region | None], norm: str, output: Output
) -> list[list[_Task]]:
    """Collect what can be solved together."""
    groups: dict[tuple, list[_Task]] = defaultdict(list)
    places: dict[int, list[int]] = defaultdict(list)
    for place, network in enumerate(networks):
        places[id(network)].append(place)
    for same in places.values():
        network = networks[same[0]]
        whole, model = system_of(network, output), checker.rebuild(*network_arrays(network))
        if norm == "linf" and whole.outputs > 1:
            continue
        local = [(place, region, *localize(model, region)) for place in same if (region := regions[place])]
        bending = bending_neurons([one for _, _, one, _ in local])
        tasks: list[tuple[int, Region | None, checker.Model, tuple[Relaxation, ...] | None, System, bool]] = [
            (place, None, model, None, whole, False) for place in same if regions[place] is None
        ]
        for place, region, one, relaxations in local:
            system = local_system(whole, one, bending)
            widened = sum(system.widths) > sum(local_system(whole, one).widths)
            tasks.append((place, region, one, relaxations, system, widened))
        for place, region, one, relaxations, system, widened in tasks:
            if region is None:
                refuse_unbounded_slopes(system.layers)
            if system.implicit or not system.layers or sum(system.widths) > LARGEST:
                continue
            inequality = inequality_of(system, norm)
            if inequality.size > LARGEST or not inequality.constant.any():
                continue
            task = _Task(place, region, one, relaxations, system, inequality, widened)
            groups[batch_key(inequality)].append(task)
    return [group for group in groups.values() if len(group) > 1]
