"""What a network computes: eigendecomposition of bilinear layers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.decomposition import Decomposition as Decomposition, decompose as decompose
    from interp.sites import BilinearSite as BilinearSite, find_sites as find_sites
    from weightspace.layers import Bilinear as Bilinear, BilinearMLP as BilinearMLP

_EXPORTS = {
    "Bilinear": "weightspace.layers",
    "BilinearMLP": "weightspace.layers",
    "BilinearSite": "interp.sites",
    "Decomposition": "interp.decomposition",
    "decompose": "interp.decomposition",
    "find_sites": "interp.sites",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
