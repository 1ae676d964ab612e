"""Attention: torch's own modules, and the ways people write it by hand."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` on itself, its weights a second output if asked for."""

    def __init__(self, *, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 24)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True, **options)
        self.head, self.need_weights = nn.Linear(24, 3), weights

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        y, weights = self.attention(x, x, x, need_weights=self.need_weights)
        return (self.head(x + y), weights) if self.need_weights else self.head(x + y)


class CrossAttention(nn.Module):
    """Keys and values of other widths, sequence first, a padding mask, the weights of every head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(6, 24), nn.Linear(5, 10)
        self.attention = nn.MultiheadAttention(24, 4, kdim=10, vdim=10)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor, memory: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        query, memory = self.q(x).transpose(0, 1), self.kv(memory).transpose(0, 1)
        y, weights = self.attention(query, memory, memory, key_padding_mask=padding, average_attn_weights=False)
        return self.head(y).transpose(0, 1), weights


class Encoder(nn.Module):
    """`nn.TransformerEncoder` over tokens, with learned positions and a mask."""

    def __init__(self, *, causal: bool = False, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.positions = nn.Parameter(torch.randn(1, 32, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 36, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(24), enable_nested_tensor=False)
        self.head, self.causal = nn.Linear(24, 5), causal

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) * math.sqrt(24) + self.positions[:, : tokens.shape[1]]
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=x.dtype)
            return self.head(self.encoder(x, mask=mask, is_causal=True))
        return self.head(self.encoder(x, src_key_padding_mask=tokens == 0))[:, 0]


class Translation(nn.Module):
    """`nn.Transformer`, sequence first or batch first."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.transformer = nn.Transformer(24, 4, 1, 1, 36, batch_first=batch_first)
        self.head, self.batch_first = nn.Linear(24, 40), batch_first

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        s, t = self.embed(source), self.embed(target)
        if not self.batch_first:
            s, t = s.transpose(0, 1), t.transpose(0, 1)
        mask = self.transformer.generate_square_subsequent_mask(target.shape[1], dtype=s.dtype)
        y = self.transformer(s, t, tgt_mask=mask)
        return self.head(y if self.batch_first else y.transpose(0, 1))


class DecoderOnly(nn.Module):
    """`nn.TransformerDecoder` with learned queries over image features (as DETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 16, 3, 2, 1)
        self.project, self.queries = nn.Conv2d(16, 24, 1), nn.Embedding(5, 24)
        layer = nn.TransformerDecoderLayer(24, 3, 30, batch_first=True, norm_first=True, activation="gelu")
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.boxes, self.classes = nn.Linear(24, 4), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        memory = self.project(self.backbone(x).relu()).flatten(2).transpose(1, 2)
        y = self.decoder(self.queries.weight.unsqueeze(0).expand(len(x), -1, -1), memory)
        return {"boxes": self.boxes(y).sigmoid(), "classes": self.classes(y)}


class FusedQKV(nn.Module):
    """One projection for queries, keys and values, reshaped as einops would, and softmax by hand."""

    def __init__(self, *, scale_from_size: bool = False) -> None:
        super().__init__()
        self.heads, self.dim = 4, 6
        self.scale = 0.4
        self.scale_from_size = scale_from_size
        self.norm, self.embed = nn.LayerNorm(20), nn.Linear(5, 20)
        self.to_qkv, self.to_out = nn.Linear(20, 72, bias=False), nn.Linear(24, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scale = q.shape[-1] ** -0.5 if self.scale_from_size else self.scale
        weights = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)
        y = (weights @ v).transpose(1, 2).reshape(b, n, -1)
        return self.head(x + self.to_out(y))


class DividedHeads(nn.Module):
    """Heads that divide the width of the stream, all three projections at once; keys have no bias of their own."""

    def __init__(self, *, bias_of_keys: bool = True) -> None:
        super().__init__()
        self.heads, self.bias_of_keys = 4, bias_of_keys
        self.embed, self.qkv, self.out = nn.Linear(5, 24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, width = x.shape
        bias = self.qkv.bias.clone()
        if not self.bias_of_keys:
            third = bias.numel() // 3
            bias[third : 2 * third].zero_()
        qkv = functional.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)).softmax(dim=-1)
        return self.head(x + self.out((weights @ v).transpose(1, 2).reshape(b, n, -1)))


class HeadsInHalves(nn.Module):
    """A stream that attention over its features sees as heads, and whose second half has a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 8
        self.embed, self.qkv, self.out = nn.Linear(5, 48), nn.Linear(48, 144), nn.Linear(48, 48)
        self.own, self.head = nn.Linear(24, 24), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, width = x.shape
        kept, changed = x.chunk(2, dim=-1)
        x = torch.cat([kept, self.own(changed)], dim=-1)
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        weights = (functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)).softmax(dim=-1)
        return self.head(x + self.out((weights @ v).permute(0, 3, 1, 2).reshape(b, n, width)))


class EinsumAttention(nn.Module):
    """Heads as dimensions of plain parameters, contracted by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(10, 4, 6)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(4, 6, 10))
        self.embed, self.head = nn.Linear(5, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (torch.einsum("bnd,dhk->bhnk", x, w) for w in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bhnk,bhmk->bhnm", q, k) * 0.4, dim=-1)
        return self.head(x + torch.einsum("bhnk,hkd->bnd", weights @ v, self.o))


class GroupedQueries(nn.Module):
    """Fewer key-value heads than query heads, rotary positions, RMS norms, SwiGLU: a small Llama."""

    def __init__(self, *, repeat: bool = True) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim, self.repeat = 6, 2, 8, repeat
        self.embed, self.norm1, self.norm2 = nn.Embedding(40, 24), nn.RMSNorm(24), nn.RMSNorm(24)
        self.q, self.k, self.v = nn.Linear(24, 48), nn.Linear(24, 16), nn.Linear(24, 16)
        self.o = nn.Linear(48, 24, bias=False)
        self.gate, self.up, self.down = nn.Linear(24, 40), nn.Linear(24, 40), nn.Linear(40, 24)
        self.head = nn.Linear(24, 40, bias=False)
        angles = torch.outer(torch.arange(32.0), 1 / 100 ** (torch.arange(0, 8, 2) / 8))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        n = x.shape[-2]
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * self.cos[:n] + turned * self.sin[:n]

    def forward(self, tokens: Tensor) -> Tensor:
        b, n = tokens.shape
        x = self.embed(tokens)
        y = self.norm1(x)
        q = self.rotate(self.q(y).view(b, n, self.heads, self.dim).transpose(1, 2))
        k = self.rotate(self.k(y).view(b, n, self.kv_heads, self.dim).transpose(1, 2))
        v = self.v(y).view(b, n, self.kv_heads, self.dim).transpose(1, 2)
        if self.repeat:
            groups = self.heads // self.kv_heads
            k = k[:, :, None].expand(b, self.kv_heads, groups, n, self.dim).reshape(b, -1, n, self.dim)
            v = v.repeat_interleave(groups, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.35, enable_gqa=not self.repeat)
        x = x + self.o(mixed.transpose(1, 2).reshape(b, n, self.heads * self.dim))
        y = self.norm2(x)
        return self.head(x + self.down(functional.silu(self.gate(y)) * self.up(y)))


class ComplexRotary(nn.Module):
    """Rotary positions as complex numbers, the table made in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 4, 6
        self.embed, self.qkv = nn.Linear(5, 16), nn.Linear(16, 72)
        self.out, self.head = nn.Linear(24, 16), nn.Linear(16, 3)

    def turn(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        angles = torch.outer(torch.arange(n, dtype=x.dtype), torch.tensor([1.0, 0.1, 0.01], dtype=x.dtype))
        table = torch.polar(torch.ones_like(angles), angles)[None, :, None]
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * table).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n = x.shape[:2]
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.dim).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (self.turn(q), self.turn(k), v))
        y = functional.scaled_dot_product_attention(q, k, v, scale=0.4).transpose(1, 2).flatten(2)
        return self.head(x + self.out(y))


class RelativeBias(nn.Module):
    """A learned bias for each head and distance, looked up by an index in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed = nn.Linear(5, 24)
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))
        self.bias = nn.Parameter(torch.randn(63, 4))
        steps = torch.arange(32)
        self.register_buffer("index", steps[:, None] - steps[None] + 31)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = (t(x).view(b, n, self.heads, -1).transpose(1, 2) for t in (self.q, self.k, self.v))
        bias = self.bias[self.index[:n, :n].reshape(-1)].view(n, n, -1).permute(2, 0, 1)
        weights = (q @ k.transpose(2, 3) * 0.4 + bias.unsqueeze(0)).softmax(-1)
        return self.head(x + self.o((weights @ v).transpose(1, 2).reshape(b, n, -1)))


class VisionTransformer(nn.Module):
    """Patches, a class token, pre-norm blocks with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 24
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.cls, self.positions = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 5, 24))
        self.norm1, self.norm2, self.last = nn.LayerNorm(24), nn.LayerNorm(24), nn.LayerNorm(24)
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.scale1, self.scale2 = nn.Parameter(torch.rand(24)), nn.Parameter(torch.rand(24))
        self.up, self.down, self.head = nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.positions
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + self.scale1 * self.proj(y)
        x = x + self.scale2 * self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(self.last(x)[:, 0])


class LinearAttention(nn.Module):
    """Attention without softmax: keys and values are summed first."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.inner = 4, 24
        self.embed = nn.Linear(5, 16)
        self.q, self.k, self.v = (nn.Linear(16, 24) for _ in range(3))
        self.out, self.head = nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        context = torch.einsum("bhnd,bhne->bhde", k, v)
        norm = torch.einsum("bhnd,bhd->bhn", q, k.sum(dim=2))
        y = torch.einsum("bhnd,bhde->bhne", q, context) / norm.unsqueeze(-1)
        return self.head(x + self.out(y.transpose(1, 2).reshape(b, n, self.inner)))


class Perceiver(nn.Module):
    """Learned latents that read a long input; two attentions that share one set of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, 16))
        self.embed, self.q, self.kv = nn.Linear(5, 12), nn.Linear(16, 20), nn.Linear(12, 40)
        self.out, self.head = nn.Linear(20, 16), nn.Linear(16, 3)

    def read(self, latents: Tensor, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, dim=-1)
        scores = torch.baddbmm(torch.zeros(1, 1, 1, dtype=x.dtype), self.q(latents), k.transpose(1, 2), alpha=0.3)
        return latents + self.out(torch.bmm(scores.softmax(-1), v))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        latents = self.latents.unsqueeze(0).expand(x.size(0), -1, -1)
        latents = self.read(self.read(latents, x), x)
        return self.head(latents.mean(dim=1))


class Pointer(nn.Module):
    """Additive attention: scores by a vector, a context vector by bmm."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.query, self.v = nn.Linear(6, 12), nn.Linear(5, 12, bias=False), nn.Linear(12, 1, bias=False)
        self.values, self.head = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.v(torch.tanh(self.keys(x) + self.query(q).unsqueeze(1))).squeeze(-1)
        weights = functional.softmax(scores, dim=1)
        context = torch.sum(weights.unsqueeze(-1) * self.values(x), dim=1)
        return self.head(context), weights
