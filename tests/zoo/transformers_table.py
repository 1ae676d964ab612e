"""Hugging Face transformers, in tiny random configurations; the model classes are the library's own."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from zoo.entry import Entry, Inputs, tokens
from zoo.shim import allow_torchvision

TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
DECODER = TEXT | {"use_cache": False}
GROUPED = DECODER | {"num_key_value_heads": 2}


def model_of(config: str, model: str, options: dict[str, Any]) -> nn.Module:
    allow_torchvision()
    library = importlib.import_module("transformers")
    made = getattr(library, model)(getattr(library, config)(**options))
    assert isinstance(made, nn.Module)
    return made


def entry(config: str, model: str, options: dict[str, Any], inputs: Callable[[int], Inputs]) -> Entry:
    return Entry(f"transformers/{model}", partial(model_of, config, model, options), inputs)


def seq2seq(**kwargs: Any) -> Callable[[int], Inputs]:
    return lambda batch: (
        (),
        {
            "input_ids": torch.randint(2, 40, (batch, 9)),
            "decoder_input_ids": torch.randint(2, 40, (batch, 7)),
            "use_cache": False,
            **kwargs,
        },
    )


def pixels(size: int, **kwargs: Any) -> Callable[[int], Inputs]:
    def make(batch: int) -> Inputs:
        return (), {"pixel_values": torch.randn(batch, 3, size, size, dtype=torch.float64), **kwargs}

    return make


def speech(batch: int) -> Inputs:
    return (torch.randn(batch, 2000, dtype=torch.float64),), {}


def clip(batch: int) -> Inputs:
    text = torch.randint(2, 39, (batch, 9))
    text[:, -1] = 39
    return (), {"input_ids": text, "pixel_values": torch.randn(batch, 3, 32, 32, dtype=torch.float64)}


def mel(batch: int) -> Inputs:
    return (), {
        "input_features": torch.randn(batch, 16, 40, dtype=torch.float64),
        "decoder_input_ids": torch.randint(2, 40, (batch, 7)),
        "use_cache": False,
    }


VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
ENCODER_DECODER = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 72,
    "decoder_ffn_dim": 72,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 40, "use_cache": False}
T5 = {"d_model": 48, "d_kv": 12, "d_ff": 72, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
SPEECH = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
}
CLIP = {
    "text_config": TEXT | {"eos_token_id": 39, "projection_dim": 24},
    "vision_config": VIT | {"projection_dim": 24},
    "projection_dim": 24,
}
MOE = GROUPED | {
    "experts_implementation": "batched_mm",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 12,
}
QWEN_MOE = GROUPED | {
    "experts_implementation": "batched_mm",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "head_dim": 12,
}
DETR = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 72,
    "decoder_ffn_dim": 72,
    "num_queries": 6,
    "num_labels": 5,
}
SWIN = {
    "embed_dim": 24,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
    "image_size": 32,
    "patch_size": 4,
    "num_labels": 5,
}
SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [16, 32],
    "num_attention_heads": [2, 4],
    "sr_ratios": [4, 1],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 24,
    "num_labels": 5,
}
MOBILEVIT = {
    "hidden_sizes": [24, 32, 40],
    "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 48],
    "num_attention_heads": 4,
    "image_size": 64,
    "num_labels": 5,
}
CONVNEXT = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "image_size": 32, "num_labels": 5}

OWN_BACKBONE = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone_config": None}
YOLOS = {"image_size": [32, 32], "num_detection_tokens": 5}

ENTRIES = [
    entry("BertConfig", "BertForSequenceClassification", TEXT, tokens()),
    entry("BertConfig", "BertForMaskedLM", TEXT, tokens()),
    entry("RobertaConfig", "RobertaForSequenceClassification", TEXT, tokens()),
    entry(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 72, "vocab_size": 40, "max_position_embeddings": 32},
        tokens(),
    ),
    entry("AlbertConfig", "AlbertForSequenceClassification", TEXT | {"embedding_size": 24}, tokens()),
    entry("ElectraConfig", "ElectraForSequenceClassification", TEXT | {"embedding_size": 24}, tokens()),
    entry(
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        tokens(),
    ),
    entry("XLMRobertaConfig", "XLMRobertaForTokenClassification", TEXT, tokens()),
    entry("GPT2Config", "GPT2LMHeadModel", GPT2, tokens()),
    entry(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 48,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "num_heads": 4,
            "vocab_size": 40,
            "max_position_embeddings": 32,
            "use_cache": False,
        },
        tokens(),
    ),
    entry("GPTNeoXConfig", "GPTNeoXForCausalLM", DECODER, tokens()),
    entry(
        "GPTJConfig",
        "GPTJForCausalLM",
        GPT2 | {"rotary_dim": 6},
        tokens(),
    ),
    entry("OPTConfig", "OPTForCausalLM", DECODER | {"ffn_dim": 72, "word_embed_proj_dim": 48}, tokens()),
    entry(
        "BloomConfig",
        "BloomForCausalLM",
        {"hidden_size": 48, "n_layer": 2, "n_head": 4, "vocab_size": 40, "use_cache": False},
        tokens(),
    ),
    entry("LlamaConfig", "LlamaForCausalLM", GROUPED, tokens()),
    entry("MistralConfig", "MistralForCausalLM", GROUPED | {"head_dim": 12}, tokens()),
    entry("Qwen2Config", "Qwen2ForCausalLM", GROUPED, tokens()),
    entry("Qwen3Config", "Qwen3ForCausalLM", GROUPED | {"head_dim": 12}, tokens()),
    entry("GemmaConfig", "GemmaForCausalLM", GROUPED | {"head_dim": 12}, tokens()),
    entry("Gemma2Config", "Gemma2ForCausalLM", GROUPED | {"head_dim": 12}, tokens()),
    entry("PhiConfig", "PhiForCausalLM", DECODER, tokens()),
    entry("Phi3Config", "Phi3ForCausalLM", GROUPED, tokens()),
    entry("FalconConfig", "FalconForCausalLM", DECODER | {"new_decoder_architecture": False}, tokens()),
    entry("StableLmConfig", "StableLmForCausalLM", GROUPED | {"partial_rotary_factor": 0.5}, tokens()),
    entry("Starcoder2Config", "Starcoder2ForCausalLM", GROUPED, tokens()),
    entry("Olmo2Config", "Olmo2ForCausalLM", GROUPED, tokens()),
    entry("CohereConfig", "CohereForCausalLM", GROUPED, tokens()),
    entry("MixtralConfig", "MixtralForCausalLM", MOE, tokens()),
    entry("Qwen3MoeConfig", "Qwen3MoeForCausalLM", QWEN_MOE, tokens()),
    entry("T5Config", "T5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0}, seq2seq()),
    entry("BartConfig", "BartForConditionalGeneration", ENCODER_DECODER, seq2seq()),
    entry("MarianConfig", "MarianMTModel", ENCODER_DECODER, seq2seq()),
    entry(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        ENCODER_DECODER | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32},
        mel,
    ),
    entry("Wav2Vec2Config", "Wav2Vec2ForCTC", SPEECH, speech),
    entry("HubertConfig", "HubertForCTC", SPEECH, speech),
    entry("CLIPConfig", "CLIPModel", CLIP, clip),
    entry("ViTConfig", "ViTForImageClassification", VIT, pixels(32)),
    entry("DeiTConfig", "DeiTForImageClassification", VIT, pixels(32)),
    entry("BeitConfig", "BeitForImageClassification", VIT, pixels(32)),
    entry("Dinov2Config", "Dinov2ForImageClassification", VIT | {"mlp_ratio": 2}, pixels(32)),
    entry("SwinConfig", "SwinForImageClassification", SWIN, pixels(32)),
    entry("Swinv2Config", "Swinv2ForImageClassification", SWIN, pixels(32)),
    entry("SegformerConfig", "SegformerForSemanticSegmentation", SEGFORMER, pixels(64)),
    entry(
        "DetrConfig",
        "DetrForObjectDetection",
        DETR | {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone_config": None},
        pixels(64),
    ),
    entry(
        "YolosConfig", "YolosForObjectDetection", VIT | {"image_size": [32, 32], "num_detection_tokens": 5}, pixels(32)
    ),
    entry("MobileViTConfig", "MobileViTForImageClassification", MOBILEVIT, pixels(64)),
    entry("ConvNextConfig", "ConvNextForImageClassification", CONVNEXT, pixels(32)),
    entry("ConvNextV2Config", "ConvNextV2ForImageClassification", CONVNEXT, pixels(32)),
    entry(
        "ResNetConfig",
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 5},
        pixels(32),
    ),
    entry(
        "MambaConfig",
        "MambaForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 40, "use_cache": False},
        tokens(),
    ),
    entry(
        "ViTMAEConfig",
        "ViTMAEForPreTraining",
        VIT
        | {
            "decoder_num_hidden_layers": 1,
            "decoder_hidden_size": 24,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 40,
        },
        pixels(32),
    ),
]
