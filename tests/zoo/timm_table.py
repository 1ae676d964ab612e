"""timm: one small member of every family."""

from functools import partial
from typing import Any

from torch import nn

from zoo.entry import Entry, image
from zoo.shim import allow_torchvision

# Model -> image size.
MODELS: dict[str, int] = {}


def _model(name: str, **options: Any) -> nn.Module:
    allow_torchvision()
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=10, **options)
    assert isinstance(model, nn.Module)
    return model


ENTRIES = [Entry(f"timm/{name}", partial(_model, name), image(size)) for name, size in MODELS.items()]
