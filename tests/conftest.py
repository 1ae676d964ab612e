"""Before any test module is imported."""

from zoo.shim import allow_torchvision

# torchmetrics, timm and transformers import torchvision where it is installed.
allow_torchvision()
