"""The quadratic constraints of group activations as published, through cvxpy, for comparison.

`certify.lmi` eliminates what they leave free; the bounds that are certified never come from here.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse

from certify.constraints import GroupRestricted, SlopeRestricted
from certify.convolution import dense
from certify.signals import Signal, System, system_of
from weightspace.network import Network


def published_bound(network: Network, *, decoupled: bool = False, solver: str = "CLARABEL") -> float:
    r"""Return $\sqrt\rho$ of LipSDP with the published constraints, as the solver states it: no certificate, l2.

    Per group, with y before and h behind the activation and $T = \lambda I + \gamma J$, $P = \nu J$, $S = \tau J$,
    $\lambda \ge 0$: $(y; h)' (T - 2S, P + S; P + S, -T - 2P) (y; h) \ge 0$ is subtracted from
    $\rho |x|^2 - |Fz|^2$. Unless decoupled, the infimum is not attained (the free multipliers grow without end), and
    solvers stop some 1e-4 above it.

    Args:
        decoupled: the special case S = P = 0, in which the layers decouple.
        solver: any semidefinite solver that cvxpy finds.
    Raises:
        ArithmeticError: the solver found no answer, not even an inaccurate one.
    Source: Pauli, Havens, Araujo, et al., Novel quadratic constraints for extending LipSDP (2024), theorems 1 and 2.
    """
    import cvxpy

    system = system_of(network, eliminate=False)
    constant, columns, signed = _affine_map(system, decoupled)
    size = len(constant)
    unknowns: Any = cvxpy.Variable(len(signed))
    flat: Any = columns @ unknowns + constant.reshape(-1)
    constraints = [cvxpy.reshape(flat, (size, size), order="C") >> 0, unknowns[signed] >= 0]
    problem: Any = cvxpy.Problem(cvxpy.Minimize(unknowns[0]), constraints)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=solver)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        raise ArithmeticError(f"{solver} ended with status {problem.status!r}; try another solver")
    return float(np.sqrt(max(problem.value, 0.0)))


def _affine_map(system: System, decoupled: bool) -> tuple[np.ndarray, scipy.sparse.csc_array, np.ndarray]:
    """Return M_0, the columns vec of rho's and every multiplier's matrix, and which of them must not be negative."""
    offsets = np.cumsum([0, *system.widths])
    size = int(offsets[-1])

    def spread(signal: Signal) -> np.ndarray:
        rows = np.zeros((next(iter(signal.values())).shape[0], size))
        for k, matrix in signal.items():
            rows[:, offsets[k] : offsets[k + 1]] = dense(matrix)
        return rows

    output = spread(system.output)
    inputs = np.zeros((size, size))
    inputs[range(offsets[1]), range(offsets[1])] = 1.0
    matrices, signed = [inputs], [True]
    for k, layer in enumerate(system.layers):
        before, behind = spread(layer.signal), np.eye(size)[offsets[k + 1] : offsets[k + 2]]
        if isinstance(layer.constraint, SlopeRestricted):
            for y, h, low, high in zip(
                before, behind, layer.constraint.alpha, layer.constraint.beta, strict=True
            ):
                half = np.outer(h - low * y, h - high * y)
                matrices.append(half + half.T)
                signed.append(True)
            continue
        assert isinstance(layer.constraint, GroupRestricted)
        n = layer.constraint.preserved.shape[1]
        for group, joint in enumerate(layer.constraint.preserved):
            y, h = before[group * n : (group + 1) * n], behind[group * n : (group + 1) * n]
            cross = y.T @ joint @ h
            cross = cross + cross.T
            matrices += [h.T @ h - y.T @ y, h.T @ joint @ h - y.T @ joint @ y]
            signed += [True, False]
            if not decoupled:
                matrices += [2 * h.T @ joint @ h - cross, 2 * y.T @ joint @ y - cross]
                signed += [False, False]
    columns = scipy.sparse.csc_array(np.stack([matrix.reshape(-1) for matrix in matrices], axis=1))
    return -output.T @ output, columns, np.array(signed)
