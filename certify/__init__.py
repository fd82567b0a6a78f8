"""What can be promised about a network: Lipschitz bounds, certificates and their independent check."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certify.adversarial_search import (
        AdversarialExamples as AdversarialExamples,
        find_adversarial_examples as find_adversarial_examples,
    )
    from certify.assurance.assessment import assess as assess
    from certify.assurance.requirements import read_requirements as read_requirements
    from certify.assurance.vnnlib import read_vnnlib as read_vnnlib
    from certify.bounders import (
        ClosedForm as ClosedForm,
        Descent as Descent,
        LipSDP as LipSDP,
        NormProduct as NormProduct,
        Split as Split,
        lipschitz as lipschitz,
        lipschitz_many as lipschitz_many,
    )
    from certify.certificate import Certificate as Certificate
    from certify.checking import CheckResult as CheckResult, check as check
    from certify.input_splitting import verify as verify
    from certify.network_repair import repair as repair
    from certify.pair_constants import PairConstants as PairConstants, bound_pairs as bound_pairs
    from certify.properties import Polyhedron as Polyhedron, Property as Property
    from certify.regions import Ball as Ball, Box as Box
    from certify.regression_repair import fit_repaired as fit_repaired
    from certify.repairs import (
        NetworkRepair as NetworkRepair,
        RegressionRepair as RegressionRepair,
        RepairStatus as RepairStatus,
    )
    from certify.robustness import RobustAccuracy as RobustAccuracy, robust_accuracy as robust_accuracy
    from certify.robustness_plots import robustness_figure as robustness_figure
    from certify.verdicts import (
        Counterexample as Counterexample,
        Verdict as Verdict,
        VerdictStatus as VerdictStatus,
    )
    from weightspace.layers import (
        GroupSort as GroupSort,
        Householder as Householder,
        Implicit as Implicit,
        MaxMin as MaxMin,
    )

_EXPORTS = {
    "AdversarialExamples": "certify.adversarial_search",
    "Ball": "certify.regions",
    "Box": "certify.regions",
    "Certificate": "certify.certificate",
    "CheckResult": "certify.checking",
    "ClosedForm": "certify.bounders",
    "Counterexample": "certify.verdicts",
    "Descent": "certify.bounders",
    "GroupSort": "weightspace.layers",
    "Householder": "weightspace.layers",
    "Implicit": "weightspace.layers",
    "LipSDP": "certify.bounders",
    "MaxMin": "weightspace.layers",
    "NetworkRepair": "certify.repairs",
    "NormProduct": "certify.bounders",
    "PairConstants": "certify.pair_constants",
    "Polyhedron": "certify.properties",
    "Property": "certify.properties",
    "RegressionRepair": "certify.repairs",
    "RepairStatus": "certify.repairs",
    "RobustAccuracy": "certify.robustness",
    "Split": "certify.bounders",
    "Verdict": "certify.verdicts",
    "VerdictStatus": "certify.verdicts",
    "assess": "certify.assurance.assessment",
    "bound_pairs": "certify.pair_constants",
    "check": "certify.checking",
    "find_adversarial_examples": "certify.adversarial_search",
    "fit_repaired": "certify.regression_repair",
    "lipschitz": "certify.bounders",
    "lipschitz_many": "certify.bounders",
    "read_requirements": "certify.assurance.requirements",
    "read_vnnlib": "certify.assurance.vnnlib",
    "repair": "certify.network_repair",
    "robust_accuracy": "certify.robustness",
    "robustness_figure": "certify.robustness_plots",
    "verify": "certify.input_splitting",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
