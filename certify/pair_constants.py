r"""Lipschitz constants of all differences of two outputs: $|(f_j - f_k)(x) - (f_j - f_k)(y)| \le L_{jk} \|x - y\|$."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from certify import checker
from certify.bounders.base import Bounder, Proposal
from certify.bounders.closed_form import ClosedForm, proof
from certify.bounders.descent import Descent
from certify.bounders.lipsdp import LipSDP, estimate_cost
from certify.bounders.norm_product import NormProduct
from certify.bounders.proving import Claim, Proven, prove, write_certificate
from certify.certificate import Certificate, Proof
from certify.classifiers import rebuild
from certify.lmi import chain_of
from certify.recursion import layer_kernel
from certify.signals import System, system_of
from certify.structured.single_output import minimize_l2, minimize_linf
from weightspace.errors import ShapeError, UnsupportedOperationError
from weightspace.network import Network
from weightspace.reading import as_network

_PATIENCE = 60.0  # estimated seconds of LipSDP for all pairs up to which every pair gets its own
_TOLERANCE = 1e-3  # of rho
_MEMORY = 4e9  # bytes
_WIDEST = 5000  # neurons of a layer whose matrices are written out and factorized


@dataclass(frozen=True, eq=False)
class PairConstants:
    """Constants of differences of outputs and what proves them.

    Attributes:
        norm: of the input, "l2" or "linf".
        values: (outputs, outputs), symmetric, zero on the diagonal; infinite where no constant was asked for or found.
        certificates: (j, k) with j < k -> certificate of f_j - f_k, all accepted by the rigorous check.
        network_hash: `Network.hash` of the network.
        seconds: of wall time.
    """

    norm: str
    values: np.ndarray
    certificates: Mapping[tuple[int, int], Certificate]
    network_hash: str
    seconds: float

    def __repr__(self) -> str:
        return f"PairConstants({len(self.certificates)} pairs, {self.norm}, {self.seconds:.1f} s)"


def bound_pairs(
    model_or_network: nn.Module | Network,
    *,
    norm: str = "l2",
    pairs: Sequence[tuple[int, int]] | None = None,
    bounder: Bounder | None = None,
    executor: Executor | None = None,
    example_inputs: Any = None,
) -> PairConstants:
    r"""Bound the Lipschitz constant of $f_j - f_k$ for pairs of outputs, each with its own proof.

    They are at most $\sqrt 2$ times that of f in l2 and often far less: what all outputs do together cancels.

    Args:
        pairs: which (j, k); None is all.
        bounder: None chooses. LipSDP for every pair while all are estimated to take less than a minute. Else, for
            chains of activations with slopes in [0, b], the multipliers of the last hidden layer are solved for pair
            by pair and those before it are shared; one hidden layer loses nothing by that (in l-infinity only such
            networks). Else ClosedForm or NormProduct; the latter also where it is the smaller one in l-infinity.
        executor: runs the pairs; threads when None.
        example_inputs: for a module, what it is traced with.
    Raises:
        UnsupportedOperationError: an operation or norm without a rule; the message names it.
        NonFiniteError: NaN or infinite weights.
        ShapeError: a pair that does not exist.
    Source: Fazlyab, Robey, Hassani, Morari, Pappas, LipSDP (2019), section 4; Raghunathan, Steinhardt, Liang,
    Certified defenses against adversarial examples (2018), for pairs of one hidden layer in l-infinity.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> found = certify.bound_pairs(load("digits_mlp_a"), pairs=[(3, 8)])
        >>> round(float(found.values[3, 8]), 1), list(found.certificates)
        (13.7, [(3, 8)])
    """
    started = time.perf_counter()
    if norm not in ("l2", "linf"):
        raise UnsupportedOperationError(f"norm={norm!r} is not 'l2' or 'linf'")
    network = as_network(model_or_network, example_inputs)
    system = system_of(network)
    model = rebuild(network)
    outputs = system.outputs
    chosen = (
        list(itertools.combinations(range(outputs), 2)) if pairs is None else _sorted_pairs(pairs, outputs)
    )
    attempts: list[Bounder] = [bounder] if bounder else _attempts(system, model, norm, len(chosen))
    solve = partial(_certify, attempts, system, model, norm)
    with _threads(executor) as pool:
        found = list(pool.map(solve, chosen))
    values = np.full((outputs, outputs), np.inf)
    np.fill_diagonal(values, 0.0)
    certificates = {}
    for pair, certificate in zip(chosen, found, strict=True):
        if certificate is not None and certificate.upper_bound is not None:
            certificates[pair] = certificate
            values[pair] = values[pair[::-1]] = certificate.upper_bound
    return PairConstants(norm, values, certificates, network.hash, time.perf_counter() - started)


@dataclass(frozen=True, eq=False)
class LastLayerSDP(Bounder):
    """LipSDP over the last hidden layer; multipliers before it are given.

    Args:
        shared: of the layers before the last, for rho = 1.
        kernel: what they leave of these layers for the last one, where it is known; see `layer_kernel`.
    """

    shared: tuple[np.ndarray, ...] = ()
    kernel: np.ndarray | None = None

    def propose(self, system: System, norm: str) -> Proposal | None:
        chain = chain_of(system)
        row, high = chain.weights[-1][0], chain.beta[-1]
        method = "LipSDP of the last hidden layer"
        if norm == "linf":
            solution = minimize_linf(high[:, None] * chain.weights[0], row)
        else:
            method += ", multipliers before it shared by all pairs" if self.shared else ""
            kernel = layer_kernel(chain, self.shared) if self.kernel is None else self.kernel
            solution = minimize_l2(kernel, row)
        if solution is None:
            return None
        if solution.input_multipliers is not None:
            lists = tuple(solution.multipliers.tolist()), tuple(solution.input_multipliers.tolist())
            return Proposal(method, (Proof(solution.rho, lists[:1], lists[1], system.selection),))
        multipliers = [solution.rho * values for values in self.shared]
        return Proposal(method, (proof(solution.rho, [*multipliers, solution.multipliers], system),))


def _attempts(system: System, model: checker.Model, norm: str, count: int) -> list[Bounder]:
    """Return the bounders to try in order, for any pair."""
    product: list[Bounder] = [NormProduct(model)]
    if system.implicit:
        return [LipSDP(tolerance=_TOLERANCE)]
    if system.too_large:
        return product
    workers = os.cpu_count() or 1
    seconds, memory = estimate_cost(system.select(0), norm)
    if count * seconds <= _PATIENCE * workers and memory * workers <= _MEMORY:
        return [LipSDP(tolerance=_TOLERANCE), *product]
    if not system.is_chain or not system.layers or max(system.widths) > _WIDEST:
        return product
    one_sided = not any(low.any() for low in chain_of(system).alpha)
    if norm == "linf":
        return [LastLayerSDP(), *product] if one_sided and len(system.layers) == 1 else product
    first: list[Bounder] = [ClosedForm(), *product]
    shared = _shared(system) if one_sided else None
    return first if shared is None else [LastLayerSDP(shared, layer_kernel(chain_of(system), shared)), *first]


def _shared(system: System) -> tuple[np.ndarray, ...] | None:
    """Return multipliers, for rho = 1, of all layers but the last that suit the whole output."""
    if len(system.layers) == 1:
        return ()
    seconds, memory = estimate_cost(system, "l2")
    cheap = seconds <= _PATIENCE and memory <= _MEMORY
    found = (LipSDP(tolerance=_TOLERANCE) if cheap else Descent()).propose(system, "l2")
    if found is None or not found.proofs[0].rho > 0:
        return None
    rho, lists = found.proofs[0].rho, found.proofs[0].multipliers
    return tuple(np.maximum(values, 1e-12 * max(values)) / rho for values in map(np.array, lists[:-1]))


def _certify(
    attempts: Sequence[Bounder], system: System, model: checker.Model, norm: str, pair: tuple[int, int]
) -> Certificate | None:
    """Return the certificate of one pair by the first bounder whose proof the check accepts, None without one."""
    started, best = time.perf_counter(), None
    for bounder in attempts:
        try:
            with np.errstate(all="ignore"):
                proposal = bounder.propose(system.select(pair), norm)
        except np.linalg.LinAlgError:
            continue
        except UnsupportedOperationError:
            if len(attempts) == 1:
                raise
            continue
        found: Proven | None = None if proposal is None else prove(model, proposal, norm, pair)
        if found is not None and (best is None or found.bound < best.bound):
            best = found
        if best is not None and norm == "l2":  # in l-infinity the product of norms may be the smaller one
            break
    if best is None:
        return None
    return write_certificate(system.network, model, Claim(norm, pair), best, [], None, started)


def _sorted_pairs(pairs: Sequence[tuple[int, int]], outputs: int) -> list[tuple[int, int]]:
    for j, k in pairs:
        if not (0 <= j < outputs and 0 <= k < outputs and j != k):
            raise ShapeError(f"pair ({j}, {k}) does not name two of the {outputs} outputs")
    return sorted({(min(j, k), max(j, k)) for j, k in pairs})


@contextmanager
def _threads(executor: Executor | None) -> Iterator[Executor]:
    if executor is not None:
        yield executor
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield pool
