"""More of Hugging Face's architectures, made small by the names of their settings: none was looked at before it ran."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from zoo.entry import Entry, Inputs, frames, tokens
from zoo.shim import allow_torchvision
from zoo.transformers_table import pixels, seq2seq

SMALL = (
    dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), 48)
    | dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4)
    | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    | dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "d_ff"), 72)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "image_size"), 32)
    | {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "use_cache": False}
    | {"d_kv": 12, "head_dim": 12, "num_key_value_heads": 2, "patch_size": 8}
)


def small(config: str, model: str, options: dict[str, Any]) -> nn.Module:
    """The model in a configuration whose settings of a known name are small."""
    allow_torchvision()
    library = importlib.import_module("transformers")
    usual = getattr(library, config)()
    known = {k: v for k, v in SMALL.items() if hasattr(usual, k) and type(getattr(usual, k)) in {int, bool, type(None)}}
    made = getattr(library, model)(getattr(library, config)(**known | options))
    assert isinstance(made, nn.Module)
    return made


def entry(config: str, model: str, inputs: Callable[[int], Inputs], **options: Any) -> Entry:
    return Entry(f"transformers/{model}", partial(small, config, model, options), inputs)


def video(batch: int) -> Inputs:
    return (), {"pixel_values": torch.randn(batch, 4, 3, 16, 16, dtype=torch.float64)}


MIXTURE = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
STAGES = {"hidden_sizes": [16, 24], "depths": [1, 1]}
FOUR_STAGES = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}

ENTRIES = [
    entry("MptConfig", "MptForCausalLM", tokens()),
    entry("CodeGenConfig", "CodeGenForCausalLM", tokens(), rotary_dim=4),
    entry("BioGptConfig", "BioGptForCausalLM", tokens()),
    entry("GraniteConfig", "GraniteForCausalLM", tokens()),
    entry("NemotronConfig", "NemotronForCausalLM", tokens()),
    entry("OlmoConfig", "OlmoForCausalLM", tokens()),
    entry("GlmConfig", "GlmForCausalLM", tokens()),
    entry("Gemma3TextConfig", "Gemma3ForCausalLM", tokens()),
    entry("SmolLM3Config", "SmolLM3ForCausalLM", tokens()),
    entry("Qwen2MoeConfig", "Qwen2MoeForCausalLM", tokens(), experts_implementation="batched_mm", **MIXTURE),
    entry("RwkvConfig", "RwkvForCausalLM", tokens()),
    entry(
        "Mamba2Config", "Mamba2ForCausalLM", tokens(8), num_heads=8, expand=2, state_size=8, n_groups=2, chunk_size=4
    ),
    entry(
        "RecurrentGemmaConfig", "RecurrentGemmaForCausalLM", tokens(), lru_width=48, attention_window_size=8,
        block_types=["recurrent", "attention"], num_key_value_heads=1,
    ),
    entry("RoFormerConfig", "RoFormerForSequenceClassification", tokens()),
    entry("MobileBertConfig", "MobileBertForSequenceClassification", tokens(), intra_bottleneck_size=24),
    entry("SqueezeBertConfig", "SqueezeBertForSequenceClassification", tokens()),
    entry("ConvBertConfig", "ConvBertForSequenceClassification", tokens()),
    entry("FNetConfig", "FNetForSequenceClassification", tokens()),
    entry("MPNetConfig", "MPNetForSequenceClassification", tokens()),
    entry("ModernBertConfig", "ModernBertForSequenceClassification", tokens()),
    entry("NystromformerConfig", "NystromformerForSequenceClassification", tokens()),
    entry("LongformerConfig", "LongformerForSequenceClassification", tokens(), attention_window=4),
    entry("PegasusConfig", "PegasusForConditionalGeneration", seq2seq()),
    entry("MT5Config", "MT5ForConditionalGeneration", seq2seq()),
    entry("ResNetConfig", "ResNetForImageClassification", pixels(32), embedding_size=16, **STAGES),
    entry(
        "RegNetConfig", "RegNetForImageClassification", pixels(32), embedding_size=16, groups_width=8, **STAGES,
    ),
    entry("MobileNetV2Config", "MobileNetV2ForImageClassification", pixels(64)),
    entry("PoolFormerConfig", "PoolFormerForImageClassification", pixels(64), **FOUR_STAGES),
    entry(
        "FocalNetConfig", "FocalNetForImageClassification", pixels(64), embed_dim=16, depths=[1, 1],
        hidden_sizes=[16, 32], focal_levels=[2, 2], focal_windows=[3, 3], patch_size=4, image_size=64,
    ),
    entry("SwiftFormerConfig", "SwiftFormerForImageClassification", pixels(64), depths=[1, 1], embed_dims=[16, 32]),
    entry("VideoMAEConfig", "VideoMAEForVideoClassification", video, image_size=16, num_frames=4),
    entry("TimesformerConfig", "TimesformerForVideoClassification", video, image_size=16, num_frames=4),
    entry(
        "ASTConfig", "ASTForAudioClassification", frames(32, 16), max_length=32, num_mel_bins=16, frequency_stride=8,
        time_stride=8,
    ),
    entry(
        "PatchTSTConfig", "PatchTSTForPrediction", frames(32, 3), num_input_channels=3, context_length=32,
        patch_length=8, patch_stride=8, prediction_length=4,
    ),
]  # fmt: skip
