"""Two networks for 8 x 8 images of digits: one convolutional, one recurrent."""

from torch import Tensor, nn
from torch.nn import functional


class DigitsBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a residual stream."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(y)))


class DigitsCNN(nn.Module):
    """A residual network: stem, three blocks, mean over space, linear."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(DigitsBlock(channels) for _ in range(3)))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(samples, 1, 8, 8) -> (samples, 10)."""
        x = self.blocks(functional.relu(self.bn(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class DigitsLSTM(nn.Module):
    """Reads an image row by row with a stacked LSTM, and decides after the last row."""

    def __init__(self, hidden: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, hidden, num_layers=layers, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(samples, 1, 8, 8) -> (samples, 10)."""
        steps, _ = self.lstm(x.squeeze(1))
        return self.head(steps[:, -1])  # type: ignore[no-any-return]


def digits_cnn(channels: int = 32) -> DigitsCNN:
    """A fresh `DigitsCNN`."""
    return DigitsCNN(channels)


def digits_lstm(hidden: int = 96, layers: int = 2) -> DigitsLSTM:
    """A fresh `DigitsLSTM`."""
    return DigitsLSTM(hidden, layers)
