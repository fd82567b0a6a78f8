"""Checkpoints of other libraries give the map they give there, and what is written is read there.

Against files of the documented layouts always, against the libraries themselves where they are installed.
"""

import json
import os
import pickle
import signal
import warnings
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.autoencoders.batch_top_k import BatchTopK
from interp.autoencoders.bilinear_autoencoder import BilinearAutoencoder
from interp.autoencoders.formats.registry import load_autoencoder
from interp.autoencoders.gated import Gated
from interp.autoencoders.group_max import GroupMax
from interp.autoencoders.jump_relu import JumpReLU
from interp.autoencoders.operator_autoencoder import OperatorAutoencoder
from interp.autoencoders.relu import ReLU
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.autoencoders.top_k import TopK
from tests.interp.autoencoders.layouts import FILES, LATENTS, OUTPUTS, D, K, apply, write
from weightspace.errors import CheckpointError, NonFiniteError, OutputError, UnsupportedOperationError

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
# layout, kind, settings that differ from those that the layout's module writes
DOCUMENTED = [
    *(("sae_lens", kind, {}) for kind in ("standard", "topk", "jumprelu", "gated", "batchtopk")),
    *(("sae_lens", kind, {}) for kind in ("matryoshka_batchtopk", "transcoder", "skip_transcoder")),
    *(("sae_lens", kind, {}) for kind in ("jumprelu_transcoder", "jumprelu_skip_transcoder")),
    ("sae_lens", "topk", {"rescale_acts_by_decoder_norm": True}),
    ("sae_lens", "standard", {"apply_b_dec_to_input": False}),
    ("sae_lens", "gated", {"apply_b_dec_to_input": False}),
    ("sae_lens", "topk", {"normalize_activations": "constant_norm_rescale"}),
    ("sae_lens", "jumprelu", {"normalize_activations": "layer_norm"}),
    *(("sparsify", kind, {}) for kind in ("topk", "groupmax", "topk skip")),
    ("sparsify", "topk", {"transcode": True}),
    ("sparsify", "groupmax skip", {"transcode": True, "num_latents": LATENTS, "expansion_factor": 7}),
    *(("dictionary_learning", kind, {}) for kind in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder")),
    *(
        ("dictionary_learning", kind, {})
        for kind in ("AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder")
    ),
    ("dictionary_learning", "MatryoshkaBatchTopKSAE", {}),
]
CASES = pytest.mark.parametrize(
    ("layout", "kind", "settings"),
    DOCUMENTED,
    ids=["-".join([layout, kind, *map(str, settings.values())]) for layout, kind, settings in DOCUMENTED],
)
# what we make, and the layouts that have a place for it
OURS = {
    "relu": (ReLU(), {}, ("sae_lens", "dictionary_learning")),
    "relu-not-subtracted": (ReLU(), {"subtract_decoder_bias": False}, ("sae_lens", "dictionary_learning")),
    "relu-mean": (ReLU(), {"scaling": "mean"}, ("sae_lens", "dictionary_learning")),
    "relu-unit-norm": (ReLU(), {"scaling": "unit_norm"}, ("sae_lens",)),
    "topk": (TopK(K), {}, ("sae_lens", "sparsify", "dictionary_learning")),
    "topk-tied": (TopK(K), {"tied": True}, ("sae_lens", "sparsify", "dictionary_learning")),
    "topk-standard": (TopK(K), {"scaling": "standard"}, ("sae_lens", "sparsify", "dictionary_learning")),
    "topk-not-subtracted": (
        TopK(K),
        {"subtract_decoder_bias": False, "scaling": "standard"},
        ("sae_lens", "sparsify", "dictionary_learning"),
    ),
    "topk-nested": (TopK(K), {"matryoshka": (6, 12)}, ("sae_lens",)),
    "topk-root-norm": (TopK(K), {"scaling": "root_norm"}, ("sae_lens",)),
    "topk-layer-norm": (TopK(K), {"scaling": "sae_lens_layer_norm"}, ("sae_lens",)),
    "batch": (BatchTopK(K), {}, ("sae_lens", "dictionary_learning")),
    "nested": (
        BatchTopK(K),
        {"matryoshka": (6, 12), "scaling": "standard"},
        ("sae_lens", "dictionary_learning"),
    ),
    "jump": (JumpReLU(), {"scaling": "standard"}, ("sae_lens", "dictionary_learning")),
    "gated": (Gated(), {}, ("sae_lens", "dictionary_learning")),
    "gated-not-subtracted": (
        Gated(),
        {"subtract_decoder_bias": False, "scaling": "standard"},
        ("sae_lens", "dictionary_learning"),
    ),
    "groups": (GroupMax(K), {"scaling": "mean"}, ("sparsify",)),
    "transcoder": (ReLU(), {"output_features": OUTPUTS, "scaling": "standard"}, ("sae_lens",)),
    "skip": (ReLU(), {"output_features": OUTPUTS, "skip": True, "scaling": "standard"}, ("sae_lens",)),
    "skip-subtracted": (
        JumpReLU(),
        {"output_features": D, "skip": True, "subtract_decoder_bias": True, "scaling": "standard"},
        ("sae_lens",),
    ),
    "jump-skip": (JumpReLU(), {"output_features": OUTPUTS, "skip": True}, ("sae_lens",)),
    "batch-transcoder": (BatchTopK(K), {"output_features": OUTPUTS}, ("sae_lens",)),
    "topk-transcoder": (TopK(K), {"output_features": D, "skip": True, "scaling": "standard"}, ("sparsify",)),
}
WRITTEN = pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name, (_, _, layouts) in OURS.items() for layout in layouts]
)


def samples(dtype=torch.float32, count=64, width=D):
    generator = torch.Generator().manual_seed(11)
    return torch.randn(count, width, generator=generator, dtype=torch.float64).mul(1.5).add(0.3).to(dtype)


def make(name, dtype=torch.float32):
    """An autoencoder in which nothing is zero or one by accident."""
    activation, options, _ = OURS[name]
    generator = torch.Generator().manual_seed(5)
    autoencoder = SparseAutoencoder(D, LATENTS, activation, **options, dtype=dtype, generator=generator)
    autoencoder.scaling.fit(samples(dtype))
    if autoencoder.transcoder:
        autoencoder.output_scaling.fit(samples(dtype, width=autoencoder.output_features) * 3 - 1)
    with torch.no_grad():
        for entry, parameter in autoencoder.named_parameters():
            if entry not in ("encoder_weight", "decoder_weight"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(dtype)
        if isinstance(activation, BatchTopK):
            autoencoder.get_buffer("threshold").fill_(0.6)
    return autoencoder


def assert_same(found, wanted, dtype=torch.float32):
    scale = wanted.double().abs().max()
    assert scale > 0.5  # not the bias alone
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    assert (found.double() - wanted.double()).abs().max() <= tolerance * scale


@CASES
@PRECISIONS
def test_documented_files_are_read_with_their_map(tmp_path, layout, kind, settings, dtype):
    folder = write(layout, tmp_path / "theirs", kind, dtype, **settings)
    x = samples(dtype)
    autoencoder = load_autoencoder(folder)
    assert autoencoder.decoder_weight.dtype == dtype
    assert_same(autoencoder(x), apply(layout, folder, x), dtype)
    autoencoder.save(tmp_path / "again", layout)
    assert_same(apply(layout, tmp_path / "again", x), apply(layout, folder, x), dtype)
    weights = FILES[layout][0]
    again = load_autoencoder(tmp_path / "again" / weights)
    assert_same(again(x), autoencoder(x), dtype)


@WRITTEN
@PRECISIONS
def test_what_is_written_has_the_same_map_by_the_documents(tmp_path, name, layout, dtype):
    autoencoder, x = make(name, dtype), samples(dtype)
    autoencoder.save(tmp_path / "folder", layout)
    assert_same(apply(layout, tmp_path / "folder", x), autoencoder(x), dtype)
    again = load_autoencoder(tmp_path / "folder")
    assert_same(again(x), autoencoder(x), dtype)
    if layout != "dictionary_learning":  # whose loader multiplies codes by norms of features
        assert_same(again.encode(x), autoencoder.encode(x), dtype)
    kept = ("activation", "matryoshka")
    found, wanted = again.configuration(), autoencoder.configuration()
    assert {key: found[key] for key in kept} == {key: wanted[key] for key in kept}


@pytest.mark.parametrize("name", OURS)
@PRECISIONS
def test_our_own_format_keeps_every_bit(tmp_path, name, dtype):
    autoencoder, x = make(name, dtype), samples(dtype)
    autoencoder.save(tmp_path / "a.safetensors")
    again = load_autoencoder(tmp_path / "a.safetensors")
    assert again.configuration() == autoencoder.configuration()
    assert torch.equal(again(x), autoencoder(x))
    state = again.state_dict()
    assert all(torch.equal(state[entry], tensor) for entry, tensor in autoencoder.state_dict().items())
    assert (again.encoder_weight is again.decoder_weight) == autoencoder.tied


@PRECISIONS
def test_our_own_format_keeps_other_classes(tmp_path, dtype):
    functions = samples(dtype, 6, 3 * 16).unflatten(1, (3, 16))
    for autoencoder, x in (
        (BilinearAutoencoder(D, 8, ordered=True, mixing=4, bias=True, dtype=dtype), samples(dtype)),
        (OperatorAutoencoder(3, 5, modes=4, tied=True, scaling="standard", dtype=dtype), functions),
        (OperatorAutoencoder(3, 5, modes=4, unrolled=2, dtype=dtype), functions),
    ):
        autoencoder.scaling.fit(x)
        autoencoder.save(tmp_path / "a.safetensors")
        again = load_autoencoder(tmp_path / "a.safetensors")
        assert type(again) is type(autoencoder)
        assert again.configuration() == autoencoder.configuration()
        assert torch.equal(again.encode(x), autoencoder.encode(x))


def test_lifted_autoencoders_are_kept_too(tmp_path):
    from interp.autoencoders.lifted_autoencoder import LiftedAutoencoder

    for options in (
        {"lifted": 2 * D},
        {"lift": torch.randn(2 * D, D, generator=torch.Generator().manual_seed(2))},
    ):
        autoencoder = LiftedAutoencoder(D, 8, TopK(2), **options)
        autoencoder.save(tmp_path / "a.safetensors")
        again = load_autoencoder(tmp_path / "a.safetensors")
        assert torch.equal(again(samples()), autoencoder(samples()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_thresholds_survive_their_logarithm(tmp_path, dtype):
    """They grow by the spacing of logarithms at most, so that a code at its threshold is cut; then they stay."""
    folder = write("sae_lens", tmp_path / "theirs", "jumprelu", dtype)
    threshold = load_file(folder / "sae_weights.safetensors")["threshold"]
    first = load_autoencoder(folder)
    read = first.log_threshold.detach().exp()
    eps = torch.finfo(read.dtype).eps
    assert (read >= threshold).all()
    assert (read - threshold <= (2 + threshold.log().abs()) * eps * threshold).all()
    first.save(tmp_path / "again", "sae_lens")
    second = load_autoencoder(tmp_path / "again")
    assert torch.equal(second.log_threshold.exp().to(dtype), read.to(dtype))
    if dtype == torch.bfloat16:  # whose steps are larger than the spacing
        assert torch.equal(read.to(dtype), threshold)


def test_codes_at_the_threshold_are_cut_as_there(tmp_path):
    """f = h 1[h > threshold]: equality is below, one step of the number above is not."""
    autoencoder = make("batch")
    autoencoder.save(tmp_path / "a", "sae_lens")
    again = load_autoencoder(tmp_path / "a")
    threshold = again.get_buffer("threshold")
    assert torch.equal(threshold, autoencoder.get_buffer("threshold"))
    with torch.no_grad():
        for one in (autoencoder, again):
            one.encoder_weight.zero_()
            one.encoder_bias[0] = threshold
            one.encoder_bias[1] = torch.nextafter(threshold, torch.tensor(torch.inf))
    codes = again.encode(samples())
    assert torch.equal(codes, autoencoder.encode(samples()))
    assert (codes[:, 0] == 0).all()
    assert (codes[:, 1] == again.encoder_bias[1]).all()


def test_flat_configurations_of_versions_before_6(tmp_path):
    x = samples()
    for kind, changes in (
        ("standard", {}),
        ("topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "architecture": "standard"}),
        ("topk", {"activation_fn": "topk", "activation_fn_kwargs": {"k": K}, "architecture": None}),
        ("standard", {"normalize_activations": False, "activation_fn": "relu", "sae_lens_version": "5.10.7"}),
        ("jumprelu", {"sae_lens_version": "3.20.0"}),
        ("standard", {"reshape_activations": "hook_z", "hook_point": "blocks.0.attn.hook_z"}),
    ):
        folder = write("sae_lens", tmp_path / "a", kind)
        wanted = apply("sae_lens", folder, x)
        settings = json.loads((folder / "cfg.json").read_text())
        for gone in ("metadata", "k", "rescale_acts_by_decoder_norm"):
            settings.pop(gone, None)
        settings = {key: value for key, value in (settings | changes).items() if value is not None}
        (folder / "cfg.json").write_text(json.dumps(settings))
        assert_same(load_autoencoder(folder)(x), wanted)


def test_a_factor_of_the_samples_is_folded(tmp_path):
    x, factor = samples(), 0.37
    for kind in ("standard", "topk", "gated", "jumprelu", "batchtopk"):
        folder = write("sae_lens", tmp_path / kind, kind)
        wanted = apply("sae_lens", folder, factor * x) / factor
        settings = json.loads((folder / "cfg.json").read_text())
        settings["normalize_activations"] = "expected_average_only_in"
        (folder / "cfg.json").write_text(json.dumps(settings))
        with pytest.raises(UnsupportedOperationError, match=r"activation_scaler\.json"):
            load_autoencoder(folder)
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
        assert_same(load_autoencoder(folder)(x), wanted)


def test_scaling_factors_of_codes_are_folded(tmp_path):
    folder, x = write("sae_lens", tmp_path / "a", "standard", b_dec=0), samples()
    tensors = load_file(folder / "sae_weights.safetensors")
    factor = torch.rand(LATENTS) + 0.5
    save_file({**tensors, "scaling_factor": factor}, folder / "sae_weights.safetensors")
    found = load_autoencoder(folder)
    codes = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).relu() * factor
    assert_same(found(x), codes @ tensors["W_dec"] + tensors["b_dec"])


@pytest.mark.parametrize("kind", [case[1] for case in DOCUMENTED if case[0] == "dictionary_learning"])
def test_backups_of_an_unfinished_training_are_read(tmp_path, kind):
    folder, x, factor = write("dictionary_learning", tmp_path / "trainer_0", kind), samples(), 2.5
    wanted = apply("dictionary_learning", folder, x / factor) * factor
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    state = torch.load(folder / "ae.pt")
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    backup = {"step": 7, "ae": state, "optimizer": optimizer, "config": trainer, "norm_factor": factor}
    torch.save(backup, folder / "ae.pt")
    assert_same(load_autoencoder(folder)(x), wanted)
    (folder / "config.json").rename(tmp_path / "config.json")
    assert_same(load_autoencoder(folder / "ae.pt")(x), wanted)  # by the configuration in it
    (folder / "checkpoints").mkdir()
    (tmp_path / "config.json").rename(folder / "config.json")
    torch.save(state, folder / "checkpoints" / "ae_7.pt")
    plain = load_autoencoder(folder / "checkpoints" / "ae_7.pt")
    assert_same(plain(x / factor) * factor, wanted)


def test_a_threshold_that_is_not_known_yet_cuts_nothing(tmp_path):
    for kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE", "AutoEncoderTopK"):
        folder = write("dictionary_learning", tmp_path / kind, kind)
        state = torch.load(folder / "ae.pt")
        torch.save({**state, "threshold": torch.tensor(-1.0)}, folder / "ae.pt")
        x = samples()
        assert_same(load_autoencoder(folder)(x), apply("dictionary_learning", folder, x))


def test_half_precision_is_kept(tmp_path):
    folder = write("sparsify", tmp_path / "a", "topk", torch.bfloat16)
    autoencoder = load_autoencoder(folder)
    assert autoencoder.encoder_weight.dtype == torch.bfloat16
    x = samples()
    assert_same(autoencoder.float()(x), apply("sparsify", folder, x))


def test_mixed_precisions_are_made_one(tmp_path):
    folder, x = write("sparsify", tmp_path / "a", "topk"), samples()
    change("sparsify", folder, b_dec=load_file(folder / "sae.safetensors")["b_dec"].double())
    assert_same(load_autoencoder(folder)(x), apply("sparsify", folder, x))


def test_features_stay_normalized_only_if_they_were(tmp_path):
    folder = write("sparsify", tmp_path / "a", "topk")
    assert not load_autoencoder(folder).normalize_decoder
    make("topk").save(tmp_path / "b", "sparsify")
    assert load_autoencoder(tmp_path / "b").normalize_decoder


# ---- what is refused -------------------------------------------------------------------------------------


def refuse_to_write(tmp_path, autoencoder, layout, text):
    with pytest.raises(UnsupportedOperationError, match=text):
        autoencoder.save(tmp_path / "refused", layout)
    assert not (tmp_path / "refused").exists()


def test_what_a_layout_has_no_place_for_is_named(tmp_path):
    crosscoder = SparseAutoencoder(D, LATENTS, TopK(K), sites=(6, 6))
    nested = SparseAutoencoder(D, LATENTS, TopK(K), matryoshka=(6,))
    for layout in FILES:
        refuse_to_write(tmp_path, BilinearAutoencoder(D, 8), layout, "BilinearAutoencoder")
        refuse_to_write(tmp_path, crosscoder, layout, r"crosscoder \(sites \(6, 6\)\)")
    for layout in ("sparsify", "dictionary_learning"):
        refuse_to_write(tmp_path, nested, layout, r"nested dictionaries \(matryoshka \(6, 24\)\)")
        refuse_to_write(tmp_path, make("topk-root-norm"), layout, "the scaling 'root_norm'")
    layer_norm = SparseAutoencoder(D, LATENTS, TopK(K), scaling="layer_norm")
    refuse_to_write(tmp_path, layer_norm, "sae_lens", "sae_lens_layer_norm")
    for layout in ("sae_lens", "dictionary_learning"):
        refuse_to_write(tmp_path, make("groups"), layout, "GroupMax")
        refuse_to_write(tmp_path, SparseAutoencoder(D, LATENTS, BatchTopK(K)), layout, "no threshold yet")
    refuse_to_write(tmp_path, make("jump"), "sparsify", "JumpReLU")
    refuse_to_write(tmp_path, make("topk-transcoder"), "sae_lens", "a transcoder with the activation TopK")
    refuse_to_write(tmp_path, make("transcoder"), "dictionary_learning", "a transcoder")
    wide = SparseAutoencoder(D, LATENTS, TopK(K), output_features=OUTPUTS)
    refuse_to_write(tmp_path, wide, "sparsify", "12 inputs and 10 outputs")
    refuse_to_write(tmp_path, nested, "zip", "the format is 'zip'")


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    autoencoder = make("topk")
    with torch.no_grad():
        autoencoder.encoder_bias[3] = torch.nan
    for layout in (*FILES, "weightspace"):
        with pytest.raises(NonFiniteError, match="encoder_bias"):
            autoencoder.save(tmp_path / "refused.safetensors", layout)
    assert not any(tmp_path.iterdir())


def test_our_own_format_is_one_file_of_its_name(tmp_path):
    with pytest.raises(OutputError, match=r"named \.safetensors"):
        make("topk").save(tmp_path / "folder")


def refuse_to_read(path, *texts, error=CheckpointError):
    with pytest.raises(error) as caught:
        load_autoencoder(path)
    for text in texts:
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def change(layout, folder, **tensors):
    """Tensors of a checkpoint replaced, or taken away (None)."""
    file = folder / FILES[layout][0]
    state = torch.load(file) if file.suffix == ".pt" else load_file(file)
    state = {name: tensor for name, tensor in (state | tensors).items() if tensor is not None}
    torch.save(state, file) if file.suffix == ".pt" else save_file(state, file)
    return folder


@pytest.mark.parametrize("layout", FILES)
def test_broken_checkpoints_are_refused_by_file_and_reason(tmp_path, layout):
    kind = {"sae_lens": "standard", "sparsify": "topk", "dictionary_learning": "AutoEncoderTopK"}[layout]
    weights, configuration = FILES[layout]

    def fresh():
        return write(layout, tmp_path / "a", kind)

    bias = torch.zeros(D)
    refuse_to_read(change(layout, fresh(), b_dec=None), weights, "'b_dec' is missing")
    refuse_to_read(change(layout, fresh(), b_more=bias), weights, "'b_more' has no place")
    refuse_to_read(
        change(layout, fresh(), b_dec=torch.zeros(D + 1)), weights, "'b_dec' has shape (13,)", "(12,)"
    )
    refuse_to_read(
        change(layout, fresh(), b_dec=torch.zeros(D, dtype=torch.int64)), weights, "'b_dec'", "int64"
    )
    refuse_to_read(change(layout, fresh(), b_dec=bias / 0), weights, "'b_dec' has NaN")
    for size in (0, 7, 400, -100):
        content = (fresh() / weights).read_bytes()
        (tmp_path / "a" / weights).write_bytes(content[:size])
        refuse_to_read(tmp_path / "a", weights)
    for text in ("", "{", "[]", "[" * 100_000, '"text"', "{}"):
        (fresh() / configuration).write_text(text)
        refuse_to_read(tmp_path / "a", configuration)
    (fresh() / configuration).unlink()
    refuse_to_read(tmp_path / "a", "without")
    (fresh() / weights).unlink()
    refuse_to_read(tmp_path / "a", "holds no autoencoder")
    refuse_to_read(tmp_path / "nothing", "no such file")


@pytest.mark.parametrize(
    ("layout", "kind", "settings", "text"),
    [
        ("sae_lens", "standard", {"architecture": "abstopk"}, "'architecture' is 'abstopk'"),
        ("sae_lens", "standard", {"normalize_activations": "l1"}, "'normalize_activations' is 'l1'"),
        ("sae_lens", "standard", {"d_in": "12"}, "'d_in' is '12'; it is an integer"),
        ("sae_lens", "standard", {"d_in": True}, "'d_in' is True"),
        ("sae_lens", "standard", {"d_sae": -3}, "'d_sae' is -3"),
        ("sae_lens", "standard", {"metadata": {}, "activation_fn": "tanh-relu"}, "'activation_fn_str' is 'tanh-relu'"),
        ("sae_lens", "topk", {"metadata": {}, "activation_fn_str": "topk"}, "'activation_fn_kwargs.k' is missing"),
        ("sae_lens", "topk", {"k": LATENTS + 1}, "more than the 24 latents"),
        ("sae_lens", "transcoder", {"apply_b_dec_to_input": True}, "'apply_b_dec_to_input' is true"),
        ("sae_lens", "matryoshka_batchtopk", {"matryoshka_widths": [9, 6]}, "matryoshka"),
        ("sparsify", "topk", {"activation": "relu"}, "'activation' is 'relu'"),
        ("sparsify", "topk", {"signed": True}, "'signed' is true"),
        ("sparsify", "groupmax", {"k": 5}, "5 equal groups of 24"),
        ("dictionary_learning", "AutoEncoder", {"dict_class": "CrossCoder"}, "'trainer.dict_class' is 'CrossCoder'"),
        ("dictionary_learning", "AutoEncoderTopK", {"k": K + 1}, "k is 4, but its configuration says 5"),
    ],
)  # fmt: skip
def test_configurations_are_validated(tmp_path, layout, kind, settings, text):
    refuse_to_read(write(layout, tmp_path / "a", kind, **settings), text, str(tmp_path / "a"))


def test_dtypes_without_fractions_are_refused(tmp_path):
    folder = write("sae_lens", tmp_path / "a", "standard")
    settings = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(settings | {"dtype": "int8"}))
    refuse_to_read(folder, "'dtype' is 'int8'")


def test_kinds_without_a_counterpart_are_refused_with_a_remedy(tmp_path):
    for kind, scaling, text in (
        ("standard", "covariance_whitening", "fold_activation_whitening"),
        ("transcoder", "layer_norm", "'layer_norm'"),
    ):
        folder = write("sae_lens", tmp_path / kind, kind, normalize_activations=scaling)
        refuse_to_read(folder, text, error=UnsupportedOperationError)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (Malicious.target,)


def test_pickles_that_would_run_code_are_refused(tmp_path):
    Malicious.target = str(tmp_path / "ran")
    folder = write("dictionary_learning", tmp_path / "a", "AutoEncoder")
    state = torch.load(folder / "ae.pt")
    for content in ({**state, "bias": Malicious()}, Malicious(), {"ae": state, "config": Malicious()}):
        torch.save(content, folder / "ae.pt")
        refuse_to_read(folder, "ae.pt", "refused")
    (folder / "ae.pt").write_bytes(pickle.dumps(Malicious()))
    refuse_to_read(folder, "ae.pt")
    assert not (tmp_path / "ran").exists()
    for content in (
        [1],
        {"bias": 3},
        {**state, "bias": "text"},
        {"ae": state, "config": {}, "norm_factor": -1},
    ):
        torch.save(content, folder / "ae.pt")
        refuse_to_read(folder, "ae.pt")


def test_folders_of_several_are_listed(tmp_path):
    for name in ("layers.0", "layers.1", "layers.10/seed1"):
        write("sparsify", tmp_path / "run" / name, "topk")
    refuse_to_read(tmp_path / "run", "3 autoencoders", "layers.0", "layers.1", "layers.10/seed1", "name one")
    both = write("sae_lens", write("sparsify", tmp_path / "both", "topk"), "topk")
    refuse_to_read(both, "sae_lens and sparsify")
    with pytest.raises(OutputError, match="holds a checkpoint of sae_lens"):
        make("topk").save(both, "sparsify")


def test_our_own_files_are_checked(tmp_path):
    path = tmp_path / "a.safetensors"
    make("topk").save(path)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    about = json.loads(header)["__metadata__"]
    for changed, text in (
        ({"format": "other"}, "no autoencoder that was saved here"),
        ({"version": "2"}, "'metadata version' is '2'"),
        ({"class": "os.system"}, "'metadata class' is 'os.system'"),
        ({"configuration": "{"}, "makes no SparseAutoencoder"),
        ({"configuration": '{"d": 12, "latents": 24, "unknown": 1}'}, "makes no SparseAutoencoder"),
        ({"configuration": about["configuration"].replace("24", "25")}, "has shape"),
        ({"dtype": "save"}, "makes no SparseAutoencoder"),
    ):
        save_file(tensors, path, {**about, **changed})
        refuse_to_read(path, str(path), text)
    save_file({**tensors, "more": torch.zeros(1)}, path, about)
    refuse_to_read(path, "'more' has no place")
    path.write_bytes(path.read_bytes()[:-10])
    refuse_to_read(path, str(path))


@pytest.mark.parametrize("layout", FILES)
def test_an_interrupted_writing_leaves_no_mixture(tmp_path, layout, monkeypatch):
    old, new, x = make("topk"), make("topk-standard"), samples()
    replace, outcomes = os.replace, []

    @contextmanager
    def stopped_at(step):
        count = 0

        def counted(*paths):
            nonlocal count
            count += 1
            if count == step:
                raise KeyboardInterrupt
            replace(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted)
            yield

    for step in range(1, 6):
        folder = tmp_path / str(step)
        old.save(folder, layout)
        try:
            with stopped_at(step):
                new.save(folder, layout)
            outcomes.append("new")
        except KeyboardInterrupt:
            outcomes.append("interrupted")
        assert not list(folder.glob(".*"))
        if (folder / FILES[layout][1]).exists():
            assert_same(load_autoencoder(folder)(x), (new if outcomes[-1] == "new" else old)(x))
        else:
            assert outcomes[-1] == "interrupted"
            refuse_to_read(folder, "interrupted")
    assert outcomes[0] == "interrupted"
    assert outcomes[-1] == "new"


@pytest.mark.parametrize("layout", [*FILES, "weightspace"])
def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path, layout):
    resource = pytest.importorskip("resource")
    old, x = make("topk"), samples()
    path = tmp_path / ("a.safetensors" if layout == "weightspace" else "a")
    old.save(path, layout)
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes of a file, as if no more were free
    try:
        with pytest.raises(OutputError) as caught:
            make("topk-standard").save(path, layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert f"cannot write '{path}" in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert torch.equal(load_autoencoder(path)(x), old(x))


# ---- the libraries themselves ----------------------------------------------------------------------------


@contextmanager
def library(name):
    """A library, whose own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip(name, exc_type=ImportError)


def their_map(layout, folder, x):
    """What the library itself makes of a folder."""
    with library(layout) as module, torch.no_grad():
        if layout == "sae_lens":
            theirs = module.SAE.load_from_disk(str(folder))
            return theirs, theirs(x)
        if layout == "sparsify":
            theirs = module.SparseCoder.load_from_disk(folder)
            return theirs, theirs(x).sae_out
        from dictionary_learning.utils import load_dictionary

        theirs = load_dictionary(str(folder), device="cpu")[0]
        return theirs, theirs(x)


def save_theirs(layout, theirs, folder, settings):
    with library(layout):
        if layout == "sae_lens":
            theirs.save_model(folder)
        elif layout == "sparsify":
            theirs.save_to_disk(folder)
        else:
            folder.mkdir()
            torch.save(theirs.state_dict(), folder / "ae.pt")
            (folder / "config.json").write_text(settings)


@CASES
def test_the_library_agrees_on_documented_files(tmp_path, layout, kind, settings):
    if "batchtopk" in kind:
        pytest.skip("a training checkpoint there; its saved inference model is tested below")
    folder, x = write(layout, tmp_path / "a", kind, **settings), samples()
    theirs, wanted = their_map(layout, folder, x)
    assert_same(apply(layout, folder, x), wanted)
    save_theirs(layout, theirs, tmp_path / "b", (folder / FILES[layout][1]).read_text())
    assert_same(load_autoencoder(tmp_path / "b")(x), wanted)


@WRITTEN
def test_the_library_reads_what_is_written(tmp_path, name, layout):
    autoencoder, x = make(name), samples()
    autoencoder.save(tmp_path / "a", layout)
    theirs, found = their_map(layout, tmp_path / "a", x)
    assert_same(found, autoencoder(x))
    save_theirs(layout, theirs, tmp_path / "b", (tmp_path / "a" / FILES[layout][1]).read_text())
    again = load_autoencoder(tmp_path / "b")
    assert_same(again(x), autoencoder(x))
    assert again.configuration()["matryoshka"] == autoencoder.configuration()["matryoshka"]


@pytest.mark.parametrize(
    "kind", ["topk", "batchtopk", "matryoshka_batchtopk", "standard", "jumprelu", "gated"]
)
def test_trainings_of_sae_lens_are_read_finished_and_unfinished(tmp_path, kind):
    folder, x = write("sae_lens", tmp_path / "a", kind), samples()
    with library("sae_lens") as module, torch.no_grad():
        training = module.TrainingSAE.load_from_disk(str(folder))
        training.save_model(tmp_path / "unfinished")
        training.save_inference_model(tmp_path / "finished")
        wanted = module.SAE.load_from_disk(str(tmp_path / "finished"))(x)
        factor = 0.37  # of the samples, which SAE Lens folds at the end of a training
        training.fold_activation_norm_scaling_factor(factor)
        training.save_inference_model(tmp_path / "folded")
        folded = module.SAE.load_from_disk(str(tmp_path / "folded"))(x)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
    settings = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(
        json.dumps(settings | {"normalize_activations": "expected_average_only_in"})
    )
    assert_same(load_autoencoder(folder)(x), folded)
    for name in ("unfinished", "finished"):
        found = load_autoencoder(tmp_path / name)
        assert_same(found(x), wanted)
        if "batchtopk" in kind:
            assert found.activation == BatchTopK(K)
            assert found.prefixes == ((6, 12, LATENTS) if kind.startswith("matryoshka") else ())
