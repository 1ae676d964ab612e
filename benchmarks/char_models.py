"""Two character models of common shape: a stacked LSTM and a pre-norm transformer."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTEXT = 128


class CharLSTM(nn.Module):
    """Embedding of 64, two LSTM layers, linear decoder; each window starts from a state of zeros."""

    def __init__(self, characters: int, hidden: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.lstm = nn.LSTM(64, hidden, num_layers=2, batch_first=True)
        self.decoder = nn.Linear(hidden, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Codes (windows, length) -> logits (windows, length, characters)."""
        states, _ = self.lstm(self.embedding(x))
        return self.decoder(states)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal self-attention, queries, keys and values by one linear map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_size = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(windows, length, width) -> the same shape."""
        windows, length, _ = x.shape
        q, k, v = self.qkv(x).view(windows, length, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(windows, length, self.heads * self.head_size))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a feed-forward network of four times the width, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(windows, length, width) -> the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class CharTransformer(nn.Module):
    """Six blocks of width 256 with eight heads, learned positions."""

    def __init__(self, characters: int, width: int = 256, heads: int = 8, blocks: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Codes (windows, length) -> logits (windows, length, characters)."""
        x = self.embedding(x) + self.positions[: x.shape[1]]
        return self.decoder(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


NETWORKS = {"lstm": CharLSTM, "transformer": CharTransformer}
