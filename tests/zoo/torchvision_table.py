"""torchvision: classification, segmentation, video, and the backbones of its detectors."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.entry import Entry, frames, image
from zoo.shim import allow_torchvision

SMALL = 64
CLASSIFICATION = {
    "alexnet": SMALL,
    "convnext_tiny": SMALL,
    "densenet121": SMALL,
    "densenet161": SMALL,
    "efficientnet_b0": SMALL,
    "efficientnet_v2_s": SMALL,
    "googlenet": SMALL,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": SMALL,
    "mnasnet1_3": SMALL,
    "mobilenet_v2": SMALL,
    "mobilenet_v3_large": SMALL,
    "mobilenet_v3_small": SMALL,
    "regnet_x_400mf": SMALL,
    "regnet_y_400mf": SMALL,
    "regnet_y_1_6gf": SMALL,
    "resnet18": SMALL,
    "resnet34": SMALL,
    "resnet50": SMALL,
    "resnet101": SMALL,
    "resnet152": SMALL,
    "resnext50_32x4d": SMALL,
    "resnext101_32x8d": SMALL,
    "shufflenet_v2_x0_5": SMALL,
    "shufflenet_v2_x1_0": SMALL,
    "squeezenet1_0": SMALL,
    "squeezenet1_1": SMALL,
    "swin_t": SMALL,
    "swin_s": SMALL,
    "swin_v2_t": SMALL,
    "vgg11": SMALL,
    "vgg13_bn": SMALL,
    "vgg16": SMALL,
    "vgg19_bn": SMALL,
    "vit_b_16": 224,
    "vit_b_32": 224,
    "wide_resnet50_2": SMALL,
}
SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")
VIDEO = {
    "r3d_18": (3, 4, 32, 32),
    "mc3_18": (3, 4, 32, 32),
    "r2plus1d_18": (3, 4, 32, 32),
    "s3d": (3, 16, 224, 224),
    "mvit_v1_b": (3, 16, 224, 224),
    "mvit_v2_s": (3, 16, 224, 224),
    "swin3d_t": (3, 4, 64, 64),
}
DETECTION = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)


class Backbone(nn.Module):
    """The convolutional part of a detector, as its heads see it, each map turned into a few numbers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        detector = _model(name, weights_backbone=None)
        self.body = detector.backbone
        self.head = getattr(detector, "head", None) or detector.rpn.head

    def forward(self, x: Tensor) -> Any:
        return self.head(list(self.body(x).values()))


def _model(name: str, **options: Any) -> nn.Module:
    allow_torchvision()
    from torchvision.models import get_model

    model = get_model(name, weights=None, **options)
    assert isinstance(model, nn.Module)
    return model


ENTRIES = [
    *(Entry(f"torchvision/{n}", partial(_model, n), image(size), (3, 1)) for n, size in CLASSIFICATION.items()),
    *(Entry(f"torchvision/{n}", partial(_model, n, weights_backbone=None), image(SMALL)) for n in SEGMENTATION),
    *(Entry(f"torchvision/{n}", partial(_model, n), frames(*shape), (1,)) for n, shape in VIDEO.items()),
    *(Entry(f"torchvision/{n}", partial(Backbone, n), image(320 if "ssd" in n else 96)) for n in DETECTION),
]
