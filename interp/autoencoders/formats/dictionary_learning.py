"""Checkpoints of dictionary_learning: `ae.pt`, a pickled state dict, and `config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from weightspace.checkpoint import read_training_state, write_pickle
from weightspace.errors import CheckpointError

WEIGHTS, CONFIGURATION = "ae.pt", "config.json"
_LINEAR = {"encoder": "encoder.weight", "encoder_bias": "encoder.bias", "decoder": "decoder.weight"}
_MATRICES = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec"}
# The names of the tensors of every class by the part of an AffineForm that they are.
NAMES = {
    "AutoEncoder": {**_LINEAR, "decoder_bias": "bias"},
    "AutoEncoderNew": {**_LINEAR, "decoder_bias": "decoder.bias"},
    "GatedAutoEncoder": {
        **_LINEAR,
        "encoder_bias": "gate_bias",
        "decoder_bias": "decoder_bias",
        "gate_scale": "r_mag",
        "magnitude_bias": "mag_bias",
    },
    "AutoEncoderTopK": {**_LINEAR, "decoder_bias": "b_dec", "threshold": "threshold"},
    "BatchTopKSAE": {**_LINEAR, "decoder_bias": "b_dec", "threshold": "threshold"},
    "JumpReluAutoEncoder": {**_MATRICES, "threshold": "threshold"},
    "MatryoshkaBatchTopKSAE": {**_MATRICES, "threshold": "threshold"},
}
_SUBTRACTS = {name: name not in ("AutoEncoderNew", "JumpReluAutoEncoder") for name in NAMES}
_COUNTS = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")  # those with a k


def read(weights: Path) -> SparseAutoencoder:
    """Read `ae.pt`, or a checkpoint of an unfinished training, with the configuration beside it or a folder above.

    The decoder norms of an `AutoEncoder` are folded, as its own loader does; an unfinished training keeps its weights
    for samples divided by `norm_factor`, which is folded as it is at the end.
    """
    state = read_training_state(weights)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{weights}: the file holds {type(state).__name__}, no state dict; save one")
    backup = state if isinstance(state.get("ae"), Mapping) else {}
    tensors = dict(backup["ae"] if backup else state)
    trainer = _configuration(weights, backup)
    kind = trainer.choice("dict_class", tuple(NAMES))
    d, latents = trainer.size("activation_dim"), trainer.size("dict_size")
    names = NAMES[kind]
    groups = tensors.get("group_sizes")
    sizes = {
        "encoder": (latents, d) if "encoder.weight" in names.values() else (d, latents),
        "decoder": (d, latents) if "decoder.weight" in names.values() else (latents, d),
        "decoder_bias": (d,),
        "threshold": () if kind in _COUNTS else (latents,),
    }
    shapes = {name: sizes.get(part, (latents,)) for part, name in names.items()}
    if kind in _COUNTS:
        shapes["k"] = ()
    if kind == "MatryoshkaBatchTopKSAE":
        shapes["group_sizes"] = (groups.numel(),) if isinstance(groups, Tensor) else ()
    optional = ("k", "threshold") if kind == "AutoEncoderTopK" else ("k",)  # older files have them not
    tensors = checked_tensors(weights, tensors, shapes, optional=optional, integers=("k", "group_sizes"))
    parts = {part: tensors[name] for part, name in names.items() if name in tensors}
    for part, wanted in (("encoder", (latents, d)), ("decoder", (latents, d))):
        if sizes[part] != wanted:
            parts[part] = parts[part].mT
    matryoshka: tuple[int, ...] = ()
    if kind == "MatryoshkaBatchTopKSAE":
        matryoshka = tuple(tensors["group_sizes"].cumsum(0).tolist())
        if matryoshka[-1] != latents or int(tensors["group_sizes"].min()) < 1:
            raise CheckpointError(
                f"{weights}: 'group_sizes' must be positive and add up to {latents} latents"
            )
    form = AffineForm(subtracts=_SUBTRACTS[kind], **parts)
    factor = backup.get("norm_factor")
    if factor is not None:
        number = float(factor) if isinstance(factor, (int, float, Tensor)) else math.nan
        if not 0 < number < math.inf:
            raise CheckpointError(f"{weights}: 'norm_factor' is {factor!r}; it is a positive number")
        form = form.in_units(number)
    if kind == "AutoEncoder":
        norms = torch.linalg.vector_norm(form.decoder, dim=1)
        form = form if torch.allclose(norms, torch.ones_like(norms)) else form.with_unit_features()
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):  # below 0: not known yet, nothing is cut
        assert form.threshold is not None
        form = AffineForm(**{**vars(form), "threshold": form.threshold.clamp_min(0)})
    return form.to_autoencoder(_activation(weights, kind, trainer, tensors), matryoshka=matryoshka)


def write(autoencoder: Autoencoder, folder: str | Path) -> None:
    """Write what `dictionary_learning.utils.load_dictionary` reads.

    Scalings "mean" and "standard" are folded into the weights. A ReLU autoencoder that subtracts its decoder bias is an
    `AutoEncoder`, whose features that library normalizes when it loads them; one that does not is an `AutoEncoderNew`.
    Other biases are folded into the encoder bias where a class prescribes it. Thresholds of BatchTopK are float32.

    Raises:
        UnsupportedOperationError: the layout has no place for the kind of autoencoder; the text says why.
        OutputError: a file cannot be written.
    """
    autoencoder = plain_sparse(autoencoder, "dictionary_learning")
    kind, activation = _class(autoencoder), autoencoder.activation
    if autoencoder.transcoder:
        raise refusal(
            "dictionary_learning", "a transcoder", 'save it with format "sae_lens" or "weightspace"'
        )
    if autoencoder.scaling.per_sample:
        raise refusal("dictionary_learning", f"the scaling {autoencoder.scaling.kind!r}")
    form, names = AffineForm.of(autoencoder).subtracting(_SUBTRACTS[kind]), NAMES[kind]
    d, latents = autoencoder.sample_shape[0], autoencoder.latents
    parts = dict(vars(form))
    if "W_enc" in names.values():
        parts["encoder"] = form.encoder.mT
    else:
        parts["decoder"] = form.decoder.mT
    trainer: dict[str, Any] = {"dict_class": kind, "activation_dim": d, "dict_size": latents}
    trainer |= {"lm_name": None, "layer": None, "submodule_name": None}
    extra: dict[str, Tensor] = {}
    if isinstance(activation, (TopK, BatchTopK)):
        trainer["k"] = activation.k
        extra["k"] = torch.tensor(activation.k, dtype=torch.int32)
        parts["threshold"] = torch.tensor(-1.0) if form.threshold is None else form.threshold.float()
    if autoencoder.prefixes:
        edges = torch.tensor((0, *autoencoder.prefixes))
        extra["group_sizes"] = edges.diff()
    tensors = {
        name: parts[part].cpu().clone(memory_format=torch.contiguous_format) for part, name in names.items()
    }
    write_folder(
        folder,
        {
            WEIGHTS: lambda path: write_pickle(path, {**tensors, **extra}),
            CONFIGURATION: json_writer({"trainer": trainer, "buffer": {}}),
        },
    )


def _configuration(weights: Path, backup: Mapping[str, Any]) -> Configuration:
    """What the trainer was told: `config.json` beside the weights or above `checkpoints/`, else what a backup holds."""
    for folder in (weights.parent, weights.parent.parent)[: 2 if weights.parent.name == "checkpoints" else 1]:
        if (folder / CONFIGURATION).exists():
            return Configuration.read(folder / CONFIGURATION).inner("trainer")
    if isinstance(backup.get("config"), Mapping):
        return Configuration(weights, backup["config"], "config.")
    raise CheckpointError(
        f"{weights}: no {CONFIGURATION} lies beside it, which says what kind it is; copy it there"
    )


def _activation(
    weights: Path, kind: str, trainer: Configuration, tensors: Mapping[str, Tensor]
) -> LatentActivation:
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        return ReLU()
    if kind == "GatedAutoEncoder":
        return Gated()
    if kind == "JumpReluAutoEncoder":
        return JumpReLU()
    stored = int(tensors["k"]) if "k" in tensors else None
    k = trainer.size("k", stored)
    if k is None or (stored is not None and k != stored):
        raise CheckpointError(
            f"{weights}: k is {stored}, but its configuration says {k}; they belong to different ones"
        )
    return TopK(k) if kind == "AutoEncoderTopK" else BatchTopK(k)


def _class(autoencoder: SparseAutoencoder) -> str:
    activation = autoencoder.activation
    if isinstance(activation, BatchTopK):
        known_threshold(autoencoder, "dictionary_learning")
        return "MatryoshkaBatchTopKSAE" if autoencoder.prefixes else "BatchTopKSAE"
    if autoencoder.prefixes:
        raise refusal(
            "dictionary_learning", f"nested dictionaries (matryoshka {autoencoder.prefixes}) of {activation}"
        )
    if isinstance(activation, ReLU):
        return "AutoEncoder" if autoencoder.subtract_decoder_bias else "AutoEncoderNew"
    for rule, name in (
        (Gated, "GatedAutoEncoder"),
        (TopK, "AutoEncoderTopK"),
        (JumpReLU, "JumpReluAutoEncoder"),
    ):
        if isinstance(activation, rule):
            return name
    raise other_activation(activation, "dictionary_learning")
