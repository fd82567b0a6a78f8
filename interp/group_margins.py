"""The largest margin that a two-layer network can have on a group, and how near a trained one comes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.finite_groups import FiniteGroup
from interp.group_tasks import recognize_task
from interp.representations import irreducible_representations
from weightspace.errors import ConvergenceError, UnsupportedOperationError
from weightspace.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class MaximumMargin:
    r"""The solution of margin maximization on the products of a group.

    Attributes:
        names: of the real irreducible representations, k of them.
        quadratic: the largest margin of $\sum_i w_i(c)\,(u_i(a) + v_i(b))^2$ with $\|\theta\|_{2,3} = (\sum_i
            \|(u_i, v_i, w_i)\|^3)^{1/3} \le 1$ over all pairs and classes.
        bilinear: the same of $\sum_i w_i(c)\,(u_i(a) + v_i(b))\,(u'_i(a) + v'_i(b))$; half of it.
        shares: of $\|\theta\|_{2,3}^3$ in each representation, shape (k,).
    """

    names: tuple[str, ...]
    quadratic: float
    bilinear: float
    shares: Tensor

    def __repr__(self) -> str:
        used = int((self.shares > 1e-9).sum())
        return f"MaximumMargin(quadratic {self.quadratic:.4g}, {used} of {len(self.names)} representations)"


def maximum_margin(group: FiniteGroup) -> MaximumMargin:
    r"""Compute the largest normalized margin on a group's products, and where it puts the weights.

    A unit of norm 1 gains most if u, v and w lie in one real representation $\rho$, matrices of rank 1 that
    multiply; translated copies of it add up to the kernel $\chi_\rho(c^{-1}ab)$. With shares s of
    $\|\theta\|_{2,3}^3$ the margin is
    $$\gamma = \frac{2}{3\sqrt3\,|G|^{3/2}} \max_{s \ge 0,\, \sum s = 1}\ \min_{g \ne e} \sum_{\rho \ne 1}
    \frac{s_\rho}{\sqrt{d_\rho}} \Big(1 - \frac{\chi_\rho(g)}{d_\rho}\Big),$$
    a linear program whose dual, a distribution over wrong answers, proves that no network does better. If
    all g are equally near, $s_\rho \propto m_\rho \sqrt{d_\rho}$ with $m_\rho$ the dimension of the
    representation's part of the functions, and $\gamma = 2 / (3\sqrt3\,|G|^{1/2} \sum m_\rho\sqrt{d_\rho})$:
    $\sqrt{2/27}\,/\,(\sqrt p\,(p - 1))$ for addition modulo an odd p.

    Raises:
        ConvergenceError: the linear program failed.
    Source: Morwani, Edelman, Oncescu, Zhao, Kakade, Feature emergence via margin maximization (2023),
        whose theorems are about addition and about groups of real representations that meet a condition on
        their characters; the linear program, and $d_\rho$ of real representations, drop both limits.
    """
    from scipy.optimize import linprog

    representations = irreducible_representations(group)
    wrong = [members[0] for members in group.conjugacy_classes if members[0] != group.identity]
    if not wrong:
        return MaximumMargin(("1a",), math.inf, math.inf, torch.ones(1, dtype=torch.float64))
    gains = torch.stack(
        [(1 - own.character[wrong] / own.dimension) / own.dimension**0.5 for own in representations[1:]]
    )  # (k - 1, classes)
    count = len(gains)
    # Unknowns s and the margin t; minimize -t with t - sum s gains <= 0.
    solution = linprog(
        [0.0] * count + [-1.0],
        A_ub=torch.cat([-gains.mT, torch.ones(len(wrong), 1)], 1).numpy(),
        b_ub=[0.0] * len(wrong),
        A_eq=[[1.0] * count + [0.0]],
        b_eq=[1.0],
    )
    if solution.status != 0:
        raise ConvergenceError(f"the linear program of {group.name}'s margin failed: {solution.message}")
    bilinear = -solution.fun / (3 * math.sqrt(3) * group.order**1.5)
    shares = torch.tensor([0.0, *solution.x[:-1]], dtype=torch.float64)
    return MaximumMargin(tuple(own.name for own in representations), 2 * bilinear, bilinear, shares)


def margin_ratio(layer_or_model: nn.Module | Network, group: FiniteGroup) -> float:
    r"""Return a network's normalized margin divided by the largest one, at most 1; negative with an error.

    $$\frac{\min_{a, b,\, c \ne ab} (f_{ab} - f_c)(a, b)}{\gamma^*\, \|\theta\|_{2,3}^3}$$
    after balancing each unit and centering its readout, which leave the classifier as it is and make
    $\|\theta\|_{2,3}$ smallest: $\|\theta\|_{2,3}^3 = 3\sqrt3 \sum_i \|(u_i, v_i)\| \|(u'_i, v'_i)\|
    \|w_i\|$, half of it for squares. So both kinds of units have the same ratio.

    Args:
        layer_or_model: of one bilinear layer or squares without biases; 2n inputs, n logits.
    Raises:
        UnsupportedOperationError: biases or residual connections, to which normalization does not apply.
        ShapeError: the network has other numbers of inputs or outputs.
    """
    form = recognize_task(layer_or_model, group)
    if not form.is_homogeneous:
        raise UnsupportedOperationError(
            "a margin is normalized by the weights of a network whose output is homogeneous in them; this one "
            "has biases or a residual connection: train it without"
        )
    count = group.order
    readout = form.output - form.output.mean(0)
    strength = (form.left.norm(dim=1) * form.right.norm(dim=1) * readout.norm(dim=0)).sum()
    one_hot = torch.eye(count, dtype=torch.float64)
    pairs = torch.cat([one_hot.repeat_interleave(count, 0), one_hot.repeat(count, 1)], 1)
    logits = form(pairs)
    answers = group.table.flatten()[:, None]
    right = logits.gather(1, answers)
    margin = (right - logits.scatter(1, answers, -torch.inf)).min()
    return float(margin / (3 * math.sqrt(3) * strength * maximum_margin(group).bilinear))
