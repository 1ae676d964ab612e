"""Heads of torch's own attention: the class that computes without asserting, and what cutting makes of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.graph.attention import HeadwiseAttention, bind_heads, release_heads, released
from secateur.surgery.cut import cut_model

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other widths": {"kdim": 5, "vdim": 7},
    "learned key": {"add_bias_kv": True, "batch_first": True},
    "zero key": {"add_zero_attn": True, "add_bias_kv": True},
}

CALLS: dict[str, dict[str, Any]] = {
    "weights": {},
    "each head's weights": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
    "mask": {"attn_mask": torch.eye(4, 6).bool()},
    "added mask, no weights": {"attn_mask": torch.arange(24.0, dtype=torch.float64).view(4, 6), "need_weights": False},
    "mask of each head": {"attn_mask": torch.rand(6, 4, 6, generator=torch.Generator().manual_seed(1)).double()},
    "padding": {"key_padding_mask": torch.tensor([[False] * 4 + [True] * 2, [False] * 6])},
    "padding and mask": {
        "key_padding_mask": torch.tensor([[False] * 4 + [True] * 2, [False] * 6]),
        "attn_mask": torch.eye(4, 6).bool(),
        "need_weights": False,
    },
}


def _inputs(attention: nn.MultiheadAttention) -> list[Tensor]:
    shapes = [(2, 4, 12), (2, 6, attention.kdim), (2, 6, attention.vdim)]
    tensors = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    return tensors if attention.batch_first else [t.transpose(0, 1) for t in tensors]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_headwise_attention_computes_what_torch_does(settings: str, call: str) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, **SETTINGS[settings]).double()
    inputs = _inputs(attention)
    expected = attention(*inputs, **CALLS[call])
    with released(attention):
        assert type(attention) is HeadwiseAttention
        got = attention(*inputs, **CALLS[call])
    assert type(attention) is nn.MultiheadAttention
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_unbatched_and_causal_calls_agree(causal: bool) -> None:
    attention = nn.MultiheadAttention(12, 3).double()
    x = torch.randn(4, 12, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64) if causal else None
    options = {"attn_mask": mask, "is_causal": causal}
    expected = [attention(x, x, x, need_weights=w, **options) for w in (True, False)]
    release_heads(attention)
    got = [attention(x, x, x, need_weights=w, **options) for w in (True, False)]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_a_causal_hint_without_a_mask_is_refused() -> None:
    attention = nn.MultiheadAttention(12, 3)
    release_heads(attention)
    x = torch.randn(2, 4, 12)
    with pytest.raises(RuntimeError, match="attn_mask"):
        attention(x, x, x, is_causal=True)


def test_dropout_acts_in_training_only() -> None:
    attention = nn.MultiheadAttention(12, 3, dropout=0.5)
    release_heads(attention)
    x = torch.randn(4, 2, 12)
    for weights in (True, False):
        first, second = (attention(x, x, x, need_weights=weights)[0] for _ in range(2))
        assert not torch.equal(first, second)
    attention.eval()
    assert torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])


class Named(nn.MultiheadAttention):
    """A subclass that computes what torch's class does."""


class Doubled(nn.MultiheadAttention):
    """A subclass with a forward pass of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result, weights = super().forward(*args, **kwargs)
        return 2 * result, weights


def test_a_subclass_with_a_forward_of_its_own_is_left_alone() -> None:
    assert release_heads(Doubled(6, 2)) == {}
    attention = Named(6, 2)
    with released(attention):
        assert type(attention) is HeadwiseAttention
    assert type(attention) is Named and "torch_class" not in vars(attention)


@pytest.mark.parametrize("kind", [Named, Doubled])
def test_heads_of_a_subclass_go_alone_only_where_its_forward_is_torchs(kind: type[nn.MultiheadAttention]) -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Linear(4, 12), kind(12, 2, batch_first=True), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(self.mix(x, x, x, need_weights=False)[0])

    torch.manual_seed(0)
    model, x = Mixing().double().eval(), torch.randn(2, 5, 4).double()
    program = sc.trace(model, (x,))
    own = {g.granularity: g for g in sc.find_groups(program) if g.name.startswith("mix.in_proj")}
    assert ({"head", "head_dim"} <= own.keys()) == (kind is Named)
    if kind is Named:
        plan = sc.plan([own["head_dim"]], {own["head_dim"].name: torch.rand(24)}, sparsity={own["head_dim"].name: 0.5})
        made = cut_model(model, plan, program=program)
        assert made.verified and (made.model.mix.num_heads, made.model.mix.head_dim) == (2, 3)


class Classifier(nn.Module):
    """An encoder over padded tokens, read at the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        layer = nn.TransformerEncoderLayer(12, 4, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0)[:, 0])


TOKENS = torch.tensor([[3, 5, 7, 0, 0], [2, 4, 6, 8, 10]])


def _cut(model: nn.Module, sparsity: dict[str, float]) -> tuple[Any, nn.Module, sc.Plan]:
    program = sc.trace(model, (TOKENS,))
    groups = sc.find_groups(program)
    chosen = {g.name: sparsity[kind] for g in groups for kind in (g.name, g.granularity) if kind in sparsity}
    torch.manual_seed(1)
    plan = sc.plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=chosen)
    return cut_model(model, plan, program=program), sc.mask(model, plan, program=program), plan


def test_heads_of_an_encoder_are_cut_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier().double().eval()
    made, masked, plan = _cut(model, {"head": 0.5, "head_dim": 0.3})
    small = made.model
    attention = small.encoder.layers[0].self_attn
    assert isinstance(attention, HeadwiseAttention)
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (2, 3, 12) or attention.head_dim < 3
    assert attention.in_proj_weight.shape == (3 * attention.num_heads * attention.head_dim, 12)
    assert list(small.state_dict()) == list(model.state_dict())
    assert [note.where for note in made.replaced] == [f"encoder.layers.{k}.self_attn" for k in (0, 1)]
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(small(TOKENS), masked(TOKENS), rtol=1e-9, atol=1e-9)
    sc.save(small, tmp_path, original=model, plan=plan)
    loaded = sc.load(lambda: Classifier().double().eval(), tmp_path)
    torch.testing.assert_close(loaded(TOKENS), small(TOKENS), rtol=0, atol=0)


def test_an_attention_that_still_fits_stays_torchs() -> None:
    made, _, _ = _cut(Classifier().eval(), {"encoder.layers.0.linear1": 0.5})
    assert made.replaced == ()
    assert type(made.model.encoder.layers[0].self_attn) is nn.MultiheadAttention


def test_heads_that_fill_a_smaller_width_go_back_to_torch() -> None:
    attention = nn.MultiheadAttention(12, 3)
    released_one = release_heads(attention)[""]
    released_one.num_heads = 2
    assert bind_heads(attention) == ("",)
    released_one.num_heads = 3
    assert bind_heads(attention) == ()
    assert "scale" not in vars(attention)


def test_tracing_leaves_torchs_class_in_place() -> None:
    model = Classifier().eval()
    sc.trace(model, (TOKENS,))
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention
    assert model.encoder.use_nested_tensor
