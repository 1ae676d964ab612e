"""Multi-head attention whose heads may be of any number and size.

`nn.MultiheadAttention` asserts that its heads fill its width exactly, so none of them could go. While a
model is traced, and when it is cut so that the heads no longer fill the width, such a module computes
with the class below instead: same parameters under the same names, same call, same results. A subclass whose
`forward` is its own keeps torch's constraint: what it computes is not ours to say, so its heads go only with the
width of their stream.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.graph.copies import become


class HeadwiseAttention(nn.Module):
    """What `nn.MultiheadAttention` computes, with a number and a size of heads of their own.

    A module of torch's class becomes one of this by `release_heads`, and keeps its attributes.

    In an encoder that is given a padding mask, padded positions hold what attention gives there, as they do in
    torch's own encoder while gradients are taken. Torch's fused layers, in inference, leave zeros there: whoever
    reads such positions, as a mean over all of them does, gets other numbers with either.

    Attributes:
        embed_dim: width of the queries.
        kdim: width of the keys.
        vdim: width of the values.
        num_heads: number of heads.
        head_dim: size of each.
        scale: what products of queries and keys are multiplied by; that of the heads as they were at first.
        torch_class: what the module was before.
    """

    embed_dim: int
    kdim: int
    vdim: int
    num_heads: int
    head_dim: int
    scale: float
    torch_class: type[nn.MultiheadAttention]
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    bias_k: Tensor | None
    bias_v: Tensor | None
    out_proj: nn.Linear

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """Keeps torch's fused encoder layer, which cuts the width into heads itself, from taking over."""
        return False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results are those of `nn.MultiheadAttention.forward`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask: pass attn_mask too")
        is_batched = query.dim() == 3
        if not is_batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        q, k, v = (self._batch_first(t, is_batched) for t in self._projected(query, key, value))
        is_hint_enough = is_causal and key_padding_mask is None and not need_weights
        q, k, v, extra = self._split(q, k, v)
        mask = None if is_hint_enough else self._mask(attn_mask, key_padding_mask, extra, q.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            products = (q * self.scale) @ k.transpose(-2, -1)
            weights = functional.softmax(products if mask is None else products + mask, dim=-1)
            weights = functional.dropout(weights, dropout) if dropout else weights
            mixed = weights @ v
        else:
            mixed = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=is_hint_enough, scale=self.scale
            )
        result = self._as_given(self.out_proj(mixed.transpose(1, 2).flatten(2)), is_batched)
        if weights is None:
            return result, None
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return result, weights if is_batched else weights.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.in_proj_weight is not None and query is key and key is value:
            q, k, v = functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
            return q, k, v
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        given = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (functional.linear(t, weight, bias) for t, weight, bias in given)
        return q, k, v

    def _batch_first(self, tensor: Tensor, is_batched: bool) -> Tensor:
        if not is_batched:
            return tensor.unsqueeze(0)
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _as_given(self, tensor: Tensor, is_batched: bool) -> Tensor:
        if not is_batched:
            return tensor.squeeze(0)
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _split(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Heads as a dimension, learned and zero keys put behind the others; and how many these are."""
        extra = 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], dim=1)
            extra = 1
        q, k, v = (torch.unflatten(t, -1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        if self.add_zero_attn:
            k, v = (torch.cat([t, torch.zeros_like(t[:, :, :1])], dim=2) for t in (k, v))
            extra += 1
        return q, k, v, extra

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, extra: int, dtype: torch.dtype
    ) -> Tensor | None:
        """Both masks as one that is added, (batch or 1, heads or 1, queries or 1, keys)."""
        masks = []
        if attn_mask is not None:
            is_one = attn_mask.dim() == 2
            masks.append(attn_mask[None, None] if is_one else torch.unflatten(attn_mask, 0, (-1, self.num_heads)))
        if key_padding_mask is not None:
            masks.append(key_padding_mask[:, None, None])
        added = [functional.pad(_added(mask, dtype), (0, extra)) for mask in masks]
        return None if not added else added[0] if len(added) == 1 else added[0] + added[1]


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added: a bool one says where not to attend."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def release_heads(model: nn.Module) -> dict[str, HeadwiseAttention]:
    """Let every `nn.MultiheadAttention` in `model` compute headwise, in place; path -> what it became.

    >>> attention = nn.MultiheadAttention(6, 2)
    >>> list(release_heads(attention)), type(attention).__name__
    ([''], 'HeadwiseAttention')
    """
    found: dict[str, HeadwiseAttention] = {}
    for path, module in model.named_modules():
        # A subclass may compute something else.
        if isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward:
            vars(module).update(scale=module.head_dim**-0.5, torch_class=type(module))
            found[path] = become(module, HeadwiseAttention)
    return found


def bind_heads(model: nn.Module) -> tuple[str, ...]:
    """Give every attention back to its own class, in place, where its heads fill its width; paths of the others.

    An encoder that holds one of these no longer packs its sequences: only torch's fused layers read such tensors.

    >>> attention = nn.MultiheadAttention(6, 2)
    >>> _ = release_heads(attention)
    >>> bind_heads(attention), type(attention).__name__
    ((), 'MultiheadAttention')
    """
    left = []
    for path, module in model.named_modules():
        if isinstance(module, HeadwiseAttention):
            if fits_torch(module):
                _to_torch(module)
            else:
                left.append(path)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            layers = [m for layer in module.layers for m in layer.modules()]
            if any(isinstance(m, HeadwiseAttention) for m in layers):
                module.use_nested_tensor = False
    return tuple(left)


def fits_torch(module: HeadwiseAttention) -> bool:
    """Whether heads of the usual scale fill the width of queries and of results."""
    inner, width = module.num_heads * module.head_dim, module.embed_dim
    out, into = module.out_proj.weight.shape
    return inner == width == out == into and module.scale == module.head_dim**-0.5


def _to_torch(module: HeadwiseAttention) -> None:
    kind = module.torch_class
    del module.scale, module.torch_class
    become(module, kind)


@contextlib.contextmanager
def released(model: nn.Module) -> Iterator[None]:
    """Let the attention of `model` compute headwise meanwhile."""
    found = release_heads(model)
    try:
        yield
    finally:
        for module in found.values():
            _to_torch(module)


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Switch torch's fused transformer layers off: they hide their operators, and leave padding at zero."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
