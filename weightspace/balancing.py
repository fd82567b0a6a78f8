"""`balance_units`: of all scalings of the hidden units that keep the function, the one with the least weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from weightspace.deferred import templates
from weightspace.errors import ArchitectureError
from weightspace.group_action import action, segment_positions
from weightspace.network import Network, require_finite
from weightspace.permutation import units_along
from weightspace.reading import as_network
from weightspace.repair import written_into
from weightspace.symmetry_spec import Axis, Group, Segment, SymmetrySpec
from weightspace.verification import TOLERANCE, change_by, symmetry


@dataclass(frozen=True)
class Balanced:
    r"""A network whose units are scaled so that its weights are least.

    Attributes:
        network: the balanced network; computes the same function.
        model: the same, of the kind that was given.
        scales: group of the spec -> factor of every unit, float64, shape (*copies, size).
        norm: $\|\theta\|$ over the parameters that scalings act on; `norm_before` as given. Both are 0 for
            networks without such units, which stay as they are.
        residual: largest $|\log s|$ of the last pass.
        idle: group -> number of its units left as they are, since all weights into or out of them are zero and
            there is no least norm; groups without such units are left out.
        spec: the scalings; `spec.frozen` lists what was left alone and why.
    """

    network: Network
    model: Network | nn.Module
    scales: Mapping[str, Tensor]
    norm: float
    norm_before: float
    residual: float
    idle: Mapping[str, int]
    spec: SymmetrySpec = field(repr=False)


def balance_units(
    network_or_module: Network | nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    spec: SymmetrySpec | None = None,
    tolerance: float = 1e-12,
    passes: int = 1000,
) -> Balanced:
    r"""Scale every ReLU unit so that the sum of squared weights is least; the function stays.

    A unit that is scaled by s > 0 and whose readers are scaled by 1/s computes the same, so networks that differ in
    nothing else have different weights; balanced ones have the same. With the squared norms a of what makes a unit
    (its weights, bias, or normalization gain) and b of what reads it, $s^2 a + b / s^2$ is least at
    $s^4 = b / a$, where both are equal. Over all units, $\sum_k w_k^2 e^{2 \langle n_k, u \rangle}$ is convex in
    $u = \log s$; it is lowered one group after the other until nothing moves. Where a group acts k times on one
    tensor (a layer that feeds itself), a step of 1/k of that length lowers the sum whatever the other units do. As
    the sum is symmetric in u about the least value of every such step, steps of up to twice the length lower it
    too: they are lengthened as suits a chain of that many layers, or deep networks would take hundreds of passes.

    Only the positive scalings that `symmetry(..., continuous=True)` confirms are used: ReLU and LeakyReLU units,
    behind BatchNorm too, where gain and shift are scaled; running statistics stay.

    Args:
        example_inputs: to trace a module whose first layer is not Linear.
        spec: the scalings, default those of `symmetry(..., continuous=True)`; groups of other kinds rest.
        tolerance: the passes end when no $|\log s|$ of one is larger.
        passes: largest number of passes over all groups.
    Raises:
        ArchitectureError: the module cannot be traced; a scaling of one's own spec changes the function.
        NonFiniteError: NaN or infinite weights.
        ShapeError: one's own spec does not fit.
    Source: Neyshabur, Salakhutdinov, Srebro, Path-SGD (2015), section 2, for rescaling and balance; Stock, Graham,
        Gribonval, Jegou, Equi-normalization of neural networks (2019), for the minimization unit by unit; Young,
        Iterative methods for solving partial difference equations of elliptic type (1954), for the lengthening.

    Examples:
        >>> import torch, weightspace
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> balanced = weightspace.balance_units(module)
        >>> balanced.norm < balanced.norm_before
        True
        >>> x = torch.ones(3, 4)
        >>> torch.allclose(balanced.model(x), module(x), atol=1e-6)
        True
    """
    network = as_network(network_or_module, example_inputs)
    require_finite(network)
    spec = (symmetry(network, continuous=True) if spec is None else spec).only(["positive"])
    spec.require_fits({name: tensor.shape for name, tensor in templates(network.parameters).items()})
    problem = _Problem(network, spec)
    residual = problem.descend(passes, tolerance)
    change = change_by(network, spec, problem.scales) if spec.groups else 0.0
    if not change <= TOLERANCE:
        raise ArchitectureError(
            f"these scalings change the function by {change:.1e}; `symmetry` finds those that do not"
        )
    rest = {name: torch.ones_like(scale) for name, scale in problem.scales.items()}
    move = action(spec, problem.scales)
    balanced = network.change_parameters(
        spec.axes, lambda name, tensor: move(name, tensor.double()).to(tensor.dtype)
    )
    given = network_or_module
    return Balanced(
        balanced,
        balanced if isinstance(given, Network) else written_into(given, network, balanced),
        problem.scales,
        problem.norm(problem.scales),
        problem.norm(rest),
        residual,
        {name: count for name, count in problem.idle.items() if count},
        spec,
    )


class _Problem:
    """The scales so far, and steps that only ever lower the norm."""

    def __init__(self, network: Network, spec: SymmetrySpec):
        self.network, self.spec = network, spec
        self.scales = {
            group.name: torch.ones(*group.copies, group.size, dtype=torch.float64) for group in spec.groups
        }
        self.idle = dict.fromkeys(self.scales, 0)
        # Young's relaxation factor, the best for a chain of equally strong links.
        self.length = 2 / (1 + math.sin(math.pi / (len(self.scales) + 1)))

    def descend(self, passes: int, tolerance: float) -> float:
        """Improve one group after another; return the largest step of the last pass."""
        residual = 0.0
        for _ in range(passes):
            residual = max((self.improve(group) for group in self.spec.groups), default=0.0)
            if residual <= tolerance:
                break
        return residual

    def improve(self, group: Group) -> float:
        """Lower the norm by the scales of one group, with all others held; return the largest step."""
        made, read = (torch.zeros_like(self.scales[group.name]) for _ in range(2))
        axes_of: dict[str, set[int]] = {name: set() for name in self.spec.axes}
        for name, number, segment in self.spec.carriers[group.name]:
            factor = next(f for f in segment.factors if group.name in (f.name, f.scale))
            squares = self.moved(name, self.scales).square()
            side = read if factor.dual else made
            side += _sums(squares, self.spec.axes[name], number, segment, group, factor.name)
            axes_of[name].add(number)
        idle = (made == 0) | (read == 0)
        self.idle[group.name] = int(idle.sum())
        times = max(map(len, axes_of.values()), default=1)
        step = self.length / times * torch.where(idle, 0.0, (read / made).log() / 4)
        self.scales[group.name] = self.scales[group.name] * step.exp()
        return float(step.abs().max())

    def moved(self, name: str, scales: Mapping[str, Tensor]) -> Tensor:
        return action(self.spec, scales)(name, self.network.parameters[name].detach().double())

    def norm(self, scales: Mapping[str, Tensor]) -> float:
        return sum(float(self.moved(name, scales).square().sum()) for name in self.spec.axes) ** 0.5


def _sums(
    squares: Tensor, axes: Sequence[Axis], number: int, segment: Segment, group: Group, units: str
) -> Tensor:
    """Sum the entries of a segment that belong to one unit, shape (*copies, size)."""
    block = squares.movedim(number, 0)[segment_positions(segment).to(squares.device)]  # (factors..., axes...)
    names = [factor.name for factor in segment.factors]
    others = [n for n in range(len(axes)) if n != number]
    index = torch.zeros([1] * block.ndim, dtype=torch.int64)
    for name, count in zip((*group.within, units), (*group.copies, group.size), strict=True):
        if name in names:
            at, place = names.index(name), torch.arange(count)
        else:  # what the group is within may stand on another axis
            row = next(n for n in others if any(f.name == name for s in axes[n] for f in s.factors))
            at, place = len(names) + others.index(row), units_along(axes[row], name, squares.shape[row])
        index = index * count + place.reshape(-1, *[1] * (block.ndim - at - 1))
    totals = torch.zeros(*group.copies, group.size, dtype=torch.float64)
    totals.view(-1).index_add_(0, index.reshape(-1), block.sum_to_size(index.shape).reshape(-1).cpu())
    return totals
