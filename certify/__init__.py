"""What can be promised about a network: Lipschitz bounds, certificates and their independent check."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certify.bounders import (
        ClosedForm as ClosedForm,
        LipSDP as LipSDP,
        NormProduct as NormProduct,
        lipschitz as lipschitz,
        lipschitz_many as lipschitz_many,
    )
    from certify.certificate import Certificate as Certificate
    from certify.checking import CheckResult as CheckResult, check as check
    from certify.regions import Box as Box
    from weightspace.layers import (
        GroupSort as GroupSort,
        Householder as Householder,
        Implicit as Implicit,
        MaxMin as MaxMin,
    )

_EXPORTS = {
    "Box": "certify.regions",
    "Certificate": "certify.certificate",
    "CheckResult": "certify.checking",
    "ClosedForm": "certify.bounders",
    "GroupSort": "weightspace.layers",
    "Householder": "weightspace.layers",
    "Implicit": "weightspace.layers",
    "LipSDP": "certify.bounders",
    "MaxMin": "weightspace.layers",
    "NormProduct": "certify.bounders",
    "check": "certify.checking",
    "lipschitz": "certify.bounders",
    "lipschitz_many": "certify.bounders",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
