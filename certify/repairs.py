"""What became of a repair: the changed model, what it costs on the data, and the proofs."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from torch import Tensor, nn

from certify.properties import Property
from certify.verdicts import Verdict
from weightspace.network import Network


class RepairStatus(enum.Enum):
    """How a repair ended, in words for the user.

    Examples:
        >>> import certify
        >>> print(certify.RepairStatus.REPAIRED)
        repaired: every property is proved
    """

    REPAIRED = "repaired: every property is proved"
    INFEASIBLE = "not repaired: no change obeys the constraints at the counterexamples"
    NOT_REPAIRED = "not repaired: the time or the rounds were used up"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Constraint:
    r"""$a^T f(x) > b$ at one input: what a counterexample asks of the model.

    Attributes:
        input: x, one sample in row-major order.
        row, bound: a and b, one row of an unsafe polyhedron of the property.
        property: whose box the input lies in.
    """

    input: tuple[float, ...]
    row: tuple[float, ...]
    bound: float
    property: Property


@dataclass(frozen=True, eq=False)
class RegressionRepair:
    r"""A linear model that obeys its properties, as `fit_repaired` returns it.

    Attributes:
        status: REPAIRED or INFEASIBLE.
        network: $f(x) = W x + b$; None when infeasible.
        weight, bias: W (outputs, inputs) and b (outputs,), of the dtype of the data; None when infeasible.
        error: mean over samples of $\|f(x) - y\|^2$; infinite when infeasible.
        free_error: the same without constraints, the least there is.
        constraints: those that were collected, in order; no two are equal.
        rounds: number of programs solved.
        verdicts: of each property, with its certificate; empty when infeasible.
        reason: one sentence for the user.
    """

    status: RepairStatus
    network: Network | None
    weight: Tensor | None
    bias: Tensor | None
    error: float
    free_error: float
    constraints: tuple[Constraint, ...]
    rounds: int
    verdicts: tuple[Verdict, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class NetworkRepair:
    r"""A network whose last layer was changed, as `repair` returns it.

    Attributes:
        status: REPAIRED only where every property is proved.
        model: of the kind given; what was given when it is safe already or infeasible, else the last attempt.
        network: the same as a `Network`.
        error_before, error: mean over samples and outputs of $(f(x) - t)^2$, t being the targets.
        change: the same between the outputs before and after.
        constraints: those that were collected, in order.
        rounds: number of programs solved; 0 where the network was safe already.
        margin: by which the constraints were enforced in the end.
        verdicts: the last ones of `verify`, of each property that it reached; proved ones have certificates, a refuted
            one has the last counterexample.
        seconds: wall time.
        reason: one sentence for the user.
    """

    status: RepairStatus
    model: Network | nn.Module
    network: Network
    error_before: float
    error: float
    change: float
    constraints: tuple[Constraint, ...]
    rounds: int
    margin: float
    verdicts: tuple[Verdict, ...]
    seconds: float
    reason: str
