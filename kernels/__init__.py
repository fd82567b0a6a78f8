"""Batched symmetric eigensolvers and the spectral functions built on them: tensors in, tensors out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.block_tridiagonal import (
        BlockCholesky as BlockCholesky,
        BlockTridiagonal as BlockTridiagonal,
        factorize as factorize,
    )
    from kernels.dispatch import available_backends as available_backends
    from kernels.eigensolver import (
        Eigh as Eigh,
        eigh as eigh,
        eigvalsh as eigvalsh,
        top_eigh as top_eigh,
    )
    from kernels.extremal import ExtremeEigh as ExtremeEigh, extreme_eigh as extreme_eigh
    from kernels.factored import eigh_factored as eigh_factored
    from kernels.generalized import generalized_eigh as generalized_eigh
    from kernels.selection import select_largest as select_largest
    from kernels.spectral_functions import (
        project_psd as project_psd,
        spectral_function as spectral_function,
    )

# No `__version__`: libraries that know another distribution called `kernels` look for it here.
_EXPORTS = {
    "BlockCholesky": "kernels.block_tridiagonal",
    "BlockTridiagonal": "kernels.block_tridiagonal",
    "Eigh": "kernels.eigensolver",
    "ExtremeEigh": "kernels.extremal",
    "available_backends": "kernels.dispatch",
    "eigh": "kernels.eigensolver",
    "eigh_factored": "kernels.factored",
    "eigvalsh": "kernels.eigensolver",
    "extreme_eigh": "kernels.extremal",
    "factorize": "kernels.block_tridiagonal",
    "generalized_eigh": "kernels.generalized",
    "project_psd": "kernels.spectral_functions",
    "select_largest": "kernels.selection",
    "spectral_function": "kernels.spectral_functions",
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
