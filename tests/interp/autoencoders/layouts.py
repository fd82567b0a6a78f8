"""Checkpoints as the documents of SAE Lens, sparsify and dictionary_learning describe them, and their maps.

Nothing here uses the library: `write` makes a folder with random weights, `apply` computes in float64 what
the library of a layout computes with its files.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

D, LATENTS, OUTPUTS, K = 12, 24, 10, 4
FILES = {
    "sae_lens": ("sae_weights.safetensors", "cfg.json"),
    "sparsify": ("sae.safetensors", "cfg.json"),
    "dictionary_learning": ("ae.pt", "config.json"),
}


def write(layout, folder, kind, dtype=torch.float32, seed=0, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(0.5).to(dtype)

    tensors, configuration = {
        "sae_lens": sae_lens,
        "sparsify": sparsify,
        "dictionary_learning": dictionary_learning,
    }[layout](kind, draw)
    weights, name = FILES[layout]
    if layout == "dictionary_learning":
        configuration["trainer"] |= settings
        torch.save(tensors, folder / weights)
    else:
        configuration |= {"dtype": str(dtype).removeprefix("torch.")} if layout == "sae_lens" else {}
        configuration |= settings
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / weights)
    (folder / name).write_text(json.dumps(configuration))
    return folder


def sae_lens(architecture, draw):
    transcoder = "transcoder" in architecture
    outputs = OUTPUTS if transcoder else D
    tensors = {"W_enc": draw(D, LATENTS), "W_dec": draw(LATENTS, outputs), "b_dec": draw(outputs)}
    configuration = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": LATENTS,
        "device": "cpu",
        "apply_b_dec_to_input": not transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.18.0"},
    }
    if architecture == "gated":
        tensors |= {name: draw(LATENTS) for name in ("b_gate", "b_mag", "r_mag")}
    else:
        tensors["b_enc"] = draw(LATENTS)
    if "jumprelu" in architecture:
        tensors["threshold"] = draw(LATENTS).abs()
    if "skip" in architecture:
        tensors["W_skip"] = draw(outputs, D)
    if architecture == "topk":
        configuration |= {"k": K, "rescale_acts_by_decoder_norm": False}
    if "batchtopk" in architecture:
        tensors["topk_threshold"] = torch.tensor(0.7, dtype=torch.float64)
        configuration |= {"k": float(K), "rescale_acts_by_decoder_norm": True}
    if architecture == "matryoshka_batchtopk":
        configuration["matryoshka_widths"] = [6, 12, LATENTS]
    if transcoder:
        configuration["d_out"] = outputs
    return tensors, configuration


def sparsify(activation, draw):
    tensors = {
        "encoder.weight": draw(LATENTS, D),
        "encoder.bias": draw(LATENTS),
        "W_dec": draw(LATENTS, D),
        "b_dec": draw(D),
        "W_skip": draw(D, D),
    }
    configuration = {
        "activation": activation.removesuffix(" skip"),
        "expansion_factor": LATENTS // D,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "multi_topk": False,
        "skip_connection": activation.endswith(" skip"),
        "transcode": False,
        "d_in": D,
    }
    if not configuration["skip_connection"]:
        del tensors["W_skip"]
    return tensors, configuration


def dictionary_learning(kind, draw):
    tensors = {
        "encoder.weight": draw(LATENTS, D),
        "encoder.bias": draw(LATENTS),
        "decoder.weight": draw(D, LATENTS),
    }
    trainer = {
        "dict_class": kind,
        "activation_dim": D,
        "dict_size": LATENTS,
        "lm_name": "a model",
        "layer": 3,
    }
    if kind == "AutoEncoder":
        tensors["bias"] = draw(D)
    elif kind == "AutoEncoderNew":
        tensors["decoder.bias"] = draw(D)
    elif kind == "GatedAutoEncoder":
        del tensors["encoder.bias"]
        tensors |= {"decoder_bias": draw(D)} | {
            name: draw(LATENTS) for name in ("r_mag", "gate_bias", "mag_bias")
        }
    else:
        tensors["b_dec"] = draw(D)
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        tensors = {
            "W_enc": draw(D, LATENTS),
            "b_enc": draw(LATENTS),
            "W_dec": draw(LATENTS, D),
            "b_dec": draw(D),
        }
    if kind == "JumpReluAutoEncoder":
        tensors["threshold"] = draw(LATENTS)  # some below 0: nothing keeps them positive there
    if "TopK" in kind:
        trainer["k"] = K
        tensors |= {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.7)}
    if kind == "MatryoshkaBatchTopKSAE":
        tensors["group_sizes"] = torch.tensor([6, 6, LATENTS - 12])
    return tensors, {"trainer": trainer, "buffer": {}}


# ---- maps ------------------------------------------------------------------------------------------------


def top(h, k):
    kept = h.topk(k, dim=-1)
    return torch.zeros_like(h).scatter(-1, kept.indices, kept.values)


def apply(layout, folder, x):
    """What the library of the layout returns for samples x, in float64."""
    weights, configuration = FILES[layout]
    settings = json.loads((Path(folder) / configuration).read_text())
    state = torch.load(folder / weights) if layout == "dictionary_learning" else load_file(folder / weights)
    state = {name: tensor.double() for name, tensor in state.items()}
    return {
        "sae_lens": map_sae_lens,
        "sparsify": map_sparsify,
        "dictionary_learning": map_dictionary_learning,
    }[layout](state, settings, x.double())


def map_sae_lens(state, settings, x):
    raw, architecture = x, settings["architecture"]
    scale, center, enlarged = 1.0, 0.0, 1.0
    if settings["normalize_activations"] == "constant_norm_rescale":
        scale = enlarged = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    if settings["normalize_activations"] == "layer_norm":
        center, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        enlarged = scale + 1e-5
    x = (x - center) / enlarged - (state["b_dec"] if settings["apply_b_dec_to_input"] else 0.0)
    projected, norms = x @ state["W_enc"], state["W_dec"].norm(dim=1)
    rescaled = settings.get("rescale_acts_by_decoder_norm", False)
    if architecture == "gated":
        magnitude = (projected * state["r_mag"].exp() + state["b_mag"]).relu()
        codes = magnitude * (projected + state["b_gate"] > 0)
    else:
        h = projected + state["b_enc"]
        if architecture == "topk":
            codes = top((h * norms if rescaled else h).relu(), settings["k"]) / (norms if rescaled else 1.0)
        elif "batchtopk" in architecture:
            codes = h.relu() * (h * norms > state["topk_threshold"])
        elif "jumprelu" in architecture:
            codes = h.relu() * (h > state["threshold"])
        else:
            codes = h.relu()
    made = codes @ state["W_dec"] + state["b_dec"]
    if "W_skip" in state:
        made = made + raw @ state["W_skip"].mT
    return made * scale + center


def map_sparsify(state, settings, x):
    centered = x if settings["transcode"] else x - state["b_dec"]
    h = (centered @ state["encoder.weight"].mT + state["encoder.bias"]).relu()
    if settings["activation"] == "topk":
        codes = top(h, settings["k"])
    else:
        groups = h.reshape(len(h), settings["k"], -1)
        codes = (groups * (groups == groups.max(-1, keepdim=True).values)).reshape(h.shape)
    made = codes @ state["W_dec"] + state["b_dec"]
    return made + x @ state["W_skip"].mT if settings["skip_connection"] else made


def map_dictionary_learning(state, settings, x):
    kind = settings["trainer"]["dict_class"]
    encoder = state["W_enc"] if "W_enc" in state else state["encoder.weight"].mT
    decoder = state["W_dec"] if "W_dec" in state else state["decoder.weight"].mT
    bias = next(state[name] for name in ("bias", "decoder.bias", "decoder_bias", "b_dec") if name in state)
    h = (x if re.match("AutoEncoderNew|JumpRelu", kind) else x - bias) @ encoder
    if kind == "GatedAutoEncoder":
        codes = (h * state["r_mag"].exp() + state["mag_bias"]).relu() * (h + state["gate_bias"] > 0)
    else:
        h = h + (state["b_enc"] if "b_enc" in state else state["encoder.bias"])
        codes = h.relu()
        if kind == "AutoEncoderTopK":
            codes = top(codes, int(state["k"]))
        elif "threshold" in state:
            codes = codes * (h > state["threshold"])
    return codes @ decoder + bias
