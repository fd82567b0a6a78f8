"""What a network computes: eigendecomposition of bilinear layers, and what is built on it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.adapters import (
        Adapter as Adapter,
        find_adapters as find_adapters,
    )
    from interp.bilinear_transformer import (
        BilinearTransformer as BilinearTransformer,
    )
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
    from interp.factored_form import (
        FactoredForm as FactoredForm,
    )
    from interp.feature_interactions import (
        FeatureInteractions as FeatureInteractions,
        find_interactions as find_interactions,
    )
    from interp.frozen_norms import (
        FrozenNorms as FrozenNorms,
        freeze_norms as freeze_norms,
    )
    from interp.heads import (
        AttentionHead as AttentionHead,
        CompositionScores as CompositionScores,
        compose_heads as compose_heads,
        find_heads as find_heads,
    )
    from interp.masks import (
        AdversarialMasks as AdversarialMasks,
        MaskEffect as MaskEffect,
        adversarial_masks as adversarial_masks,
        measure_masks as measure_masks,
    )
    from interp.overfitting import (
        OverfittingDiagnosis as OverfittingDiagnosis,
        SpectralSigns as SpectralSigns,
        diagnose_overfitting as diagnose_overfitting,
    )
    from interp.polynomial import (
        Polynomial as Polynomial,
        expand as expand,
    )
    from interp.rank_accuracy import (
        RankAccuracy as RankAccuracy,
        measure_rank_accuracy as measure_rank_accuracy,
    )
    from interp.sites import (
        BilinearSite as BilinearSite,
        find_sites as find_sites,
    )
    from interp.spectral_comparison import (
        SpectralComparison as SpectralComparison,
        compare_spectra as compare_spectra,
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
    from interp.token_interactions import (
        PairIntervention as PairIntervention,
        TokenInteractions as TokenInteractions,
        TokenTriple as TokenTriple,
        confirm_interactions as confirm_interactions,
        read_interactions as read_interactions,
    )
    from weightspace.layers import (
        Bilinear as Bilinear,
        BilinearMLP as BilinearMLP,
    )

_EXPORTS = {
    "Adapter": "interp.adapters",
    "AdversarialMasks": "interp.masks",
    "AttentionHead": "interp.heads",
    "Bilinear": "weightspace.layers",
    "BilinearMLP": "weightspace.layers",
    "BilinearSite": "interp.sites",
    "BilinearTransformer": "interp.bilinear_transformer",
    "ClassifierRun": "interp.classifier_training",
    "CompositionScores": "interp.heads",
    "Decomposition": "interp.decomposition",
    "FactoredForm": "interp.factored_form",
    "FeatureInteractions": "interp.feature_interactions",
    "FrozenNorms": "interp.frozen_norms",
    "Gaussian": "interp.tensor_similarity",
    "HOSVD": "interp.tensor_spectra",
    "MaskEffect": "interp.masks",
    "OverfittingDiagnosis": "interp.overfitting",
    "PairIntervention": "interp.token_interactions",
    "Polynomial": "interp.polynomial",
    "RankAccuracy": "interp.rank_accuracy",
    "Similarity": "interp.tensor_similarity",
    "SpectralComparison": "interp.spectral_comparison",
    "SpectralSigns": "interp.overfitting",
    "TokenInteractions": "interp.token_interactions",
    "TokenTriple": "interp.token_interactions",
    "TruncatedStack": "interp.bond_truncation",
    "Unfolding": "interp.depth",
    "adversarial_masks": "interp.masks",
    "compare_spectra": "interp.spectral_comparison",
    "compose_heads": "interp.heads",
    "confirm_interactions": "interp.token_interactions",
    "decompose": "interp.decomposition",
    "diagnose_overfitting": "interp.overfitting",
    "expand": "interp.polynomial",
    "find_adapters": "interp.adapters",
    "find_heads": "interp.heads",
    "find_interactions": "interp.feature_interactions",
    "find_sites": "interp.sites",
    "freeze_norms": "interp.frozen_norms",
    "hosvd": "interp.tensor_spectra",
    "measure_masks": "interp.masks",
    "measure_rank_accuracy": "interp.rank_accuracy",
    "read_interactions": "interp.token_interactions",
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
