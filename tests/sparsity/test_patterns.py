"""Counts are exact, best scores stay, ties do not matter."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from secateur.errors import ArgumentError, NumericalError
from secateur.sparsity.patterns import NM, Blocks, Pattern, Unstructured, pattern_named, removed

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 13))
LEVELS = st.floats(0, 1)


def scores_of(shape: tuple[int, ...], seed: int) -> Tensor:
    """Many ties."""
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


@given(SHAPES, LEVELS, st.integers(0, 99))
def test_unstructured_removes_exactly_and_the_lowest(shape: tuple[int, ...], level: float, seed: int) -> None:
    scores = scores_of(shape, seed)
    keep = Unstructured().keep(scores, level)
    assert int((~keep).sum()) == removed(scores.numel(), level)
    if bool(keep.any()) and not bool(keep.all()):
        assert scores[~keep].max() <= scores[keep].min()


@given(SHAPES, LEVELS, st.integers(0, 99))
def test_per_row_each_row_loses_equally_many(shape: tuple[int, ...], level: float, seed: int) -> None:
    scores = scores_of(shape, seed)
    keep = Unstructured(per_row=True).keep(scores, level)
    assert ((~keep).sum(2) == removed(shape[2], level)).all()


@given(SHAPES, st.integers(1, 4), st.integers(0, 4), st.integers(0, 99))
def test_n_of_every_m_stay_and_they_are_the_best(shape: tuple[int, ...], n: int, more: int, seed: int) -> None:
    scores = scores_of(shape, seed)
    pattern = NM(n, n + more)
    keep = pattern.keep(scores, 1 - n / (n + more))
    for start in range(0, shape[2], pattern.m):
        run, kept = scores[..., start : start + pattern.m], keep[..., start : start + pattern.m]
        best = min(n, run.shape[2])
        assert (kept.sum(2) == best).all()
        assert torch.equal((run * kept).sum(2), run.topk(best, dim=2).values.sum(2))
    assert pattern.keep(scores, 0.0).all()


@given(SHAPES, st.integers(1, 3), st.integers(1, 4), LEVELS, st.integers(0, 99))
def test_blocks_go_whole(shape: tuple[int, ...], rows: int, columns: int, level: float, seed: int) -> None:
    scores = scores_of(shape, seed)
    keep = Blocks(rows, columns).keep(scores, level)
    kept, gone = [], []
    for g in range(shape[0]):
        for r in range(0, shape[1], rows):
            for c in range(0, shape[2], columns):
                block = keep[g, r : r + rows, c : c + columns]
                assert block.all() or not block.any()
                (kept if bool(block.all()) else gone).append(float(scores[g, r : r + rows, c : c + columns].mean()))
    assert len(gone) == removed(len(gone) + len(kept), level)
    if kept and gone:
        assert max(gone) <= min(kept) + 1e-12


@pytest.mark.parametrize("pattern", [Unstructured(), Unstructured(per_row=True), NM(2, 4), Blocks(2, 3)])
def test_patterns_are_found_by_name_and_refuse_what_they_cannot(pattern: Pattern) -> None:
    assert pattern_named(str(pattern)) == pattern
    with pytest.raises(ArgumentError, match="0, 1"):
        pattern.keep(torch.ones(1, 2, 4), 1.5)
    with pytest.raises(NumericalError, match="NaN"):
        pattern.keep(torch.full((1, 2, 4), torch.nan), 0.5)


def test_a_pattern_that_does_not_exist_is_named() -> None:
    with pytest.raises(ArgumentError, match="4 of 2"):
        NM(4, 2)
    with pytest.raises(ArgumentError, match=r"2:4 has a sparsity of 0\.5"):
        NM(2, 4).keep(torch.ones(1, 1, 4), 0.7)
    with pytest.raises(ArgumentError, match="diagonal"):
        pattern_named("diagonal")
    with pytest.raises(ArgumentError, match="0 x 2"):
        Blocks(0, 2)
