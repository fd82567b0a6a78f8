"""Checkpoints of SAE Lens: a folder with `cfg.json` and `sae_weights.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.autoencoders.autoencoder import Autoencoder
from interp.autoencoders.batch_top_k import BatchTopK
from interp.autoencoders.formats.affine_form import AffineForm
from interp.autoencoders.formats.layout import (
    Configuration,
    checked_tensors,
    dtype_name,
    json_writer,
    known_threshold,
    other_activation,
    plain_sparse,
    refusal,
    write_folder,
)
from interp.autoencoders.gated import Gated
from interp.autoencoders.jump_relu import JumpReLU
from interp.autoencoders.latent_activation import LatentActivation
from interp.autoencoders.relu import ReLU
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.autoencoders.top_k import TopK
from weightspace.checkpoint import open_checkpoint, write_safetensors
from weightspace.errors import UnsupportedOperationError

WEIGHTS, CONFIGURATION, SCALER = "sae_weights.safetensors", "cfg.json", "activation_scaler.json"
_VERSION = "6.54.0"  # whose layout is written
_BATCH = ("batchtopk", "matryoshka_batchtopk")  # saved so while they are trained, as jumprelu afterwards
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", *_TRANSCODERS, *_BATCH)
_SCALINGS = {"none": "none", "constant_norm_rescale": "root_norm", "layer_norm": "sae_lens_layer_norm"}
_DTYPES = ("float32", "float64", "float16", "bfloat16")
_PARTS = {
    "W_enc": "encoder",
    "b_enc": "encoder_bias",
    "W_dec": "decoder",
    "b_dec": "decoder_bias",
    "W_skip": "skip",
    "b_gate": "encoder_bias",
    "r_mag": "gate_scale",
    "b_mag": "magnitude_bias",
    "threshold": "threshold",
}


def read(folder: Path) -> SparseAutoencoder:
    """Read a folder of SAE Lens: of versions before 6, of finished and of unfinished trainings.

    Tensors get the dtype that the configuration names, as there. Codes of decoders whose norms count in the selection
    (`rescale_acts_by_decoder_norm`) are multiplied by these norms. Autoencoders of heads (`hook_z`) take the heads of a
    sample side by side. BatchTopK is what it was before it was saved as jumprelu when the metadata say so.

    Raises:
        CheckpointError: files are missing or broken or do not fit each other.
        UnsupportedOperationError: it is one of the kinds there that have no counterpart here.
    """
    settings = Configuration.read(folder / CONFIGURATION)
    metadata = settings.inner("metadata")
    version = settings.get("sae_lens_version", str, None) or metadata.get("sae_lens_version", str, "")
    major = re.match(r"\d{1,6}", version)
    if major is None or int(major[0]) < 6:
        settings = _modern(settings)
    architecture = settings.choice("architecture", ARCHITECTURES, None)
    transcoder, d, latents = architecture in _TRANSCODERS, settings.size("d_in"), settings.size("d_sae")
    subtracts = settings.get("apply_b_dec_to_input", bool, not transcoder)
    if transcoder and subtracts:
        raise settings.error("apply_b_dec_to_input", "is true, which no transcoder can do; set it to false")
    settings.choice("reshape_activations", ("none", "hook_z"), "none")
    scaling = settings.choice(
        "normalize_activations", (*_SCALINGS, "expected_average_only_in", "covariance_whitening"), "none"
    )
    if scaling == "covariance_whitening":
        raise UnsupportedOperationError(
            f"{settings.path}: 'normalize_activations' is {scaling!r}, whose matrices are not part of the checkpoint; "
            "fold them with SAE Lens (fold_activation_whitening) and save again"
        )
    if transcoder and scaling not in ("none", "expected_average_only_in"):
        raise UnsupportedOperationError(
            f"{settings.path}: 'normalize_activations' is {scaling!r}; a transcoder here has no scale of its own for "
            "every sample"
        )
    outputs = settings.size("d_out") if transcoder else d
    checkpoint = open_checkpoint(folder / WEIGHTS)
    tensors = checked_tensors(
        checkpoint.path,
        checkpoint.state_dict(),
        _shapes(architecture, d, latents, outputs, checkpoint.names),
        optional=("scaling_factor",),
    )
    dtype = settings.get("dtype", str, dtype_name(tensors["W_enc"].dtype)).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise settings.error("dtype", f"is {dtype!r}; it is one of {', '.join(_DTYPES)}")
    form = _form(tensors, subtracts).mapped(lambda tensor: tensor.to(getattr(torch, dtype)))
    if "scaling_factor" in tensors:  # of the codes, in versions before 4
        form = replace(form, decoder=form.decoder * tensors["scaling_factor"].to(form.decoder.dtype)[:, None])
    if architecture in ("topk", *_BATCH) and settings.get("rescale_acts_by_decoder_norm", bool, False):
        threshold = form.threshold  # of codes times norms already
        form = replace(form.with_unit_features(), threshold=threshold)
    if scaling == "expected_average_only_in":
        form = form.rescaled(_expected_average(folder))
    activation, matryoshka = _activation(architecture, form, settings, metadata)
    if isinstance(activation, BatchTopK) or architecture in _BATCH:
        assert form.threshold is not None
        constant = form.threshold.flatten()[0].clamp_min(0)
        form = replace(
            form, threshold=constant if isinstance(activation, BatchTopK) else constant.expand(latents)
        )
    kind = _SCALINGS.get(scaling, "none")
    return form.to_autoencoder(activation, matryoshka=matryoshka, transcoder=transcoder, scaling=kind)


def write(autoencoder: Autoencoder, folder: str | Path) -> None:
    """Write what `sae_lens.SAE.load_from_disk` reads.

    Scalings "mean", "standard" and "unit_norm" are folded into the weights. BatchTopK becomes jumprelu with the same
    threshold for all latents, and k and nested dictionaries are noted in the metadata, as SAE Lens does it.

    Raises:
        UnsupportedOperationError: the layout has no place for the kind of autoencoder; the text says why.
        OutputError: a file cannot be written.
    """
    autoencoder = plain_sparse(autoencoder, "SAE Lens")
    activation, kind = autoencoder.activation, autoencoder.scaling.kind
    d, latents, outputs = autoencoder.sample_shape[0], autoencoder.latents, autoencoder.output_features
    architecture = _architecture(autoencoder)
    if kind == "layer_norm":
        raise refusal(
            "SAE Lens",
            f"the scaling {kind!r}, since its own adds 1e-5",
            'train with scaling="sae_lens_layer_norm"',
        )
    form = AffineForm.of(autoencoder)
    if autoencoder.transcoder:
        form = form.subtracting(False)
    if kind == "unit_norm":
        form = form.rescaled(d**-0.5)
    if form.threshold is not None:
        form = replace(form, threshold=form.threshold.to(form.encoder.dtype).expand(latents))
    scaling = {**{ours: theirs for theirs, ours in _SCALINGS.items()}, "unit_norm": "constant_norm_rescale"}
    details: dict[str, Any] = {} if not isinstance(activation, BatchTopK) else {"k": activation.k}
    if autoencoder.prefixes:
        details["matryoshka_widths"] = list(autoencoder.prefixes)
    trained = architecture
    if isinstance(activation, BatchTopK):
        trained = _BATCH[bool(autoencoder.prefixes)]
    settings: dict[str, Any] = {
        "d_in": d,
        "d_sae": latents,
        "dtype": dtype_name(form.encoder.dtype),
        "device": "cpu",
        "apply_b_dec_to_input": form.subtracts,
        "normalize_activations": scaling.get(kind, "none"),
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _VERSION,
            "sae_lens_training_version": None,
            "training_architecture": trained,
            "training_architecture_details": details,
        },
        "architecture": architecture,
    }
    if autoencoder.transcoder:
        settings["d_out"] = outputs
    if isinstance(activation, TopK):
        settings |= {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    names = _shapes(architecture, d, latents, outputs, ())
    tensors = {name: getattr(form, _PARTS[name]) for name in names if name != "scaling_factor"}
    tensors["W_enc"] = form.encoder.mT
    write_folder(
        folder,
        {WEIGHTS: lambda path: write_safetensors(path, tensors), CONFIGURATION: json_writer(settings)},
    )


def _modern(settings: Configuration) -> Configuration:
    """The configuration of a version before 6, in which everything lay flat, as later ones would put it."""
    entries = dict(settings.entries)
    activation = entries.get("activation_fn_str", entries.get("activation_fn")) or "relu"
    if activation not in ("relu", "topk"):
        raise settings.error(
            "activation_fn_str", f"is {activation!r}, which is not known here; what is read: relu, topk"
        )
    entries["architecture"] = settings.get("architecture", str, "standard")
    if activation == "topk":
        if entries["architecture"] not in ("standard", "topk"):
            raise settings.error(
                "activation_fn_str", f"is 'topk', which no {entries['architecture']!r} can have"
            )
        entries["architecture"] = "topk"
        arguments = settings.get("activation_fn_kwargs", dict, {})
        entries["k"] = Configuration(settings.path, arguments, "activation_fn_kwargs.").size("k")
    scaling = entries.get("normalize_activations")
    if isinstance(scaling, bool):
        entries["normalize_activations"] = "expected_average_only_in" if scaling else "none"
    return Configuration(settings.path, entries)


def _shapes(
    architecture: str, d: int, latents: int, outputs: int, names: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Shapes by name; `names` are those of a file, in which some of older versions are allowed."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d, latents),
        "W_dec": (latents, outputs),
        "b_dec": (outputs,),
    }
    biases = ("b_gate", "r_mag", "b_mag") if architecture == "gated" else ("b_enc",)
    shapes |= dict.fromkeys(biases, (latents,))
    if architecture.startswith("jumprelu"):
        shapes["log_threshold" if "log_threshold" in names else "threshold"] = (latents,)
    if architecture in _BATCH:
        shapes["topk_threshold"] = ()
    if "skip" in architecture:
        shapes["W_skip"] = (outputs, d)
    return shapes | {"scaling_factor": (latents,)}


def _form(tensors: Mapping[str, Tensor], subtracts: bool) -> AffineForm:
    parts = {part: tensors[name] for name, part in _PARTS.items() if name in tensors}
    parts["encoder"] = tensors["W_enc"].mT
    if "log_threshold" in tensors:
        parts["threshold"] = tensors["log_threshold"].exp()
    if "topk_threshold" in tensors:
        parts["threshold"] = tensors["topk_threshold"]
    return AffineForm(subtracts=subtracts, **parts)


def _activation(
    architecture: str, form: AffineForm, settings: Configuration, metadata: Configuration
) -> tuple[LatentActivation, tuple[int, ...]]:
    """The activation and the sizes of nested dictionaries."""
    unfinished = architecture in _BATCH
    details = settings if unfinished else metadata.inner("training_architecture_details")
    trained = architecture if unfinished else metadata.get("training_architecture", str, "")
    matryoshka = tuple(details.get("matryoshka_widths", list, []))
    if not all(isinstance(width, int) for width in matryoshka):
        raise details.error("matryoshka_widths", f"is {matryoshka!r}; it lists integers")
    if architecture == "topk":
        return TopK(settings.size("k", 100)), matryoshka
    if architecture == "gated":
        return Gated(), matryoshka
    if form.threshold is None:
        return ReLU(), matryoshka
    if trained in _BATCH and bool((form.threshold == form.threshold.flatten()[0]).all()):
        k = details.get("k", float, 0)
        if k >= 1 and k % 1 == 0:
            return BatchTopK(int(k)), matryoshka
    return JumpReLU(), matryoshka


def _architecture(autoencoder: SparseAutoencoder) -> str:
    activation = autoencoder.activation
    if isinstance(activation, BatchTopK):
        known_threshold(autoencoder, "SAE Lens")
    if not autoencoder.transcoder:
        for rule, name in (
            (ReLU, "standard"),
            (TopK, "topk"),
            (Gated, "gated"),
            ((JumpReLU, BatchTopK), "jumprelu"),
        ):
            if isinstance(activation, rule):
                return name
        raise other_activation(activation, "SAE Lens")
    if not isinstance(activation, (ReLU, JumpReLU, BatchTopK)):
        raise refusal("SAE Lens", f"a transcoder with the activation {activation}")
    prefix = "" if isinstance(activation, ReLU) else "jumprelu_"
    return prefix + ("skip_" if autoencoder.skip_weight is not None else "") + "transcoder"


def _expected_average(folder: Path) -> float:
    """The factor s of a checkpoint whose samples are multiplied by s, which SAE Lens folds only at the end."""
    if not (folder / SCALER).exists():
        raise UnsupportedOperationError(
            f"{folder / CONFIGURATION}: 'normalize_activations' is 'expected_average_only_in', and no {SCALER} says "
            'the factor; put {"scaling_factor": s} there, s = sqrt(d) / mean norm of the training samples'
        )
    scaler = Configuration.read(folder / SCALER)
    factor = scaler.get("scaling_factor", float)
    if not 0 < factor < float("inf"):
        raise scaler.error("scaling_factor", f"is {factor}; it is a positive number")
    return float(factor)
