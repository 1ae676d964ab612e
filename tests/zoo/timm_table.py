"""timm: one small member of every family (a module of `timm.models`), with a few more where one is not enough.

A name is a model of timm's registry, or `module.Class` where the registered model lets its size not be
overridden. Sizes of images are as small as the model allows; options make it narrow and shallow.
"""

from functools import partial
from typing import Any

from torch import nn

from zoo.entry import Entry, image
from zoo.shim import allow_torchvision

S = {"img_size": 64}
FOUR = (1, 1, 1, 1)

# Model -> size of its images, options.
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (64, S | {"embed_dim": 96, "depth": 2, "num_heads": 3}),
    "botnet26t_256": (64, S),
    "cait_xxs24_224": (64, S | {"depth": 2}),
    "coat_tiny": (64, S | {"parallel_depth": 2}),
    "convit_tiny": (64, S | {"depth": 4, "local_up_to_layer": 2}),
    "convmixer.ConvMixer": (56, {"dim": 48, "depth": 3, "kernel_size": 7, "patch_size": 7}),
    "cpubone_nano": (64, {}),
    "crossvit_tiny_240": (240, {"depth": ((1, 1, 0),) * 3}),
    "cs3darknet_focus_s": (64, {}),
    "csatv2": (64, {"dims": (16, 32, 64, 96), "depths": (1, 1, 2, 2)}),
    "cspnext_tiny": (64, {}),
    "davit_tiny": (64, {"depths": FOUR, "embed_dims": (24, 48, 96, 192)}),
    "deepseek_vit_412m": (84, {"img_size": 84, "embed_dim": 96, "depth": 2, "num_heads": 3}),
    "deit_tiny_distilled_patch16_224": (64, S | {"depth": 3}),
    "densenet121": (64, {"block_config": (2, 2, 2, 2)}),
    "dla46x_c": (64, {}),
    "dpn48b": (64, {"k_sec": (1, 1, 2, 1)}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {"depths": (1, 1, 1, 2)}),
    "efficientformerv2_s0": (64, S),
    "efficientvim_m1": (64, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (64, S),
    "ese_vovnet19b_slim_dw": (64, {}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 3}),
    "fasternet_t0": (64, {}),
    "fastvit_t8": (64, {}),
    "focalnet.FocalNet": (64, {"depths": FOUR, "embed_dim": 24}),
    "gcvit.GlobalContextVit": (64, S | {"embed_dim": 32, "depths": (1, 1, 2, 1)}),
    "gemma4_vit_167m_enc": (
        96,
        {"img_size": 96, "embed_dim": 48, "depth": 2, "num_heads": 3, "head_dim": 16, "intermediate_size": 96},
    ),
    "ghostnet_050": (64, {}),
    "halonet26t": (256, {}),
    "hardcorenas_b": (64, {}),
    "hgnetv2_b0": (64, {}),
    "hiera_tiny_224": (64, S | {"stages": (1, 1, 2, 1), "embed_dim": 48}),
    "hieradet_small": (64, {"stages": (1, 2, 3, 1), "global_att_blocks": (4,), "embed_dim": 48}),
    "hrnet_w18_small": (64, {}),
    "iformer_t": (64, {}),
    "inception_next_atto": (64, {}),
    "inception_resnet_v2": (96, {}),
    "inception_v3": (96, {}),
    "inception_v4": (96, {}),
    "lambda_resnet26rpt_256": (64, S),
    "lcnet_035": (64, {}),
    "lcnetv2_small": (64, {}),
    "legacy_seresnet18": (64, {"layers": FOUR}),
    "legacy_xception": (64, {}),
    "levit_128s": (64, S | {"depth": (1, 1, 1)}),
    "lowformer_b0": (64, {}),
    "metaformer.MetaFormer": (64, {"depths": FOUR, "dims": (32, 64, 96, 128)}),
    "mlp_mixer.MlpMixer": (64, S | {"num_blocks": 3, "embed_dim": 96}),
    "mobilenetv5_base": (64, {"channel_multiplier": 0.25}),
    "mobilevit_xxs": (64, S),
    "mvitv2_tiny": (64, S),
    "naflexvit_base_patch16_parfac_gap": (64, S | {"embed_dim": 96, "depth": 2, "num_heads": 3}),
    "nasnetalarge": (96, {"num_features": 384, "stem_size": 12}),
    "nest.Nest": (64, S | {"depths": (1, 1, 2), "embed_dims": (48, 96, 192), "num_heads": (3, 6, 12)}),
    "nextvit_small": (64, {"depths": (1, 1, 5, 1)}),
    "pit_ti_224": (64, S | {"depth": (1, 2, 1)}),
    "pnasnet5large": (96, {}),
    "poolformerv2_s12": (64, {}),
    "pvt_v2_b0": (64, {}),
    "qwen3_vit_88m": (64, S | {"embed_dim": 96, "depth": 2, "num_heads": 3}),
    "rdnet_tiny": (64, {"growth_rates": (16,) * 7, "num_init_features": 32, "num_blocks_list": (1,) * 7}),
    "regnetx_002": (64, {}),
    "repghostnet_050": (64, {}),
    "repvit_m1": (64, S),
    "res2next50": (64, {"layers": FOUR}),
    "resnest14d": (64, {}),
    "resnetv2_18": (64, {"layers": FOUR}),
    "rexnet_100": (64, {}),
    "samvit_base_patch16_224": (64, S | {"embed_dim": 96, "depth": 3, "num_heads": 3, "global_attn_indexes": (2,)}),
    "selecsls42": (64, {}),
    "sequencer2d_s": (64, S | {"layers": FOUR, "embed_dims": (48, 96, 96, 96), "hidden_sizes": (12, 24, 24, 24)}),
    "shvit_s1": (64, {}),
    "skresnet18": (64, {"layers": FOUR}),
    "starnet_s050": (64, {}),
    "swiftformer_xs": (64, S),
    "swin_tiny_patch4_window7_224": (64, S | {"depths": (2, 2, 1, 1), "embed_dim": 48}),
    "swinv2_cr_tiny_224": (64, S | {"depths": (2, 2, 1, 1), "embed_dim": 48}),
    "swinv2_tiny_window8_256": (64, S | {"depths": (2, 2, 1, 1), "embed_dim": 48}),
    "test_byobnet": (64, S),
    "test_coatnet": (64, S),
    "test_convnext": (64, {}),
    "test_efficientnet": (64, {}),
    "test_mambaout": (64, {}),
    "test_nfnet": (64, {}),
    "test_resnet": (64, {}),
    "test_vit": (64, S),
    "test_vit_relpos": (64, S),
    "tiny_vit_5m_224": (64, {}),
    "tnt_s_legacy_patch16_224": (64, S | {"depth": 2, "embed_dim": 192}),
    "tresnet_m": (64, {"layers": FOUR, "width_factor": 0.5}),
    "twins_svt_small": (64, S | {"depths": (1, 1, 2, 1), "embed_dims": (32, 64, 128, 256)}),
    "vgg.VGG": (64, {"cfg": (16, "M", 32, "M", 64, 64, "M", 64, "M", 64, "M"), "mlp_ratio": 0.03}),
    "visformer_tiny": (64, S | {"depth": (1, 1, 1), "embed_dim": 96}),
    "vit_tiny_r_s16_p8_224": (64, S | {"depth": 2}),
    "vitamin_small_224": (64, S | {"depth": 2}),
    "volo.VOLO": (64, S | {"layers": FOUR, "embed_dims": (48, 96, 96, 96), "num_heads": (3, 6, 6, 6)}),
    "xception41p": (64, {}),
    "xcit_nano_12_p8_224": (64, S | {"depth": 2}),
}


def _model(name: str, **options: Any) -> nn.Module:
    allow_torchvision()
    import timm

    module, _, kind = name.rpartition(".")
    if module:
        model = getattr(getattr(timm.models, module), kind)(num_classes=10, **options)
    else:
        model = timm.create_model(name, pretrained=False, num_classes=10, **options)
    assert isinstance(model, nn.Module)
    return model


ENTRIES = [
    Entry(f"timm/{name}", partial(_model, name, **options), image(size)) for name, (size, options) in MODELS.items()
]
