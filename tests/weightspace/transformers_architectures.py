"""Tiny models with random weights of architectures in the `transformers` library; nothing is downloaded.

`transformers` is imported when a model is made, not before.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 53
CLASSES = 5


class Wrapped(nn.Module):
    """A model whose inputs are given by position and which returns one tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], output: str, options: dict[str, Any]):
        super().__init__()
        self.model, self.names, self.output, self.options = model, names, output, options

    def forward(self, *inputs):
        return getattr(self.model(**dict(zip(self.names, inputs)), **self.options), self.output)


@dataclass(frozen=True)
class TransformersArchitecture:
    """A model class with its configuration and the shapes of its inputs, by keyword."""

    model: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    output: str = "logits"
    options: dict[str, Any] = field(default_factory=dict)
    double: bool = True  # False: the library's own forward overflows in float64

    def module(self, seed: int = 0) -> nn.Module:
        """Return the wrapped model in float32 and eval mode, its weights as the library draws them."""
        transformers = importlib.import_module("transformers")
        model_class = getattr(transformers, self.model)
        config = model_class.config_class(**self.config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_class(config).eval()
        return Wrapped(model, tuple(self.shapes), self.output, self.options).eval()

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random example inputs: integers for `..._ids`, numbers otherwise."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randint(3, VOCABULARY, shape, generator=generator)
            if name.endswith("_ids")
            else torch.randn(shape, generator=generator, dtype=dtype)
            for name, shape in self.shapes.items()
        )


TOKENS = {"input_ids": (3, 7)}
PAIR = {"input_ids": (3, 7), "decoder_input_ids": (3, 5)}
LAST = "last_hidden_state"
NO_CACHE = {"use_cache": False}
ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
DECODER: dict[str, Any] = {
    **ENCODER, "num_key_value_heads": 2, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "image_size": 12, "patch_size": 4, "num_labels": CLASSES,
}  # fmt: skip


def _encoder(
    model: str, output: str = "logits", double: bool = True, **config: Any
) -> TransformersArchitecture:
    return TransformersArchitecture(model, {**ENCODER, **config}, TOKENS, output, double=double)


def _decoder(model: str, **config: Any) -> TransformersArchitecture:
    return TransformersArchitecture(model, {**DECODER, **config}, TOKENS, options=NO_CACHE)


def _causal(
    model: str, options: dict[str, Any] = NO_CACHE, double: bool = True, **config: Any
) -> TransformersArchitecture:
    """A decoder whose configuration has names of its own."""
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return TransformersArchitecture(model, {**tokens, **config}, TOKENS, options=options, double=double)


def _vision(model: str, output: str = "logits", **config: Any) -> TransformersArchitecture:
    return TransformersArchitecture(model, {**VISION, **config}, {"pixel_values": (3, 3, 12, 12)}, output)


def _image(model: str, size: int = 32, output: str = "logits", **config: Any) -> TransformersArchitecture:
    """A vision model whose configuration has names of its own."""
    shapes = {"pixel_values": (3, 3, size, size)}
    return TransformersArchitecture(model, {"num_labels": CLASSES, **config}, shapes, output)


T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4,
    "use_cache": False, "pad_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
    "max_position_embeddings": 32, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
SPEECH: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "conv_dim": (8, 12), "conv_kernel": (5, 3), "conv_stride": (3, 2),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
}  # fmt: skip

TRANSFORMERS: dict[str, TransformersArchitecture] = {
    # ---- encoders of text
    "bert": _encoder("BertForMaskedLM"),
    "bert pooled": _encoder("BertModel", "pooler_output"),
    "roberta": _encoder("RobertaForMaskedLM"),
    "xlm-roberta": _encoder("XLMRobertaForSequenceClassification", num_labels=CLASSES),
    "distilbert": TransformersArchitecture(
        "DistilBertForMaskedLM",
        {
            "vocab_size": VOCABULARY, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40,
            "max_position_embeddings": 32,
        },
        TOKENS,
    ),
    "albert": _encoder("AlbertForMaskedLM", embedding_size=20),
    "electra": _encoder("ElectraForPreTraining", embedding_size=20),
    "deberta-v2": _encoder(
        "DebertaV2ForMaskedLM", relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm",
        pos_att_type=["p2c", "c2p"], share_att_key=True, position_biased_input=False, type_vocab_size=0,
    ),
    "deberta": _encoder(
        "DebertaForMaskedLM", relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=16
    ),
    "mpnet": _encoder("MPNetForMaskedLM"),
    "camembert": _encoder("CamembertForMaskedLM"),
    "ernie": _encoder("ErnieForMaskedLM"),
    "roformer": _encoder("RoFormerForMaskedLM"),
    "convbert": _encoder("ConvBertForMaskedLM", embedding_size=20),
    "mobilebert": _encoder(
        "MobileBertForMaskedLM", embedding_size=20, true_hidden_size=16, intra_bottleneck_size=16
    ),
    "squeezebert": _encoder("SqueezeBertForMaskedLM", embedding_size=24),
    "fnet": _encoder("FNetForMaskedLM"),
    "nystromformer": _encoder("NystromformerForMaskedLM", segment_means_seq_len=8, num_landmarks=8),
    "modernbert": _encoder(
        "ModernBertForMaskedLM", cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    ),
    "esm": _encoder("EsmForMaskedLM", mask_token_id=4, position_embedding_type="rotary"),
    "canine": _encoder("CanineModel", LAST, double=False),
    # ---- decoders of text
    "gpt-2": _causal("GPT2LMHeadModel", n_embd=24, n_layer=2, n_head=4, n_positions=32, use_cache=False),
    "openai gpt": _causal("OpenAIGPTLMHeadModel", {}, n_embd=24, n_layer=2, n_head=4, n_positions=32),
    "gpt-bigcode": _causal(
        "GPTBigCodeForCausalLM", n_embd=24, n_layer=2, n_head=4, n_positions=32, use_cache=False
    ),
    "gpt-neo": _causal(
        "GPTNeoForCausalLM", hidden_size=24, num_layers=2, num_heads=4, max_position_embeddings=32,
        attention_types=[[["global", "local"], 1]], window_size=4, use_cache=False,
    ),
    "gpt-j": _causal(
        "GPTJForCausalLM", n_embd=24, n_layer=2, n_head=4, n_positions=32, rotary_dim=4, use_cache=False
    ),
    "codegen": _causal(
        "CodeGenForCausalLM", n_embd=32, n_layer=2, n_head=4, n_positions=32, rotary_dim=4, use_cache=False
    ),
    "gpt-neox": _decoder("GPTNeoXForCausalLM"),
    "opt": _causal(
        "OPTForCausalLM", hidden_size=24, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40,
        max_position_embeddings=32, word_embed_proj_dim=24, use_cache=False,
    ),
    "bloom": _causal("BloomForCausalLM", hidden_size=24, n_layer=2, n_head=4, use_cache=False),
    "falcon": _decoder("FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=2),
    "falcon, one key head": _decoder("FalconForCausalLM", multi_query=True, alibi=True),
    "mpt": _causal(
        "MptForCausalLM", d_model=24, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=32, use_cache=False
    ),
    "llama": _decoder("LlamaForCausalLM"),
    "mistral": _decoder("MistralForCausalLM", sliding_window=4),
    "mixtral": _decoder(
        "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, experts_implementation="batched_mm",
    ),
    "qwen2": _decoder("Qwen2ForCausalLM"),
    "qwen2-moe": _decoder(
        "Qwen2MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
        shared_expert_intermediate_size=20, experts_implementation="batched_mm",
    ),
    "qwen3": _decoder("Qwen3ForCausalLM", head_dim=6),
    "gemma": _decoder("GemmaForCausalLM", head_dim=6),
    "gemma2": _decoder("Gemma2ForCausalLM", head_dim=6, sliding_window=4, query_pre_attn_scalar=6),
    "gemma3": _decoder("Gemma3ForCausalLM", head_dim=6, sliding_window=4),
    "phi": _decoder("PhiForCausalLM", partial_rotary_factor=0.5, head_dim=8, hidden_size=32),
    "phi3": _decoder("Phi3ForCausalLM"),
    "olmo": _decoder("OlmoForCausalLM", clip_qkv=None),
    "olmo2": _decoder("Olmo2ForCausalLM"),
    "stablelm": _decoder("StableLmForCausalLM", hidden_size=32),
    "cohere": _decoder("CohereForCausalLM"),
    "granite": _decoder("GraniteForCausalLM"),
    "starcoder2": _decoder("Starcoder2ForCausalLM"),
    "nemotron": _decoder("NemotronForCausalLM", hidden_size=32),
    "persimmon": _decoder("PersimmonForCausalLM", hidden_size=32),
    "smollm3": _decoder("SmolLM3ForCausalLM"),
    "glm": _decoder("GlmForCausalLM", head_dim=8),
    "biogpt": _encoder("BioGptForCausalLM", bos_token_id=1, eos_token_id=2, use_cache=False),
    "xglm": _causal(
        "XGLMForCausalLM", double=False, d_model=24, num_layers=2,
        attention_heads=4, ffn_dim=40, max_position_embeddings=32,
        use_cache=False,
    ),
    "ctrl": _causal("CTRLLMHeadModel", n_embd=24, dff=40, n_layer=2, n_head=4, n_positions=32, use_cache=False),
    "mamba": _causal("MambaForCausalLM", hidden_size=24, state_size=4, num_hidden_layers=2, use_cache=False),
    "rwkv": _causal(
        "RwkvForCausalLM", hidden_size=24, attention_hidden_size=24, num_hidden_layers=2, intermediate_size=40,
        context_length=32, use_cache=False,
    ),
    # ---- encoder and decoder
    "t5": TransformersArchitecture("T5ForConditionalGeneration", T5, PAIR),
    "t5 encoder": TransformersArchitecture("T5EncoderModel", T5, TOKENS, LAST),
    "mt5": TransformersArchitecture(
        "MT5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}, PAIR
    ),
    "umt5": TransformersArchitecture("UMT5ForConditionalGeneration", T5, PAIR),
    "bart": TransformersArchitecture("BartForConditionalGeneration", BART, PAIR),
    "mbart": TransformersArchitecture("MBartForConditionalGeneration", BART, PAIR),
    "pegasus": TransformersArchitecture("PegasusForConditionalGeneration", BART, PAIR),
    "marian": TransformersArchitecture("MarianMTModel", BART, PAIR),
    "m2m-100": TransformersArchitecture("M2M100ForConditionalGeneration", BART, PAIR),
    # ---- images
    "vit": _vision("ViTForImageClassification"),
    "deit": _vision("DeiTForImageClassification"),
    "beit": _vision("BeitForImageClassification", use_relative_position_bias=True),
    "dinov2": _vision("Dinov2ForImageClassification", mlp_ratio=2),
    "data2vec vision": _vision("Data2VecVisionForImageClassification"),
    "ijepa": _vision("IJepaForImageClassification"),
    "yolos": _vision("YolosForObjectDetection", image_size=[12, 12], num_detection_tokens=3),
    "siglip": TransformersArchitecture(
        "SiglipVisionModel", VISION, {"pixel_values": (3, 3, 12, 12)}, "pooler_output"
    ),
    "clip vision": TransformersArchitecture(
        "CLIPVisionModel", VISION, {"pixel_values": (3, 3, 12, 12)}, "pooler_output"
    ),
    "swin": _image(
        "SwinForImageClassification", image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 4],
        window_size=4,
    ),
    "swin v2": _image(
        "Swinv2ForImageClassification", image_size=32, patch_size=4, embed_dim=8, depths=[2, 2],
        num_heads=[2, 4], window_size=4,
    ),
    "convnext": _image(
        "ConvNextForImageClassification", hidden_sizes=[6, 8, 10, 12], depths=[1, 1, 2, 1]
    ),
    "convnext v2": _image(
        "ConvNextV2ForImageClassification", hidden_sizes=[6, 8, 10, 12], depths=[1, 1, 2, 1]
    ),
    "resnet": _image(
        "ResNetForImageClassification", embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 2, 1, 1]
    ),
    "regnet": _image(
        "RegNetForImageClassification", embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 2, 1, 1],
        groups_width=4,
    ),
    "mobilenet v1": _image("MobileNetV1ForImageClassification", depth_multiplier=0.25, min_depth=4),
    "mobilenet v2": _image("MobileNetV2ForImageClassification", depth_multiplier=0.25, min_depth=4),
    "efficientnet": _image(
        "EfficientNetForImageClassification", width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320,
        image_size=32,
    ),
    "mobilevit": _image(
        "MobileViTForImageClassification", hidden_sizes=[16, 20, 24], neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 28],
        num_attention_heads=2, image_size=32,
    ),
    "poolformer": _image(
        "PoolFormerForImageClassification", hidden_sizes=[6, 8, 10, 12], depths=[1, 1, 1, 1]
    ),
    "segformer": _image(
        "SegformerForSemanticSegmentation", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 4], decoder_hidden_size=12,
    ),
    "pvt": _image(
        "PvtForImageClassification", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 4], image_size=32,
    ),
    "levit": _image(
        "LevitForImageClassification", hidden_sizes=[8, 12, 16], depths=[1, 1, 1], num_attention_heads=[2, 3, 4],
        key_dim=[4, 4, 4], image_size=32,
    ),
    "cvt": _image(
        "CvtForImageClassification", embed_dim=[8, 12, 16], num_heads=[1, 2, 4], depth=[1, 2, 3]
    ),
    "bit": _image("BitForImageClassification", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1],
        num_groups=4),
    "focalnet": _image(
        "FocalNetForImageClassification", image_size=32, patch_size=4, embed_dim=8, depths=[1, 1],
        hidden_sizes=[8, 16], focal_levels=[2, 2], focal_windows=[3, 3],
    ),
    "vit-msn": _vision("ViTMSNForImageClassification"),
    "hiera": _image(
        "HieraForImageClassification", image_size=[32, 32], patch_stride=[4, 4], embed_dim=8, depths=[1, 1],
        num_heads=[1, 2], masked_unit_size=[4, 4], num_query_pool=1, query_stride=[2, 2],
    ),
    "dpt": _image(
        "DPTForSemanticSegmentation", 16, hidden_size=24, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=40, image_size=16, patch_size=4, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 12, 16], fusion_hidden_size=8, is_hybrid=False, use_auxiliary_head=False,
    ),
    # ---- images and text, sound
    "clip text": TransformersArchitecture(
        "CLIPTextModel", {**ENCODER, "bos_token_id": 1, "eos_token_id": 2}, TOKENS, LAST
    ),
    "wav2vec2": TransformersArchitecture("Wav2Vec2ForCTC", SPEECH, {"input_values": (3, 101)}),
    "hubert": TransformersArchitecture("HubertForCTC", SPEECH, {"input_values": (3, 101)}),
    "wavlm": TransformersArchitecture("WavLMForCTC", SPEECH, {"input_values": (3, 101)}),
    "whisper": TransformersArchitecture(
        "WhisperForConditionalGeneration",
        {**BART, "num_mel_bins": 7, "max_source_positions": 19, "max_target_positions": 32},
        {"input_features": (3, 7, 38), "decoder_input_ids": (3, 5)},
    ),
    "audio spectrogram transformer": TransformersArchitecture(
        "ASTForAudioClassification",
        {
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
            "patch_size": 4, "max_length": 24, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4,
            "num_labels": CLASSES,
        },
        {"input_values": (3, 24, 16)},
    ),
}  # fmt: skip
