"""Operator name -> rule. A new operator is one line here."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx

from secateur.graph.rules.convolution import channelwise_rule, convolution_rule, fold_rule
from secateur.graph.rules.einsum import (
    SIGNATURES,
    attention_rule,
    einsum_rule,
    embedding_bag_rule,
    embedding_rule,
    matmul_rule,
    signature_rule,
)
from secateur.graph.rules.movement import (
    cat_rule,
    expand_rule,
    gather_rule,
    index_rule,
    index_select_rule,
    one_hot_rule,
    pad_rule,
    permute_rule,
    repeat_rule,
    scatter_rule,
    select_rule,
    slice_rule,
    split_rule,
    squeeze_rule,
    stack_rule,
    unbind_rule,
    unsqueeze_rule,
    view_rule,
)
from secateur.graph.rules.normalisation import (
    batch_norm_rule,
    cumulative_rule,
    group_norm_rule,
    instance_norm_rule,
    layer_norm_rule,
    reduction_rule,
    softmax_rule,
    topk_rule,
    weight_norm_rule,
)
from secateur.graph.rules.pointwise import (
    filled_rule,
    glu_rule,
    made_rule,
    outer_rule,
    pointwise_rule,
    prelu_rule,
    same_rule,
)
from secateur.graph.rules.recurrent import pack_rule, recurrent_cell_rule, recurrent_rule, unpack_rule
from secateur.graph.rules.scattering import index_add_rule, index_put_rule
from secateur.graph.rules.spectra import fourier_rule, parts_rule
from secateur.graph.typing import Typing, operator_name

Rule = Callable[[Typing, fx.Node], Any]

_FAMILIES: dict[Rule, str] = {
    matmul_rule: "matmul",
    einsum_rule: "einsum",
    embedding_rule: "embedding",
    embedding_bag_rule: "embedding_bag",
    attention_rule: "scaled_dot_product_attention",
    convolution_rule: ("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"),
    channelwise_rule: (
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
        "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
        "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"
    ),
    batch_norm_rule: "batch_norm",
    instance_norm_rule: "instance_norm",
    layer_norm_rule: "layer_norm rms_norm",
    group_norm_rule: "group_norm",
    weight_norm_rule: "_weight_norm",
    softmax_rule: "softmax log_softmax _softmax _log_softmax",
    reduction_rule: (
        "sum mean amax amin max min argmax argmin var std norm linalg_vector_norm all any prod logsumexp "
        "var_mean std_mean aminmax median nanmedian nanmean nansum count_nonzero quantile linalg_norm"
    ),
    topk_rule: "sort topk",
    cumulative_rule: "cumsum cumprod",
    view_rule: "view reshape flatten unflatten _unsafe_view view_as reshape_as",
    permute_rule: "permute transpose t",
    glu_rule: "glu",
    fold_rule: "col2im",
    index_add_rule: "index_add index_copy",
    index_put_rule: "index_put",
    fourier_rule: (
        "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 "
        "fft_fftn fft_ifftn fft_rfftn fft_irfftn"
    ),
    parts_rule: "view_as_real view_as_complex",
    squeeze_rule: "squeeze",
    unsqueeze_rule: "unsqueeze",
    expand_rule: "expand expand_as broadcast_to",
    repeat_rule: "repeat",
    cat_rule: "cat concat",
    stack_rule: "stack",
    split_rule: "split split_with_sizes chunk",
    unbind_rule: "unbind",
    select_rule: "select",
    slice_rule: "slice",
    pad_rule: "pad constant_pad_nd",
    index_rule: "index",
    index_select_rule: "index_select",
    gather_rule: "gather",
    scatter_rule: "scatter scatter_add scatter_reduce",
    one_hot_rule: "one_hot",
    same_rule: (
        "contiguous clone alias detach to _to_copy type_as lift_fresh_copy dropout feature_dropout "
        "alpha_dropout native_dropout zeros_like ones_like full_like empty_like real imag _conj conj "
        "fill zero"
    ),
    prelu_rule: "prelu",
    filled_rule: "zeros ones full empty new_zeros new_ones new_full new_empty scalar_tensor",
    # Those that torch does not tag as pointwise.
    pointwise_rule: (
        "masked_fill where gelu hardswish hardsigmoid lerp addcmul addcdiv copy polar complex multiply divide "
        "subtract negative absolute fix log_sigmoid greater less greater_equal less_equal not_equal isclose arctan "
        "arcsin arccos arctan2 arctanh arcsinh arccosh floor_divide special_expit special_erf special_logit rsub "
        "bernoulli rand_like randn_like __and__ __or__ __xor__ fake_quantize_per_tensor_affine"
    ),
    outer_rule: "outer ger",
    made_rule: "arange linspace tril_indices triu_indices eye rand randn",
    recurrent_rule: "lstm gru rnn_tanh rnn_relu",
    pack_rule: "_pack_padded_sequence",
    unpack_rule: "_pad_packed_sequence",
    recurrent_cell_rule: "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
}

RULES: dict[str, Rule] = {f"aten.{name}": rule for rule, names in _FAMILIES.items() for name in names.split()} | {
    name: partial(signature_rule, signature=signature) for name, signature in SIGNATURES.items()
}


def rule_for(node: fx.Node) -> Rule | None:
    """The rule of `node`'s operator; None when there is none."""
    name = operator_name(node)
    if name in RULES:
        return RULES[name]
    is_tagged = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return pointwise_rule if is_tagged else None
