"""What a network computes: eigendecomposition of bilinear layers, and what is built on it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.adapters import (
        Adapter as Adapter,
        find_adapters as find_adapters,
    )
    from interp.autoencoders.autoencoder import (
        Autoencoder as Autoencoder,
        AutoencoderLoss as AutoencoderLoss,
        Comparison as Comparison,
    )
    from interp.autoencoders.batch_top_k import (
        BatchTopK as BatchTopK,
    )
    from interp.autoencoders.bilinear_autoencoder import (
        BilinearAutoencoder as BilinearAutoencoder,
    )
    from interp.autoencoders.dead_latents import (
        AuxiliaryLoss as AuxiliaryLoss,
        Resampling as Resampling,
    )
    from interp.autoencoders.feature_cards import (
        FeatureCard as FeatureCard,
        FeatureCards as FeatureCards,
        describe_features as describe_features,
        write_feature_cards as write_feature_cards,
    )
    from interp.autoencoders.feature_stability import (
        FeatureMatching as FeatureMatching,
        FeatureStability as FeatureStability,
        match_features as match_features,
        measure_stability as measure_stability,
    )
    from interp.autoencoders.formats.registry import (
        load_autoencoder as load_autoencoder,
    )
    from interp.autoencoders.fourier_neural_operator import (
        FourierNeuralOperator as FourierNeuralOperator,
    )
    from interp.autoencoders.fourier_operator import (
        FourierOperator as FourierOperator,
    )
    from interp.autoencoders.gated import (
        Gated as Gated,
    )
    from interp.autoencoders.group_max import (
        GroupMax as GroupMax,
    )
    from interp.autoencoders.hoyer import (
        HoyerDensities as HoyerDensities,
        hoyer_density as hoyer_density,
        measure_density as measure_density,
    )
    from interp.autoencoders.input_scaling import (
        InputScaling as InputScaling,
    )
    from interp.autoencoders.jump_relu import (
        JumpReLU as JumpReLU,
    )
    from interp.autoencoders.latent_activation import (
        DenseActivation as DenseActivation,
        LatentActivation as LatentActivation,
        SelectingActivation as SelectingActivation,
    )
    from interp.autoencoders.latent_dynamics import (
        Attractors as Attractors,
        Memorization as Memorization,
        find_attractors as find_attractors,
        follow_trajectories as follow_trajectories,
        measure_memorization as measure_memorization,
        vector_field as vector_field,
    )
    from interp.autoencoders.lifted_autoencoder import (
        LiftedAutoencoder as LiftedAutoencoder,
    )
    from interp.autoencoders.loss_recovered import (
        LossRecovered as LossRecovered,
        measure_loss_recovered as measure_loss_recovered,
    )
    from interp.autoencoders.manifolds import (
        Manifold as Manifold,
        project_manifold as project_manifold,
    )
    from interp.autoencoders.metrics import (
        Metrics as Metrics,
        evaluate as evaluate,
    )
    from interp.autoencoders.operator_autoencoder import (
        OperatorAutoencoder as OperatorAutoencoder,
    )
    from interp.autoencoders.planted import (
        PlantedDictionary as PlantedDictionary,
        plant_functions as plant_functions,
        plant_vectors as plant_vectors,
        recovery as recovery,
    )
    from interp.autoencoders.recording import (
        activations as activations,
        write_activations as write_activations,
    )
    from interp.autoencoders.relu import (
        ReLU as ReLU,
    )
    from interp.autoencoders.sources import (
        ActivationSource as ActivationSource,
        open_activations as open_activations,
    )
    from interp.autoencoders.sparse_autoencoder import (
        SparseAutoencoder as SparseAutoencoder,
    )
    from interp.autoencoders.top_k import (
        TopK as TopK,
    )
    from interp.autoencoders.training import (
        TrainingRun as TrainingRun,
        train as train,
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
    from interp.finite_groups import (
        FiniteGroup as FiniteGroup,
    )
    from interp.frozen_norms import (
        FrozenNorms as FrozenNorms,
        freeze_norms as freeze_norms,
    )
    from interp.group_margins import (
        MaximumMargin as MaximumMargin,
        margin_ratio as margin_ratio,
        maximum_margin as maximum_margin,
    )
    from interp.group_spectra import (
        dominant_representations as dominant_representations,
        fourier_spectrum as fourier_spectrum,
        pair_spectrum as pair_spectrum,
    )
    from interp.group_tasks import (
        GroupAnalysis as GroupAnalysis,
        GroupData as GroupData,
        analyze_group_task as analyze_group_task,
        interaction_tensor as interaction_tensor,
        isotypic_purity as isotypic_purity,
        line_energy as line_energy,
        split_products as split_products,
    )
    from interp.group_units import (
        GroupUnits as GroupUnits,
        describe_units as describe_units,
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
    from interp.partial_solutions import (
        PartialSolution as PartialSolution,
        find_partial_solutions as find_partial_solutions,
    )
    from interp.polynomial import (
        Polynomial as Polynomial,
        expand as expand,
    )
    from interp.rank_accuracy import (
        RankAccuracy as RankAccuracy,
        measure_rank_accuracy as measure_rank_accuracy,
    )
    from interp.representations import (
        Representation as Representation,
        irreducible_representations as irreducible_representations,
        isotypic_projectors as isotypic_projectors,
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
    "ActivationSource": "interp.autoencoders.sources",
    "Adapter": "interp.adapters",
    "AdversarialMasks": "interp.masks",
    "AttentionHead": "interp.heads",
    "Attractors": "interp.autoencoders.latent_dynamics",
    "Autoencoder": "interp.autoencoders.autoencoder",
    "AutoencoderLoss": "interp.autoencoders.autoencoder",
    "AuxiliaryLoss": "interp.autoencoders.dead_latents",
    "BatchTopK": "interp.autoencoders.batch_top_k",
    "Bilinear": "weightspace.layers",
    "BilinearAutoencoder": "interp.autoencoders.bilinear_autoencoder",
    "BilinearMLP": "weightspace.layers",
    "BilinearSite": "interp.sites",
    "BilinearTransformer": "interp.bilinear_transformer",
    "ClassifierRun": "interp.classifier_training",
    "Comparison": "interp.autoencoders.autoencoder",
    "CompositionScores": "interp.heads",
    "Decomposition": "interp.decomposition",
    "DenseActivation": "interp.autoencoders.latent_activation",
    "FactoredForm": "interp.factored_form",
    "FeatureCard": "interp.autoencoders.feature_cards",
    "FeatureCards": "interp.autoencoders.feature_cards",
    "FeatureInteractions": "interp.feature_interactions",
    "FeatureMatching": "interp.autoencoders.feature_stability",
    "FeatureStability": "interp.autoencoders.feature_stability",
    "FiniteGroup": "interp.finite_groups",
    "FourierNeuralOperator": "interp.autoencoders.fourier_neural_operator",
    "FourierOperator": "interp.autoencoders.fourier_operator",
    "FrozenNorms": "interp.frozen_norms",
    "Gated": "interp.autoencoders.gated",
    "Gaussian": "interp.tensor_similarity",
    "GroupAnalysis": "interp.group_tasks",
    "GroupData": "interp.group_tasks",
    "GroupMax": "interp.autoencoders.group_max",
    "GroupUnits": "interp.group_units",
    "HOSVD": "interp.tensor_spectra",
    "HoyerDensities": "interp.autoencoders.hoyer",
    "InputScaling": "interp.autoencoders.input_scaling",
    "JumpReLU": "interp.autoencoders.jump_relu",
    "LatentActivation": "interp.autoencoders.latent_activation",
    "LiftedAutoencoder": "interp.autoencoders.lifted_autoencoder",
    "LossRecovered": "interp.autoencoders.loss_recovered",
    "Manifold": "interp.autoencoders.manifolds",
    "MaskEffect": "interp.masks",
    "MaximumMargin": "interp.group_margins",
    "Memorization": "interp.autoencoders.latent_dynamics",
    "Metrics": "interp.autoencoders.metrics",
    "OperatorAutoencoder": "interp.autoencoders.operator_autoencoder",
    "OverfittingDiagnosis": "interp.overfitting",
    "PairIntervention": "interp.token_interactions",
    "PartialSolution": "interp.partial_solutions",
    "PlantedDictionary": "interp.autoencoders.planted",
    "Polynomial": "interp.polynomial",
    "RankAccuracy": "interp.rank_accuracy",
    "ReLU": "interp.autoencoders.relu",
    "Representation": "interp.representations",
    "Resampling": "interp.autoencoders.dead_latents",
    "SelectingActivation": "interp.autoencoders.latent_activation",
    "Similarity": "interp.tensor_similarity",
    "SparseAutoencoder": "interp.autoencoders.sparse_autoencoder",
    "SpectralComparison": "interp.spectral_comparison",
    "SpectralSigns": "interp.overfitting",
    "TokenInteractions": "interp.token_interactions",
    "TokenTriple": "interp.token_interactions",
    "TopK": "interp.autoencoders.top_k",
    "TrainingRun": "interp.autoencoders.training",
    "TruncatedStack": "interp.bond_truncation",
    "Unfolding": "interp.depth",
    "activations": "interp.autoencoders.recording",
    "adversarial_masks": "interp.masks",
    "analyze_group_task": "interp.group_tasks",
    "compare_spectra": "interp.spectral_comparison",
    "compose_heads": "interp.heads",
    "confirm_interactions": "interp.token_interactions",
    "decompose": "interp.decomposition",
    "describe_features": "interp.autoencoders.feature_cards",
    "describe_units": "interp.group_units",
    "diagnose_overfitting": "interp.overfitting",
    "dominant_representations": "interp.group_spectra",
    "evaluate": "interp.autoencoders.metrics",
    "expand": "interp.polynomial",
    "find_adapters": "interp.adapters",
    "find_attractors": "interp.autoencoders.latent_dynamics",
    "find_heads": "interp.heads",
    "find_interactions": "interp.feature_interactions",
    "find_partial_solutions": "interp.partial_solutions",
    "find_sites": "interp.sites",
    "follow_trajectories": "interp.autoencoders.latent_dynamics",
    "fourier_spectrum": "interp.group_spectra",
    "freeze_norms": "interp.frozen_norms",
    "hosvd": "interp.tensor_spectra",
    "hoyer_density": "interp.autoencoders.hoyer",
    "interaction_tensor": "interp.group_tasks",
    "irreducible_representations": "interp.representations",
    "isotypic_projectors": "interp.representations",
    "isotypic_purity": "interp.group_tasks",
    "line_energy": "interp.group_tasks",
    "load_autoencoder": "interp.autoencoders.formats.registry",
    "margin_ratio": "interp.group_margins",
    "match_features": "interp.autoencoders.feature_stability",
    "maximum_margin": "interp.group_margins",
    "measure_density": "interp.autoencoders.hoyer",
    "measure_loss_recovered": "interp.autoencoders.loss_recovered",
    "measure_masks": "interp.masks",
    "measure_memorization": "interp.autoencoders.latent_dynamics",
    "measure_rank_accuracy": "interp.rank_accuracy",
    "measure_stability": "interp.autoencoders.feature_stability",
    "open_activations": "interp.autoencoders.sources",
    "pair_spectrum": "interp.group_spectra",
    "plant_functions": "interp.autoencoders.planted",
    "plant_vectors": "interp.autoencoders.planted",
    "project_manifold": "interp.autoencoders.manifolds",
    "read_interactions": "interp.token_interactions",
    "recovery": "interp.autoencoders.planted",
    "similarity": "interp.tensor_similarity",
    "split_products": "interp.group_tasks",
    "train": "interp.autoencoders.training",
    "train_classifier": "interp.classifier_training",
    "truncate_bonds": "interp.bond_truncation",
    "unfold": "interp.depth",
    "vector_field": "interp.autoencoders.latent_dynamics",
    "write_activations": "interp.autoencoders.recording",
    "write_feature_cards": "interp.autoencoders.feature_cards",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
