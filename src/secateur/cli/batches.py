"""Tensors in memory as batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import DataError


@dataclass(frozen=True, eq=False)
class TensorBatches:
    """Inputs and targets, batch by batch.

    Shuffling and augmentation draw from torch's global random state, which retraining seeds for each
    epoch.

    Attributes:
        inputs: (samples, ...); uint8 images are scaled to [0, 1].
        targets: (samples, ...).
        batch_size: samples in a batch; the last may be smaller.
        shuffle: a new order in each pass.
        mean: subtracted from each channel of images.
        std: each channel of images is divided by it.
        augment: "none", or "flip-crop": mirror at random and shift by up to four pixels.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int
    shuffle: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: str = "none"

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise DataError(
                f"there are {len(self.inputs)} inputs and {len(self.targets)} targets; needed as many of each"
            )
        if len(self.inputs) == 0:
            raise DataError("a data source is empty: it gave no samples; check the rows of the split")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.inputs)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for rows in torch.split(order, self.batch_size):
            yield self._prepared(self.inputs[rows]), self.targets[rows]

    def __len__(self) -> int:
        """Number of batches."""
        return (len(self.inputs) + self.batch_size - 1) // self.batch_size

    def _prepared(self, x: Tensor) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        if self.mean:
            x = (x - channel(self.mean)) / channel(self.std)
        return flip_crop(x) if self.augment == "flip-crop" else x


def channel(values: tuple[float, ...]) -> Tensor:
    """Values that broadcast over (samples, channels, height, width)."""
    return torch.tensor(values).reshape(1, -1, 1, 1)


def flip_crop(x: Tensor, shift: int = 4) -> Tensor:
    """Mirror half of the images, and shift each by up to `shift` pixels, zeros coming in.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    x = torch.where(torch.rand(len(x)).reshape(-1, 1, 1, 1) < 0.5, x.flip(3), x)
    height, width = x.shape[2:]
    padded = functional.pad(x, (shift,) * 4)
    offsets = torch.randint(0, 2 * shift + 1, (2, len(x)))
    rows = offsets[0].reshape(-1, 1) + torch.arange(height)
    columns = offsets[1].reshape(-1, 1) + torch.arange(width)
    samples = torch.arange(len(x)).reshape(-1, 1, 1)
    return padded[samples, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
