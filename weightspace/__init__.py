"""What a network is: reading, tracing, symmetry, alignment, merging, encodings, reports."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightspace.balancing import Balanced as Balanced, balance_units as balance_units
    from weightspace.canonical_form import canonical_hash as canonical_hash, canonicalize as canonicalize
    from weightspace.common_order import Comparison as Comparison, compare as compare
    from weightspace.curvature import PathCurvature as PathCurvature, path_curvature as path_curvature
    from weightspace.distances import (
        Difference as Difference,
        Distance as Distance,
        difference as difference,
        distance as distance,
    )
    from weightspace.errors import (
        ArchitectureError as ArchitectureError,
        CheckpointError as CheckpointError,
        MissingDependencyError as MissingDependencyError,
        NonFiniteError as NonFiniteError,
        OutputError as OutputError,
        ShapeError as ShapeError,
        SymmetryError as SymmetryError,
        UnsupportedOperationError as UnsupportedOperationError,
        WeightspaceError as WeightspaceError,
    )
    from weightspace.folder_inspection import (
        find_checkpoints as find_checkpoints,
        inspect_many as inspect_many,
    )
    from weightspace.folding import fold_gains as fold_gains
    from weightspace.graph import (
        ParameterGraph as ParameterGraph,
        batch_graphs as batch_graphs,
        encode as encode,
    )
    from weightspace.heritage import Lineage as Lineage, lineage as lineage
    from weightspace.inspection import Inspection as Inspection, inspect as inspect
    from weightspace.kinship import Kinship as Kinship, Provenance as Provenance, provenance as provenance
    from weightspace.matching import (
        ActivationMatching as ActivationMatching,
        Alignment as Alignment,
        FrankWolfeMatching as FrankWolfeMatching,
        ProcrustesMatching as ProcrustesMatching,
        StraightThroughMatching as StraightThroughMatching,
        WeightMatching as WeightMatching,
        align as align,
    )
    from weightspace.merging import Merged as Merged, merge as merge
    from weightspace.network import Network as Network
    from weightspace.optimizer_state import permute_optimizer_state as permute_optimizer_state
    from weightspace.paths import Barrier as Barrier, barrier as barrier, interpolate as interpolate
    from weightspace.reading import read as read
    from weightspace.repair import (
        Restored as Restored,
        reset_batch_norm as reset_batch_norm,
        restore_statistics as restore_statistics,
    )
    from weightspace.symmetry_spec import SymmetrySpec as SymmetrySpec
    from weightspace.tracing import trace as trace
    from weightspace.universe import (
        Average as Average,
        MergeMany as MergeMany,
        Reference as Reference,
        Universe as Universe,
    )
    from weightspace.verification import symmetry as symmetry

    __version__: str

_EXPORTS = {
    "ActivationMatching": "weightspace.matching",
    "Alignment": "weightspace.matching",
    "ArchitectureError": "weightspace.errors",
    "Average": "weightspace.universe",
    "Balanced": "weightspace.balancing",
    "Barrier": "weightspace.paths",
    "CheckpointError": "weightspace.errors",
    "Comparison": "weightspace.common_order",
    "Difference": "weightspace.distances",
    "Distance": "weightspace.distances",
    "FrankWolfeMatching": "weightspace.matching",
    "Inspection": "weightspace.inspection",
    "Kinship": "weightspace.kinship",
    "Lineage": "weightspace.heritage",
    "MergeMany": "weightspace.universe",
    "Merged": "weightspace.merging",
    "MissingDependencyError": "weightspace.errors",
    "Network": "weightspace.network",
    "NonFiniteError": "weightspace.errors",
    "OutputError": "weightspace.errors",
    "ParameterGraph": "weightspace.graph",
    "PathCurvature": "weightspace.curvature",
    "ProcrustesMatching": "weightspace.matching",
    "Provenance": "weightspace.kinship",
    "Reference": "weightspace.universe",
    "Restored": "weightspace.repair",
    "ShapeError": "weightspace.errors",
    "StraightThroughMatching": "weightspace.matching",
    "SymmetryError": "weightspace.errors",
    "SymmetrySpec": "weightspace.symmetry_spec",
    "Universe": "weightspace.universe",
    "UnsupportedOperationError": "weightspace.errors",
    "WeightMatching": "weightspace.matching",
    "WeightspaceError": "weightspace.errors",
    "align": "weightspace.matching",
    "balance_units": "weightspace.balancing",
    "barrier": "weightspace.paths",
    "batch_graphs": "weightspace.graph",
    "canonical_hash": "weightspace.canonical_form",
    "canonicalize": "weightspace.canonical_form",
    "compare": "weightspace.common_order",
    "difference": "weightspace.distances",
    "distance": "weightspace.distances",
    "encode": "weightspace.graph",
    "find_checkpoints": "weightspace.folder_inspection",
    "fold_gains": "weightspace.folding",
    "inspect": "weightspace.inspection",
    "inspect_many": "weightspace.folder_inspection",
    "interpolate": "weightspace.paths",
    "lineage": "weightspace.heritage",
    "merge": "weightspace.merging",
    "path_curvature": "weightspace.curvature",
    "permute_optimizer_state": "weightspace.optimizer_state",
    "provenance": "weightspace.kinship",
    "read": "weightspace.reading",
    "reset_batch_norm": "weightspace.repair",
    "restore_statistics": "weightspace.repair",
    "symmetry": "weightspace.verification",
    "trace": "weightspace.tracing",
}
_MODULES = ("bundled", "equivariant", "graph", "layers", "testing", "zoo")  # as `weightspace.zoo`, when first used
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _installed_version()
    elif name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
    elif name in _MODULES:
        value = import_module(f"weightspace.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_MODULES, "__version__"})


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("weightspace")
    except PackageNotFoundError:
        return "0.0.0+source"


def _require_own_kernels() -> None:
    """Refuse to run on another project's `kernels`, which would fail later and less clearly.

    The text of the package is looked at, not only its folder: two distributions installed into the
    same place overwrite each other's `__init__.py` and keep each other's files.
    """
    spec = find_spec("kernels")
    remedy = (
        "Remedy: `pip uninstall kernels`, then `pip install --force-reinstall --no-deps weightspace`; "
        "or start Python from a folder, and with a PYTHONPATH, that holds no other `kernels`."
    )
    if spec is None:
        raise ImportError(f"weightspace needs its own package `kernels`, and none was found. {remedy}")
    source = getattr(spec.loader, "get_source", lambda _: None)("kernels")
    if source is None or "kernels.eigensolver" not in source:
        found = spec.origin or ", ".join(spec.submodule_search_locations or ["an unknown place"])
        raise ImportError(
            f"weightspace needs its own package `kernels`, but `import kernels` finds another one at {found} "
            f"(Hugging Face publishes a distribution of that name). {remedy}"
        )


_require_own_kernels()
