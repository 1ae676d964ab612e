"""The rows of CIFAR-10 that the benchmarks of ResNet-20 read, and accuracy on them."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.cli.data_sources import parquet_images
from secateur.zoo.resnet import resnet20

Images = tuple[Tensor, Tensor]
CALIBRATION_IMAGES = 1000


# Rows of the two files; validation and test are halves of the test split.
ROWS = {
    "train": ("train.parquet", 0, 5000),
    "validation": ("test.parquet", 0, 5000),
    "test": ("test.parquet", 5000, 10000),
}


def read_cifar10(folder: Path, part: str) -> Images:
    """Images, normalised, and labels of one of `ROWS`."""
    name, start, stop = ROWS[part]
    pixels, labels = parquet_images(folder / name, start, stop)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return (pixels / 255 - mean) / std, labels


def calibration_images(train: Images, seed: int, batch: int = 250, count: int = CALIBRATION_IMAGES) -> list[Images]:
    """`count` random training images, in batches."""
    x, y = train
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]
    return list(zip(x[chosen].split(batch), y[chosen].split(batch), strict=True))


def trained_resnet20(weights: Path) -> nn.Module:
    """ResNet-20 with the weights of a safetensors file."""
    model = resnet20()
    model.load_state_dict(load_file(weights))
    return model.eval()


@torch.no_grad()
def is_right(model: nn.Module, data: Images, batch: int = 64) -> Tensor:
    """For each image whether the class is right, float64 (images,)."""
    model.eval()
    return torch.cat(
        [model(x).argmax(1) == y for x, y in zip(data[0].split(batch), data[1].split(batch), strict=True)]
    ).double()
