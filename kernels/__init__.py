"""Batched symmetric eigensolvers and the spectral functions built on them: tensors in, tensors out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.dispatch import available_backends as available_backends
    from kernels.eigensolver import (
        Eigh as Eigh,
        eigh as eigh,
        eigvalsh as eigvalsh,
        top_eigh as top_eigh,
    )
    from kernels.factored import eigh_factored as eigh_factored
    from kernels.spectral_functions import project_psd as project_psd

# No `__version__`: libraries that know another distribution called `kernels` look for it here.
_EXPORTS = {
    "Eigh": "kernels.eigensolver",
    "available_backends": "kernels.dispatch",
    "eigh": "kernels.eigensolver",
    "eigh_factored": "kernels.factored",
    "eigvalsh": "kernels.eigensolver",
    "project_psd": "kernels.spectral_functions",
    "top_eigh": "kernels.eigensolver",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
