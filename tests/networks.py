"""Networks that drive the tests: one table, each with example inputs and how many batch sizes it takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """Batch norm, a residual stream, and a shortcut that pads channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.a1, self.n1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a2, self.n2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b1, self.m1 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.n2(self.a2(torch.relu(self.n1(self.a1(x))))))
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = torch.relu(short + self.m1(self.b1(x)))
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """Grouped, depthwise and transposed convolution, concatenation, and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 18, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.up = nn.ConvTranspose2d(18, 6, 2, stride=2)
        self.side = nn.Conv2d(3, 4, 1)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(10 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.depthwise(functional.relu(self.grouped(self.c1(x)))))
        y = functional.max_pool2d(self.norm(self.up(y)), 2)
        y = torch.cat([y, self.side(x)], dim=1)
        return self.head(functional.adaptive_avg_pool2d(y, 4).flatten(1))


class Split(nn.Module):
    """Gated units by chunk, and a cross-stage split."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 16)
        self.mid = nn.Linear(8, 8)
        self.wide = nn.Linear(8, 12)
        self.down = nn.Linear(12, 4)
        self.parts = [5, 7]

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        hidden = self.mid(value * torch.sigmoid(gate))
        a, b = self.wide(hidden).relu().split(self.parts, dim=-1)
        return self.down(torch.cat([b, a], dim=-1))


class Recurrent(nn.Module):
    """Any recurrent layer, read at its last step."""

    def __init__(self, kind: str, layers: int, bidirectional: bool, use_state: bool = False) -> None:
        super().__init__()
        options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": True}
        self.rnn = getattr(nn, kind)(5, 8, **options)
        self.head = nn.Linear(8 * (1 + bidirectional) if not use_state else 8, 3)
        self.use_state = use_state

    def forward(self, x: Tensor) -> Tensor:
        steps, state = self.rnn(x)
        final = state[0] if isinstance(state, tuple) else state
        return self.head(final[-1] if self.use_state else steps[:, -1])


class Attention(nn.Module):
    """A pre-norm transformer block whose forward reads its head count from attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 24)
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.heads, self.head_size = 4, 6
        self.query, self.key, self.value = (nn.Linear(24, 24) for _ in range(3))
        self.out = nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24)
        self.head = nn.Linear(24, 7)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.head_size).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        y = self.norm1(x)
        q, k, v = (self.split(layer(y)) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=0.4).transpose(1, 2)
        x = x + self.out(mixed.reshape(*tokens.shape, self.heads * self.head_size))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(x)


class Reshaped(nn.Module):
    """Attention that reads the width of its heads, and of what they give together, off the stream's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.embed, self.qkv, self.out = nn.Linear(5, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.class_query, self.class_keys = nn.Linear(12, 12), nn.Linear(12, 24)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, steps, width = x.shape
        split = (self.heads, width // self.heads)
        q, k, v = self.qkv(x).reshape(n, steps, 3, *split).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, steps, width))
        # Queries and keys meet in an axis of their own, which nothing but the division ties to the stream.
        q = self.class_query(x[:, :1]).reshape(n, 1, *split).transpose(1, 2)
        k, v = self.class_keys(x).reshape(n, steps, 2, *split).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v
        return self.head(x[:, 0] + mixed.transpose(1, 2).reshape(n, width))


class Region(nn.Module):
    """A part that is never computed in half precision, whatever its caller wishes, and a table that is indexed."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(6, 9), nn.Linear(9, 5), nn.Linear(5, 4)
        self.table = nn.Parameter(torch.randn(7, 9))
        self.register_buffer("chosen", torch.tensor([3]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        with torch.autocast("cpu", enabled=False):
            x = x * self.table[self.chosen]
            y = torch.tanh(self.gate(x))
        return self.down(y)


class Tied(nn.Module):
    """A layer called twice, a tied decoder, and plain parameters in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 10)
        self.twice = nn.Linear(10, 10)
        self.scale = nn.Parameter(torch.randn(10))
        self.decoder = nn.Linear(10, 9, bias=False)
        self.decoder.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = self.twice(torch.tanh(self.twice(x) * self.scale))
        return self.decoder(x)


@dataclass(frozen=True)
class Case:
    """A network of the table."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]

    def __repr__(self) -> str:
        return self.name


def image(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64)


def sequence(batch: int) -> Tensor:
    return torch.randn(batch, 6, 5, dtype=torch.float64)


def rnn(kind: str, layers: int, bidirectional: bool, use_state: bool = False) -> Case:
    name = f"{kind}-{layers}{'-bidirectional' if bidirectional else ''}{'-state' if use_state else ''}"
    return Case(name, lambda: Recurrent(kind, layers, bidirectional, use_state), sequence)


CASES = [
    Case(
        "mlp", lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), lambda n: torch.randn(n, 6).double()
    ),
    Case("residual", Residual, image),
    Case("grouped", Grouped, image),
    Case("split", Split, lambda n: torch.randn(n, 6).double()),
    rnn("LSTM", 1, False),
    rnn("LSTM", 2, True),
    rnn("LSTM", 2, False, use_state=True),
    rnn("GRU", 2, True),
    rnn("GRU", 1, False, use_state=True),
    rnn("RNN", 2, False),
    Case("attention", Attention, lambda n: torch.randint(11, (n, 5))),
    Case("reshaped", Reshaped, sequence),
    Case("region", Region, lambda n: torch.randn(n, 6).double()),
    Case("tied", Tied, lambda n: torch.randint(9, (n, 5))),
]


def built(case: Case, seed: int = 0) -> nn.Module:
    """The network in float64 and eval mode, with weights and statistics that hide no mistake."""
    torch.manual_seed(seed)
    model = case.build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model
