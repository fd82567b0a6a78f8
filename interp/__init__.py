"""What a network computes: eigendecomposition of bilinear layers, and what is built on it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.adapters import Adapter as Adapter, find_adapters as find_adapters
    from interp.bond_truncation import (
        TruncatedStack as TruncatedStack,
        truncate_bonds as truncate_bonds,
    )
    from interp.classifier_training import (
        ClassifierRun as ClassifierRun,
        train_classifier as train_classifier,
    )
    from interp.decomposition import (
        Decomposition as Decomposition,
        decompose as decompose,
    )
    from interp.depth import (
        Unfolding as Unfolding,
        unfold as unfold,
    )
    from interp.factored_form import FactoredForm as FactoredForm
    from interp.feature_interactions import (
        FeatureInteractions as FeatureInteractions,
        find_interactions as find_interactions,
    )
    from interp.frozen_norms import FrozenNorms as FrozenNorms, freeze_norms as freeze_norms
    from interp.heads import (
        AttentionHead as AttentionHead,
        CompositionScores as CompositionScores,
        compose_heads as compose_heads,
        find_heads as find_heads,
    )
    from interp.polynomial import Polynomial as Polynomial, expand as expand
    from interp.sites import (
        BilinearSite as BilinearSite,
        find_sites as find_sites,
    )
    from interp.tensor_similarity import (
        Gaussian as Gaussian,
        Similarity as Similarity,
        similarity as similarity,
    )
    from interp.tensor_spectra import (
        HOSVD as HOSVD,
        hosvd as hosvd,
    )
    from weightspace.layers import (
        Bilinear as Bilinear,
        BilinearMLP as BilinearMLP,
    )

_EXPORTS = {
    "Adapter": "interp.adapters",
    "AttentionHead": "interp.heads",
    "Bilinear": "weightspace.layers",
    "BilinearMLP": "weightspace.layers",
    "BilinearSite": "interp.sites",
    "ClassifierRun": "interp.classifier_training",
    "CompositionScores": "interp.heads",
    "Decomposition": "interp.decomposition",
    "FactoredForm": "interp.factored_form",
    "FeatureInteractions": "interp.feature_interactions",
    "FrozenNorms": "interp.frozen_norms",
    "Gaussian": "interp.tensor_similarity",
    "HOSVD": "interp.tensor_spectra",
    "Polynomial": "interp.polynomial",
    "Similarity": "interp.tensor_similarity",
    "TruncatedStack": "interp.bond_truncation",
    "Unfolding": "interp.depth",
    "compose_heads": "interp.heads",
    "decompose": "interp.decomposition",
    "expand": "interp.polynomial",
    "find_adapters": "interp.adapters",
    "find_heads": "interp.heads",
    "find_interactions": "interp.feature_interactions",
    "find_sites": "interp.sites",
    "freeze_norms": "interp.frozen_norms",
    "hosvd": "interp.tensor_spectra",
    "similarity": "interp.tensor_similarity",
    "train_classifier": "interp.classifier_training",
    "truncate_bonds": "interp.bond_truncation",
    "unfold": "interp.depth",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
