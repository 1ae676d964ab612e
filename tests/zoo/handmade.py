"""Small networks written for this zoo: what people do that no collection does."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.entry import Entry, Inputs, frames, image, tokens
from zoo.made import attention, containers, convolution, gates, parameters, recurrent

STEPS = frames(7, 6)
PATCHES = frames(7, 5)
VECTOR = frames(6)
SMALL = image(8)


def real(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def several(*shapes: tuple[int, ...]) -> Callable[[int], Inputs]:
    """Several real inputs, each with the batch first."""
    return lambda batch: (tuple(real(batch, *shape) for shape in shapes), {})


def packed(batch: int) -> Inputs:
    lengths = torch.randint(2, 8, (batch,))
    lengths[0] = 7
    return (torch.randint(40, (batch, 7)), lengths), {}


def two_texts(batch: int) -> Inputs:
    return (torch.randint(40, (batch, 6)), torch.randint(40, (batch, 5))), {}


def padded_memory(batch: int) -> Inputs:
    padding = torch.zeros(batch, 7, dtype=torch.bool)
    padding[:, -2:] = True
    return (real(batch, 4, 6), real(batch, 7, 5), padding), {}


def bags(batch: int) -> Inputs:
    return (real(batch, 5), torch.randint(40, (batch, 3)), torch.randint(30, (4 * batch,)), torch.arange(batch) * 4), {}


def adjacency(batch: int) -> Inputs:
    return (real(batch, 6, 5), (torch.rand(batch, 6, 6) > 0.4).double() + torch.eye(6).double()), {}


def edges(batch: int) -> Inputs:
    return (real(3 * batch, 5), torch.randint(3 * batch, (2, 8))), {}


def nested(batch: int) -> Inputs:
    return (([real(batch, 6), real(batch, 6)], {"more": real(batch, 4)}),), {"scale": 0.5}


_Rows = dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs]]]


def _recurrent() -> _Rows:
    rows: _Rows = {}
    for kind in recurrent.LAYERS:
        tagger: Callable[..., Any] = partial(recurrent.Tagger, kind)
        rows |= {
            f"{kind}": (partial(tagger, batch_first=True), STEPS),
            f"{kind}_two_way_stack": (partial(tagger, batch_first=True, num_layers=2, bidirectional=True), STEPS),
            f"{kind}_last_state": (partial(recurrent.LastState, kind, num_layers=2), STEPS),
            f"{kind}_last_state_two_way": (partial(recurrent.LastState, kind, num_layers=2, bidirectional=True), STEPS),
            f"{kind}_primed": (partial(recurrent.Primed, kind), several((7, 6), (5,))),
            f"{kind}_zeroed": (partial(recurrent.Zeroed, kind), STEPS),
            f"{kind}_packed": (partial(recurrent.Packed, kind), packed),
            f"{kind}_packed_state": (
                partial(recurrent.Packed, kind, state=True, num_layers=2, bidirectional=True),
                packed,
            ),
            f"{kind}_cell": (partial(recurrent.Unrolled, kind), STEPS),
            f"{kind}_translator": (partial(recurrent.Translator, kind), two_texts),
        }
    return rows | {
        "rnn_relu": (partial(recurrent.Tagger, "rnn", batch_first=True, nonlinearity="relu"), STEPS),
        "lstm_time_first": (
            partial(recurrent.Tagger, "lstm"),
            lambda batch: ((real(7, batch, 6),), {}),
        ),
        "lstm_no_bias": (partial(recurrent.Tagger, "lstm", batch_first=True, bias=False, num_layers=3), STEPS),
        "lstm_projected": (partial(recurrent.Tagger, "lstm", batch_first=True, proj_size=4, num_layers=2), STEPS),
        "lstm_projected_two_way": (
            partial(recurrent.Tagger, "lstm", batch_first=True, proj_size=4, num_layers=2, bidirectional=True),
            STEPS,
        ),
        "lstm_packed_stack": (partial(recurrent.Packed, "lstm", num_layers=2), packed),
        "lstm_flattened_states": (partial(recurrent.Flattened, "lstm"), STEPS),
        "gru_learned_state": (recurrent.Learned, STEPS),
        "two_cells": (recurrent.TwoCells, STEPS),
        "bridged_translator": (recurrent.Bridged, two_texts),
        "language_model": (recurrent.LanguageModel, tokens(7)),
        "language_model_projected": (partial(recurrent.LanguageModel, projected=True), tokens(7)),
        "hand_lstm": (recurrent.HandLSTM, STEPS),
        "hand_gru": (recurrent.HandGRU, STEPS),
        "conv_lstm": (recurrent.ConvLSTM, frames(3, 3, 6, 6)),
        "conv_then_lstm": (recurrent.ConvThenRecurrent, frames(1, 16, 20)),
    }


CONVOLUTIONAL: _Rows = {
    "yolo": (convolution.Yolo, image(32)),
    "yolo_split": (partial(convolution.Yolo, by_split=True), image(32)),
    "yolo_anchors": (convolution.YoloV3Head, image(16)),
    "squeeze_excite": (convolution.SEResidual, SMALL),
    "channel_shuffle": (convolution.ChannelShuffle, SMALL),
    "channel_shuffle_functional": (partial(convolution.ChannelShuffle, functionally=True), SMALL),
    "pixel_shuffle": (convolution.PixelShuffle, SMALL),
    "unet": (convolution.UNet, SMALL),
    "unet_bilinear": (partial(convolution.UNet, bilinear=True), SMALL),
    "dense_block": (convolution.DenseBlock, SMALL),
    "option_a": (convolution.OptionA, SMALL),
    "shuffled_halves": (convolution.ShuffledHalves, SMALL),
    "uneven_chunks": (convolution.UnevenChunks, SMALL),
    "weighed_depths": (convolution.WeighedDepths, VECTOR),
    "autoencoder": (convolution.Autoencoder, image(16)),
    "grouped_transposed": (convolution.GroupedTransposed, frames(2, 4, 4, 4)),
    "wavenet": (convolution.WaveNet, frames(3, 12)),
    "channels_last": (convolution.ChannelsLast, SMALL),
    "channel_attention": (convolution.ChannelAttention, SMALL),
    "blurred": (convolution.Blurred, SMALL),
    "norms": (convolution.Norms, SMALL),
    "aspp": (convolution.ASPP, SMALL),
    "selective_kernel": (convolution.SelectiveKernel, SMALL),
    "rep_vgg": (convolution.RepVGG, SMALL),
    "ghost": (convolution.Ghost, SMALL),
    "involution": (convolution.Involution, SMALL),
}

ATTENTIVE: _Rows = {
    "self_attention": (attention.SelfAttention, STEPS),
    "self_attention_weights": (partial(attention.SelfAttention, weights=True), STEPS),
    "self_attention_extra_keys": (partial(attention.SelfAttention, add_bias_kv=True, add_zero_attn=True), STEPS),
    "cross_attention": (attention.CrossAttention, padded_memory),
    "encoder": (attention.Encoder, tokens(7)),
    "encoder_pre_norm": (partial(attention.Encoder, norm_first=True, activation="gelu"), tokens(7)),
    "encoder_causal": (partial(attention.Encoder, causal=True), tokens(7)),
    "transformer": (partial(attention.Translation, batch_first=True), two_texts),
    "transformer_time_first": (partial(attention.Translation, batch_first=False), two_texts),
    "decoder_of_queries": (attention.DecoderOnly, SMALL),
    "fused_qkv": (attention.FusedQKV, PATCHES),
    "fused_qkv_own_scale": (partial(attention.FusedQKV, scale_from_size=True), PATCHES),
    "divided_heads": (attention.DividedHeads, PATCHES),
    "divided_heads_own_bias": (partial(attention.DividedHeads, bias_of_keys=False), PATCHES),
    "heads_in_halves": (attention.HeadsInHalves, PATCHES),
    "einsum_attention": (attention.EinsumAttention, PATCHES),
    "grouped_queries": (attention.GroupedQueries, tokens(7)),
    "grouped_queries_fused": (partial(attention.GroupedQueries, repeat=False), tokens(7)),
    "complex_rotary": (attention.ComplexRotary, PATCHES),
    "relative_bias": (attention.RelativeBias, PATCHES),
    "vision_transformer": (attention.VisionTransformer, SMALL),
    "linear_attention": (attention.LinearAttention, PATCHES),
    "perceiver": (attention.Perceiver, PATCHES),
    "pointer": (attention.Pointer, several((7, 6), (5,))),
}

PARAMETERS: _Rows = {
    "weight_norm_hooks": (parameters.old_weight_norm, SMALL),
    "weight_norm": (parameters.new_weight_norm, SMALL),
    "spectral_norm_hooks": (parameters.old_spectral_norm, SMALL),
    "spectral_norm": (parameters.new_spectral_norm, SMALL),
    "parametrized": (parameters.Parametrized, VECTOR),
    "raw_parameters": (parameters.Raw, VECTOR),
    "tied": (parameters.Tied, VECTOR),
    "siamese": (parameters.Siamese, several((6,), (6,))),
    "in_place": (parameters.InPlace, VECTOR),
    "writes_slices": (parameters.WritesSlices, VECTOR),
    "buffers": (parameters.Buffers, VECTOR),
    "frozen": (parameters.Frozen, VECTOR),
    "bags": (parameters.Bags, bags),
    "complex": (parameters.Complex, PATCHES),
    "casts": (parameters.HalfInside, VECTOR),
    "functional": (parameters.Functional, SMALL),
}

GATED: _Rows = {
    "glu": (gates.GLU, STEPS),
    "swiglu": (gates.SwiGLU, STEPS),
    "highway": (gates.Highway, VECTOR),
    "gated_residual": (gates.GatedResidual, several((6,), (4,))),
    "mixer": (gates.Mixer, SMALL),
    "maxout": (gates.Maxout, VECTOR),
    "film": (gates.FiLM, lambda batch: ((real(batch, 3, 8, 8), real(batch, 5)), {})),
    "diffusion": (gates.Diffusion, lambda batch: ((real(batch, 3, 8, 8), torch.rand(batch).double()), {})),
    "routed": (gates.Routed, VECTOR),
    "sparse_experts": (gates.SparseExperts, lambda batch: ((real(4 * batch, 6),), {})),
    "dense_experts": (gates.DenseExperts, VECTOR),
    "graph": (gates.Graph, adjacency),
    "message_passing": (gates.MessagePassing, edges),
    "deep_sets": (gates.DeepSets, PATCHES),
    "vae": (gates.VAE, VECTOR),
    "radiance": (gates.Radiance, frames(3)),
    "state_space": (gates.StateSpace, PATCHES),
    "bilinear": (gates.Bilinear, several((6,), (5,))),
}

CONTAINERS: _Rows = {
    "dicts": (containers.Dicts, lambda batch: (({"image": real(batch, 6), "sound": real(batch, 6)},), {})),
    "named_tuples": (containers.NamedTuples, lambda batch: ((containers.Pair(real(batch, 6), real(batch, 6)),), {})),
    "dataclasses": (containers.Dataclasses, lambda batch: ((containers.Batch(real(batch, 6), real(batch, 1)),), {})),
    "nested_inputs": (containers.Nested, nested),
}

TABLE = _recurrent() | CONVOLUTIONAL | ATTENTIVE | PARAMETERS | GATED | CONTAINERS
# The layers of these stacks are cut to different widths too.
SPLIT = ("lstm_two_way_stack", "gru_last_state_two_way", "rnn_packed_state", "lstm_projected_two_way", "conv_then_lstm")
ENTRIES = [Entry(f"handmade/{name}", build, inputs) for name, (build, inputs) in TABLE.items()]
ENTRIES += [Entry(f"handmade/{name}_apart", *TABLE[name], split_stacks=True) for name in SPLIT]
