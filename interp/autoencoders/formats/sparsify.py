"""Checkpoints of sparsify: a folder with `cfg.json` and `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path

from interp.autoencoders.autoencoder import Autoencoder
from interp.autoencoders.formats.affine_form import AffineForm
from interp.autoencoders.formats.layout import (
    Configuration,
    checked_tensors,
    json_writer,
    other_activation,
    plain_sparse,
    refusal,
    write_folder,
)
from interp.autoencoders.group_max import GroupMax
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.autoencoders.top_k import TopK
from weightspace.checkpoint import open_checkpoint, write_safetensors

WEIGHTS, CONFIGURATION = "sae.safetensors", "cfg.json"
_ACTIVATIONS = {"topk": TopK, "groupmax": GroupMax}


def read(folder: Path) -> SparseAutoencoder:
    """Read a folder that sparsify 1.x wrote; the dtype is that of the tensors."""
    settings = Configuration.read(folder / CONFIGURATION)
    d, k = settings.size("d_in"), settings.size("k", 32)
    latents = settings.get("num_latents", int, 0) or d * settings.size("expansion_factor", 32)
    activation = _ACTIVATIONS[settings.choice("activation", tuple(_ACTIVATIONS), "topk")](k)
    if settings.get("signed", bool, False):  # of versions before 1.0
        raise settings.error("signed", "is true, but codes of either sign are not read; train it without")
    transcode, skip = settings.get("transcode", bool, False), settings.get("skip_connection", bool, False)
    shapes = {
        "encoder.weight": (latents, d),
        "encoder.bias": (latents,),
        "W_dec": (latents, d),
        "b_dec": (d,),
    }
    if skip:
        shapes["W_skip"] = (d, d)
    checkpoint = open_checkpoint(folder / WEIGHTS)
    tensors = checked_tensors(checkpoint.path, checkpoint.state_dict(), shapes)
    form = AffineForm(
        tensors["encoder.weight"],
        tensors["encoder.bias"],
        tensors["W_dec"],
        tensors["b_dec"],
        not transcode,
        tensors.get("W_skip"),
    )
    return form.to_autoencoder(activation, transcoder=transcode or skip)


def write(autoencoder: Autoencoder, folder: str | Path) -> None:
    """Write what sparsify 1.x reads.

    Scalings "mean" and "standard" are folded into the weights, a decoder bias that an autoencoder does not subtract
    into its encoder bias.

    Raises:
        UnsupportedOperationError: the layout has no place for the kind of autoencoder; the text says why.
        OutputError: a file cannot be written.
    """
    autoencoder = plain_sparse(autoencoder, "sparsify")
    d, outputs, activation = autoencoder.sample_shape[0], autoencoder.output_features, autoencoder.activation
    name = {rule: name for name, rule in _ACTIVATIONS.items()}.get(type(activation))
    if not isinstance(activation, (TopK, GroupMax)) or name is None:
        raise other_activation(activation, "sparsify")
    if autoencoder.prefixes:
        raise refusal("sparsify", f"nested dictionaries (matryoshka {autoencoder.prefixes})")
    if autoencoder.scaling.per_sample:
        raise refusal("sparsify", f"the scaling {autoencoder.scaling.kind!r}")
    if outputs != d:
        raise refusal("sparsify", f"a transcoder of {d} inputs and {outputs} outputs")
    form = AffineForm.of(autoencoder)
    if not autoencoder.transcoder:
        form = form.subtracting(True)
    settings = {
        "activation": name,
        "expansion_factor": autoencoder.latents // d,
        "normalize_decoder": autoencoder.normalize_decoder and autoencoder.scaling.kind != "standard",
        "num_latents": autoencoder.latents,
        "k": activation.k,
        "multi_topk": False,
        "skip_connection": form.skip is not None,
        "transcode": not form.subtracts,
        "d_in": d,
    }
    tensors = {
        "encoder.weight": form.encoder,
        "encoder.bias": form.encoder_bias,
        "W_dec": form.decoder,
        "b_dec": form.decoder_bias,
    }
    if form.skip is not None:
        tensors["W_skip"] = form.skip
    write_folder(
        folder,
        {WEIGHTS: lambda path: write_safetensors(path, tensors), CONFIGURATION: json_writer(settings)},
    )
