"""Random networks out of a list of steps: plain data that prints, shrinks and can be pasted into a test.

Every step reads one or two earlier values, and gives one or more new ones. Values are images
(N, C, H, W) or sequences (N, T, D). The layers write sizes as good user code does: in attributes
of the module that uses them, or read off shapes.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (4, 6, 8, 12, 9, 10)
HEADS = ((2, 3, 5), (3, 4, 2), (4, 2, 3), (2, 6, 4), (3, 2, 4), (3, 3, 3))
WORDS = 11
CLASSES = 3
STEMS = ("features", "image", "words")
OUTPUTS = ("sum", "tuple", "dict")


@dataclass(frozen=True)
class Step:
    """One operator: `a` and `b` count values back from the newest, `n` chooses a variant or width."""

    op: str
    a: int = 0
    b: int = 0
    n: int = 0

    def __repr__(self) -> str:
        return f"Step({self.op!r}, {self.a}, {self.b}, {self.n})"


@dataclass(frozen=True)
class Spec:
    """A whole network: what it eats, its steps, and how it gives its outputs."""

    stem: str
    steps: tuple[Step, ...]
    output: str = "sum"
    head: int = 0

    def __repr__(self) -> str:
        return f"Spec({self.stem!r}, {self.steps!r}, {self.output!r}, {self.head})"


def channels(x: Tensor) -> int:
    """The dimension of channels or features."""
    return 1 if x.ndim == 4 else -1


def width(x: Tensor) -> int:
    return x.shape[channels(x)]


def layer(x: Tensor, out: int, **options: bool) -> nn.Module:
    """What maps the features of `x` to `out` others."""
    return nn.Conv2d(width(x), out, 1, **options) if x.ndim == 4 else nn.Linear(width(x), out, **options)


def shaped(vector: Tensor, x: Tensor) -> Tensor:
    """A vector of features that broadcasts against `x`."""
    return vector[:, None, None] if x.ndim == 4 else vector


class Apply(nn.Module):
    """A function without weights."""

    def __init__(self, function: Callable[..., Tensor | Sequence[Tensor]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Tensor | Sequence[Tensor]:
        return self.function(*values)


class Pair(nn.Module):
    """A function of two values; the second is brought to the shape of the first."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, always: bool) -> None:
        super().__init__()
        self.function = function
        self.project = layer(y, width(x)) if always or width(x) != width(y) else nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, self.project(same_places(y, x)))


def same_places(y: Tensor, x: Tensor) -> Tensor:
    """`y` with as many positions as `x`."""
    if y.shape[2:] == x.shape[2:] if x.ndim == 4 else y.shape[1] == x.shape[1]:
        return y
    if x.ndim == 4:
        return functional.adaptive_avg_pool2d(y, x.shape[2:])
    return functional.adaptive_avg_pool1d(y.transpose(1, 2), x.shape[1]).transpose(1, 2)


class Cat(nn.Module):
    def forward(self, *values: Tensor) -> Tensor:
        first = values[0]
        return torch.cat([same_places(value, first) for value in values], dim=channels(first))


class ChannelsLast(nn.Module):
    """A layer of sequences on the channels of an image, or of channels on the features of a sequence."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class SqueezeExcite(nn.Module):
    def __init__(self, x: Tensor, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width(x), hidden, 1), nn.Conv2d(hidden, width(x), 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(functional.silu(self.down(squeezed))))


class SplitSizes(nn.Module):
    """Unequal pieces, their sizes in a list."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        return x.split(self.sizes, dim=channels(x))


class SplitPart(nn.Module):
    """Equal pieces, their size one number."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        return x.split(self.part, dim=channels(x))


class SliceAt(nn.Module):
    """Two slices, their boundary in an attribute."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        if x.ndim == 4:
            return x[:, : self.first], x[:, self.first :]
        return x[..., : self.first], x[..., self.first :]


class Scale(nn.Module):
    """A plain parameter: scale, shift, or both."""

    def __init__(self, x: Tensor, n: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width(x)) + 0.5)
        self.shift = nn.Parameter(torch.randn(width(x))) if n % 2 else None

    def forward(self, x: Tensor) -> Tensor:
        x = x * shaped(self.scale, x)
        return x if self.shift is None else x + shaped(self.shift, x)


class Matrix(nn.Module):
    """Matrix product with a plain parameter, in several spellings."""

    def __init__(self, x: Tensor, out: int, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        shape = (out, width(x)) if self.spelling == "linear" else (width(x), out)
        self.matrix = nn.Parameter(torch.randn(shape) / math.sqrt(width(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "matmul":
            return x @ self.matrix
        if self.spelling == "linear":
            return functional.linear(x, self.matrix)
        return torch.einsum("ntd,de->nte", x, self.matrix)


class Einsum(nn.Module):
    """Sums in spellings that `Matrix` does not have: an ellipsis, no arrow, letters that one operand alone holds."""

    def __init__(self, x: Tensor, n: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(width(x), width(x)) / math.sqrt(width(x)))
        self.scale, self.n = nn.Parameter(torch.randn(width(x))), n

    def forward(self, x: Tensor) -> Tensor:
        forms = (
            lambda: x + torch.einsum("...d,de->...e", x, self.matrix),
            lambda: torch.einsum("...i,ij", x, self.matrix),
            lambda: x * torch.einsum("ntd,de->nt", x, self.matrix).tanh()[..., None],
            lambda: x + torch.einsum("ntd,d,de->nte", x, self.scale, self.matrix),
            lambda: x * torch.einsum("ntd,ntd->nt", x, torch.tanh(x)).sigmoid()[..., None],
            lambda: x * torch.einsum("ntd->nt", x).sigmoid()[..., None],
        )
        return forms[self.n % 6]()


class Twice(nn.Module):
    """The same layer called twice."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.layer = layer(x, width(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class TiedTranspose(nn.Module):
    """An autoencoder that decodes with the transposed weight."""

    def __init__(self, x: Tensor, hidden: int) -> None:
        super().__init__()
        self.encode = nn.Linear(width(x), hidden)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.relu(self.encode(x)), self.encode.weight.t())


class TiedPair(nn.Module):
    """Two layers that share one weight."""

    def __init__(self, x: Tensor, out: int) -> None:
        super().__init__()
        self.first, self.second = layer(x, out), layer(x, out)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * torch.sigmoid(self.second(torch.tanh(x)))


class Feedforward(nn.Module):
    """Up, a gate by chunk, down, and a residual."""

    def __init__(self, x: Tensor, hidden: int) -> None:
        super().__init__()
        self.up, self.down = layer(x, 2 * hidden), layer(x, width(x))
        self.down = nn.Conv2d(hidden, width(x), 1) if x.ndim == 4 else nn.Linear(hidden, width(x))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=channels(x))
        return x + self.down(value * functional.silu(gate))


class ChannelShuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class HeadScale(nn.Module):
    """Features seen as heads, each head scaled by a parameter of its own, and seen as features again."""

    def __init__(self, x: Tensor, heads: int, n: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.variant = heads, width(x) // heads, ("own", "rest", "swap")[n % 3]
        self.scale = nn.Parameter(torch.rand(heads, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        if self.variant == "own":
            return (x.view(n, t, self.heads, self.head_dim) * self.scale).reshape(n, t, self.heads * self.head_dim)
        y = x.reshape(n, t, self.heads, -1) * self.scale
        return y.flatten(2) if self.variant == "rest" else y.transpose(2, 3).flatten(2)


class HeadsDivided(nn.Module):
    """A layer's features seen as heads, whose size is the width of what it read divided by their number."""

    def __init__(self, x: Tensor, heads: int) -> None:
        super().__init__()
        self.heads, self.inner = heads, nn.Linear(width(x), width(x))
        self.scale = nn.Parameter(torch.rand(heads, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        y = self.inner(x).view(n, t, self.heads, c // self.heads) * self.scale
        return torch.tanh(y).reshape(n, t, -1)


class HalfBias(nn.Module):
    """A layer whose bias is taken off half of its units, by the number of its elements."""

    def __init__(self, x: Tensor, out: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width(x), out)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.inner.bias.clone()
        bias[bias.numel() // 2 :].zero_()
        return functional.linear(x, self.inner.weight, bias)


class Unflatten(nn.Module):
    """Heads by nn.Unflatten, merged by nn.Flatten after a parameter for each head dimension."""

    def __init__(self, x: Tensor, heads: int) -> None:
        super().__init__()
        self.split, self.merge = nn.Unflatten(-1, (heads, width(x) // heads)), nn.Flatten(2)
        self.scale = nn.Parameter(torch.rand(width(x) // heads) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.split(x) * self.scale)


class Attention(nn.Module):
    """Queries, keys and values of their own; the sizes of a head in attributes, or left to -1."""

    def __init__(self, x: Tensor, source: Tensor, sizes: tuple[int, int, int], spelling: str) -> None:
        super().__init__()
        heads, key, value = sizes
        self.heads, self.spelling, self.scale = heads, spelling, 0.7
        if spelling == "attributes":
            self.key_dim, self.value_dim = key, value
        self.query, self.key = nn.Linear(width(x), heads * key), nn.Linear(width(source), heads * key)
        self.value, self.out = nn.Linear(width(source), heads * value), nn.Linear(heads * value, width(x))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        of_key, of_value = (self.key_dim, self.value_dim) if self.spelling == "attributes" else (-1, -1)
        q = self.query(x).view(*x.shape[:2], self.heads, of_key)
        k = self.key(source).view(*source.shape[:2], self.heads, of_key)
        v = self.value(source).view(*source.shape[:2], self.heads, of_value)
        if self.spelling == "einsum":
            weights = torch.softmax(torch.einsum("nqhd,nkhd->nhqk", q, k) * self.scale, dim=-1)
            return x + self.out(torch.einsum("nhqk,nkhe->nqhe", weights, v).flatten(2))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.spelling == "matmul":
            mixed = torch.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class PackedAttention(nn.Module):
    """Queries, keys and values of one layer, taken apart by chunk, by split, or by a view and unbind."""

    def __init__(self, x: Tensor, sizes: tuple[int, int, int], spelling: str) -> None:
        super().__init__()
        heads, head_dim, _ = sizes
        self.heads, self.head_dim, self.spelling, self.scale = heads, head_dim, spelling, 0.7
        self.packed, self.out = nn.Linear(width(x), 3 * heads * head_dim), nn.Linear(heads * head_dim, width(x))

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        packed = self.packed(x)
        if self.spelling == "view":
            q, k, v = packed.view(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            third = self.heads * self.head_dim
            pieces = packed.chunk(3, dim=-1) if self.spelling == "chunk" else packed.split(third, dim=-1)
            q, k, v = (piece.view(n, t, self.heads, self.head_dim).transpose(1, 2) for piece in pieces)
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return x + self.out(mixed.transpose(1, 2).reshape(n, t, self.heads * self.head_dim))


class GroupedQueries(nn.Module):
    """Several queries share a key: by repeat_interleave, by expand, or by the operator itself."""

    def __init__(self, x: Tensor, sizes: tuple[int, int, int], spelling: str) -> None:
        super().__init__()
        kv_heads, key, value = sizes
        self.repeats, self.spelling, self.scale = 2, spelling, 0.7
        self.kv_heads, self.heads = kv_heads, kv_heads * self.repeats
        self.query, self.key = nn.Linear(width(x), self.heads * key), nn.Linear(width(x), kv_heads * key)
        self.value, self.out = nn.Linear(width(x), kv_heads * value), nn.Linear(self.heads * value, width(x))

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        q = self.query(x).view(n, t, self.heads, -1).transpose(1, 2)
        k, v = (y(x).view(n, t, self.kv_heads, -1).transpose(1, 2) for y in (self.key, self.value))
        if self.spelling == "repeat":
            k, v = k.repeat_interleave(self.repeats, dim=1), v.repeat_interleave(self.repeats, dim=1)
        elif self.spelling == "expand":
            k, v = self.expanded(k), self.expanded(v)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, scale=self.scale, enable_gqa=self.spelling == "operator"
        )
        return x + self.out(mixed.transpose(1, 2).flatten(2))

    def expanded(self, y: Tensor) -> Tensor:
        n, heads, t, size = y.shape
        return y[:, :, None].expand(n, heads, self.repeats, t, size).reshape(n, heads * self.repeats, t, size)


class LinearAttention(nn.Module):
    """Keys and values summed over time first: a matrix of features by features."""

    def __init__(self, x: Tensor, key: int, value: int, spelling: str) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width(x), out) for out in (key, key, value))
        self.out, self.spelling = nn.Linear(value, width(x)), spelling

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.tanh(self.query(x)), self.key(x), self.value(x)
        if self.spelling == "einsum":
            return x + self.out(torch.einsum("ntd,nsd,nse->nte", q, k, v) / x.shape[1])
        if self.spelling == "bmm":
            return x + self.out(torch.bmm(q, torch.bmm(k.transpose(1, 2), v)) / x.shape[1])
        return x + self.out(q @ (k.transpose(1, 2) @ v) / x.shape[1])


class Recurrent(nn.Module):
    """All steps of a recurrent layer, or its final states."""

    def __init__(self, x: Tensor, kind: str, n: int, *, final: bool = False) -> None:
        super().__init__()
        options = {"num_layers": 1 + n % 2, "bidirectional": n // 2 % 2 == 1, "batch_first": True}
        self.rnn, self.final = getattr(nn, kind)(width(x), 3 + n % 3, **options), final

    def forward(self, x: Tensor) -> Tensor:
        steps, state = self.rnn(x)
        if not self.final:
            return steps
        last = (state[0] if isinstance(state, tuple) else state)[-1]
        return last.unsqueeze(1).expand(-1, x.shape[1], -1)


class InitialState(nn.Module):
    """A recurrent layer that starts from zeros made in the forward pass."""

    def __init__(self, x: Tensor, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.rnn = nn.GRU(width(x), hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x, torch.zeros(1, x.shape[0], self.hidden, dtype=x.dtype))[0]


class Positions(nn.Module):
    """Learned positions and a learned first token, expanded over the batch."""

    def __init__(self, x: Tensor, n: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, x.shape[1], width(x)))
        self.token = nn.Parameter(torch.randn(1, 1, width(x))) if n % 2 else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.table
        return x if self.token is None else torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)


class Filled(nn.Module):
    """A constant made in the forward pass, its size in an attribute."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.features = width(x)
        self.scale = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) + shaped(self.scale * torch.ones(self.features, dtype=x.dtype), x)


class Expanded(nn.Module):
    """One number for each position, expanded to all features, their count in an attribute."""

    def __init__(self, x: Tensor, out: int) -> None:
        super().__init__()
        self.features = out
        self.one, self.scale = nn.Linear(width(x), 1), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x).expand(*x.shape[:2], self.features) * self.scale


class FiLM(nn.Module):
    """Scale and shift of the features, made from their mean over space or time."""

    def __init__(self, x: Tensor, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width(x), hidden), nn.Linear(hidden, 2 * width(x))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.up(torch.relu(self.down(x.mean(space(x))))).chunk(2, dim=-1)
        if x.ndim == 4:
            return x * scale[:, :, None, None] + shift[:, :, None, None]
        return x * scale[:, None] + shift.unsqueeze(1)


class Outer(nn.Module):
    """The product of every feature of one projection with every one of another, in one dimension."""

    def __init__(self, x: Tensor, spelling: str) -> None:
        super().__init__()
        self.first, self.second, self.spelling = nn.Linear(width(x), 3), nn.Linear(width(x), 4), spelling
        self.out = nn.Linear(12, width(x))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), torch.tanh(self.second(x))
        if self.spelling == "product":
            return self.out((a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(2))
        if self.spelling == "einsum":
            return self.out(torch.einsum("nta,ntb->ntab", a, b).flatten(2))
        return self.out((a[..., :, None] @ b[..., None, :]).flatten(-2))


class HeadMatrices(nn.Module):
    """Projections to and from heads by parameters of three dimensions."""

    def __init__(self, x: Tensor, sizes: tuple[int, int, int], n: int) -> None:
        super().__init__()
        heads, inner, outer = sizes
        self.into = nn.Parameter(torch.randn(width(x), heads, inner) / math.sqrt(width(x)))
        self.within = nn.Parameter(torch.randn(heads, inner, outer) / math.sqrt(inner))
        self.out = nn.Parameter(torch.randn(heads, outer, width(x)) / math.sqrt(heads * outer))
        self.spelling = n % 2

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("ntd,dhk->nthk", x, self.into)
        if self.spelling == 0:
            y = torch.einsum("nthk,hkv->nthv", torch.relu(y), self.within)
        else:
            y = (torch.relu(y).transpose(1, 2) @ self.within).transpose(1, 2)
        return torch.einsum("nthv,hvd->ntd", y, self.out)


class HeadSum(nn.Module):
    """Features seen as heads, and summed or averaged over heads or within them."""

    def __init__(self, x: Tensor, heads: int, n: int) -> None:
        super().__init__()
        self.heads, self.n = heads, n
        self.out = nn.Linear(heads if n % 3 == 0 else width(x) // heads, width(x))

    def forward(self, x: Tensor) -> Tensor:
        y = x.unflatten(-1, (self.heads, -1))
        if self.n % 3 == 0:
            return self.out(y.mean(-1))
        return self.out(y.sum(-2) if self.n % 3 == 1 else y.mean(-2))


class Rotary(nn.Module):
    """Rotation of pairs of features by the position in time: halves, or neighbours."""

    def __init__(self, x: Tensor, sizes: tuple[int, int, int], spelling: str) -> None:
        super().__init__()
        heads, pairs, _ = sizes
        self.heads, self.spelling, self.scale = heads, spelling, 0.7
        self.query, self.key, self.value = (nn.Linear(width(x), heads * pairs * 2) for _ in range(3))
        self.out = nn.Linear(heads * pairs * 2, width(x))
        angles = torch.outer(torch.arange(x.shape[1]), 1 / (1.0 + torch.arange(pairs)))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        q, k, v = (y(x).view(n, t, self.heads, -1).transpose(1, 2) for y in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, scale=self.scale)
        return x + self.out(mixed.transpose(1, 2).flatten(2))

    def rotated(self, x: Tensor) -> Tensor:
        if self.spelling == "halves":
            a, b = x.chunk(2, dim=-1)
        else:
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = (a * self.cos - b * self.sin, a * self.sin + b * self.cos)
        return torch.cat(turned, dim=-1) if self.spelling == "halves" else torch.stack(turned, dim=-1).flatten(-2)


class Functional(nn.Module):
    """Convolution and normalisation called with plain parameters and buffers."""

    def __init__(self, x: Tensor, out: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(out, width(x), 1, 1) / math.sqrt(width(x)))
        self.gain = nn.Parameter(torch.rand(out) + 0.5)
        self.register_buffer("mean", torch.randn(out) * 0.3)
        self.register_buffer("var", torch.rand(out) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.conv2d(x, self.kernel)
        return functional.batch_norm(y, self.mean, self.var) * self.gain.view(1, -1, 1, 1)


class Buffered(nn.Module):
    """A buffer for each feature."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", torch.rand(width(x)) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * shaped(self.factor, x)


class Cells(nn.Module):
    """A recurrent cell in a loop over time, from zeros, its size in an attribute."""

    def __init__(self, x: Tensor, hidden: int, n: int) -> None:
        super().__init__()
        self.hidden, self.is_lstm = hidden, n % 2 == 1
        self.cell = (nn.LSTMCell if self.is_lstm else nn.GRUCell)(width(x), hidden)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], self.hidden, dtype=x.dtype)
        cell, steps = state, []
        for step in x.unbind(1):
            if self.is_lstm:
                state, cell = self.cell(step, (state, cell))
            else:
                state = self.cell(step, state)
            steps.append(state)
        return torch.stack(steps, dim=1)


class LearnedState(nn.Module):
    """A recurrent layer that starts from a learned state, expanded over the batch."""

    def __init__(self, x: Tensor, hidden: int) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.randn(1, 1, hidden))
        self.rnn = nn.GRU(width(x), hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x, self.state.expand(-1, x.shape[0], -1).contiguous())[0]


class Experts(nn.Module):
    """Experts in one stacked parameter, weighted by a softmax or by sigmoids."""

    def __init__(self, x: Tensor, experts: int, hidden: int, n: int) -> None:
        super().__init__()
        self.router, self.is_softmax = nn.Linear(width(x), experts), n % 2 == 0
        self.up = nn.Parameter(torch.randn(experts, width(x), hidden) / math.sqrt(width(x)))
        self.down = nn.Parameter(torch.randn(experts, hidden, width(x)) / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x)
        weights = weights.softmax(-1) if self.is_softmax else weights.sigmoid()
        hidden = torch.relu(torch.einsum("ntd,edh->nteh", x, self.up))
        return (torch.einsum("nteh,ehd->nted", hidden, self.down) * weights.unsqueeze(-1)).sum(2)


class Windows(nn.Module):
    """An image taken apart into windows, each mixed by a layer over its channels, and put together again."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.window, self.mix = 2, nn.Linear(width(x), width(x))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        rows, columns = h // self.window, w // self.window
        y = x.view(n, c, rows, self.window, columns, self.window).permute(0, 2, 4, 3, 5, 1)
        y = torch.relu(self.mix(y.reshape(n * rows * columns, self.window**2, c)))
        y = y.view(n, rows, columns, self.window, self.window, -1).permute(0, 5, 1, 3, 2, 4)
        return x + y.reshape(n, -1, h, w)


def divisors(number: int) -> list[int]:
    """Divisors other than 1 and the number itself; the number itself where there are none."""
    return [d for d in range(2, number) if number % d == 0] or [number]


def grouped_conv(n: int, x: Tensor) -> nn.Module:
    options = divisors(width(x))
    groups = options[n % len(options)]
    return nn.Conv2d(width(x), groups * (1 + n % 3), 3, padding=1, groups=groups)


def half_sizes(n: int, x: Tensor) -> nn.Module:
    first = 1 + n % (width(x) - 1)
    return SplitSizes([first, width(x) - first])


def equal_parts(n: int, x: Tensor) -> nn.Module:
    options = divisors(width(x))
    return SplitPart(options[n % len(options)])


def group_norm(n: int, x: Tensor) -> nn.Module:
    options = divisors(width(x))
    return nn.GroupNorm(options[n % len(options)], width(x))


def space(x: Tensor) -> tuple[int, ...]:
    """Dimensions that are neither batch nor features."""
    return (2, 3) if x.ndim == 4 else (1,)


def by_shape(x: Tensor) -> Sequence[Tensor]:
    return x.split([width(x) // 3, width(x) - width(x) // 3], dim=channels(x))


def slice_by_shape(x: Tensor) -> Sequence[Tensor]:
    half = width(x) // 2
    return (x[:, :half], x[:, half:]) if x.ndim == 4 else (x[..., :half], x[..., half:])


def stack_features(x: Tensor) -> Tensor:
    """Every feature beside its square: (feature, 2) in one dimension."""
    dim = 2 if x.ndim == 4 else 3
    return torch.stack([x, torch.tanh(x)], dim=dim).flatten(dim - 1, dim)


@dataclass(frozen=True)
class Op:
    """How to build the module of a step from its number and its inputs."""

    build: Callable[..., nn.Module]
    ranks: tuple[int, ...] = (3, 4)
    arity: int = 1
    fits: Callable[[Tensor], bool] = lambda x: width(x) >= 2


def function(body: Callable[..., Tensor | Sequence[Tensor]], *variants: Callable[..., Tensor]) -> Callable:
    """A builder of a module without weights; `n` chooses among the bodies."""
    bodies = (body, *variants)
    return lambda n, *values: Apply(bodies[n % len(bodies)])


def pair(body: Callable[[Tensor, Tensor], Tensor], *, always: bool = False) -> Callable:
    return lambda n, x, y: Pair(body, x, y, always=always)


def is_even(x: Tensor) -> bool:
    return width(x) % 2 == 0 and width(x) >= 2


def is_small(x: Tensor) -> bool:
    return 2 <= width(x) <= 12


def iadd(x: Tensor, y: Tensor) -> Tensor:
    y += x
    return y


OPS: dict[str, Op] = {
    "layer": Op(lambda n, x: layer(x, WIDTHS[n], bias=n != 1)),
    "relu": Op(function(torch.relu)),
    "act": Op(function(functional.gelu, functional.silu, torch.tanh, functional.leaky_relu, functional.hardswish)),
    "offset_act": Op(function(torch.sigmoid, functional.softplus, torch.cos)),
    "layer_relu_": Op(lambda n, x: nn.Sequential(layer(x, WIDTHS[n]), nn.ReLU(inplace=True))),
    "prelu": Op(lambda n, x: nn.PReLU(width(x)) if x.ndim == 4 else ChannelsLast(nn.PReLU(width(x)))),
    "add": Op(pair(torch.add), arity=2),
    "add_projected": Op(pair(iadd, always=True), arity=2),
    "gate": Op(pair(lambda x, y: x * torch.sigmoid(y)), arity=2),
    "maximum": Op(pair(torch.maximum), arity=2),
    "where": Op(pair(lambda x, y: torch.where(y > 0, x, 0.5 * y)), arity=2),
    "lerp": Op(pair(lambda x, y: torch.lerp(x, y, 0.3)), arity=2),
    "cat": Op(lambda n, x, y: Cat(), arity=2),
    "stack_sum": Op(pair(lambda x, y: torch.stack([x, y]).sum(0)), arity=2),
    "stack_mean": Op(pair(lambda x, y: torch.stack([x, y], dim=1).mean(1)), arity=2),
    "stack_unbind": Op(lambda n, x: Apply(lambda y: torch.stack([y, torch.tanh(y)], dim=1).unbind(1))),
    "stack_features": Op(function(stack_features), fits=is_small),
    "split_sizes": Op(half_sizes),
    "split_part": Op(equal_parts),
    "split_by_shape": Op(function(by_shape), fits=lambda x: width(x) >= 3),
    "chunk": Op(function(lambda x: x.chunk(2, dim=channels(x))), fits=is_even),
    "chunk_unequal": Op(function(lambda x: x.chunk(2, dim=channels(x))), fits=lambda x: width(x) % 2 == 1),
    "chunk_three": Op(function(lambda x: x.chunk(3, dim=channels(x))), fits=lambda x: width(x) >= 4),
    "split_uneven": Op(lambda n, x: SplitPart(width(x) // 2 + 1), fits=lambda x: width(x) >= 3),
    "heads_divided": Op(
        lambda n, x: HeadsDivided(x, divisors(width(x))[0]), ranks=(3,), fits=lambda x: len(divisors(width(x))) > 1
    ),
    "half_bias": Op(lambda n, x: HalfBias(x, WIDTHS[n]), ranks=(3,)),
    "conv_over_steps": Op(lambda n, x: nn.Conv1d(x.shape[1], 3, 1), ranks=(3,)),
    "slice_by_shape": Op(function(slice_by_shape)),
    "slice_at": Op(lambda n, x: SliceAt(1 + n % (width(x) - 1))),
    "every_other": Op(function(lambda x: x[:, ::2] if x.ndim == 4 else x[..., ::2])),
    "select": Op(function(lambda x: x * (x[:, :1] if x.ndim == 4 else x[..., :1]).tanh())),
    "scale": Op(lambda n, x: Scale(x, n)),
    "filled": Op(lambda n, x: Filled(x)),
    "twice": Op(lambda n, x: Twice(x)),
    "tied_pair": Op(lambda n, x: TiedPair(x, WIDTHS[n])),
    "feedforward": Op(lambda n, x: Feedforward(x, WIDTHS[n])),
    "batch_norm": Op(lambda n, x: nn.BatchNorm2d(width(x)) if x.ndim == 4 else ChannelsLast(nn.BatchNorm1d(width(x)))),
    "instance_norm": Op(lambda n, x: nn.InstanceNorm2d(width(x), affine=n % 2 == 1), ranks=(4,)),
    "group_norm": Op(group_norm, ranks=(4,)),
    "layer_norm": Op(
        lambda n, x: (
            ChannelsLast(nn.LayerNorm(width(x))) if x.ndim == 4 else (nn.LayerNorm, nn.RMSNorm)[n % 2](width(x))
        )
    ),
    "softmax_features": Op(function(lambda x: torch.softmax(x, dim=channels(x)))),
    "mean_features": Op(function(lambda x: x * torch.sigmoid(x.mean(channels(x), keepdim=True)))),
    "sum_features": Op(function(lambda x: x * torch.sigmoid(x.sum(channels(x), keepdim=True)))),
    "max_features": Op(function(lambda x: x - x.amax(channels(x), keepdim=True))),
    "mean_space": Op(
        function(
            lambda x: x * torch.sigmoid(x.mean(space(x), keepdim=True)),
            lambda x: x.mean(space(x), keepdim=True).expand_as(x) * torch.tanh(x),
            lambda x: x - x.sum(space(x), keepdim=True) / 9,
            lambda x: x + x.amax(space(x), keepdim=True),
        )
    ),
    "move_space": Op(
        function(
            lambda x: x.roll(1, dims=space(x)[0]),
            lambda x: x.flip(space(x)),
            lambda x: x.cumsum(space(x)[0]) / 3,
            lambda x: x.transpose(2, 3) if x.ndim == 4 else x.flip(1),
        )
    ),
    "move_features": Op(
        function(
            lambda x: x.roll(1, dims=channels(x)),
            lambda x: x.flip(channels(x)),
            lambda x: x.cumsum(channels(x)) / 3,
        )
    ),
    "unsqueeze": Op(
        function(
            lambda x: x.unsqueeze(1).tanh().squeeze(1),
            lambda x: (x.unsqueeze(-1) * x.mean(1, keepdim=True).unsqueeze(-1)).squeeze(-1),
        )
    ),
    "repeat": Op(
        function(
            lambda x: torch.cat([x, torch.tanh(x)], dim=channels(x)),
            lambda x: x.repeat(1, 2, 1, 1) if x.ndim == 4 else x.repeat(1, 1, 2),
            lambda x: x.repeat_interleave(2, dim=channels(x)),
        ),
        fits=is_small,
    ),
    "pad_features": Op(function(lambda x: functional.pad(x, (0, 0) * (x.ndim - 3) + (0, 0) * (x.ndim == 4) + (1, 2)))),
    "linear_last": Op(lambda n, x: ChannelsLast(nn.Linear(width(x), WIDTHS[n])), ranks=(4,)),
    "conv": Op(lambda n, x: nn.Conv2d(width(x), WIDTHS[n], 3, padding=1, stride=1 + n % 2), ranks=(4,)),
    "conv_grouped": Op(grouped_conv, ranks=(4,)),
    "conv_depthwise": Op(
        lambda n, x: nn.Conv2d(width(x), width(x) * (1 + n % 2), 3, padding=1, groups=width(x)),
        ranks=(4,),
        fits=is_small,
    ),
    "conv_transpose": Op(
        lambda n, x: nn.ConvTranspose2d(width(x), WIDTHS[n], 2, stride=2),
        ranks=(4,),
        fits=lambda x: x.shape[-1] <= 8 and width(x) >= 2,
    ),
    "conv_transpose_grouped": Op(
        lambda n, x: nn.ConvTranspose2d(width(x), 2 * WIDTHS[n % 3], 3, padding=1, groups=2),
        ranks=(4,),
        fits=is_even,
    ),
    "pool": Op(
        function(
            lambda x: functional.max_pool2d(x, 2),
            lambda x: functional.avg_pool2d(x, 2),
            lambda x: functional.adaptive_avg_pool2d(x, 2),
        ),
        ranks=(4,),
        fits=lambda x: x.shape[-1] >= 4,
    ),
    "adaptive_max_pool": Op(
        function(lambda x: functional.adaptive_max_pool2d(x, 2)), ranks=(4,), fits=lambda x: x.shape[-1] >= 4
    ),
    "upsample": Op(
        function(
            lambda x: functional.interpolate(x, scale_factor=2),
            lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
        ),
        ranks=(4,),
        fits=lambda x: x.shape[-1] <= 4,
    ),
    "squeeze_excite": Op(lambda n, x: SqueezeExcite(x, WIDTHS[n]), ranks=(4,)),
    "pixel_shuffle": Op(
        lambda n, x: nn.PixelShuffle(2), ranks=(4,), fits=lambda x: width(x) % 4 == 0 and x.shape[-1] <= 8
    ),
    "pixel_unshuffle": Op(lambda n, x: nn.PixelUnshuffle(2), ranks=(4,), fits=lambda x: width(x) <= 6),
    "channel_shuffle": Op(
        lambda n, x: ChannelShuffle(divisors(width(x))[0]), ranks=(4,), fits=lambda x: len(divisors(width(x))) > 1
    ),
    "to_sequence": Op(function(lambda x: x.flatten(2).transpose(1, 2)), ranks=(4,)),
    "to_rows": Op(function(lambda x: x.permute(0, 2, 3, 1).flatten(2)), ranks=(4,), fits=lambda x: x.shape[-1] <= 4),
    "conv1d": Op(lambda n, x: ChannelsLast(nn.Conv1d(width(x), WIDTHS[n], 3, padding=1)), ranks=(3,)),
    "matrix": Op(lambda n, x: Matrix(x, WIDTHS[(n + 2) % 6], ("matmul", "linear")[n % 2]), ranks=(3,)),
    "matrix_einsum": Op(lambda n, x: Matrix(x, WIDTHS[n], "einsum"), ranks=(3,)),
    "einsum": Op(lambda n, x: Einsum(x, n), ranks=(3,)),
    "tied_transpose": Op(lambda n, x: TiedTranspose(x, WIDTHS[n]), ranks=(3,)),
    "head_scale": Op(
        lambda n, x: HeadScale(x, divisors(width(x))[-1], n), ranks=(3,), fits=lambda x: len(divisors(width(x))) > 1
    ),
    "unflatten": Op(
        lambda n, x: Unflatten(x, divisors(width(x))[0]), ranks=(3,), fits=lambda x: len(divisors(width(x))) > 1
    ),
    "attention": Op(
        lambda n, x, y: Attention(x, y, HEADS[n], ("attributes", "rest", "matmul", "einsum")[n % 4]),
        ranks=(3,),
        arity=2,
    ),
    "packed_attention": Op(lambda n, x: PackedAttention(x, HEADS[n], ("chunk", "split", "view")[n % 3]), ranks=(3,)),
    "grouped_queries": Op(
        lambda n, x: GroupedQueries(x, HEADS[n], ("expand", "operator", "repeat")[n % 3]), ranks=(3,)
    ),
    "linear_attention": Op(
        lambda n, x: LinearAttention(x, WIDTHS[n], WIDTHS[(n + 1) % 6], ("matmul", "bmm")[n % 2]), ranks=(3,)
    ),
    "linear_attention_einsum": Op(
        lambda n, x: LinearAttention(x, WIDTHS[n], WIDTHS[(n + 1) % 6], "einsum"), ranks=(3,)
    ),
    "gram": Op(function(lambda x: torch.softmax(0.4 * x @ x.transpose(1, 2), dim=-1) @ x), ranks=(3,)),
    "LSTM": Op(lambda n, x: Recurrent(x, "LSTM", n), ranks=(3,)),
    "GRU": Op(lambda n, x: Recurrent(x, "GRU", n), ranks=(3,)),
    "final_state": Op(lambda n, x: Recurrent(x, ("LSTM", "GRU", "RNN")[n % 3], n, final=True), ranks=(3,)),
    "initial_state": Op(lambda n, x: InitialState(x, WIDTHS[n]), ranks=(3,)),
    "positions": Op(lambda n, x: Positions(x, n), ranks=(3,), fits=lambda x: x.shape[1] <= 64 and width(x) >= 2),
    "expanded": Op(lambda n, x: Expanded(x, WIDTHS[n]), ranks=(3,)),
    "film": Op(lambda n, x: FiLM(x, WIDTHS[n])),
    "buffer": Op(lambda n, x: Buffered(x)),
    "copy": Op(pair(lambda x, y: torch.zeros_like(x).copy_(y), always=True), arity=2),
    "mul_": Op(pair(lambda x, y: y.mul_(torch.tanh(x)), always=True), arity=2),
    "addcmul": Op(pair(lambda x, y: torch.addcmul(x, y, torch.tanh(x), value=0.5)), arity=2),
    "masked_fill": Op(function(lambda x: x.masked_fill(x > 1, 0.5), lambda x: x.clamp(-1, 1), lambda x: x.pow(2) / 2)),
    "glu": Op(function(lambda x: functional.glu(x, dim=channels(x))), fits=is_even),
    "normalize": Op(function(lambda x: functional.normalize(x, dim=channels(x)))),
    "functional": Op(lambda n, x: Functional(x, WIDTHS[n]), ranks=(4,)),
    "windows": Op(lambda n, x: Windows(x), ranks=(4,), fits=lambda x: x.shape[-1] % 2 == 0 and width(x) > 1),
    "cat_space": Op(
        function(lambda x: torch.cat([x, torch.tanh(x)], dim=space(x)[-1])), fits=lambda x: x.shape[-1] <= 12
    ),
    "outer": Op(lambda n, x: Outer(x, ("product", "matmul")[n % 2]), ranks=(3,)),
    "outer_einsum": Op(lambda n, x: Outer(x, "einsum"), ranks=(3,)),
    "head_matrices": Op(lambda n, x: HeadMatrices(x, HEADS[n], n), ranks=(3,)),
    "head_sum": Op(
        lambda n, x: HeadSum(x, divisors(width(x))[0], n), ranks=(3,), fits=lambda x: len(divisors(width(x))) > 1
    ),
    "rotary": Op(
        lambda n, x: Rotary(x, HEADS[n] if n != 2 else (4, 3, 3), ("halves", "neighbours")[n % 2]), ranks=(3,)
    ),
    "cells": Op(lambda n, x: Cells(x, WIDTHS[n], n), ranks=(3,), fits=lambda x: x.shape[1] <= 8 and width(x) > 1),
    "learned_state": Op(lambda n, x: LearnedState(x, WIDTHS[n]), ranks=(3,)),
    "experts": Op(lambda n, x: Experts(x, 3 + n % 2, WIDTHS[n], n), ranks=(3,)),
    "again": Op(lambda n, x: nn.Identity()),
}


class RandomNetwork(nn.Module):
    """Runs `spec`. Steps that fit no earlier value are left out; every value that no step reads is an output."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.stem, example = _stem(spec.stem)
        self.layers, self.heads = nn.ModuleList(), nn.ModuleList()
        self.reads: list[tuple[int, ...]] = []
        values = [example]
        read: set[int] = set()
        for step in spec.steps:
            chosen = _chosen(step, values)
            module = self._module(step, [values[k] for k in chosen], values) if chosen else None
            if module is None:
                continue
            initialise(module)
            self.layers.append(module)
            self.reads.append(chosen)
            read |= set(chosen)
            with torch.no_grad():
                values += _many(module.eval()(*(values[k].clone() for k in chosen)))
        # One tuple for each: a list of numbers would look like sizes.
        self.unread = [(k,) for k in range(len(values)) if k not in read]
        for number, (k,) in enumerate(self.unread):
            self.heads.append(Head(values[k], (spec.head + number) % 3 if spec.output != "sum" else spec.head % 2))
        initialise(self.heads)

    def _module(self, step: Step, inputs: list[Tensor], values: list[Tensor]) -> nn.Module | None:
        """A new module, or for "again" one that has run before on inputs of these shapes."""
        if step.op != "again":
            return OPS[step.op].build(step.n, *inputs)
        known = [
            module
            for module, chosen in zip(self.layers, self.reads, strict=True)
            if [values[k].shape[1:] for k in chosen] == [x.shape[1:] for x in inputs] and list(module.parameters())
        ]
        return known[step.n % len(known)] if known else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...] | dict[str, Tensor]:
        values = [self.stem(x)]
        for module, chosen in zip(self.layers, self.reads, strict=True):
            values += _many(module(*(values[k] for k in chosen)))
        outputs = [head(values[k]) for head, (k,) in zip(self.heads, self.unread, strict=True)]
        if self.spec.output == "tuple":
            return tuple(outputs)
        if self.spec.output == "dict":
            return {f"output{number}": output for number, output in enumerate(outputs)}
        return torch.stack(outputs).sum(0)


class Head(nn.Module):
    """Classes from a value: pooled, flattened, or one answer for each position."""

    def __init__(self, x: Tensor, kind: int) -> None:
        super().__init__()
        self.kind = ("pooled", "flat", "each")[kind]
        inputs = x[0].numel() if self.kind == "flat" else width(x)
        self.last = layer(x, CLASSES) if self.kind == "each" else nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "pooled":
            x = x.mean(space(x))
        elif self.kind == "flat":
            x = x.flatten(1)
        return self.last(x)


def _stem(kind: str) -> tuple[nn.Module, Tensor]:
    if kind == "image":
        return nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 8, 8, 8)
    if kind == "words":
        return nn.Embedding(WORDS, 12), torch.randn(2, 6, 12)
    return nn.Linear(5, 12), torch.randn(2, 6, 12)


def _chosen(step: Step, values: Sequence[Tensor]) -> tuple[int, ...] | None:
    """The positions of the values that `step` reads; None if none fits."""
    op = OPS[step.op]
    fitting = [k for k, value in enumerate(values) if value.ndim in op.ranks and op.fits(value)]
    if not fitting:
        return None
    first = fitting[-1 - step.a % len(fitting)]
    if op.arity == 1:
        return (first,)
    partners = [k for k in fitting if values[k].ndim == values[first].ndim]
    return first, partners[-1 - step.b % len(partners)]


def _many(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def initialise(model: nn.Module) -> None:
    """Weights that keep the variance of activations, and statistics that hide no mistake."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=1.2 / math.sqrt(fan_in))
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.5)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, nn.RNNBase):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.6)
        is_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d)
        if is_norm and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)


def build(spec: Spec, seed: int = 0) -> RandomNetwork:
    """The network of `spec` in float64 and eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RandomNetwork(spec).double().eval()


def example(spec: Spec, batch: int, seed: int = 0) -> Tensor:
    """Inputs for the network of `spec`."""
    generator = torch.Generator().manual_seed(seed)
    if spec.stem == "words":
        return torch.randint(WORDS, (batch, 6), generator=generator)
    shape = (batch, 3, 8, 8) if spec.stem == "image" else (batch, 6, 5)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def is_ambiguous(model: nn.Module) -> bool:
    """Whether some module holds the same number under two names, so that no rewriting can tell them apart."""
    return any(_holds_twice(module) for module in model.modules() if not type(module).__module__.startswith("torch."))


def _holds_twice(module: nn.Module) -> bool:
    numbers: list[int] = []
    for value in vars(module).values():
        numbers += [value] if type(value) is int else _integers(value)
    return len(set(numbers)) < len(numbers)


def _integers(value: object) -> Iterable[int]:
    is_sizes = isinstance(value, tuple | list) and all(type(v) is int for v in value)
    return value if is_sizes else ()  # type: ignore[return-value]


def ops_for(stem: str, gaps: Iterable[str] = ()) -> list[str]:
    """Operators that a network with this stem can use, simple ones first."""
    return [name for name, op in OPS.items() if name not in gaps and (stem == "image" or 3 in op.ranks)]


@st.composite
def specs(draw: st.DrawFn, gaps: Iterable[str] = (), most: int = 8) -> Spec:
    """Networks of up to `most` steps, without the operators of `gaps`."""
    stem = draw(st.sampled_from(STEMS))
    small = st.integers(0, 5)
    step = st.builds(Step, st.sampled_from(ops_for(stem, gaps)), st.integers(0, 3), st.integers(0, 3), small)
    steps = draw(st.lists(step, min_size=1, max_size=most))
    return Spec(stem, tuple(steps), draw(st.sampled_from(OUTPUTS)), draw(st.integers(0, 2)))


def random_spec(seed: int, gaps: Iterable[str] = (), most: int = 8) -> Spec:
    """Like `specs`, from a seed."""
    chance = random.Random(seed)
    stem = chance.choice(STEMS)
    names = ops_for(stem, gaps)
    steps = [
        Step(chance.choice(names), chance.randrange(4), chance.randrange(4), chance.randrange(6))
        for _ in range(chance.randint(2, most))
    ]
    return Spec(stem, tuple(steps), chance.choice(OUTPUTS), chance.randrange(3))
