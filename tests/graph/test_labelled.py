"""Types read off labels: by name for a table of operators, and by deletion for random calls of them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.graph.axes import Axis, Concat, DimType, Fixed, Product, leaves, positions
from secateur.graph.groups import structure
from secateur.graph.labels import Call, Operand, places
from secateur.graph.reading import Reading, follow, read
from secateur.graph.rules.labelled import COUNTING
from secateur.graph.settle import count
from secateur.graph.trace import trace
from secateur.surgery.cut import cut
from secateur.surgery.mask import mask
from secateur.surgery.plan import plan

ATEN = torch.ops.aten
Shape = tuple[int, ...]


def call_of(target: Any, *args: Any) -> Call:
    """The call `target(*args)`, a shape standing for each tensor."""
    shapes: list[Shape] = []

    def operand(value: Any) -> Any:
        if isinstance(value, tuple):
            shapes.append(value)
            return Operand(len(shapes) - 1)
        return [operand(v) for v in value] if isinstance(value, list) else value

    schema = target._schema.arguments
    named = {a.name: a.default_value for a in schema}
    named |= dict(zip(named, map(operand, args), strict=False))
    return Call(target, named, tuple(shapes))


def reading_of(call: Call) -> Reading:
    found = read(call)
    assert found is not None
    axes = {a.id for dims in (*found.operands, *found.results) for dim in dims for a in leaves(dim)}
    return follow(call, found, frozenset(axes), COUNTING)


def in_words(reading: Reading) -> str:
    """Axes by letters in the order in which they occur: `a4` is an axis of four, `4` four that stay."""
    letters: dict[int, str] = {}

    def word(dim: DimType) -> str:
        match dim:
            case Axis(id_, size):
                return letters.setdefault(id_, "abcdefghijklmnopqrstuvwxyz"[len(letters)]) + str(size)
            case Fixed(size):
                return str(size)
            case Product(factors):
                return "x".join(map(word, factors))
            case Concat(parts):
                return "|".join(map(word, parts))

    def side(tensors: Sequence[tuple[DimType, ...]]) -> str:
        return ", ".join(" ".join(map(word, dims)) for dims in tensors)

    text = f"{side(reading.operands)} -> {side(reading.results)}"
    for c in reading.counted:
        text += f"; {c.argument}{'' if c.index is None else c.index}={'-' if c.sign < 0 else ''}{word(c.dim)}"
    return text + "".join("; " + "~".join(map(word, family)) for family in reading.families)


IMAGE = (2, 8, 6, 5)
EXPECTED: list[tuple[Any, list[Any], str]] = [
    (ATEN.pixel_shuffle.default, [IMAGE, 2], "a2 b2x2x2 c6 d5 -> a2 b2 c6x2 d5x2"),
    (ATEN.pixel_unshuffle.default, [(2, 3, 6, 4), 2], "a2 b3 c3x2 d2x2 -> a2 b3x2x2 c3 d2"),
    (ATEN.channel_shuffle.default, [IMAGE, 4], "a2 b4xc2 d6 e5 -> a2 c2xb4 d6 e5; groups=b4"),
    (ATEN.roll.default, [IMAGE, [3], [1]], "a2 b5|c3 d6 e5 -> a2 c3|b5 d6 e5; shifts0=c3"),
    (ATEN.roll.default, [(4, 3), [1]], "4 3 -> 4 3"),
    (ATEN.flip.default, [IMAGE, [1, 3]], "a2 8 b6 5 -> a2 8 b6 5"),
    (ATEN.im2col.default, [IMAGE, [3, 3], [1, 1], [1, 1], [1, 1]], "a2 b8 6 5 -> a2 b8x9 30"),
    (ATEN.unfold.default, [(4, 8), 1, 4, 4], "a4 b2x4 -> a4 b2 4"),
    (ATEN.unfold.default, [(4, 8), 1, 4, 2], "a4 8 -> a4 3 4"),
    (ATEN.unfold.default, [(4, 9), 1, 2, 3], "a4 9 -> a4 3 2"),
    (ATEN.rot90.default, [(4, 3, 5), 1, [1, 2]], "a4 b3 5 -> a4 5 b3"),
    (ATEN.movedim.int, [IMAGE, 1, -1], "a2 b8 c6 d5 -> a2 c6 d5 b8"),
    (ATEN.narrow.default, [(9, 4), 0, 2, 3], "a2|b3|c4 d4 -> b3 d4; start=a2; length=b3"),
    (ATEN.narrow.default, [(9, 4), 0, -3, 3], "a6|b3 c4 -> b3 c4; start=-b3; length=b3"),
    (ATEN.diagonal.default, [(4, 3, 3), 0, 1, 2], "a4 3 3 -> a4 3"),
    (ATEN.tril.default, [(4, 3, 3)], "a4 3 3 -> a4 3 3"),
    (ATEN.repeat_interleave.self_int, [(2, 5), 3, 1], "a2 b5 -> a2 b5xc3; repeats=c3"),
    (ATEN.tile.default, [(2, 5), [1, 3]], "a2 b5 -> a2 3xb5"),
    (
        ATEN.constant_pad_nd.default,
        [(2, 5, 7), [2, 0, 3, 4], 0],
        "a2 b5 c7 -> a2 d3|b5|e4 f2|c7; pad2=d3; pad3=e4; pad0=f2",
    ),
    (ATEN.constant_pad_nd.default, [(2, 9), [-2, 3], 5], "a2 b2|c7 -> a2 c7|d3; pad0=-b2; pad1=d3"),
    (ATEN.reflection_pad1d.default, [(2, 4), [2, 1]], "a2 4 -> a2 7"),
    (ATEN.hstack.default, [[(2, 3), (2, 4)]], "a2 b3, a2 c4 -> a2 b3|c4"),
    (ATEN.vstack.default, [[(2, 3), (5, 3)]], "a2 b3, c5 b3 -> a2|c5 b3"),
    (ATEN.column_stack.default, [[(4,), (4, 3)]], "a4, a4 b3 -> a4 1|b3"),
    (ATEN.tensor_split.sections, [(2, 6), 2, 1], "a2 b3|c3 -> a2 b3, a2 c3; b3~c3"),
    (ATEN.tensor_split.sections, [(2, 8), 3, 1], "a2 3|3|2 -> a2 3, a2 3, a2 2"),
    (ATEN.tensor_split.indices, [(9,), [2, 5]], "a2|b3|c4 -> a2, b3, c4; indices0=a2; indices1=a2|b3"),
    (ATEN.unsafe_split.Tensor, [(8,), 4], "a4|b4 -> a4, b4; split_size=a4; a4~b4"),
    (ATEN.slice_scatter.default, [(9,), (3,), 0, 2, 5], "a2|b3|c4, d3 -> a2|d3|c4; start=a2; end=a2|b3; b3~d3"),
    (ATEN.select_scatter.default, [(9, 4), (4,), 0, 5], "5|1|a3 b4, b4 -> 5|1|a3 b4"),
    (ATEN.block_diag.default, [[(2, 3), (4, 5)]], "a2 b3, c4 d5 -> a2|c4 b3|d5"),
    (ATEN.slice_copy.Tensor, [(8,), 0, 1, None, 2], "a4x2 -> a4"),
    (ATEN.slice_copy.Tensor, [(8,), 0, 0, None, 3], "8 -> 3"),
    (ATEN.view_copy.default, [(6, 4), [2, 3, 4]], "a2xb3 c4 -> a2 b3 c4; size0=a2; size1=b3; size2=c4"),
    (ATEN.view_copy.default, [(6, 4), [4, 6]], "6 4 -> 4 6"),
    (ATEN.permute_copy.default, [(2, 3, 4), [2, 0, 1]], "a2 b3 c4 -> c4 a2 b3"),
    (
        ATEN.col2im.default,
        [(2, 12, 6), [4, 6], [2, 2], [1, 1], [0, 0], [2, 2]],
        "a2 b3x2x2 c2xd3 -> a2 b3 c2x2 d3x2; output_size0=c2x2; output_size1=d3x2",
    ),
]


@pytest.mark.parametrize(
    ("target", "args", "expected"), EXPECTED, ids=lambda v: str(v) if not isinstance(v, list) else ""
)
def test_types_are_what_people_would_write(target: Any, args: list[Any], expected: str) -> None:
    assert in_words(reading_of(call_of(target, *args))) == expected


def test_what_computes_is_not_moved() -> None:
    for target, args in [
        (ATEN.cumsum.default, [(4,), 0]),
        (ATEN.avg_pool1d.default, [(1, 2, 4), [2]]),
        (ATEN.max_pool1d.default, [(1, 2, 4), [2]]),
        (ATEN.sort.default, [(4,)]),
        (ATEN.upsample_linear1d.vec, [(1, 1, 4), None, False, [2.0]]),
        (ATEN.col2im.default, [(1, 18, 16), [4, 4], [3, 3], [1, 1], [1, 1], [1, 1]]),
        (ATEN.relu.default, [(4,)]),
        (ATEN.abs.default, [(4,)]),
    ]:
        assert read(call_of(target, *args)) is None, target


def test_padding_of_the_value_of_a_label_is_no_element() -> None:
    for value in (0.0, 1.5, 2.5, math.nan, -math.inf):
        call = call_of(ATEN.constant_pad_nd.default, (3,), [1, 1], value)
        found = places(call)
        assert found is not None
        assert found[0].tolist() == [-1, 0, 1, 2, -1]


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A random call of an operator that moves elements."""
    rank = draw(st.integers(2, 4))
    shape = tuple(draw(st.sampled_from([1, 2, 3, 4, 6])) for _ in range(rank))
    dim = draw(st.integers(0, rank - 1))
    size = shape[dim]
    first = draw(st.integers(0, size - 1))
    length = draw(st.integers(1, size - first))
    other = draw(st.integers(0, rank - 1).filter(lambda k: k != dim))
    few = st.integers(1, 3)
    beside = (*shape[:dim], draw(few), *shape[dim + 1 :])
    part = (*shape[:dim], length, *shape[dim + 1 :])
    pads = draw(st.lists(st.integers(-1, 3), min_size=4, max_size=4))
    order = draw(st.permutations(range(rank)))
    chosen = draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=4))
    r = draw(st.integers(1, 3))
    n, c, h, w = (draw(few) for _ in range(4))
    options: list[tuple[Any, list[Any]]] = [
        (ATEN.roll.default, [shape, [draw(st.integers(-3, 3)), 1], [dim, other]]),
        (ATEN.roll.default, [shape, [first]]),
        (ATEN.flip.default, [shape, [dim]]),
        (ATEN.rot90.default, [shape, draw(st.integers(0, 3)), [dim, other]]),
        (ATEN.narrow.default, [shape, dim, first, length]),
        (ATEN.narrow.default, [shape, dim, first - size, length]),
        (ATEN.movedim.int, [shape, dim, other]),
        (ATEN.diagonal.default, [shape, draw(st.integers(-1, 1)), dim, other]),
        (ATEN.diag_embed.default, [shape[1:]]),
        (ATEN.tril.default, [shape, draw(st.integers(-1, 1))]),
        (ATEN.repeat_interleave.self_int, [shape, draw(few), dim]),
        (ATEN.tile.default, [shape, [draw(few) for _ in shape]]),
        (ATEN.constant_pad_nd.default, [shape, pads, 1.0]),
        (ATEN.unfold.default, [shape, dim, length, draw(few)]),
        (ATEN.tensor_split.sections, [shape, draw(few), dim]),
        (ATEN.tensor_split.indices, [shape, [first, first + length], dim]),
        (ATEN.unsafe_split.Tensor, [shape, length, dim]),
        (ATEN.slice_scatter.default, [shape, part, dim, first, first + length]),
        (ATEN.select_scatter.default, [shape, (*shape[:dim], *shape[dim + 1 :]), dim, first]),
        (ATEN.slice_copy.Tensor, [shape, dim, first, None, draw(few)]),
        (ATEN.select_copy.int, [shape, dim, draw(st.sampled_from([first, first - size]))]),
        (ATEN.permute_copy.default, [shape, list(order)]),
        (ATEN.view_copy.default, [shape, [math.prod(shape[:dim]), -1]]),
        (ATEN.view_copy.default, [shape, [2, -1]] if math.prod(shape) % 2 == 0 else [shape, [-1]]),
        (ATEN.expand_copy.default, [(1, *shape), [r, *shape]]),
        (ATEN.hstack.default, [[(2, 3, 4), (2, draw(few), 4)]]),
        (ATEN.cat.default, [[shape, beside, shape], dim]),
        (ATEN.stack.default, [[shape, shape], dim]),
        (ATEN.block_diag.default, [[shape[:2], shape[-2:]]]),
        (ATEN.meshgrid.default, [[shape[:1], shape[-1:]]]),
        (ATEN.broadcast_tensors.default, [[shape, shape[1:]]]),
        (ATEN.index.Tensor, [shape, [None] * dim + [torch.tensor(chosen)]]),
        (ATEN.index_select.default, [shape, dim, torch.tensor([k % size for k in chosen])]),
        (ATEN.pixel_shuffle.default, [(n, c * r * r, h, w), r]),
        (ATEN.pixel_unshuffle.default, [(n, c, h * r, w * r), r]),
        (ATEN.channel_shuffle.default, [(n, c * r, h, w), r]),
        (ATEN.im2col.default, [(n, c, h + 2, w + 2), [r, 2], [1, 1], [draw(st.integers(0, 1)), 0], [1, draw(few)]]),
        (ATEN.col2im.default, [(n, c * 4, h * w), [h * 2, w * 2], [2, 2], [1, 1], [0, 0], [2, 2]]),
        (ATEN.reflection_pad1d.default, [(n, c, h + 2), [r % 2, 2]]),
        (ATEN.replication_pad2d.default, [(n, c, h, w), [r, 0, 1, 2]]),
    ]
    target, args = draw(st.sampled_from(options))
    return call_of(target, *args)


@settings(max_examples=300, deadline=None)
@given(calls(), st.data())
def test_deleting_before_is_deleting_after(call: Call, data: st.DataObject) -> None:
    """Any units of any free axes: the operator on what is left gives what is left of its results."""
    try:
        found = places(call)
    except (RuntimeError, IndexError):
        return
    assert found is not None
    reading = reading_of(call)
    axes = {a.id: a for dims in (*reading.operands, *reading.results) for dim in dims for a in leaves(dim)}
    rows = {id_: tuple(a.id for a in family) for family in reading.families for id_ in [a.id for a in family]}
    widths: dict[int, int] = {}
    for id_, axis in axes.items():
        left = data.draw(st.integers(1, axis.size))
        widths |= dict.fromkeys(rows.get(id_, (id_,)), left)
    kept = {id_: sorted(data.draw(st.permutations(range(a.size)))[: widths[id_]]) for id_, a in axes.items()}
    assert all(a.size > 1 for a in axes.values())

    def smaller(tensor: Tensor, dims: tuple[DimType, ...]) -> Tensor:
        for number, dim in enumerate(dims):
            keep = torch.ones(dim.size, dtype=torch.bool)
            for id_, where in positions(dim).items():
                gone = sorted(set(range(len(where))) - set(kept[id_]))
                keep[where[gone].flatten()] = False
            tensor = tensor[(slice(None),) * number + (keep,)]
        return tensor

    tensors = [torch.rand(shape) for shape in call.shapes]
    changed = {(c.argument, c.index): c.sign * count(c.dim, widths) for c in reading.counted}
    whole = call.run(tensors)
    got = call.run([smaller(t, dims) for t, dims in zip(tensors, reading.operands, strict=True)], changed)
    for a, b, dims in zip(got, whole, reading.results, strict=True):
        assert torch.equal(a, smaller(b, dims)), in_words(reading)


class Upscaler(nn.Module):
    """Everything that has no rule of its own, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 32, 1)
        self.up = nn.PixelShuffle(2)
        self.middle = nn.Conv2d(8, 12, 1)
        self.down = nn.PixelUnshuffle(2)
        self.shuffle = nn.ChannelShuffle(2)
        self.last = nn.Conv2d(48, 5, 1)
        self.patch = nn.Linear(108, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.up(self.wide(self.first(x).relu()))
        x = self.shuffle(self.middle(x.roll(1, 2).flip(3)).movedim(1, -1).movedim(-1, 1))
        patches = F.unfold(x, 3, stride=3).transpose(1, 2)
        return self.last(self.down(x)), self.patch(patches)


class Widening(nn.Module):
    """A shortcut that pads channels, by numbers that the block holds."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = 3, 5
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.inner(x.relu())
        result: Tensor = self.last(y + F.pad(x, (0, 0, 0, 0, self.before, self.after)))
        return result


class Chosen(nn.Module):
    """One channel scales all others."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.first, self.last, self.index = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), (index,)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        gate = y[:, 2] if self.index == (2,) else y[:, -2]
        result: Tensor = self.last(y * gate.unsqueeze(1))
        return result


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (Upscaler, {"first": 8, "wide": 8, "middle:channel_group": 2, "middle:channel": 6}),
        (partial(Chosen, 2), {"first": 5}),
        (partial(Chosen, -2), {"first": 6}),
        (Widening, {"first": 8, "inner:channel": 3, "inner:channel#2": 5}),
    ],
)
def test_networks_cut_as_they_mask(build: Callable[[], nn.Module], expected: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = build().double().eval()
    program = trace(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    groups = structure(program).groups
    assert {g.name: g.size for g in groups} == expected
    for sparsity in (0.3, 0.8):
        chosen = plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=sparsity)
        small, masked = cut(model, chosen, program=program), mask(model, chosen, program=program)
        fresh = torch.randn(3, 3, 6, 6, dtype=torch.float64)
        for a, b in zip(small(fresh), masked(fresh), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-12)
