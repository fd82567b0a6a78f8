"""A sequence of layers cut into sub-chains whose constants multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from certify.bounders.base import Bounder, Proposal
from certify.bounders.closed_form import ClosedForm
from certify.bounders.descent import Descent
from certify.bounders.lipsdp import LipSDP, estimate_cost
from certify.constraints import SlopeRestricted, WindowMaximum
from certify.signals import System, require_unrolled, system_of
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network, Node
from weightspace.operations import Input

_WIDE = 5000  # widest block of a sub-chain with an activation inside
_SMALL = 400  # coordinates of a sub-chain with maxima inside


@dataclass(frozen=True)
class Split(Bounder):
    r"""Bound a sequence of scalar activations, maxima and linear maps by sub-chains, $L = \prod_i L_i \prod_c |c|$.

    The cuts, after which nonlinearities, minimize the product of the closed forms of the sub-chains and of the
    constants of the nonlinearities cut at, by dynamic programming. The chosen sub-chains are then bounded by LipSDP
    where that takes seconds, else by Descent. l2.

    Args:
        work: floating-point operations for Descent, of all sub-chains together.
        seconds: estimated time up to which a sub-chain is solved by LipSDP.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import load
        >>> certificate = certify.lipschitz(load("digits_mlp_a"), bounder=certify.Split())
        >>> certificate.sampled_lower_bound <= certificate.upper_bound
        True
        >>> certificate.cuts
        ()
    """

    work: float = 5e12
    seconds: float = 20.0

    def propose(self, system: System, norm: str) -> Proposal | None:
        if norm != "l2":
            raise UnsupportedOperationError(f"Split bounds the l2 norm, not {norm}; use bounder=LipSDP()")
        if system.moving is not None:
            raise UnsupportedOperationError("Split bounds networks over all inputs; use bounder=LipSDP()")
        require_unrolled(system)
        cuts = _Parts(system.whole or system).best_cuts()
        if cuts is None:
            return None
        parts = _Parts(system)
        chosen = [parts.system(*ends) for ends in parts.ends(cuts)]
        hard = [part for part in chosen if part.layers and not self._solvable(part)]
        proofs, methods, lower = [], [], None
        for part in chosen:
            bounder: Bounder = LipSDP()
            if any(part is one for one in hard):
                bounder = Descent(self.work / len(hard))
            found = bounder.propose(part, norm) or ClosedForm().propose(part, norm)
            if found is None:
                return None
            proofs += found.proofs
            methods.append(found.method)
            lower = found.optimum_lower_bound
        if not cuts:
            return Proposal(methods[0], tuple(proofs), None, lower)
        named = "; ".join(
            f"{first} to {last}: {method}"
            for (first, last), method in zip(parts.ends(cuts), methods, strict=True)
        )
        return Proposal(f"split after nonlinearities {cuts} ({named})", tuple(proofs), None, None, cuts)

    def _solvable(self, part: System) -> bool:
        seconds, memory = estimate_cost(part, "l2")
        return not part.is_chain or (seconds <= self.seconds and memory <= 4e9)


class _Parts:
    """The sub-chains from nonlinearity i to j of a sequence; 0 is the input, K + 1 the output."""

    def __init__(self, system: System):
        self.whole, network = system, system.network
        places, before = [0], network.inputs[0].name
        for node in network.nodes[1:]:
            if node.inputs != (before,):
                raise UnsupportedOperationError(
                    f"{node.operation.kind} at node {node.name!r} does not follow node {before!r} alone; Split cuts "
                    "sequences, use bounder=LipSDP() or NormProduct()"
                )
            before = node.name
        names = [node.name for node in network.nodes]
        for layer in system.layers:
            if not isinstance(layer.constraint, SlopeRestricted | WindowMaximum):
                raise UnsupportedOperationError(
                    f"{layer.operation.kind} at node {layer.name!r} is neither scalar nor a maximum; Split does not "
                    "cut there, use bounder=LipSDP()"
                )
            places.append(names.index(layer.name))
        self.places = [*places, len(names)]
        self._known = {(0, len(places)): system}

    def ends(self, cuts: tuple[int, ...]) -> list[tuple[int, int]]:
        return list(zip((0, *cuts), (*cuts, len(self.places) - 1), strict=True))

    def system(self, first: int, last: int) -> System:
        """The network from behind nonlinearity `first` to before `last`."""
        if (first, last) not in self._known:
            nodes, start, end = self.whole.network.nodes, self.places[first], self.places[last]
            head = replace(nodes[start], operation=Input(), inputs=())
            body: list[Node] = list(nodes[start + 1 : end])
            names = {name for node in body for name in node.operation.parameters.values()}
            kept = {name: self.whole.network.parameters[name] for name in sorted(names)}
            part = Network((head, *body), (nodes[end - 1].name,), kept)
            output = self.whole.selection if end == len(nodes) else None
            self._known[first, last] = system_of(part, output)
        return self._known[first, last]

    def log_bound(self, first: int, last: int) -> float:
        """The logarithm of a cheap bound of one sub-chain; inf where it is too large for more than a norm."""
        part = self.system(first, last)
        if not self.fits(part):
            return math.inf
        found = (ClosedForm() if part.is_chain else LipSDP(tolerance=1e-3)).propose(part, "l2")
        if found is None:
            return math.inf
        return 0.5 * math.log(found.proofs[0].rho) if found.proofs[0].rho > 0 else -math.inf

    @staticmethod
    def fits(part: System) -> bool:
        """Whether a sub-chain is small enough to be bounded as one."""
        if not part.layers:
            return True
        return max(part.widths) <= _WIDE if part.is_chain else sum(part.widths) <= _SMALL

    def constant(self, place: int) -> float:
        constraint = self.whole.layers[place - 1].constraint
        assert isinstance(constraint, SlopeRestricted | WindowMaximum)
        return constraint.lipschitz

    def best_cuts(self) -> tuple[int, ...] | None:
        """Return the best cuts: none where the whole has a closed form, since splitting it only loses."""
        count = len(self.places) - 1
        if self.fits(self.whole):
            return ()
        best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for last in range(1, count + 1):
            options = []
            for first in range(last):
                value = best[first][0] + self.log_bound(first, last)
                if first:
                    value += math.log(max(self.constant(first), 1e-300))
                options.append((value, (*best[first][1], first) if first else ()))
            best.append(min(options))
        return best[-1][1] if best[-1][0] < math.inf else None
