"""Multipliers by descent along a barrier, for chains too large for a semidefinite program."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from certify.bounders.base import Bounder, Proposal
from certify.bounders.closed_form import (
    ClosedForm,
    Point,
    better,
    closed_form,
    inherit,
    proof,
    to_stored_units,
)
from certify.descent import ChainBarrier, descend
from certify.lmi import SlopeChain, chain_of
from certify.preparation import Prepared, is_constant, normalize, prepare, rescale_to_start
from certify.recursion import layer_kernel, tighten
from certify.signals import System
from certify.structured.single_output import minimize_l2
from weightspace.errors import UnsupportedOperationError

# multipliers shared within channels, eta over the root of the number of coordinates, share of the work
_STAGES = ((True, 5.0, 0.2), (True, 15.0, 0.3), (False, 15.0, 0.2), (False, 50.0, 0.2), (False, 150.0, 0.1))
_FEW = ((True, 15.0, 0.7), (False, 25.0, 0.3))  # for less than 100 values
_MEMORY = 5000  # coordinates kept at most
_METHOD = "descent along a barrier from the closed form"


@dataclass(frozen=True)
class Descent(Bounder):
    r"""Bound by multipliers found in a few dozen quasi-Newton steps on $\eta \log \rho - \log\det$, l2, chains.

    Between ClosedForm, where it starts, and LipSDP, which it approaches. Feature maps first share one multiplier per
    channel, then every neuron has its own. A pair of outputs takes the multipliers of all outputs but those of the last
    layer, which are solved for. Activations with slopes in $[0, \beta]$; others keep the closed form.

    Args:
        work: floating-point operations spent; 5e12 take about a minute on one core.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> bound = certify.lipschitz(load("digits_mlp_a"), bounder=certify.Descent()).upper_bound
        >>> 24.79 < bound < 25.09  # between LipSDP and ClosedForm
        True
    """

    work: float = 5e12

    def propose(self, system: System, norm: str) -> Proposal | None:
        if norm != "l2":
            raise UnsupportedOperationError(f"Descent bounds the l2 norm, not {norm}; use bounder=LipSDP()")
        if system.whole is not None:
            return self._propose_selected(system, system.whole)
        scaled, exponents = normalize(chain_of(system))
        found = self.solve(scaled, [channels_of(system, k) for k in range(len(system.layers))])
        if found is None:
            return None
        rho, multipliers = to_stored_units(*found, exponents)
        return Proposal(_METHOD, (proof(rho, multipliers, system),))

    def _propose_selected(self, system: System, whole: System) -> Proposal | None:
        """Descend for all outputs; then the last layer is solved for those selected, in the units of all."""
        chain, exponents = normalize(chain_of(whole))
        row = np.ldexp(chain_of(system).weights[-1], -exponents[-1])
        one_sided = chain.alpha and not any(low.any() for low in chain.alpha)
        found = self.solve(chain, [channels_of(whole, k) for k in range(len(whole.layers))])
        if found is None or not (one_sided and row.any() and found[0] > 0):
            return ClosedForm().propose(system, "l2")
        selected = replace(chain, weights=(*chain.weights[:-1], row))
        best = better(None, inherit(found, system), selected)
        shared = [np.maximum(values, 1e-12 * values.max()) / found[0] for values in found[1][:-1]]
        solved = minimize_l2(layer_kernel(chain, shared), row[0])
        if solved is not None:
            values = [solved.rho * one for one in shared]
            best = better(best, (solved.rho, [*values, solved.multipliers]), selected)
        if best is None:
            return None
        rho, multipliers = to_stored_units(*best, exponents)
        return Proposal(f"{_METHOD}, then LipSDP of the last layer", (proof(rho, multipliers, system),))

    def solve(self, scaled: SlopeChain, channels: list[np.ndarray]) -> Point | None:
        """Return (rho, multipliers) of a normalized chain; `channels` names each neuron's."""
        prepared = prepare(scaled, balance=True)
        if is_constant(prepared.chain) or not scaled.alpha or any(low.any() for low in scaled.alpha):
            return closed_form(scaled)
        prepared = rescale_to_start(prepared)
        if prepared is None or sum(prepared.chain.widths[::-2]) > _MEMORY:
            return closed_form(scaled)
        barrier = ChainBarrier(prepared.chain)
        start = _least(prepared, barrier.start())
        first, owners = 1, [np.zeros(1, dtype=int)]
        for names, kept in zip(channels, prepared.kept, strict=True):
            owners.append(first + np.unique(names[kept], return_inverse=True)[1])
            first = int(owners[-1].max()) + 1
        owner, x, z = np.concatenate(owners), barrier.start(), np.zeros(first)
        calls, root = self.work / barrier.work, math.sqrt(sum(barrier.sizes))
        for shared, factor, share in _STAGES if calls >= 100 else _FEW:
            steps, eta = min(100, max(6, int(share * calls))), factor * root
            if not shared:
                x, _ = descend(lambda x, eta=eta: barrier.value(x, eta), x, steps)
            elif first < len(x):
                z, _ = descend(lambda z, eta=eta: barrier.shared_value(z, eta, owner), z, steps)
                x = z[owner]
        found = min(start, _least(prepared, x), key=lambda point: point[0])
        return found if math.isfinite(found[0]) else closed_form(scaled)


def _least(prepared: Prepared, x: np.ndarray) -> Point:
    """Return the least rho for the multipliers of a point of the barrier, which is of single precision, and these."""
    multipliers = np.split(np.exp(x[1:]), np.cumsum(prepared.chain.widths[1:])[:-1])
    return tighten(prepared.chain, multipliers) * prepared.bound_factor**2, prepared.restore(multipliers)


def channels_of(system: System, k: int) -> np.ndarray:
    """Return the channel of each neuron of a nonlinearity; of features, each is its own."""
    layer = system.layers[k]
    channels = system.network.node(layer.name).shape[1:]
    width = system.widths[k + 1]
    count = channels[0] if len(channels) > 1 and channels[0] and not width % channels[0] else width
    return np.repeat(np.arange(count), width // max(count, 1))
